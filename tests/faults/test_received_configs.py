"""Hostile configs, as a run folder from a stranger may hold: none runs anything, writes outside, or asks the net.

Each payload touches a file, so that an execution shows; a config that is refused must be refused before anything is
imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from faults.report import report
from lit_distill.untrusted.check import check_targets, read_config

T = "_target_"
CALLBACKS, LOGGERS = "lightning.pytorch.callbacks", "lightning.pytorch.loggers"
V2 = "torchvision.transforms.v2"
TOUCH = {"command": "touch MARK"}
SYSTEM = {T: "os.system", **TOUCH}
LATER = {**SYSTEM, "_partial_": True}
RUNS: dict[str, Any] = {
    "os.system": SYSTEM,
    "posix.system": {T: "posix.system", **TOUCH},
    "subprocess.run": {T: "subprocess.run", "args": ["touch", "MARK"]},
    "subprocess.Popen": {T: "subprocess.Popen", "_args_": [["touch", "MARK"]]},
    "subprocess.check_output": {T: "subprocess.check_output", "args": "touch MARK", "shell": True},
    "os.popen": {T: "os.popen", "cmd": "touch MARK"},
    "os.execvp": {T: "os.execvp", "_args_": ["touch", ["touch", "MARK"]]},
    "os.posix_spawn": {T: "os.posix_spawnp", "_args_": ["touch", ["touch", "MARK"], {}]},
    "builtins.eval": {T: "builtins.eval", "_args_": ["open('MARK', 'w')"]},
    "builtins.exec": {T: "builtins.exec", "_args_": ["open('MARK', 'w')"]},
    "builtins.open": {T: "builtins.open", "_args_": ["MARK", "w"]},
    "io.open": {T: "io.open", "_args_": ["MARK", "w"]},
    "pathlib.Path.touch": {T: "pathlib.Path.touch", "_args_": [{T: "pathlib.Path", "_args_": ["MARK"]}]},
    "codecs.open": {T: "codecs.open", "_args_": ["MARK", "w"]},
    "shutil.copy": {T: "shutil.copy", "src": "/etc/hostname", "dst": "MARK"},
    "importlib.import_module": {T: "importlib.import_module", "name": "evil_module"},
    "builtins.__import__": {T: "builtins.__import__", "_args_": ["evil_module"]},
    "runpy.run_module": {T: "runpy.run_module", "mod_name": "evil_module"},
    "hydra.utils.get_class": {T: "hydra.utils.get_class", "path": "evil_module.Thing"},
    "hydra.utils.get_method": {T: "hydra.utils.get_method", "path": "evil_module.thing"},
    "hydra.utils.get_object": {T: "hydra.utils.get_object", "path": "evil_module.thing"},
    "hydra.utils.instantiate": {T: "hydra.utils.instantiate", "_args_": [SYSTEM], "_recursive_": False},
    "hydra.utils.call": {T: "hydra.utils.call", "config": SYSTEM, "_recursive_": False},
    "hydra's locate": {T: "hydra._internal.utils._locate", "_args_": ["evil_module"]},
    "a module of the stranger": {T: "evil_module.thing"},
    "a class of the stranger": {T: "evil_module.Thing"},
    "timeit": {T: "timeit.timeit", "stmt": "open('MARK', 'w')", "number": 1},
    "cProfile.run": {T: "cProfile.run", "statement": "open('MARK', 'w')"},
    "code": {T: "code.InteractiveInterpreter.runsource", "_args_": ["", "open('MARK', 'w')"]},
    "functools.partial of a name": {T: "functools.partial", "_args_": [
        {T: "hydra.utils.get_method", "path": "os.system"}]},
    "_partial_": LATER,
    "_partial_ with everything": {T: "subprocess.run", "_partial_": True, "_args_": [["touch", "MARK"]],
        "_convert_": "all"},
    "pickle.loads": {T: "pickle.loads", "_args_": [{T: "codecs.encode", "_args_": ["x", "latin1"]}]},
    "torch.load": {T: "torch.load", "f": "evil.pth", "weights_only": False},
    "torch.hub.load": {T: "torch.hub.load", "repo_or_dir": "REPOSITORY", "source": "local", "model": "thing"},
    "torch.jit.load": {T: "torch.jit.load", "f": "evil.pt"},
    "torch.utils.cpp_extension": {T: "torch.utils.cpp_extension.load_inline", "name": "x", "cpp_sources": ""},
    "torch.save": {T: "torch.save", "obj": [1], "f": "MARK"},
    "numpy.load": {T: "numpy.load", "file": "evil.npy", "allow_pickle": True},
    "numpy.savetxt": {T: "numpy.savetxt", "fname": "MARK", "X": [1]},
    "yaml.unsafe_load": {T: "yaml.unsafe_load", "stream": "!!python/object/apply:os.system ['touch MARK']"},
    "logging.config": {T: "logging.config.dictConfig", "config": {"version": 1, "handlers": {
        "h": {"class": "logging.FileHandler", "filename": "MARK"}}}},
    "logging.FileHandler": {T: "logging.FileHandler", "filename": "MARK"},
    "webbrowser": {T: "webbrowser.open", "url": "http://127.0.0.1:9/"},
    "urlretrieve": {T: "urllib.request.urlretrieve", "url": "file:///etc/hostname", "filename": "MARK"},
    "through a module that we import": {T: "lit_distill.runs.artifacts.os.system", **TOUCH},
    "through a listed module": {T: "lit_distill.losses.base.torch.hub.os.system", **TOUCH},
    "our own writer": {T: "lit_distill.runs.artifacts.write_json", "path": "MARK", "content": {}},
    "our own video writer": {T: "lit_distill.data.write_video", "path": "MARK"},
    "our own reader of weights": {T: "lit_distill.models.read_state", "path": "evil.pth"},
    "torch.nn's neighbour": {T: "torch.nn.parallel.DistributedDataParallel"},
    "a method of an admitted class": {T: "torch.nn.Module.register_forward_hook"},
    "dunder": {T: "torch.nn.Linear.__init__.__globals__"},
    "LambdaCallback": {T: CALLBACKS + ".LambdaCallback", "setup": LATER},
    "nested in an admitted one": {T: "torch.nn.Sequential", "_args_": [{T: "torch.nn.ReLU"}, SYSTEM]},
    "nested in lists of lists": {"a": [[[{"b": [SYSTEM]}]]]},
    "under an argument": {T: "lit_distill.data.VideoDataModule", "mix": SYSTEM},
    "as a default of transforms": {T: V2 + ".Compose", "transforms": [
        {T: V2 + ".Lambda", "lambd": LATER}]},
    "interpolated": {"where": "os", "what": {T: "${where}.system", **TOUCH}},
    "interpolated whole": {"spare": SYSTEM, "loss": "${spare}"},
    "a target that is a list": {T: ["os.system"], **TOUCH},
    "a target with blanks": {T: " os.system", **TOUCH},
    "a target in another alphabet": {T: "ｏｓ.system", **TOUCH},
    "the trainer's profiler": {T: "lightning.Trainer", "profiler": {
        T: "lightning.pytorch.profilers.SimpleProfiler", "dirpath": "OUTSIDE", "filename": "MARK"}},
}  # fmt: skip
WRITES: dict[str, Any] = {
    "MetricsCSV": {T: "lit_distill.loggers.MetricsCSV", "folder": "OUTSIDE"},
    "MetricsCSV, by position": {T: "lit_distill.loggers.MetricsCSV", "_args_": ["OUTSIDE"]},
    "MetricsCSV, climbing": {T: "lit_distill.loggers.MetricsCSV", "folder": "RUN/../outside"},
    "MetricsCSV at home": {T: "lit_distill.loggers.MetricsCSV", "folder": "~/outside"},
    "MetricsCSV in run_dir": {"run_dir": "OUTSIDE", "logger": {
        T: "lit_distill.loggers.MetricsCSV", "folder": "${run_dir}x"}},
    "TensorBoardLogger": {T: LOGGERS + ".TensorBoardLogger", "save_dir": "OUTSIDE"},
    "TensorBoardLogger, climbing": {T: LOGGERS + ".TensorBoardLogger", "save_dir": "RUN", "name": "../outside"},
    "TensorBoardLogger, its sub_dir": {T: LOGGERS + ".TensorBoardLogger", "save_dir": "RUN", "sub_dir": "OUTSIDE"},
    "CSVLogger, absolute version": {T: LOGGERS + ".CSVLogger", "save_dir": "RUN", "version": "OUTSIDE"},
    "ModelCheckpoint": {T: CALLBACKS + ".ModelCheckpoint", "dirpath": "OUTSIDE"},
    "ModelCheckpoint, by position": {T: CALLBACKS + ".ModelCheckpoint", "_args_": ["OUTSIDE"]},
    "ModelCheckpoint, its filename": {T: CALLBACKS + ".ModelCheckpoint", "dirpath": "RUN", "filename": "../../x"},
    "ModelCheckpoint, a format": {T: CALLBACKS + ".ModelCheckpoint", "dirpath": "RUN", "filename": "{a.__class__}"},
    "Trainer": {T: "lightning.Trainer", "default_root_dir": "OUTSIDE", "accelerator": "cpu"},
    "the embedded data": {T: "lit_distill.data.MovingDigits", "root": "OUTSIDE", "clips": [1, 1, 1]},
    "OnExceptionCheckpoint": {T: CALLBACKS + ".OnExceptionCheckpoint", "dirpath": "OUTSIDE"},
}  # fmt: skip
RESNET = {T: "lit_distill.models.timm_model", "name": "resnet18", "num_classes": 2}
ASKS: dict[str, Any] = {
    "weights by URL": {T: "lit_distill.models.PPTSMv2", "num_classes": 2, "num_frames": 2,
        "pretrained": "http://127.0.0.1:9/x.pth"},
    "data by URL": {T: "lit_distill.data.VideoDataModule", "root": "s3://bucket", "num_classes": 2},
    "torchvision's weights": {T: "torchvision.models.resnet18", "weights": "DEFAULT"},
    "timm's hub": {T: "lit_distill.models.timm_model", "name": "hf-hub:someone/thing", "num_classes": 2},
    "timm's checkpoint": {**RESNET, "checkpoint_path": "evil.pth"},
    "timm's config": {**RESNET, "pretrained_cfg": {"url": "//x"}},
    "WandbLogger": {T: LOGGERS + ".WandbLogger", "project": "x"},
    "MLFlowLogger": {T: LOGGERS + ".MLFlowLogger", "tracking_uri": "x"},
    "the model registry": {T: "lightning.Trainer", "model_registry": "someone/thing", "accelerator": "cpu"},
    "a strategy with commands": {T: "lightning.Trainer", "strategy": "deepspeed_stage_3", "accelerator": "cpu"},
    "plugins by name": {T: "lightning.Trainer", "plugins": ["deepspeed"], "accelerator": "cpu"},
}  # fmt: skip
TEXTS = {
    "object": "a: !!python/object/apply:os.system ['touch MARK']",
    "name": "a: !!python/name:os.system",
    "module": "a: !!python/module:evil_module",
    "new": "a: !!python/object/new:subprocess.Popen [[touch, MARK]]",
    "tag of its own": "a: !evil {b: 1}",
    "path": "a: !!python/object/apply:pathlib.PosixPath [MARK]",
    "aliases": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
    "merge": "a: {b: 1}\nc: {<<: {d: 1}}",
    "documents": "a: 1\n---\nb: 2",
    "depth": "a: " + "[" * 100 + "]" * 100,
    "great depth": "{a: " * 30_000,
    "size": "a: [" + "1, " * 30_000 + "1]",
    "bytes": "a: '" + "x" * 1_100_000 + "'",
    "no text": "a: \x00",
    "the environment": "a: ${oc.env:HOME}",
    "the environment, decoded": "a: ${oc.decode:${oc.env:HOME}}",
    "the environment, in a text": "a: x${oc.env:HOME}y",
    "the environment, spaced": "a: '${ oc.env : HOME }'",
    "a resolver by interpolation": "b: env\na: ${oc.${b}:HOME}",
    "oc.create": "a: '${oc.create:{_target_: os.system, command: touch MARK}}'",
    "hydra": "a: ${hydra:runtime.cwd}",
    "now": "a: ${now:%Y}",
    "a quoted resolver": "a: \"${oc.env:'HOME'}\"",
    "a nested interpolation": "b: c\nc: 1\na: '${${b}}'",
    "a circle": "a: ${b}\nb: ${a}",
    "a circle through its parent": "a: {b: '${a}'}",
    "laughs": "\n".join(f"a{n}: ${{a{n + 1}}}${{a{n + 1}}}" for n in range(60)) + "\na60: ha",
    "laughs of nodes": "\n".join(f"a{n}: ['${{a{n + 1}}}', '${{a{n + 1}}}']" for n in range(60)) + "\na60: ha",
    "laughs of numbers": "\n".join(f"a{n}: ['${{a{n + 1}}}', '${{a{n + 1}}}']" for n in range(60)) + "\na60: 1",
    "an interpolation of parts": "d: '$'\nr: ['$', '{oc.create:{_target_: os.system, command: touch MARK}}', "
    "'${d}{r.0}${d}{r.1}']\na: '${d}${r.1}'",
    "an interpolation of parts, whole": "d: '$'\nr: '{oc.env:HOME}'\na: '${d}${r}'",
    "deep interpolation": "a: " + "${" * 5_000 + "b" + "}" * 5_000,
    "duplicates": "a: 1\na: 2",
    "a list": "[1, 2]",
}


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What payloads touch; beside it a module that touches it when it is imported, and a hub repository."""
    module = f"open({str(tmp_path / 'mark')!r}, 'w')\ndef thing(*_, **__): return None\nclass Thing: pass\n"
    for place in ("evil_module.py", "hubconf.py"):
        (tmp_path / place).write_text(module)
    (tmp_path / "run").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "mark"
    sys.modules.pop("evil_module", None)


def filled(tree: Any, mark: Path) -> Any:
    text = json.dumps(tree)
    for name, value in {"MARK": mark, "OUTSIDE": mark.with_name("outside"), "RUN": mark.with_name("run"),
                        "REPOSITORY": mark.parent}.items():  # fmt: skip
        text = text.replace(name, str(value))
    return json.loads(text)


def build(tree: Any) -> None:
    """What a command does with a checked config: instantiate every part, and call what is partial."""
    for node in tree.values() if "_target_" not in tree else [tree]:
        made = instantiate(OmegaConf.create(node), _convert_="all") if isinstance(node, (dict, list)) else node
        if callable(made) and type(made).__name__ == "partial":
            made()


@pytest.mark.parametrize("kind", ["runs", "writes", "asks"])
def test_nothing_hostile_runs(kind: str, mark: Path) -> None:
    corpus = {"runs": RUNS, "writes": WRITES, "asks": ASKS}[kind]
    executed, admitted = [], []
    for name, hostile in corpus.items():
        for wrapped in (hostile, {"models": {"Student": hostile}}):
            tree = filled(wrapped, mark)
            try:
                checked = check_targets(tree, run_dir=mark.with_name("run"))
            except ValueError:
                pass
            else:
                admitted.append(name)
                try:
                    build(checked)
                except Exception as error:  # what it runs into is its own affair; whether it ran is ours
                    print(f"{name}: {error}")
            if mark.exists() or mark.with_name("outside").exists() or "evil_module" in sys.modules:
                executed.append(name)
                mark.unlink(missing_ok=True)
                sys.modules.pop("evil_module", None)
    tried = 2 * len(corpus)
    report(f"hostile configs ({kind}) refused", tried=tried, survived=tried - len(admitted), lost=len(executed))
    assert not executed
    assert not admitted


def test_files_that_are_more_than_data_are_refused(mark: Path) -> None:
    admitted, long = [], []
    for name, text in TEXTS.items():
        file = mark.with_name("config.yaml")
        file.write_text(text.replace("MARK", str(mark)))
        try:
            read_config(file)
        except ValueError as error:
            long += [name] if len(str(error)) > 1000 else []
        else:
            admitted.append(name)
    report("hostile YAML refused", tried=len(TEXTS), survived=len(TEXTS) - len(admitted), lost=int(mark.exists()))
    assert not admitted
    assert not long
    assert not mark.exists()


def test_the_environment_does_not_leak(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_DISTILL_SECRET", "xyzzy")
    for text in ("${oc.env:LIT_DISTILL_SECRET}", "${oc.decode:${oc.env:LIT_DISTILL_SECRET}}", "a${oc.env:NO,b}"):
        with pytest.raises(ValueError, match="resolvers") as caught:
            check_targets({"a": text})
        assert "xyzzy" not in str(caught.value)


def test_the_corpus_is_large_enough() -> None:
    assert len(RUNS) + len(WRITES) + len(ASKS) >= 40
