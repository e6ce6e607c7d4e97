"""The order of the house: rooms import only rooms below them, on few floors, and nobody imports the package itself."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lit_distill

PACKAGE = Path(lit_distill.__file__).parent
FLOORS = 12


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path, *, lazy: bool) -> Iterator[str]:
    """The modules of the package that a file imports at run time, those within functions only where ``lazy``."""
    left: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef) and not lazy:
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom) and node.module in FILES:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in FILES else node.module for name in names)
        left += ast.iter_child_nodes(node)


def arrows(modules: Iterable[str], *, below: str, lazy: bool) -> dict[str, set[str]]:
    """Which rooms each room imports; a room is a file or a folder of the package ``below``."""

    def room(module: str) -> str:
        return module.removeprefix(f"{below}.").partition(".")[0]

    found: dict[str, set[str]] = {}
    for module in modules:
        inside = {name for name in imports(FILES[module], lazy=lazy) if name.startswith(f"{below}.")}
        found.setdefault(room(module), set()).update({room(name) for name in inside} - {room(module)})
    return found


def floors(rooms: dict[str, set[str]]) -> int:
    """How many rooms the longest chain of imports has; a cycle raises."""
    height: dict[str, int] = {}
    for room in TopologicalSorter(rooms).static_order():
        height[room] = 1 + max((height[other] for other in rooms.get(room, ())), default=0)
    return max(height.values())


def test_rooms_import_only_rooms_below_them_on_few_floors() -> None:
    modules = [module for module in FILES if module not in ("lit_distill", "lit_distill.__main__")]
    assert floors(arrows(modules, below="lit_distill", lazy=True)) <= FLOORS


@pytest.mark.parametrize("package", sorted({name.rpartition(".")[0] for name in FILES if name.count(".") > 1}))
def test_no_file_of_a_folder_imports_in_a_circle(package: str) -> None:
    floors(arrows([name for name in FILES if name.startswith(f"{package}.")], below=package, lazy=False))


def test_nobody_inside_imports_the_package_itself() -> None:
    guilty = [name for name, path in FILES.items() if "lit_distill" in imports(path, lazy=True)]
    assert not guilty, "name the module: the package's __init__ is for users"


def test_a_circle_is_found() -> None:
    with pytest.raises(ValueError, match="nodes are in a cycle"):
        floors({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert floors({"a": {"b", "c"}, "b": {"c"}}) == 3
