"""Print constraints for pip: the oldest version that pyproject.toml admits of everything it asks for.

`make test-oldest` installs under them and runs a part of the suite there.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_BOUND = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)>=(?P<version>[0-9.]+)")


def oldest(pyproject: Path = PYPROJECT) -> Iterator[str]:
    """One `name==version` a requirement, of the core's and of all extras; what is not installed costs nothing."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project["optional-dependencies"].values()
    for requirement in [*project["dependencies"], *(one for extra in extras for one in extra)]:
        if requirement.startswith(project["name"]):
            continue
        bound = _BOUND.match(requirement)
        if bound is None:
            raise ValueError(f"{pyproject}: {requirement!r} has no lower bound: write <name>>=<version>")
        yield f"{bound['name']}=={bound['version']}"


if __name__ == "__main__":
    print("\n".join(oldest()))
