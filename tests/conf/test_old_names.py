"""What configs and programs of earlier versions name is there: targets, their arguments, options, public names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fixtures.make_names import CONF, HERE, arguments, located


@pytest.fixture(params=sorted(file.stem for file in HERE.iterdir()))
def before(request: pytest.FixtureRequest) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((HERE / f"{request.param}.json").read_text())
    return content


def test_every_target_takes_what_it_took(before: dict[str, Any]) -> None:
    lost = {target: sorted(set(given) - set(arguments(target))) for target, given in before["targets"].items()}
    assert not {target: gone for target, gone in lost.items() if gone}


REPLACED = {"data/moving_digits_small.yaml": "data/digits_few_labels.yaml"}
"""Other data by another name: what ran on the old ones would silently be another experiment."""


def test_every_option_of_a_group_is_there_or_is_replaced(before: dict[str, Any]) -> None:
    gone = [name for name in before["configs"] if not (CONF / name).is_file()]
    assert gone == list(REPLACED)
    assert all((CONF / name).is_file() for name in REPLACED.values())


def test_every_public_name_is_imported(before: dict[str, Any]) -> None:
    for package, public in before["public"].items():
        for name in public:
            assert located(f"{package}.{name}") is not None
