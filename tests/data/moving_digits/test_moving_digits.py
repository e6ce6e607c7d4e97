"""The embedded data set: what its clips show, and how they come to be on disk."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import sys
from collections import Counter, namedtuple
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from numpy.typing import NDArray
from rich.console import Console

import processes
from lit_distill._command.command import conf_dir
from lit_distill.data import MovingDigits, read_list
from lit_distill.data.moving_digits import making as _making
from lit_distill.data.moving_digits.making import find_fault, load_sources, make, set_folder
from lit_distill.data.moving_digits.rendering import MOTIONS, SPLITS, DigitsSpec, Sources, render, trace

SPEC = DigitsSpec(seed=0, clips=(16, 8, 8), digits=(3, 7), motions=("left", "zoom_in"), frames=8, side=32)
BARE = dataclasses.replace(SPEC, clips=(4, 4, 4))


@pytest.fixture(scope="session")
def sources() -> Sources:
    return load_sources()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of SPEC's set; nobody may change it."""
    return make(SPEC, tmp_path_factory.mktemp("made"), workers=2, console=silent())


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of BARE's set, to be copied."""
    return make(BARE, tmp_path_factory.mktemp("bare"), workers=1, console=silent())


def silent() -> Console:
    return Console(file=io.StringIO())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What the clips show --------------------------------------------------------------------------------------------------


def test_a_clip_follows_from_seed_split_and_index(sources: Sources) -> None:
    clip = render(SPEC, sources, "train", 5)
    assert clip.shape == (8, 32, 32, 3)
    assert clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, render(SPEC, sources, "train", 5))
    others = [
        render(SPEC, sources, "val", 5),
        render(SPEC, sources, "train", 9),
        render(dataclasses.replace(SPEC, seed=1), sources, "train", 5),
    ]
    assert not any(np.array_equal(clip, other) for other in others)


def test_more_clips_leave_the_others_as_they_are(sources: Sources) -> None:
    more = dataclasses.replace(SPEC, clips=(400, 8, 8))
    np.testing.assert_array_equal(render(SPEC, sources, "train", 5), render(more, sources, "train", 5))


def test_splits_share_no_scan_and_no_background(sources: Sources) -> None:
    numbered = Sources(
        np.arange(len(sources.scans), dtype=np.float32)[:, None, None] + np.zeros((8, 8), np.float32),
        sources.digits,
        tuple(np.arange(p.shape[1], dtype=np.uint16)[None, :, None].repeat(3, 2) for p in sources.photos),  # type: ignore[misc]
    )
    parts = [numbered.of_split(split) for split in SPLITS]
    scans = [set(part.scans[:, 0, 0].astype(int)) for part in parts]
    assert sum(map(len, scans)) == len(set.union(*scans)) == 1797
    for photo in range(len(sources.photos)):
        columns = [set(part.photos[photo][0, :, 0].tolist()) for part in parts]
        assert sum(map(len, columns)) == len(set.union(*columns)) == sources.photos[photo].shape[1]
    assert all(set(part.digits) == set(range(10)) for part in parts)


def test_pretraining_sees_nothing_of_validation_and_test(sources: Sources) -> None:
    """Digits, scans and backgrounds of the pretext's training against those that the target is judged by."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        pretext, target = (
            instantiate(compose("train", ["experiment=baseline_pptsmv2", f"data={name}"]).data, _convert_="all").spec
            for name in ("digits_pretext", "digits_few_labels")
        )
    assert not set(pretext.digits) & set(target.digits)
    assert pretext.clutter == 0, "no fragment of a target's digit"
    numbered = Sources(
        np.arange(len(sources.scans), dtype=np.float32)[:, None, None] + np.zeros((8, 8), np.float32),
        sources.digits,
        tuple(np.arange(p.shape[1], dtype=np.uint16)[None, :, None].repeat(3, 2) for p in sources.photos),  # type: ignore[misc]
    )
    seen = numbered.of_split("train")
    scans = set(seen.scans[np.isin(seen.digits, pretext.digits), 0, 0])
    columns = [set(photo[0, :, 0].tolist()) for photo in seen.photos]
    for split in ("val", "test"):
        judged = numbered.of_split(split)
        assert not scans & set(judged.scans[:, 0, 0])
        for photo, used in zip(judged.photos, columns, strict=True):
            assert not used & set(photo[0, :, 0].tolist())


def test_square_clips_stay_square(tmp_path: Path) -> None:
    spec: Any = {"clips": (4, 4, 4), "digits": (3,), "motions": ("left",), "side": 48, "scale": 32, "size": 32}
    kept = MovingDigits(root=tmp_path, **spec).transform
    stretched = MovingDigits(root=tmp_path, aspect="fixed", **spec).transform
    assert kept.scaled_size(48, 48) == (32, 32)
    assert stretched.scaled_size(48, 48) == (32, 42)


def paths(motion: str, count: int = 600) -> tuple[NDArray[np.floating[Any]], ...]:
    """Right, down and side (count, frames) of random paths, as fractions: of the frame, and of the range of octaves."""
    spec = dataclasses.replace(SPEC, frames=32, side=64)
    drawn = [trace(MOTIONS[motion], spec, np.random.default_rng((7, i))) for i in range(count)]
    low, high = np.log2(spec.digit_side)
    right, down, side = (np.stack(values) for values in zip(*drawn, strict=True))
    return (right / 64) % 1, (down / 64) % 1, (np.log2(side / 64) - low) / (high - low)


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_single_frame_cannot_tell_the_motion(motion: str) -> None:
    # Position and size are uniform at every frame, whatever the motion (Kolmogorov-Smirnov, far below 1 in 1000).
    grid = np.arange(1, 601) / 600
    for values in paths(motion):
        for frame in (0, 13, 31):
            assert np.abs(np.sort(values[:, frame]) - grid).max() < 1.95 / np.sqrt(600)


@pytest.mark.parametrize(("motion", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)])
def test_straight_motions_go_where_they_say(motion: str, axis: int, sign: int) -> None:
    steps = [(np.diff(values, axis=1) + 0.5) % 1 - 0.5 for values in paths(motion, 50)[:2]]
    assert (sign * steps[axis].sum(1) > 0.3).all()
    assert np.abs(steps[1 - axis].sum(1)).max() < 0.1


@pytest.mark.parametrize(("motion", "sign"), [("clockwise", 1), ("counterclockwise", -1)])
def test_turning_motions_turn_as_they_say(motion: str, sign: int) -> None:
    right, down = ((np.diff(values, axis=1) + 0.5) % 1 - 0.5 for values in paths(motion, 50)[:2])
    # The velocity turns with the digit; down is positive, so the cross product of a clockwise turn is positive too.
    turn = right[:, :-1] * down[:, 1:] - down[:, :-1] * right[:, 1:]
    assert (sign * turn.mean(1) > 0).all()


@pytest.mark.parametrize(("motion", "sign"), [("zoom_in", 1), ("zoom_out", -1)])
def test_zooming_motions_zoom_as_they_say(motion: str, sign: int) -> None:
    steps = (np.diff(paths(motion, 50)[2], axis=1) + 0.5) % 1 - 0.5
    assert (sign * steps > 0).all()


# How they are made ----------------------------------------------------------------------------------------------------


def test_the_set_is_whole_balanced_and_real_video(made: Path) -> None:
    assert find_fault(made, SPEC) is None
    names = (made / "class_names.txt").read_text().split()
    assert names == ["3_left", "3_zoom_in", "7_left", "7_zoom_in"]
    for split, count in zip(SPLITS, SPEC.clips, strict=True):
        samples = read_list(made / f"{split}.txt", root=made, num_classes=4)
        assert Counter(sample.label for sample in samples) == dict.fromkeys(range(4), count // 4)
        assert all(Path(sample.path).parent.name == names[sample.label] for sample in samples)
    with av.open(str(made / "train" / "3_left" / "00000.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 32, 32)
        assert sum(1 for _ in container.decode(stream)) == 8


def test_the_files_show_what_was_drawn(made: Path, sources: Sources) -> None:
    with av.open(str(made / SPEC.file("val", 3))) as container:
        seen = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(float)
    drawn = render(SPEC, sources, "val", 3).astype(float)
    assert np.abs(seen.mean((1, 2)) - drawn.mean((1, 2))).max() < 6
    other = render(SPEC, sources, "val", 2).astype(float)
    assert np.abs(seen - drawn).mean() < np.abs(seen - other).mean()


def test_manifest_tells_all(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["spec"]["seed"] == 0
    assert manifest["spec"]["digits"] == [3, 7]
    assert made.name.endswith(manifest["spec_sha256"][:12])
    assert manifest["codec"] == "libx264"
    assert set(manifest["versions"]) == {"lit-distill", "av", "numpy", "scikit-learn"}
    there = contents(made)
    assert there.keys() == manifest["files"].keys() | {"manifest.json"}
    for name, (size, digest) in manifest["files"].items():
        assert (len(there[name]), hashlib.sha256(there[name]).hexdigest()) == (size, digest)


@pytest.mark.parametrize("workers", [1, 3])
def test_files_are_equal_byte_by_byte_whoever_makes_them(
    made: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_making, "_CLIPS_A_WORKER", 1)
    assert contents(make(SPEC, tmp_path, workers=workers, console=silent())) == contents(made)


def test_a_whole_set_is_not_made_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_making, "_fill", lambda *_: pytest.fail("made again"))
    assert make(SPEC, made.parent, console=silent()) == made


def test_another_specification_is_another_folder(tmp_path: Path) -> None:
    others = [dataclasses.replace(SPEC, seed=1), dataclasses.replace(SPEC, clutter=0), BARE]
    assert len({set_folder(spec, tmp_path) for spec in (SPEC, *others)}) == 4


@pytest.mark.parametrize("files", [[1], "x", {"a.mp4": 1}, None])
def test_a_manifest_of_other_content_is_unreadable(files: object, bare: Path, tmp_path: Path) -> None:
    manifest = json.loads((bare / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
    assert find_fault(tmp_path, BARE) in ("manifest.json is unreadable", "manifest.json lists another number of clips")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is unreadable"),
        (lambda folder: next(folder.rglob("*.mp4")).unlink(), "mp4 is missing"),
        (lambda folder: (folder / "val.txt").write_text("none\n"), "val.txt has another size"),
    ],
    ids=["no-manifest", "half-a-manifest", "clip-lost", "list-changed"],
)
def test_a_damaged_set_is_made_anew(bare: Path, tmp_path: Path, damage: Any, fault: str) -> None:
    folder = shutil.copytree(bare, tmp_path / bare.name)
    assert find_fault(folder, BARE) is None
    before = contents(folder)
    damage(folder)
    said = Console(file=io.StringIO(), width=400)
    assert make(BARE, tmp_path, workers=1, console=said) == folder
    assert fault in said.file.getvalue()  # type: ignore[attr-defined]
    assert contents(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_a_manifest_of_fewer_clips_is_no_whole_set(bare: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bare, tmp_path / bare.name)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"].pop(next(name for name in manifest["files"] if name.endswith(".mp4")))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert find_fault(folder, BARE) == "manifest.json lists another number of clips"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_making_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupted(*_: object) -> None:
        raise error

    monkeypatch.setattr(_making, "_run_workers", interrupted)
    with pytest.raises(error):
        make(BARE, tmp_path, console=silent())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_making_is_cleared_away_later(tmp_path: Path) -> None:
    old, young = tmp_path / ".moving_digits-0123456789ab.1-aa", tmp_path / ".moving_digits-0123456789ab.2-bb"
    for folder in (old, young):
        (folder / "train").mkdir(parents=True)
    os.utime(old, (0, 0))
    folder = make(BARE, tmp_path, workers=1, console=silent())
    assert {p.name for p in tmp_path.iterdir()} == {folder.name, young.name}


def test_two_processes_at_once_agree(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from lit_distill.data.moving_digits.making import make;"
        "from lit_distill.data.moving_digits.rendering import DigitsSpec;"
        "print(make(DigitsSpec(seed=0, clips=(4, 4, 4), digits=(3, 7), motions=('left', 'zoom_in'), frames=8, side=32),"
        "Path(sys.argv[1]), workers=1))"
    )
    file = tmp_path / "make.py"
    file.write_text(program)
    folder = tmp_path / "made"
    both = [processes.start([file, folder]) for _ in range(2)]
    said = [process.communicate(300)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said == [str(set_folder(BARE, folder))] * 2
    assert [p.name for p in folder.iterdir()] == [Path(said[0]).name]
    assert find_fault(Path(said[0]), BARE) is None


def test_the_later_of_two_uses_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = _making._fill
    first: list[dict[str, bytes]] = []

    def overtaken(folder: Path, *arguments: Any) -> None:
        fill(folder, *arguments)
        if not first:
            first.append({})
            first[0] = contents(make(BARE, tmp_path, workers=1, console=silent()))

    monkeypatch.setattr(_making, "_fill", overtaken)
    folder = make(BARE, tmp_path, workers=1, console=silent())
    assert contents(folder) == first[0]
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_mpeg4_where_there_is_no_h264_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_making, "choose_codec", lambda: "mpeg4")
    folder = make(BARE, tmp_path, workers=1, console=silent())
    assert json.loads((folder / "manifest.json").read_text())["codec"] == "mpeg4"
    with av.open(str(folder / BARE.file("train", 0))) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
        assert sum(1 for _ in container.decode(video=0)) == 8


@pytest.mark.parametrize(("terminal", "text"), [(False, "12/12 clips"), (True, "12/12")])
def test_progress_is_shown(tmp_path: Path, terminal: bool, text: str) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    make(BARE, tmp_path, workers=1, console=console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "making moving_digits" in said
    assert text in said


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_an_unwritable_folder_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    with pytest.raises(
        OSError, match=r"cannot make the embedded data set in .*data\.root.*LIT_DISTILL_CACHE"
    ) as caught:
        make(BARE, file / "cache", console=silent())
    assert "\n" not in str(caught.value)


def test_too_small_a_disk_is_noticed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    with pytest.raises(OSError, match=r"MB are needed and 0 MB free; name a writable folder"):
        make(BARE, tmp_path, console=silent())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_making, "_run_workers", full)
    with pytest.raises(OSError, match=r"cannot make the embedded data set in .*No space left on device; name"):
        make(BARE, tmp_path, console=silent())
    assert list(tmp_path.iterdir()) == []


def test_what_a_worker_cannot_write_is_told(tmp_path: Path, sources: Sources) -> None:
    sources.save(tmp_path / "sources.npz")
    (tmp_path / "job.json").write_text(json.dumps({"spec": dataclasses.asdict(BARE), "codec": "libx264"}))
    with pytest.raises(OSError, match="No such file or directory"):  # the classes' folders
        _making._run_workers(tmp_path, BARE, 1, silent())


def test_a_worker_that_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_making, "_START", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="ended after 0 of 12 clips"):
        make(BARE, tmp_path, workers=1, console=silent())
    assert list(tmp_path.iterdir()) == []


def test_without_scikit_learn_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"lit-distill\[digits\]"):
        make(BARE, tmp_path, console=silent())
    assert list(tmp_path.iterdir()) == []


def test_a_set_once_made_needs_no_scikit_learn(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert make(SPEC, made.parent, console=silent()) == made


# The data module ------------------------------------------------------------------------------------------------------


def module(root: Path | None, **changes: Any) -> MovingDigits:
    arguments: dict[str, Any] = {
        "clips": SPEC.clips, "digits": SPEC.digits, "motions": SPEC.motions, "length": 8, "side": 32,
        "num_frames": 4, "size": 32, "scale": 32, "multi_scale": False, "batch_size": 4, "num_workers": 0,
    }  # fmt: skip
    return MovingDigits(root=root, **{**arguments, **changes})


def test_the_data_module_is_an_ordinary_one(made: Path) -> None:
    data = module(made.parent, num_classes=4)
    data.prepare_data()
    data.setup("fit")
    assert data.class_names == SPEC.class_names
    inputs, target, index = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert inputs.shape == (4, 4, 3, 32, 32)
    assert inputs.dtype == torch.float32
    assert torch.equal(target, index % 4)  # classes take turns in the lists
    assert [len(data.datasets[split]) for split in ("train", "val")] == [16, 8]
    assert data.transform.flip == 0


def test_the_cache_folder_is_where_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_DISTILL_CACHE", str(tmp_path / "named"))
    assert module(None).root.parent == tmp_path / "named"
    assert module(tmp_path / "given").root.parent == tmp_path / "given"
    monkeypatch.delenv("LIT_DISTILL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert module(None).root.parent == tmp_path / ".cache" / "lit_distill"


def test_the_training_seed_does_not_remake_the_clips(tmp_path: Path) -> None:
    assert module(tmp_path, seed=1).root == module(tmp_path, seed=2).root
    assert module(tmp_path, making_seed=1).root != module(tmp_path, making_seed=2).root


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 5}, "data.num_classes is 5, but 2 digits times 2 motions are 4 classes"),
        ({"clips": (6, 8, 8)}, r"multiples of 4, the number of classes, got \[6, 8, 8\]"),
        ({"clips": (4, 4)}, "train, val, test"),
        ({"digits": (1, 1)}, "different numbers of 0..9"),
        ({"digits": (3, 10)}, "different numbers of 0..9"),
        ({"motions": ("left", "sideways")}, "zoom_out, got .*sideways"),
        ({"side": 33}, "an even number"),
        ({"length": 0}, "at least 1 frame"),
        ({"spec": {"nose": 3}}, "data.spec has the fields .*noise.*, got nose"),
        ({"spec": {"seed": 3}}, "got seed"),
        ({"spec": {"contrast": (0.9, 0.3)}}, r"data.spec.contrast is a range"),
        ({"spec": {"digit_side": (0.5, 0.9)}}, "goes up to 0.8"),
    ],
)
def test_what_cannot_be_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(tmp_path, **changes)
