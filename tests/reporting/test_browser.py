"""In a real browser the page makes no errors, loads its pictures, and fits a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lit_distill.reporting import report as command
from run_folders import composed, video_overrides, video_root, write_run

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (found := shutil.which(name))),
    None,
)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--enable-logging=stderr",
    "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom",
]  # fmt: skip
MEASURE = """<!DOCTYPE html><body><iframe src="{page}" style="width:{width}px;height:800px;border:0"></iframe><script>
onload = () => {{
  const view = document.querySelector("iframe").contentDocument, root = view.documentElement;
  const wide = [...view.querySelectorAll("body *")].filter(element =>
    !element.closest(".scroll, svg") && element.getBoundingClientRect().right > root.clientWidth + 1);
  document.title = JSON.stringify({{
    width: root.clientWidth, content: root.scrollWidth, wide: wide.map(element => element.outerHTML.slice(0, 80)),
    pictures: view.images.length, broken: [...view.images].filter(image => !image.naturalWidth).length,
    background: getComputedStyle(view.body).backgroundColor,
  }});
}};
</script></body>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("browser")
    names = ("a", "W" * 70, "two words of it")
    overrides = [o for o in video_overrides(video_root(home / "videos")) if "class_names" not in o]
    run = write_run(home / "run", [*overrides, f"+data.class_names=[{','.join(names)}]"], class_names=names)
    (run / "metrics.csv").write_text("step,epoch,train/ce\n1,0,2.5\n2,0,nan\n3,0,1.5\n4,1,1.25\n")
    command.run(composed("report", "trainer=cpu", f"run={run}", "split=test", "cost_steps=1"))
    return run / "report.html"


def measured(page: Path, width: int, *flags: str) -> tuple[dict[str, Any], list[str]]:
    assert CHROMIUM is not None
    outer = page.with_name(f"measure_{width}.html")
    outer.write_text(MEASURE.format(page=page.name, width=width))
    profile = page.with_name(f"profile_{width}{len(flags)}")
    done = subprocess.run(
        [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", outer.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    shutil.rmtree(profile, ignore_errors=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title is not None, done.stderr[-2000:]
    return json.loads(html.unescape(title[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", [390, 1280])
def test_no_errors_and_nothing_wider_than_the_screen(page: Path, width: int) -> None:
    found, console = measured(page, width)
    assert console == []
    assert found["wide"] == []
    assert found["content"] == found["width"] == width
    assert found["pictures"] > 0
    assert found["broken"] == 0


def test_dark_mode_is_dark(page: Path) -> None:
    light, _ = measured(page, 390)
    dark, console = measured(page, 390, "--force-dark-mode")
    assert console == []
    assert light["background"] == "rgb(255, 255, 255)"
    assert max(map(int, re.findall(r"\d+", dark["background"]))) < 64
