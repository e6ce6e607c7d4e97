"""Run folders from a stranger, opened as the commands do: each attack is refused in one line, and nothing happens."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_distill.models import PPTSMv2
from lit_distill.reporting.training_cost import training_cost
from lit_distill.runs.artifacts import write_student
from lit_distill.runs.opened import load_run
from lit_distill.runs.run import Run

T = "_target_"
SIZES = {"num_classes": 3, "num_frames": 4}
NETWORK = {T: "lit_distill.models.PPTSMv2", **SIZES, "scale": 0.125, "depths": [1, 1, 1, 1], "class_expand": 8}
EVIL = {T: "torch.load", "f": "evil.bin", "weights_only": False}
CREATE = "{oc.create:{_target_: os.system, command: touch outside}}"

Config = dict[str, Any]


def honest() -> Config:
    return {
        "models": {"Student": {**NETWORK, "pretrained": None}},
        "data": {
            T: "lit_distill.data.VideoDataModule", "root": ".", "train_list": "train.txt", "val_list": "val.txt",
            **SIZES, "size": 32, "scale": 32,
        },
        "student": "Student",
        "losses": {"ce": {T: "lit_distill.LossTerm", "loss": {T: "torch.nn.CrossEntropyLoss"},
                          "pair": ["Student", "GroundTruth"]}},
        "val_losses": None,
        "optimizer": {T: "torch.optim.SGD", "_partial_": True, "lr": 0.1},
        "scheduler": None, "balance": None, "candidates": None, "frozen": [], "callbacks": {}, "trainer": {},
    }  # fmt: skip


def put(place: str, value: Any) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        *folders, last = place.split("/")
        node = config
        for name in folders:
            node = node[name]
        node[last] = value

    return change


def both(*changes: Callable[[Config], None]) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        for one in changes:
            one(config)

    return change


HARMLESS: dict[str, Callable[[Config], None]] = {
    "a callback without a target": put("callbacks", {"a": {"b": 1}}),
    "a callback that is text": put("callbacks", {"a": "evil"}),
}
PARTS = both(put("d", "$"), put("data/roots", ["$", CREATE, "${d}{data.roots[0]}${d}{data.roots[1]}"]))
ATTACKS: dict[str, Callable[[Config], None]] = {
    # what is put together from parts is never read again
    "parts": PARTS,
    "parts, in the model": both(put("d", "$"), put("c", CREATE), put("models/Student/pretrained", "${d}${c}")),
    "parts, of three": both(put("d", "$"), put("e", "{"), put("c", CREATE[1:]), put("student", "${d}${e}${c}")),
    "parts, by a pointer to a pointer": both(
        put("d", "$"), put("c", CREATE), put("x", "${d}${c}"), put("y", "${x}"), put("data/suffix", "${y}")
    ),
    "parts, in the optimizer": both(put("d", "$"), put("c", CREATE), put("optimizer/lr", "${d}${c}")),
    "parts, in a callback": both(put("d", "$"), put("c", CREATE), put("callbacks", {"x": {T: "${d}${c}"}})),
    "parts, unused": both(put("d", "$"), put("c", CREATE), put("note", "${d}${c}")),
    # the language itself
    "a resolver": put("data/root", "${oc.env:HOME}"),
    "a resolver in capitals": put("data/root", "${OC.env:HOME}"),
    "an escape": put("data/root", "\\${oc.env:HOME}"),
    "two escapes": put("data/root", "\\\\${oc.env:HOME}"),
    "a pointer in a pointer": put("data/root", "${${student}}"),
    "a pointer that is open": put("data/root", "${student"),
    "a pointer over lines": put("data/root", "${oc.env:\nHOME}"),
    "a pointer in a key": put("models", {"${student}": NETWORK}),
    "a resolver in a key": put("losses/${oc.env:HOME}", {}),
    "a target by a pointer": both(put("t", "torch.load"), put("models/Student", {T: "${t}", "f": "evil.bin"})),
    "a node by a pointer": both(put("x", EVIL), put("models/Student", "${x}")),
    "a node by a pointer through a list": both(put("x", [[EVIL]]), put("data/mix", "${x.0.0}")),
    "a circle": both(put("a", "${b}"), put("b", "${a}")),
    # the builder's own words
    "args as text": put("models/Student/_args_", "ab"),
    "args as a mapping": put("models/Student/_args_", {"num_classes": 3}),
    "args with a call": put("models/Student/_args_", [EVIL]),
    "partial as text": put("models/Student/_partial_", "${oc.env:HOME}"),
    "partial as a call": put("models/Student/_partial_", EVIL),
    "recursive is false": both(put("models/Student/_recursive_", False), put("models/Student/activation", EVIL)),
    "recursive is a call": put("models/Student/_recursive_", EVIL),
    "convert is a call": put("models/Student/_convert_", EVIL),
    "a second target": put("models/Student/_target_ ", "os.system"),
    "an argument that is no name": put("models/Student/a b", 1),
    "an argument that is a number": both(put("models/Student", {**NETWORK, 3: 4})),
    "the target is a list": put("models/Student/_target_", ["os.system"]),
    "the target is null": put("models/Student/_target_", None),
    "the target is a method": put("models/Student/_target_", "lit_distill.models.PPTSMv2.load_state_dict"),
    "the target is dunder": put("models/Student/_target_", "lit_distill.models.PPTSMv2.__init__"),
    "the target is our builder": put("models/Student", {T: "lit_distill.untrusted.building.build", "config": EVIL}),
    "the target is Hydra": put("models/Student", {T: "hydra.utils.instantiate", "config": EVIL}),
    "the target is OmegaConf": put("models/Student", {T: "omegaconf.OmegaConf.load", "file_": "evil.yaml"}),
    "the target is a path": put("models/Student", {T: "pathlib.Path.write_text", "_args_": ["outside", "x"]}),
    "the target is the hub": put("models/Student", {T: "torch.hub.load", "repo_or_dir": ".", "source": "local"}),
    "a call in a loss": put("losses/ce/loss", EVIL),
    "a call in the optimizer": put("optimizer", {**EVIL, "_partial_": True}),
    "a call in the scheduler": put("scheduler", EVIL),
    "a call in balance": put("balance", EVIL),
    # arguments of the wrong kind are one line too
    "text for a number": put("models/Student/num_classes", "three"),
    "a list for a number": put("models/Student/num_classes", [3]),
    "a mapping for a number": put("models/Student/num_frames", {"a": 1}),
    "a number beyond 64 bits": put("models/Student/num_classes", 10**40),
    "an unknown argument": put("models/Student/evil", 1),
    "models is text": put("models", "Student"),
    "models is a list": put("models", [NETWORK]),
    "the student is a list": put("student", ["Student"]),
    "the student is a mapping": put("student", {"a": 1}),
    "inputs is text": put("inputs", "evil"),
    "start is a list": put("start", ["evil"]),
    "a start is a number": put("start", {"Student": 5}),
    "an input without end": put("inputs", {"Student": {"size": "9" * 9_999}}),
    "frozen models without end": put("frozen", [f"a{number}" for number in range(9_999)]),
    "frozen weights are a list": put("frozen_weights", {"Student": ["evil"]}),
    "callbacks is text": put("callbacks", "evil"),
    "the data is a layer": put("data", {T: "torch.nn.Identity", **SIZES}),
    "the data is nothing that is built": put("data", {"a": 1}),
    "the model is data": put("models/Student", honest()["data"]),
    "the model is built later": put("models/Student/_partial_", True),
    "the model is text": put("models/Student", "torch.nn.Identity"),
    "the classes are text": put("data/num_classes", "3"),
    "the trainer is text": put("trainer", "evil"),
    "losses is a list": put("losses", [1]),
    # timm and torchvision by name
    "timm's checkpoint by descriptor": put(
        "models/Student", {T: "lit_distill.models.timm_model", "name": "resnet18", "num_classes": 3,
                           "checkpoint_path": 3}),
    "timm's settings": put(
        "models/Student", {T: "lit_distill.models.timm_model", "name": "resnet18", "num_classes": 3,
                           "pretrained_cfg_overlay": {"custom_load": True}}),
    "torchvision's weights": put(
        "models/Student", {T: "lit_distill.models.torchvision_model", "name": "resnet18", "num_classes": 3,
                           "weights": True}),
    # addresses
    **{
        f"an address: {address}": both(put("data/root", address), put("data/format", "shards"))
        for address in (
            "simplecache::http://127.0.0.1:9/x", "http://127.0.0.1:9/x", " http://127.0.0.1:9/x", "s3://bucket",
            "filecache::s3://bucket", "zip://a::http://127.0.0.1:9/x.zip", "simplecache::memory:x", "file:///etc",
            "blockcache::file:x", "\\\\host\\share", "//host/share", "reference::x",
        )
    },
    "an address in a list": put("data/roots", ["x", "simplecache::http://127.0.0.1:9/x"]),
    "an address of lists": put("data/train_list", "simplecache::http://127.0.0.1:9/x"),
    "an address of weights": put("models/Student/pretrained", "hf::x"),
    "an address of parts": both(put("a", "simplecache:"), put("b", ":http:"), put("data/root", "${a}${b}//127.0.0.1")),
}  # fmt: skip
TEXTS = {
    "an anchor": "models: &a {}\ndata: {}\n",
    "an alias": "models: &a {Student: {}}\ndata: *a\n",
    "a merge key": "models: {<<: {Student: {}}}\ndata: {}\n",
    "a merge key of a list": "models:\n  <<: [{Student: {}}]\ndata: {}\n",
    "a tag": "models: !!python/object/apply:os.system ['touch outside']\n",
    "a tag on a key": "!!python/name:os.system models: {}\n",
    "a tag of text": "models: !!str Student\n",
    "a binary tag": "models: !!binary aGk=\n",
    "a directive": "%TAG ! tag:yaml.org,2002:python/object/apply:\n---\nmodels: !os.system ['touch outside']\n",
    "a key twice": "models: {Student: {}}\nmodels: {}\ndata: {}\n",
    "a key twice, in quotes": "models: {Student: {}}\n'models': {}\ndata: {}\n",
    "a key that is a list": "? [models]\n: 1\n",
    "a key that is a mapping": "? {models: 1}\n: 1\n",
    "a key that is null": "~: 1\n",
    "two documents": "models: {}\n---\nmodels: {}\n",
    "no document": "",
    "a text": "models\n",
    "deep": "a: " + "[" * 50_000,
    "deep mappings": "a: " * 3 + "{a: " * 50_000,
    "a long number": "models: " + "9" * 50_000 + "\n",
    "a long number in base 60": "models: " + "1:" + "59:" * 30_000 + "1\n",
    "a long number in base 2": "models: 0b" + "1" * 90_000 + "\n",
    "many pointers to one of many keys": "".join(f"k{n}: 1\nv{n}: ${{k9998}}\n" for n in range(9_999)),
    "laughs": "\n".join(f"a{n}: ${{a{n + 1}}}${{a{n + 1}}}" for n in range(90)) + "\na90: ha",
    "a chain of pointers": "\n".join(f"a{n}: ${{a{n + 1}}}" for n in range(5_000)) + "\na5000: 1",
    "a pointer of many dots": "models: ${" + "." * 90_000 + "a}",
    "a pointer of many names": "models: ${" + "a." * 40_000 + "a}",
    "a pointer of many digits": "models: [1]\ndata: ${models[" + "9" * 90_000 + "]}",
    "a pointer of other digits": "models: [1]\ndata: ${models.\u0660}",
    "UTF-16": "models: {}\n".encode("utf-16").decode("latin1"),
}
CARDS = {
    "a key twice": '{"model": {}, "model": {}, "data": {}}',
    "deep": '{"a":' * 50_000,
    "no mapping": "[1]",
    "a text": '"x"',
    "a number": "1e999",
    "a long number": '{"model": ' + "9" * 50_000 + "}",
    "a resolver": '{"model": {"_target_": "${oc.env:HOME}"}, "data": {}}',
    "a call": '{"model": {"_target_": "os.system", "command": "touch outside"}, "data": {}, "sha256": "x"}',
    "a pointer of parts": '{"d": "$", "c": "{oc.create:x}", "model": {"a": "${d}${c}"}, "data": {}}',
    "class names are a number": '{"model": {}, "data": {}, "class_names": 5}',
    "class names are a mapping": '{"model": {}, "data": {}, "class_names": {"a": 1}}',
    "teachers are a list": '{"model": {}, "data": {}, "teachers": [1]}',
    "the hash is a list": '{"model": {}, "data": {}, "sha256": ["x"]}',
    "the input is text": '{"model": {}, "data": {}, "input": "x"}',
}


class Canary:
    """What the attacks would do: an audit hook cannot be taken out again, so this one can be switched off."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.home: str | None = None
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.home is None:
            return
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect",
                     "socket.getaddrinfo", "pickle.find_class", "shutil.copyfile", "os.remove"):  # fmt: skip
            self.seen.append(event)
        elif event == "open" and isinstance(arguments[2], int):
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not str(arguments[0]).endswith(".pyc"):
                self.seen.append(f"open {arguments[0]}")

    @contextmanager
    def watch(self, home: Path) -> Iterator[None]:
        gc.collect()  # temporary folders of other tests are removed now, not while this one watches
        self.seen, self.home = [], str(home)
        try:
            yield
        finally:
            self.home = None


@pytest.fixture(scope="module")
def canary() -> Canary:
    gc.collect()
    gc.freeze()  # what stands now is not walked again by the collection of each attack
    return Canary()


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    arguments = {key: value for key, value in NETWORK.items() if key != T}
    return PPTSMv2(**arguments).eval().state_dict()  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    write_student(run, state, {"model": NETWORK, "data": honest()["data"], "class_names": ["a", "b", "c"]})
    return run


def everything(run: Run) -> None:
    """What the commands make of a run."""
    run.preprocess()
    run.model()
    run.view()
    run.data()
    training_cost(run, steps=1)


def refused(act: Callable[[], Any], canary: Canary, home: Path) -> str:
    with canary.watch(home), pytest.raises((ValueError, OSError)) as caught:
        act()
    assert not canary.seen
    assert not (home / "outside").exists()
    text = str(caught.value)
    assert text.isprintable(), text
    assert len(text) < 1000
    return text


def test_an_honest_run_is_opened(folder: Path, canary: Canary) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(honest()))
    run = load_run(folder)
    run.preprocess()
    run.model()
    said = refused(lambda: training_cost(run, steps=1), canary, folder.parent)
    assert "train.txt" in said, "the data alone is missing"


@pytest.mark.parametrize("name", HARMLESS)
def test_what_nobody_reads_is_harmless(name: str, folder: Path, canary: Canary) -> None:
    config = honest()
    HARMLESS[name](config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert "train.txt" in refused(lambda: everything(load_run(folder)), canary, folder.parent)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_config_is_refused(name: str, folder: Path, canary: Canary) -> None:
    config = honest()
    ATTACKS[name](config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    said = refused(lambda: everything(load_run(folder)), canary, folder.parent)
    assert "train.txt" not in said, "it was taken for an honest one"


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_refused(name: str, folder: Path, canary: Canary) -> None:
    (folder / "config.yaml").write_text(TEXTS[name])
    refused(lambda: everything(load_run(folder)), canary, folder.parent)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_refused(name: str, folder: Path, canary: Canary) -> None:
    (folder / "student.json").write_text(CARDS[name])
    refused(lambda: everything(load_run(folder / "student.safetensors")), canary, folder.parent)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_beside_a_config_is_refused(name: str, folder: Path, canary: Canary) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(honest()))
    (folder / "student.json").write_text(CARDS[name])
    refused(lambda: everything(load_run(folder)), canary, folder.parent)


@pytest.mark.parametrize(
    "results",
    [
        "[1]", '{"student_stage": "../../evil"}', '{"student_stage": ["1_a"]}', '{"student": {"a": 1}}', "{" * 9_999,
        '{"student": "../evil"}', '{"versions": 3}', '{"a": "${oc.env:HOME}"}',
    ],
)  # fmt: skip
def test_results_are_refused(results: str, folder: Path, canary: Canary) -> None:
    config = {**honest(), "student": "best", "stages": {"a": {}} if "stage" in results else None}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "results.json").write_text(results)
    refused(lambda: everything(load_run(folder)), canary, folder.parent)


def test_the_caller_may_name_a_store_of_shards(folder: Path) -> None:
    config = honest()
    config["data"]["format"] = "shards"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run = load_run(folder)
    assert run.data(root="memory://bucket").source.archives.remote  # type: ignore[attr-defined]
    config["data"]["train_list"] = "simplecache::http://127.0.0.1:9/x"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="is an address"):
        load_run(folder).data(root="memory://bucket")


def test_what_is_seen_is_the_file_of_a_run(folder: Path) -> None:
    """The corpus would say nothing if the honest card were refused as well."""
    assert json.loads((folder / "student.json").read_text())["class_names"] == ["a", "b", "c"]
    load_run(folder / "student.safetensors").model()
