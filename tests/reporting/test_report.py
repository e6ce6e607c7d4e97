"""`python -m lit_distill.report`: its figures are those of test and of loops by hand, its page needs nothing else."""

from __future__ import annotations

import base64
import io
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from lit_distill import report as door
from lit_distill._command.arguments import literal
from lit_distill._screen import percent
from lit_distill.inference import test as tested
from lit_distill.reporting import report as command
from lit_distill.reporting.charts import shown
from lit_distill.reporting.clips import changed
from lit_distill.reporting.evidence import Judged, Pair
from lit_distill.reporting.similarity import linear_cka, stage_features, stage_names
from lit_distill.runs.opened import load_run
from run_folders import VIDEOS, composed, video_overrides, video_root, write_run

HOSTILE = ("<script>alert(1)</script>", '"><img src=https://x.invalid/a onerror=alert(2)>', 'swim\' & "run"')
METRICS = {
    "train/ce": [1.5, 1.25], "val/ce": [1.0, 0.5], "val/Student/top1": [0.25, 0.75], "<b>own</b>": [3.0, 4.0],
    "grad/ce": [2.0, 1.0], "grad/dml": [0.5, 0.25], "grad_cos/ce/dml": [-0.5, 0.5],
}  # fmt: skip
VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """Which elements and attributes there are; tags have to be closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def overrides(root: Path, scale: float) -> list[str]:
    names = ",".join(map(literal, HOSTILE))
    return [
        *(o for o in video_overrides(root) if "class_names" not in o and "student_scale" not in o),
        f"+data.class_names=[{names}]", f"preset.student_scale={scale}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("report")
    root = video_root(home / "videos")
    runs = []
    for name, scale in (("one", 0.25), ("two", 0.5)):
        runs.append(write_run(home / name, overrides(root, scale), class_names=HOSTILE))
        rows = [
            ["step", "epoch", *METRICS],
            *([str(4 * n), str(n), *(str(m[n]) for m in METRICS.values())] for n in (0, 1)),
        ]
        (runs[-1] / "metrics.csv").write_text("".join(f"{','.join(row)}\n" for row in rows))
    return runs


def report_of(*given: str) -> tuple[dict[str, Any], str, str]:
    said = io.StringIO()
    result = command.run(composed("report", "trainer=cpu", "split=test", *given), console=Console(file=said, width=500))
    return result, Path(result["file"]).read_text(encoding="utf-8"), said.getvalue()


@pytest.fixture(scope="module")
def both(folders: list[Path]) -> tuple[dict[str, Any], str, str]:
    runs = ",".join(map(str, folders))
    return report_of(f"runs=[{runs}]", f"output={folders[0].parent}/both.html", "clips=3", "cost_steps=1")


def by_hand(folder: Path, model: str) -> tuple[torch.Tensor, torch.Tensor]:
    run = load_run(folder)
    network, data = run.model(model), run.data()
    data.setup("test")
    clips = torch.stack([data.datasets["test"][n][0] for n in range(len(VIDEOS))])  # type: ignore[attr-defined]
    inputs, *_ = data.on_after_batch_transfer((clips, torch.arange(len(VIDEOS)) % 3, torch.arange(len(VIDEOS))), 0)
    with torch.no_grad():
        return network(inputs).log_softmax(1), inputs


def test_figures_are_those_of_test(folders: list[Path], both: tuple[dict[str, Any], str, str]) -> None:
    result, page, _ = both
    assert list(result["models"]) == ["one · Student", "one · Teacher", "two · Student", "two · Teacher"]
    for label, figures in result["models"].items():
        folder, model = next(f for f in folders if f.name == label[:3]), label[6:]
        wanted = tested.run(composed("test", "trainer=cpu", f"run={folder}", f"model={model}"))
        assert figures["samples"] == wanted["samples"] == len(VIDEOS)
        for name in ("top1", "top5"):
            assert figures[name] == wanted[name]
            assert f"<td>{percent(wanted[name])}</td>" in page
        assert figures["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
        assert figures["ece"] == pytest.approx(wanted["calibration"]["ece"], abs=1e-6)
        assert f"{label}: ECE {percent(wanted['calibration']['ece'])}" in page
        assert [sum(row) for row in figures["confusion"]] == [row["samples"] for row in wanted["classes"]]


def test_agreement_and_kl_are_those_of_a_loop_by_hand(
    folders: list[Path], both: tuple[dict[str, Any], str, str]
) -> None:
    result, page, _ = both
    one, two = folders
    asked = {
        "two · Student after one · Student": ((one, "Student"), (two, "Student")),
        "one · Student after one · Teacher": ((one, "Teacher"), (one, "Student")),
        "two · Student after two · Teacher": ((two, "Teacher"), (two, "Student")),
    }
    assert list(result["pairs"]) == list(asked)
    for label, (a, b) in asked.items():
        log_a, log_b = by_hand(*a)[0], by_hand(*b)[0]
        same = (log_a.argmax(1) == log_b.argmax(1)).double().mean().item()
        kl = torch.nn.functional.kl_div(log_b, log_a, reduction="batchmean", log_target=True).item()
        assert result["pairs"][label] == pytest.approx({"agreement": same, "kl": kl}, rel=1e-3)
        assert f"<td>{percent(same)}</td><td>{kl:.3g}</td>" in page


def test_likeness_of_layers_is_that_of_their_features(
    folders: list[Path], both: tuple[dict[str, Any], str, str]
) -> None:
    _, page, _ = both
    found = []
    for name in ("Teacher", "Student"):
        network, inputs = load_run(folders[0]).model(name), by_hand(folders[0], name)[1]
        found.append(stage_features(network, inputs, stage_names(network)))
    teacher, student = found
    part = page.partition("one · Teacher (rows) and one · Student (columns)")[2].partition("</table>")[0]
    shown_values = [float(v) for v in re.findall(r'<td style="[^"]*">(-?[\d.]+)</td>', part)]
    wanted = [linear_cka(x, y, debiased=True) for x in teacher.values() for y in student.values()]
    assert shown_values == pytest.approx(wanted, abs=0.006)
    assert len(wanted) == 25


def test_the_page_stands_alone(both: tuple[dict[str, Any], str, str]) -> None:
    page = Page(both[1])
    assert not [tag for tag, _ in page.elements if tag in ("script", "iframe", "object", "embed", "base", "form")]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    links = page.attributes("src") + page.attributes("href") + page.attributes("srcset")
    assert all(link.startswith(("data:", "#")) for link in links)
    style = "".join(re.findall(r"<style>(.*?)</style>", both[1], re.DOTALL)) + "".join(page.attributes("style"))
    assert "url(" not in style
    assert "@import" not in style
    metas = [attributes for tag, attributes in page.elements if tag == "meta"]
    tags = {attributes.get("name") or attributes.get("http-equiv", ""): attributes for attributes in metas}
    assert tags["viewport"]["content"].startswith("width=device-width")
    assert tags["Content-Security-Policy"]["content"].startswith("default-src 'none'")
    identities = page.attributes("id")
    assert len(identities) == len(set(identities)) == 10
    assert [f"#{identity}" for identity in identities] == [link for link in page.attributes("href") if link[0] == "#"]


def test_hostile_names_are_text(both: tuple[dict[str, Any], str, str]) -> None:
    _, page, _ = both
    words = Page(page).words
    for name in (*HOSTILE, "<b>own</b>"):
        assert any(name in word for word in words), name
        assert shown(name) in page
    assert "<script" not in page
    assert "x.invalid" not in "".join(Page(page).attributes("src"))


def test_every_logged_figure_has_its_curve(both: tuple[dict[str, Any], str, str]) -> None:
    _, page, _ = both
    part = page.partition('<section id="curves">')[2].partition("</section>")[0]
    assert re.findall(r"<figcaption>(.*?)</figcaption>", part) == ["Student/top1", shown("<b>own</b>"), "ce"]
    assert part.count("<polyline") == 2 * 4
    assert "one train" in part
    assert "two val" in part
    gradients = page.partition('<section id="gradients">')[2].partition("</section>")[0]
    assert gradients.count("<polyline") == 2 * 3
    assert "ce and dml" in gradients


def test_clips_are_frames_of_those_that_changed(folders: list[Path], both: tuple[dict[str, Any], str, str]) -> None:
    _, page, _ = both
    target = torch.arange(len(VIDEOS)) % 3
    right = [by_hand(folder, "Student")[0].argmax(1) == target for folder in folders]
    for title, wanted in (("two · Student is right, one · Student is not", right[1] & ~right[0]),
                          ("one · Student is right, two · Student is not", right[0] & ~right[1])):  # fmt: skip
        part = page.partition(f"<h3>{title}</h3>")[2].partition("<h3>")[0].partition("</section>")[0]
        files = {int(name) for name in re.findall(r"(\d)\.mp4</figcaption>", part)}
        assert files <= {int(n) for n in wanted.nonzero()[:, 0]}
        assert len(files) == min(3, int(wanted.sum()))
        assert files or "no such sample" in part
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert pictures
    for picture in pictures:
        image = Image.open(io.BytesIO(base64.b64decode(picture)))
        assert image.size == (4 * 28 + 3 * 2, 28), "four frames and their gaps"


def test_where_a_step_spends_its_time_is_told(both: tuple[dict[str, Any], str, str]) -> None:
    part = both[1].partition('<section id="cost">')[2]
    for name in (
        "forward Student",
        "forward Teacher",
        "losses",
        "backward",
        "optimizer",
        "optimizer state",
        "activations",
    ):
        assert part.count(f">{name}</text>") == 2, f"{name}, of two runs"
    assert "not measured" not in part


def pair(target: list[int], p_a: list[float], p_b: list[float], *, within: bool) -> Pair:
    """Two classes; the probability that a and b give class 1."""
    logs = [torch.stack([1 - p, p], 1).log() for p in (torch.tensor(p_a), torch.tensor(p_b))]
    judged = [
        Judged(run=name, model="S", figures={}, log_probabilities=log, features={}, parameters=1, seconds=0.0)
        for name, log in zip("ab", logs, strict=True)
    ]

    home: Any = SimpleNamespace(data=SimpleNamespace(num_classes=3))
    return Pair(
        a=judged[0], b=judged[1], index=torch.arange(len(target)), target=torch.tensor(target), log_a=logs[0],
        log_b=logs[1], within=within, home=home,
    )  # fmt: skip


def test_changed_clips_come_in_the_order_of_the_change() -> None:
    between = pair([1, 1, 1, 0, 1], [0.4, 0.1, 0.9, 0.2, 0.6], [0.6, 0.9, 0.8, 0.7, 0.2], within=False)
    assert changed(between, 9) == [("b · S is right, a · S is not", [1, 0]), ("a · S is right, b · S is not", [3, 4])]
    assert [places for _, places in changed(between, 1)] == [[1], [3]]
    within = pair([1, 1, 1, 0, 1], [0.4, 0.1, 0.9, 0.2, 0.6], [0.6, 0.9, 0.8, 0.7, 0.2], within=True)
    assert changed(within, 2) == [("where b · S is furthest from a · S", [1, 3])]


def test_changes_by_class_and_divergence_by_hand() -> None:
    two = pair([1, 1, 0, 0], [0.4, 0.4, 0.3, 0.3], [0.6, 0.4, 0.3, 0.8], within=True)
    assert two.class_changes() == [(0, 2, -0.5), (1, 2, 0.5)]
    assert two.agreement == 0.5
    wanted = 0.4 * torch.tensor(0.4 / 0.6).log() + 0.6 * torch.tensor(0.6 / 0.4).log()
    assert two.divergences[0].item() == pytest.approx(wanted.item(), rel=1e-6)
    assert two.divergences[1].item() == 0.0


def test_one_run_without_curves_a_teacher_or_training_data_says_so(folders: list[Path], tmp_path: Path) -> None:
    run = shutil.copytree(folders[0], tmp_path / "run")
    (run / "metrics.csv").unlink()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"^frozen: .*$", "frozen: [Teacher]", text, flags=re.MULTILINE))
    for file in run.glob("checkpoints/*.ckpt"):
        stored = torch.load(file, weights_only=True)
        state = {key: value for key, value in stored["state_dict"].items() if not key.startswith("models.Teacher.")}
        torch.save({**stored, "state_dict": state}, file)
    result, page, said = report_of(f"run={run}", "clips=0", "cka_samples=0", "checkpoint=last")
    assert result["file"] == str(run / "report.html")
    assert list(result["models"]) == ["run · Student"]
    assert "run · Teacher is left out: Teacher is in no checkpoint of" in said
    assert "run · Teacher is left out: Teacher is in no checkpoint of" in page
    assert "the runs have no metrics.csv" in page
    assert "not measured: " in page
    assert "Changed clips" not in page


def test_other_samples_are_not_compared(folders: list[Path], tmp_path: Path) -> None:
    other = shutil.copytree(folders[1], tmp_path / "other")
    text = (other / "config.yaml").read_text()
    assert "test_list: test.txt" in text
    (other / "config.yaml").write_text(text.replace("test_list: test.txt", "test_list: val.txt"))
    result, page, _ = report_of(f"runs=[{folders[0]},{other}]", f"output={tmp_path}/a.html", "clips=0", "cost_steps=0")
    assert "other was looked at on other samples than one" in page
    assert "other · Student after one · Student" not in result["pairs"]


def test_layers_of_a_model_are_chosen(folders: list[Path]) -> None:
    layers = "layers={Student: [stages.1, 'fc:input'], Teacher: [fc]}"
    _, page, _ = report_of(f"run={folders[0]}", layers, "clips=0", "cost_steps=0")
    part = page.partition('<section id="similarity">')[2].partition("</section>")[0]
    assert re.findall(r'<th scope="col">(.*?)</th>', part) == ["7 samples", "stages.1", "fc:input", "output"]
    assert re.findall(r'<th scope="row">(.*?)</th>', part) == ["fc", "output"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give one run folder as run=<folder>, or several"),
        (["run={0}", "runs=[{1}]"], "give one run folder as run=<folder>, or several"),
        (["runs=[{0},{0}]"], "the same run folder twice"),
        (["run={0}/config.yaml"], "is a file: a report is of run folders"),
        (["run={0}", "split=train"], "split is val or test, got 'train'"),
        (["run={0}", "clips=-1"], "clips is a number from 0, got -1"),
        (["run={0}", "layers={{Pupil: [fc]}}"], r"layers of \['Pupil'\]: the runs have the models Student, Teacher"),
        (["run={0}", "layers={{Student: [stages.9]}}"], "names no submodule"),
    ],
)
def test_what_cannot_be_is_told(folders: list[Path], given: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        report_of(*(text.format(*folders) for text in given), "split=test" if "split=train" not in given else "clips=1")


def test_folders_by_themselves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert door.main.overrides(["--allow", "my_package", "a", "clips=2"]) == [
        "clips=2", "++allow=[my_package]", "runs=['a']",
    ]  # fmt: skip
    (tmp_path / "a=b").mkdir()
    assert door.main.overrides([f"{tmp_path}/a=b"]) == [f"runs=['{tmp_path}/a=b']"]
    for arguments, said in ((["a", "run=b"], "not both"), (["/nowhere/a"], "no run folder /nowhere/a")):
        monkeypatch.setattr(sys, "argv", ["report", *arguments])
        with pytest.raises(SystemExit) as end:
            door.main()
        assert end.value.code == 1
        assert said in capsys.readouterr().err
