"""A finished run: its models without their losses, its data and its preprocessing, built when they are asked for."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lightning import LightningDataModule
from torch import Tensor, nn

from lit_distill._files import expand_home
from lit_distill._views import InputView
from lit_distill.checkpoints import read_checkpoint
from lit_distill.data.noise import GENERATOR
from lit_distill.data.preprocess import Preprocess, Views
from lit_distill.models.identity import fill, state_of, state_sha256
from lit_distill.models.state_files import SUFFIXES, file_sha256, read_safetensors, split_name
from lit_distill.models.weights import load_weights, weights_files
from lit_distill.runs.names import (
    BEST,
    CHECKPOINT_SUFFIX,
    CHECKPOINTS,
    LAST,
    STUDENT_FILE,
    card_of,
)
from lit_distill.structures import Answer
from lit_distill.untrusted.batches import held_data
from lit_distill.untrusted.building import build
from lit_distill.untrusted.naming import is_address
from lit_distill.untrusted.networks import check_forward
from lit_distill.untrusted.plain import dotted
from lit_distill.untrusted.showing import short_errors

_Built = TypeVar("_Built")
_OF_BATCHES = ("batch_size", "eval_batch_size", "num_workers", "prefetch", "shuffle_window")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What :func:`load_run` found: plain data until a model or the data is asked for.

    Attributes:
        folder: the run folder, or that of the weights.
        config: ``models``, ``data``, ``student`` and all else that the run was composed of; interpolations resolved.
        card: content of ``student.json``; empty where the run left none.
        results: content of ``results.json``; empty where the run left none.
        weights: the weights file where the run was opened by it; None for a run folder.
        stage: folder of the stage that the run's student is of; None where the run has no stages.
        allow: packages that its configs may build from besides the allow-list's.
    """

    folder: Path
    config: Mapping[str, Any]
    card: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    allow: tuple[str, ...] = ()
    stage: Path | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """Names of its models."""
        return tuple(self.config["models"])

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Names of those that see samples: all but a generator, which makes them."""
        return tuple(name for name in self.models if not self._is_generator(name))

    def _is_generator(self, name: str) -> bool:
        return name == GENERATOR and bool(self.config.get("data_free"))

    @property
    def student(self) -> str:
        """Name of the deployed one."""
        return str(self.config.get("student", "Student"))

    @property
    def class_names(self) -> tuple[str, ...]:
        """By class index; empty where the run does not say."""
        return tuple(str(name) for name in self.card.get("class_names") or ())

    @property
    def num_classes(self) -> int | None:
        """As the data's config says it."""
        return count_of(self.config["data"].get("num_classes"))

    def weights_file(self, model: str | None = None, checkpoint: str = BEST) -> Path:
        """The file that :meth:`model` reads.

        Args:
            model: a name; None for the student's.
            checkpoint: ``"best"``, ``"last"``, or the path of a checkpoint of this run.

        Raises:
            ValueError: the run has no such model.
            FileNotFoundError: the file is not there.
        """
        name = self._name(model)
        if self.weights is not None:
            return self.weights
        if name == self.student and checkpoint == BEST and (self.folder / STUDENT_FILE).is_file():
            return self.folder / STUDENT_FILE
        folder = self._trained_in
        is_named = checkpoint in (BEST, LAST)
        file = folder / CHECKPOINTS / f"{checkpoint}{CHECKPOINT_SUFFIX}" if is_named else Path(checkpoint)
        if file.is_file():
            return file
        there = sorted(str(path.relative_to(folder)) for path in folder.glob(f"{CHECKPOINTS}/*{CHECKPOINT_SUFFIX}"))
        raise FileNotFoundError(
            f"{folder} has no {file.name} to take {name} from: "
            + (f"give checkpoint={'|'.join(Path(path).stem for path in there)}" if there else "it has no checkpoints")
        )

    @property
    def weights_bytes(self) -> int:
        """Of all files that its models' weights may be in, as they are on the disk."""
        folders = dict.fromkeys((self.folder, self._trained_in))
        files = [file for folder in folders for file in (folder / STUDENT_FILE, *(folder / CHECKPOINTS).glob("*"))]
        named = [name for node in self.config["models"].values() for name in weights_files(node).values() if name]
        named += [str(file) for file in (self.config.get("frozen_weights") or {}).values() if file]
        files += [Path(split_name(name)[0]) for name in named]
        files += [self._trained_in / str(start) for start in (self.config.get("start") or {}).values()]
        files += [self.weights] if self.weights else []
        # a config may name any file of this machine: one that no weights are read from does not count
        found = {file: file.stat() for file in files if file.suffix.lower() in SUFFIXES and file.is_file()}
        once = {(status.st_dev, status.st_ino): status for status in found.values()}  # however many links lead to it
        return sum(min(status.st_size, 512 * status.st_blocks) for status in once.values())

    def verified(self, file: Path) -> Path:
        """The file, when it is the one that the card describes.

        Raises:
            ValueError: there is no card, or its sha256 is another.
        """
        wanted = self.card.get("sha256")
        if wanted is None:
            raise ValueError(f"{file} has no card {card_of(file).name} beside it to be checked against")
        found = file_sha256(file)
        if found != wanted:
            raise ValueError(
                f"{file} is not the file that its card describes: its sha256 is {found[:12]}…, the card's "
                f"{str(wanted)[:12]}…: copy both again"
            )
        return file

    def model(self, model: str | None = None, *, checkpoint: str = BEST) -> nn.Module:
        """A bare network with its trained weights, in eval mode on the CPU.

        Where the run says which part of an output is its answer, it gives that.

        Args:
            model: a name; None for the student's.
            checkpoint: ``"best"`` (the student: ``student.safetensors``), ``"last"``, or the path of a checkpoint. A
                frozen model is in none: it is loaded from the same file as in training, which must still hash to what
                the run recorded.

        Raises:
            ValueError: no such model; weights that are damaged, changed, or do not fit; a target that is not admitted;
                a network that takes too much memory, or cannot be run, on the samples of the run's data.
            FileNotFoundError: the weights are not there.
        """
        name = self._name(model)
        file = self.weights_file(name, checkpoint)
        node = self.config["models"][name]
        network = self._built("models", name, _without_weights(node), nn.Module, weights_bytes=self.weights_bytes)
        network = _answering(network, name, self.config.get("answer"))
        if file.suffix == ".safetensors":
            state = read_safetensors(self.verified(file))[0]
        elif file.suffix != CHECKPOINT_SUFFIX:
            raise ValueError(f"a network's weights are read from .safetensors and {CHECKPOINT_SUFFIX}, got {file}")
        else:
            stored = read_checkpoint(file)
            if not any(key.startswith(f"models.{name}.") for key in stored["state_dict"]):
                return self.within_memory(name, self._frozen(name, network, node))
            state = state_of(stored, name)
        _fill(network, state, f"{file}, {name}")
        return self.within_memory(name, network.eval())

    def data(self, *, views: Views | None = None, **overrides: Any) -> LightningDataModule:
        """The data module of the run.

        Args:
            views: of videos in evaluation; None for those of the run.
            **overrides: arguments to replace, such as ``root`` or ``num_workers``; None leaves the run's.

        Raises:
            ValueError: an argument is unknown or out of its range; a target that is not admitted.
        """
        node = held_data(self.config["data"], given=[name for name, value in overrides.items() if value is not None])
        root = overrides.get("root")
        if isinstance(root, (str, os.PathLike)) and not is_address(root) and not expand_home(root).is_dir():
            raise FileNotFoundError(f"no folder {root}, set data.root=<folder> to where the data is now")
        if views is not None and views != node.get("views", "center"):
            node["views"] = views
            node.pop("eval_batch_size", None)  # chosen for other views
        node.update({name: value for name, value in overrides.items() if value is not None})
        if root is None or not is_address(root):
            return self._built("data", "", node, LightningDataModule)
        # a store of shards that the caller names; what the run's own config says may be no address
        open_at = self._built("data", "", {**node, "root": ".", "_partial_": True}, partial)
        data: LightningDataModule = open_at(root=root)
        return data

    def view(self, model: str | None = None) -> InputView | None:
        """What a model, the student by default, sees of the data's clips; None for all."""
        given = (self.config.get("inputs") or {}).get(self._name(model))
        if given is None:
            return None
        with short_errors():
            data, view = self.config["data"], InputView.of(given)
        mean, std = data.get("mean"), data.get("std")
        return view if mean is None or std is None else view.of_data(mean, std)

    def preprocess(self, *, views: Views | None = None, model: str | None = None) -> Preprocess:
        """What a network of the run wants of a sample; the data itself need not be there.

        Args:
            views: of a video; None for those of the run.
            model: a name; None for the student's.
        """
        node = held_data(self.config["data"], given=_OF_BATCHES)
        if "root" in node:
            node["root"] = "."  # nothing is looked for in it
        return Preprocess.of(
            self._built("data", "", node, LightningDataModule),
            class_names=self.class_names,
            views=views,
            view=self.view(model),
        )

    def within_memory(self, name: str, network: nn.Module) -> nn.Module:
        """The network of a model, when the samples of the run's data do not take too much memory in it.

        Raises:
            ValueError: they do, or it cannot be run on them.
        """
        if self._is_generator(name):
            noise = self.config["data_free"].get("noise")
            size = count_of(noise.get("size") if isinstance(noise, Mapping) else None, "data_free.noise.size")
            check_forward(network, (size or 0,), name, trusted=bool(self.allow))
        elif "_target_" in self.config["data"]:
            try:
                shape = self.preprocess(model=name).input_shape
            except ValueError:
                if not self.allow:  # a data module of the caller's own need not say how it prepares samples
                    raise
            else:
                check_forward(network, shape, name, trusted=bool(self.allow))
        return network

    @property
    def _trained_in(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder if self.stage is None else self.stage

    def _name(self, model: str | None) -> str:
        name = self.student if model is None else model
        if name not in self.config["models"]:
            raise ValueError(f"{self.folder} has no model {name!r:.80}: it has {', '.join(self.models)}")
        return name

    def _built(self, group: str, name: str, node: Any, kind: type[_Built], *, weights_bytes: int = 0) -> _Built:
        """Check a part of the config, and build it from what was checked."""
        place = f"{group}.{name}".rstrip(".")
        made = build(node, name=place, allow=self.allow, run_dir=self.folder, weights_bytes=weights_bytes)
        if not isinstance(made, kind):
            raise ValueError(f"{dotted((place,))}: expected a {kind.__name__}, got {type(made).__name__}")
        return made

    def _frozen(self, name: str, network: nn.Module, node: Mapping[str, Any]) -> nn.Module:
        sources, start = weights_files(node), (self.config.get("start") or {}).get(name)
        if file := (self.config.get("frozen_weights") or {}).get(name):
            sources = {"": str(file)}
        if start is not None:  # as an earlier stage left it
            sources = {"": os.path.normpath(self._trained_in / str(start))}
        if not sources or None in sources.values():
            raise ValueError(f"{name} is in no checkpoint of {self.folder}, and its config names no weights of its own")
        try:
            for part, source in sources.items():
                load_weights(network.get_submodule(part), str(source))
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{name} was frozen, so its weights are in no checkpoint of {self.folder}; those that it was trained "
                f"with can't be loaded: {error}"
            ) from error
        wanted = self.card.get("teachers", {}).get(name, {}).get("sha256")
        if wanted is not None and state_sha256(network.state_dict()) != wanted:
            files = " or ".join(map(str, sources.values()))
            raise ValueError(f"{files} has changed since {self.folder} was trained: {name} is not what it was then")
        return network.eval()


def _answering(network: nn.Module, name: str, answer: Any) -> nn.Module:
    """The network; one that gives a structure gives its answer, where the run's config says which part that is."""
    part = answer.get(name) if isinstance(answer, Mapping) else answer
    if part is not None:
        network.register_forward_hook(partial(_answered, Answer(tuple(str(part).split(".")))))
    return network


def _answered(answer: Answer, network: nn.Module, args: Any, output: Any) -> Any:
    return answer.of(output)


def count_of(number: Any, name: str = "num_classes") -> int | None:
    """A whole number of a run's content, None where there is none; raises ValueError for what is no number."""
    if number is not None and not (isinstance(number, (int, float)) and math.isfinite(number)):
        got = number if isinstance(number, float) else type(number).__name__
        raise ValueError(f"{name}: expected a number, got {got}")
    return None if number is None else int(number)


def _without_weights(node: Any) -> Any:
    """A model's config that loads no weights file: those of the run come after."""
    if isinstance(node, (list, tuple)):
        return [_without_weights(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    return {key: None if key == "pretrained" else _without_weights(value) for key, value in node.items()}


def _fill(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    try:
        fill(network, state)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{source} does not fit {type(network).__name__}: {said[:300]}") from error
