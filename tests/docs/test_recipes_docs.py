"""docs/recipes.md has commands, which test_docs.py composes, and names every schedule."""

from __future__ import annotations

import re
from pathlib import Path

from lit_distill import schedules

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_the_page_has_commands() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.replace("\\\n", " "), re.DOTALL)
    assert sum("-m lit_distill.train " in line for block in blocks for line in block.splitlines()) >= 2


def test_every_schedule_has_its_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    public = {
        name for name, value in vars(schedules).items()
        if isinstance(value, type) and issubclass(value, schedules.Schedule) and value is not schedules.Schedule
    }  # fmt: skip
    assert {*rows, "Constant"} >= public
