"""`make mutation` takes hours and is not part of the suite: that each mutation still applies is seen here."""

from __future__ import annotations

from .mutate import ROOT, read_mutations


def test_every_mutation_applies_and_names_tests_that_are_there() -> None:
    for mutation in read_mutations():
        mutation.mutated()
        for test in mutation.tests:
            file, _, name = test.partition("::")
            text = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
            assert (ROOT / file).exists(), f"{mutation.name}: no {file}"
            assert name.partition("[")[0].rpartition("::")[2] in text, f"{mutation.name}: no {test}"
