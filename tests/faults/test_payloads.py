"""Weights and checkpoints are data: files that carry code are refused by every loader, and none of it runs."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from faults import tiny
from faults.report import report
from lit_distill import DistillModule
from lit_distill.checkpoints import read_checkpoint, write_checkpoint
from lit_distill.models import load_weights

SUFFIXES = (".ckpt", ".pth", ".pt", ".bin", ".pdparams", ".safetensors")


class Calls:
    """Pickles into a call of ``function`` with ``arguments``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Sets:
    """Pickles into a call whose result is given a state."""

    def __init__(self, touched: str) -> None:
        self.touched = touched

    def __reduce__(self) -> Any:
        return (nn.Module, (), {"a": Calls(open, self.touched, "w")})


def legacy_tar(payload: Any) -> bytes:
    """PyTorch's oldest format: pickles in a tar."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(payload if name != "storages" else 0, protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def saved(content: Any, *, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps(()))
        archive.writestr("archive/data.pkl", pickle.dumps(Calls(os.getcwd)))
        archive.writestr("archive/version", "3")
    return file.getvalue()


def header(text: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def hostile_files(touched: str) -> dict[str, bytes]:
    """Files that touch ``touched`` when what they carry runs, and headers that ask for what is not there."""
    shell = f"touch {touched}"
    state = tiny.net().state_dict()
    calls = {
        "os.system": Calls(os.system, shell), "open": Calls(builtins.open, touched, "w"),
        "eval": Calls(eval, f"open({touched!r}, 'w')"), "exec": Calls(exec, f"open({touched!r}, 'w')"),
        "popen": Calls(subprocess.Popen, ["touch", touched]), "getattr": Calls(getattr, Calls(open, touched, "w"), "x"),
        "pickle.loads": Calls(pickle.loads, pickle.dumps(Calls(os.system, shell))),
        "torch.load": Calls(torch.load, touched), "a state": Sets(touched), "map": Calls(map, os.system, [shell]),
        "a module": nn.Sequential(nn.Linear(1, 1)), "import": Calls(__import__, "antigravity"),
    }  # fmt: skip
    files: dict[str, bytes] = {}
    for name, payload in calls.items():
        files[f"{name}, alone"] = saved(payload)
        files[f"{name}, pickled"] = pickle.dumps(payload, protocol=2)
        files[f"{name}, legacy"] = saved(payload, zipped=False)
        files[f"{name}, tar"] = legacy_tar(payload)
        run = {"state_dict": state, "pytorch-lightning_version": "2.6.0", "callbacks": {"a": payload}}
        files[f"{name}, in a run's checkpoint"] = saved(run)
    files["a script"] = scripted()
    begins = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":'
    files |= {
        "a header of 2^63 bytes": header(b"{}", 2**63), "a header past the end": header(b"{}", 10**6),
        "offsets past the end": header(begins + b"[0,4000]}}", data=bytes(4)),
        "negative offsets": header(begins + b"[-4,0]}}", data=bytes(4)),
        "a shape of 2^62": header(begins.replace(b"[1]", b"[4611686018427387904]") + b"[0,4]}}", data=bytes(4)),
        "an unknown type": header(b'{"a":{"dtype":"CODE","shape":[1],"data_offsets":[0,4]}}', data=bytes(4)),
        "a header that nests": header(b"[" * 9000),
    }  # fmt: skip
    return files


def loaders(folder: Path) -> dict[str, Callable[[Path], object]]:
    def resume(file: Path) -> None:
        tiny.trainer(folder).fit(tiny.module(), tiny.loader(), ckpt_path=file)

    def from_checkpoint(file: Path) -> object:
        made = tiny.module()
        return DistillModule.load_from_checkpoint(file, models=made.named, losses=made.composer.terms)

    return {
        "ckpt_path": resume,
        "read_checkpoint": read_checkpoint,
        "load_from_checkpoint": from_checkpoint,
        **{f"pretrained{suffix}": lambda file: load_weights(tiny.net(), file) for suffix in SUFFIXES},
        "pretrained.ckpt#Teacher": lambda file: load_weights(tiny.net(), f"{file}#Teacher"),
    }


def test_no_loader_runs_what_a_file_carries(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    refused, tried, ran = 0, 0, 0
    for name, data in hostile_files(str(touched)).items():
        for loader, load in loaders(tmp_path).items():
            suffix = Path(loader.partition("#")[0]).suffix or ".ckpt"
            file = tmp_path / f"file{suffix}"
            file.write_bytes(data)
            tried += 1
            try:
                load(file)
            except ValueError:
                refused += 1
            assert not touched.exists(), f"{name} ran through {loader}"
            ran += touched.exists()
    report("payloads in weights and checkpoints: refused, none run", tried=tried, survived=refused, lost=ran)
    assert refused == tried > 500


def test_the_payloads_do_run_where_nothing_refuses_them(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for name, data in hostile_files(str(touched)).items():
        if name.endswith(", pickled") and name.split(",")[0] in ("os.system", "open", "eval", "exec", "pickle.loads"):
            pickle.loads(data)
            assert touched.exists(), name
            touched.unlink()


def test_a_container_within_itself_is_refused_in_time(tmp_path: Path) -> None:
    node: Any = {"x": torch.zeros(1)}
    for _ in range(16):
        node = {str(i): node for i in range(10)}  # 10^16 paths in a few hundred bytes
    torch.save(node, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="more than 1,000,000 entries"):
        load_weights(tiny.net(), tmp_path / "a.pth")


def test_our_checkpoints_are_tensors_and_plain_values_and_nothing_is_built_from_them(tmp_path: Path) -> None:
    fit = tiny.trainer(tmp_path)
    fit.fit(tiny.module(), tiny.loader(), tiny.loader())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    stored = read_checkpoint(tmp_path / "a.ckpt")
    json.dumps(stored["lit_distill"])
    assert "hyper_parameters" not in stored
    stored["hyper_parameters"] = {"_instantiator": "os.system", "_target_": "os.system"}
    stored["lit_distill"] |= {"_target_": "os.getcwd", "config": '{"_target_": "os.getcwd"}'}
    write_checkpoint(stored, tmp_path / "b.ckpt")
    made = tiny.module()
    with pytest.raises(ValueError, match="it says what to call to build the module"):
        DistillModule.load_from_checkpoint(tmp_path / "b.ckpt", models=made.named, losses=made.composer.terms)
    with pytest.raises(ValueError, match="weights_only=True alone"):
        DistillModule.load_from_checkpoint(
            tmp_path / "a.ckpt", models=made.named, losses=made.composer.terms, weights_only=False
        )
    with pytest.raises(ValueError, match="weights_only=True alone"):
        tiny.trainer(tmp_path).fit(made, tiny.loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=False)
