"""The store of signals: what is written is read, by several at once, within its limit, and top-k by its formula."""

from __future__ import annotations

import fcntl
import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import save_file

from lit_distill._command.command import conf_dir
from lit_distill._files import write_text
from lit_distill.data.digests import memory_order
from lit_distill.teacher_cache.codec import SignalCodec
from lit_distill.teacher_cache.probe import probe
from lit_distill.teacher_cache.shards import ENDING, Budget
from lit_distill.teacher_cache.store import MANIFEST, SignalStore
from lit_distill.training.fit import fit
from run_folders import lively

CODECS = [
    SignalCodec(text="Teacher", dtype=torch.float32, shape=(1, 5)),
    SignalCodec(text="Teacher.2", dtype=torch.bfloat16, shape=(2, 3, 2)),
    SignalCodec(text="Teacher.ids", dtype=torch.int64, shape=(1,)),
]


def signals(numbers: range) -> tuple[list[bytes], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    everything = torch.randn(1000, 32, generator=generator)[numbers.start : numbers.stop]
    given = {
        "Teacher": everything[:, :5].clone(),
        "Teacher.2": everything[:, 5:17].reshape(-1, 3, 2).bfloat16(),
        "Teacher.ids": torch.arange(numbers.start, numbers.stop),
    }
    return [number.to_bytes(4, "big") * 4 for number in numbers], given


def store(folder: Path, limit: float = 1e9) -> SignalStore:
    return SignalStore(folder, {"of": "these tests"}, CODECS, Budget(folder, int(limit)))


def holds(found: dict[str, torch.Tensor] | None, given: dict[str, torch.Tensor]) -> bool:
    return found is not None and all(
        found[text].dtype == given[text].dtype and torch.equal(found[text], given[text]) for text in given
    )


def test_any_rows_are_read_in_any_order_and_all_or_none(tmp_path: Path) -> None:
    one = store(tmp_path)
    for numbers in (range(7), range(7, 20)):
        one.take(*signals(numbers))
        one.flush()
    keys, given = signals(range(20))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    for now in (one, store(tmp_path)):
        found = now.read([keys[place] for place in order])
        by_sample = given["Teacher.2"].view(20, 2, 3, 2)[order].flatten(0, 1)
        assert holds(found, {"Teacher": given["Teacher"][order], "Teacher.2": by_sample})
        assert now.read([*keys[:3], b"x" * 16]) is None
        assert now.read([b"\xff" * 16]) is None
        assert len(now) == 20


def test_a_signal_comes_back_in_its_order_in_memory() -> None:
    signal = torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last)
    codec = SignalCodec(text="Teacher", dtype=torch.float32, shape=(2, 3, 5, 6), order=memory_order(signal))
    again = codec.decode(codec.encode(signal))
    assert torch.equal(again, signal)
    assert again.stride() == signal.stride()
    told = probe("Teacher", signal, lambda x: {"Teacher": x.relu()})
    assert told.orders == {"Teacher": (0, 2, 3, 1)}, "the noise is in the order of the batch"


def write(folder: Path, first: int) -> None:
    mine = store(folder)
    for start in range(first, first + 100, 10):
        mine.take(*signals(range(start, start + 10)))
        mine.flush()


def test_four_processes_write_and_read_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write, args=(tmp_path, first)) for first in (0, 50, 100, 0)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    keys, given = signals(range(200))
    assert holds(store(tmp_path).read(keys), given)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


def test_processes_together_keep_to_the_limit(tmp_path: Path) -> None:
    stores = [store(tmp_path, 3000), store(tmp_path, 3000)]
    for number in range(20):
        stores[number % 2].take(*signals(range(number * 10, number * 10 + 10)))
        if not stores[number % 2].full:
            with_warning = pytest.warns(UserWarning, match="takes no more") if number >= 4 else None
            if with_warning is None:
                stores[number % 2].flush()
            else:
                with with_warning:
                    stores[number % 2].flush()
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.shard"))
    assert 2800 < size <= 3000
    assert all(one.full for one in stores)


def test_ranks_describe_a_store_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(path: Path, content: str, *, private: bool) -> None:
        with (tmp_path / "lock").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_text(path, content, private=private)

    monkeypatch.setattr("lit_distill.teacher_cache.store.write_text", locked)
    assert (store(tmp_path).folder / MANIFEST).is_file(), "atomic_file takes another writer's file for a leftover"


def test_what_cannot_be_read_is_told_once_and_left_out(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.take(*signals(range(7)))
    one.flush()
    (one.folder / f"0{ENDING}").mkdir()
    with pytest.warns(UserWarning, match=r"0\.shard cannot be read .*: it is left out"):
        other = store(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.refresh()
    assert holds(other.read(signals(range(7))[0]), signals(range(7))[1])


def test_damage_that_cannot_be_removed_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = store(tmp_path)
    (one.folder / f"0{ENDING}").write_bytes(b"no shard")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.warns(UserWarning, match="is damaged"):
        one.refresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.refresh()
    assert one.damaged == 1


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_folder_that_cannot_be_made_keeps_nothing_and_still_rounds(tmp_path: Path, dtype: Any) -> None:
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "teachers"
    codec = SignalCodec(text="Teacher", dtype=torch.float32, shape=(1, 5), storage=dtype)
    with pytest.warns(UserWarning, match=r"takes no more: .*file.*, 0 samples"):
        one = SignalStore(root, {}, [codec], Budget(root, 1000))
    keys, given = signals(range(7))
    taken = one.take(keys, {"Teacher": given["Teacher"]})["Teacher"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.flush()
        one.refresh()
    assert one.read(keys) is None
    assert torch.equal(taken, given["Teacher"].to(getattr(torch, dtype)).float())


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_top_k_keeps_the_largest_logits_and_the_share_of_the_others(storage: Any) -> None:
    logits = 3 * torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    codec = SignalCodec(text="Teacher", dtype=torch.float32, shape=(1, 50), storage=storage, top_k=7)
    rows = codec.encode(logits)
    assert rows.shape == (6, codec.bytes)
    again = codec.decode(rows)
    exact = 0.0 if storage == "float32" else 1e-3
    largest = logits.topk(7)
    torch.testing.assert_close(again.gather(1, largest.indices), largest.values, rtol=exact, atol=0.0)
    kept = torch.zeros(6, 50, dtype=torch.bool).scatter(1, largest.indices, True)
    for sample in range(6):
        assert len(set(again[sample][~kept[sample]].tolist())) == 1
    tolerance = 1e-4 if storage == "float32" else 2e-2
    p, q = logits.softmax(1), again.softmax(1)
    torch.testing.assert_close(q[kept], p[kept], rtol=tolerance, atol=0.0)
    torch.testing.assert_close((q * ~kept).sum(1), (p * ~kept).sum(1), rtol=tolerance, atol=0.0)


def test_a_training_by_its_config_is_the_same_with_and_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(name: str, *overrides: str) -> str:
        given = [
            "experiment=kd_pptsmv2", "data=moving_digits_tiny", "trainer=cpu", "trainer.max_epochs=3", "doctor=false",
            f"models.Teacher.pretrained={tmp_path}/teacher.safetensors", f"run_dir={tmp_path}/{name}", *overrides,
        ]  # fmt: skip
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = compose("train", given)
        if not (tmp_path / "teacher.safetensors").exists():
            config.models.Teacher.pretrained = None
            torch.manual_seed(0)
            save_file(lively(instantiate(config.models.Teacher)).state_dict(), tmp_path / "teacher.safetensors")
            config.models.Teacher.pretrained = f"{tmp_path}/teacher.safetensors"
        fit(config)
        return (tmp_path / name / "metrics.csv").read_text()

    cached = ["teacher_cache=on", f"teacher_cache.folder={tmp_path}/teachers", "data.views_per_sample=2"]
    without = trained("without", "+data.views_per_sample=2")
    capsys.readouterr()
    assert trained("with", *cached) == without
    said = capsys.readouterr().out
    assert "teacher cache: 33.3 % of 96 train samples from it, 66.7 % of 48 val samples from it" in said
    assert f"of 20 GB in {tmp_path}/teachers" in said
    assert trained("mixed", *cached, "+data.mix=mixup", "trainer.max_epochs=1") != without
    assert "0.0 % of 32 train samples from it, 100.0 % of 16 val samples from it" in capsys.readouterr().out
