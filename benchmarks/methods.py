"""All losses at once, on images: which of them help a small student with few labels, at which weight?

`python benchmarks/methods.py` takes each loss as its experiment of conf/experiment/ has it, beside cross-entropy, from
one frozen teacher, on data=digits_images. First, on validation and with a seed of its own, it chooses a weight for each
(where the term pulls as hard as cross-entropy, and around it); then it trains all of them with five paired seeds, at
the published weight and at the chosen one, and looks at the test split once. It writes
benchmarks/methods.json, docs/methods.svg and the tables of docs/chooser.md. What is done is kept in runs/methods/, so
that the same command resumes; `--table` writes picture and table alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import os
import re
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from omegaconf import OmegaConf
from results import write_table
from torch import Tensor, nn

from lit_distill import losses
from lit_distill._command.command import conf_dir
from lit_distill._files import write_text
from lit_distill._version import versions
from lit_distill.comparison.paired import holm, paired_gain, verdict
from lit_distill.comparison.record import machine
from lit_distill.data import DigitsImages, normalize
from lit_distill.gradients import gradients_of, norm_of
from lit_distill.models import SimKDStudent, SmallResNet
from lit_distill.module import DistillModule
from lit_distill.reporting.charts import GAIN, LOSS, Interval, interval_chart, svg_file
from lit_distill.runs.artifacts import write_json
from lit_distill.schedules import WarmupCosine
from lit_distill.terms import LossTerm

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "benchmarks" / "methods.json"
WORK = ROOT / "runs" / "methods"

SEEDS = (0, 1, 2, 3, 4)
CHOOSING = 100
"""The seed of what is chosen on validation."""
LADDER = (1.0, 10.0, 100.0)
"""Weights that are tried, of the one at which a term's gradient is as long as that of cross-entropy."""
WIDTHS = {"Student": (8, 16, 32), "Teacher": (16, 32, 64)}
EPOCHS, WARMUP, LR, DECAY = 12, 1, 0.01, 1e-4
LABELLED_SHARE, UNLABELLED_SHARE, BATCH = 0.08, 0.75, 64
PEERS = ("dml", "dml_group")
"""Their other models learn along."""
NOT_TRIED = {
    "sskd": "needs transformed views of each image, which these data do not have",
    "sskd_aux": "prepares a teacher for SSKD, teaches no student",
}
OTHERS = {"rkd": ("kd",), "srd": ("kd",)}
"""Terms of an experiment beside the method's own, which are left out: each method stands beside cross-entropy alone."""


# What there is to try ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A loss as its experiment has it, its layers by the names of these networks."""

    name: str
    family: str
    terms: Mapping[str, Any]
    models: Mapping[str, str]
    own: str
    """The name of its term."""

    @property
    def frozen(self) -> list[str]:
        return [] if self.name in PEERS else [name for name in self.models if name != "Student"]


def names() -> list[str]:
    """The losses of the library, by the names of their configs."""
    found = {path.stem for path in (conf_dir() / "loss").glob("*.yaml")} - {"cross_entropy"}
    return sorted(found)


@cache
def method(name: str) -> Method:
    """The method of a config conf/loss/<name>.yaml, from conf/experiment/<name>_pptsmv2.yaml."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", [f"experiment={name}_pptsmv2", "data=digits_images", "run_dir=unused"])
    loss = OmegaConf.load(conf_dir() / "loss" / f"{name}.yaml")._target_
    family = getattr(losses, loss.rpartition(".")[2]).__module__.split(".")[2]
    same = "lit_distill.models.PPTSMv2"  # a teacher of the student's own architecture
    models = {
        model: "Student" if model == "Student" or config.models[model]._target_ == same else "Teacher"
        for model in config.models
    }
    terms: dict[str, Any] = OmegaConf.to_container(config.losses, resolve=True)  # type: ignore[assignment]
    own = next(key for key, term in terms.items() if term["loss"]["_target_"] == loss)
    dropped = () if name in PEERS else ("ce_teacher", *OTHERS.get(name, ()))
    terms = {key: _adapted(term) for key, term in terms.items() if key not in dropped}
    if name == "cross_kd":  # PP-TSM's head is another: here the teacher's last stage continues from the student's map
        terms[own]["loss"]["teacher_head"] = ["Teacher.stages.2"]
        terms[own]["pair"] = ["Student.stages.1", ["Teacher.stages.1", "Teacher.stages.2"]]
    return Method(name, family, terms, models, own)


def _adapted(node: Any) -> Any:
    """References to the layers of PP-TSMv2 and PP-TSM in those of a SmallResNet: three stages instead of four."""
    if isinstance(node, dict):
        return {key: _adapted(value) for key, value in node.items()}
    if isinstance(node, list):
        kept = [_adapted(value) for value in node if value not in ("Student.last_conv", "Student.act")]
        return [value for place, value in enumerate(kept) if value not in kept[:place] or not isinstance(value, str)]
    if isinstance(node, str):
        node = re.sub(r"(?<=\.stages\.)\d", lambda found: str(max(0, int(found[0]) - 1)), node)
        return re.sub(r"pw_conv(_2)?\.bn$", "act:input", node)
    return node


# One training ------------------------------------------------------------------------------------------------------


def data_of(seed: int) -> DigitsImages:
    """The data in the order of a seed; the images are read once a process."""
    data = _digits(seed)
    data.datasets = _shared().datasets
    return data


def _digits(seed: int = 0) -> DigitsImages:
    return DigitsImages(
        labelled_share=LABELLED_SHARE, unlabelled_share=UNLABELLED_SHARE, batch_size=BATCH, num_workers=0, seed=seed
    )


@cache
def _shared() -> DigitsImages:
    data = _digits()
    data.prepare_data()
    data.setup()
    return data


@cache
def _whole(split: str) -> tuple[Tensor, Tensor]:
    data = _shared()
    images, labels, _ = zip(*(data.datasets[split][place] for place in range(len(data.datasets[split]))), strict=True)
    return normalize(torch.stack(images), data.mean, data.std), torch.tensor(labels)


@torch.no_grad()
def accuracy(network: nn.Module, split: str) -> float:
    """Top-1 in percent."""
    images, labels = _whole(split)
    right: Tensor = network.eval()(images).argmax(dim=1) == labels
    return 100 * right.float().mean().item()


@cache
def teacher(kind: str) -> nn.Module:
    """A trained network of a kind of `WIDTHS`, from its file."""
    network = SmallResNet(10, widths=WIDTHS[kind])
    network.load_state_dict(torch.load(WORK / f"{kind}.pt", weights_only=True))
    return network


def train_teacher(kind: str) -> dict[str, Any]:
    """Train one on the labels of all training images, and keep it."""
    seed_everything(CHOOSING + 1, verbose=False)
    network = SmallResNet(10, widths=WIDTHS[kind])
    module = _module({"Student": network}, {"ce": LossTerm(nn.CrossEntropyLoss(), ("Student", "GroundTruth"))}, [])
    data = DigitsImages(batch_size=BATCH, num_workers=0, seed=CHOOSING + 1)
    _fit(module, data, EPOCHS)
    WORK.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), WORK / f"{kind}.pt")
    return {"widths": list(WIDTHS[kind]), "parameters": _count(network), "val_top1": accuracy(network, "val")}


def build(one: Method, seed: int, weight: float | None = None) -> DistillModule:
    """The module of a method, at its published weight, or at another beside cross-entropy of weight 1."""
    seed_everything(seed, verbose=False)
    models: dict[str, nn.Module] = {}
    for name, kind in one.models.items():  # the student first: it starts alike whatever else there is
        models[name] = copy.deepcopy(teacher(kind)) if name in one.frozen else SmallResNet(10, widths=WIDTHS[kind])
    if one.name == "simkd":
        models["Student"] = SimKDStudent(models["Student"], without=())
    terms = {name: instantiate(term, _convert_="all") for name, term in one.terms.items()}
    terms = {name: LossTerm(**term) if isinstance(term, dict) else term for name, term in terms.items()}
    if weight is not None:
        terms.setdefault("ce", LossTerm(nn.CrossEntropyLoss(), ("Student", "GroundTruth")))
        terms["ce"].weight, terms[one.own].weight = 1.0, weight
    return _module(models, terms, one.frozen)


def _module(models: Mapping[str, nn.Module], terms: Mapping[str, LossTerm], frozen: list[str]) -> DistillModule:
    return DistillModule(
        models, terms, frozen=frozen, student="Student", metrics=None,
        optimizer=partial(torch.optim.AdamW, lr=LR, weight_decay=DECAY, fused=True),
        scheduler=WarmupCosine(epochs=EPOCHS, warmup_epochs=WARMUP),
    )  # fmt: skip


def _fit(module: DistillModule, data: DigitsImages, epochs: int) -> None:
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)


def run(one: Method, seed: int, weight: float | None, *splits: str) -> dict[str, Any]:
    """Train a student, and look at it on some splits."""
    begun = time.process_time()
    module = build(one, seed, weight)
    _fit(module, data_of(seed), EPOCHS)
    found = {f"{split}_top1": accuracy(module.models["Student"], split) for split in splits}
    return {**found, "seconds": time.process_time() - begun}


# Choosing on validation --------------------------------------------------------------------------------------------


@cache
def _begun() -> Mapping[str, Tensor]:
    """The plain student after two fifths of its training, on which gradients are measured."""
    module = build(PLAIN, CHOOSING)
    _fit(module, data_of(CHOOSING), 2 * EPOCHS // 5)
    return copy.deepcopy(module.models["Student"].state_dict())


def equal_pull(one: Method) -> float:
    """The weight at which the gradient of a method's term, by the student's weights, is as long as cross-entropy's."""
    module, epoch = build(one, CHOOSING, 1.0), float(2 * EPOCHS // 5)
    student = module.models["Student"]
    (student.network if isinstance(student, SimKDStudent) else student).load_state_dict(_begun())
    data = data_of(CHOOSING)
    module.expect_labels_of(data)
    found = []
    for place, raw in enumerate(data.train_dataloader()):
        batch = data.on_after_batch_transfer(data.on_before_batch_transfer(raw, 0), 0)
        if not place:
            module.build(batch, dataset_size=len(data.datasets["train"]), num_classes=10)
        inputs, target, index, entries = module.unpacked(batch)
        with module.composer.capture(module.named, epoch=epoch) as signals:
            module.run_models(inputs, signals)
        result = module.composer(signals, target, index=index, batch=entries, epoch=epoch)
        learned = [weight for weight in module.models["Student"].parameters() if weight.requires_grad]
        norms = dict(zip(result.names, (norm_of(gradients_of(term, learned)) for term in result.terms), strict=True))
        found.append(float(norms["ce"] / norms[one.own]))
    return statistics.median(found)


def choose(one: Method) -> dict[str, Any]:
    """Try a few weights with the seed of choosing: what each reaches on validation, and which is best."""
    pull = equal_pull(one)
    tried: dict[str, float] = {"published": run(one, CHOOSING, None, "val")["val_top1"]}
    if math.isfinite(pull) and pull > 0:
        for factor in LADDER:
            weight = float(f"{factor * pull:.3g}")
            tried[str(weight)] = run(one, CHOOSING, weight, "val")["val_top1"]
    best = max(tried, key=lambda key: tried[key])
    return {"equal_pull": pull, "tried": tried, "best": best}


PLAIN = Method("plain", "", {"ce": {"loss": {"_target_": "torch.nn.CrossEntropyLoss"}, "pair": ["Student", "GroundTruth"]}}, {"Student": "Student"}, "ce")  # fmt: skip  # noqa: E501


# All of it, resumed --------------------------------------------------------------------------------------------------


def work(task: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Do one task, in a process of its own: a teacher, a choice, or a run of a seed."""
    kind, name, *more = task
    key = "/".join(task)
    try:
        if kind == "teacher":
            return key, train_teacher(name)
        one = PLAIN if name == "plain" else method(name)
        if kind == "choose":
            return key, choose(one)
        if kind == "validate":
            return key, run(one, int(more[0]), None, "val")
        return key, run(one, int(more[0]), float(more[1]) if kind == "chosen" else None, "val", "test")
    except Exception as error:  # the others go on, and the table says which failed
        return key, {"fault": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


def tasks(done: Mapping[str, Any], only: Iterable[str]) -> Iterator[list[tuple[str, ...]]]:
    """What is left, in groups of which each needs the one before."""
    yield [("teacher", kind) for kind in WIDTHS]
    yield [("validate", "plain", str(CHOOSING)), *(("choose", name) for name in only)]
    runs: list[tuple[str, ...]] = [("published", "plain", str(seed)) for seed in SEEDS]
    for seed in SEEDS:
        for name in only:
            if "fault" in done[f"choose/{name}"]:
                continue
            runs.append(("published", name, str(seed)))
            if (best := done[f"choose/{name}"]["best"]) != "published":
                runs.append(("chosen", name, str(seed), best))
    yield runs


# What is shown of it -------------------------------------------------------------------------------------------------


def choices_of(done: Mapping[str, Any], only: Iterable[str]) -> dict[str, Any]:
    """What validation showed with the seed of choosing: percent."""
    methods = {
        name: {
            "loss": method(name).terms[method(name).own]["loss"]["_target_"].rpartition(".")[2],
            "family": method(name).family,
            "terms": method(name).terms,
            "models": method(name).models,
            "frozen": method(name).frozen,
            **done[f"choose/{name}"],
        }
        for name in only
    }
    return {
        "format": 1,
        "command": "python benchmarks/methods.py",
        "date": str(date.today()),
        "machine": machine(),
        "versions": versions(),
        "data": {
            "name": "digits_images",
            "batch_size": BATCH,
            "labelled_share": LABELLED_SHARE,
            "unlabelled_share": UNLABELLED_SHARE,
            "labels": _labels(),
            "samples": _samples(),
        },
        "student": {"widths": list(WIDTHS["Student"]), "parameters": done["teacher/Student"]["parameters"]},
        "teachers": {kind: done[f"teacher/{kind}"] for kind in WIDTHS},
        "training": {"epochs": EPOCHS, "updates": EPOCHS * (_labels() // 16), "lr": LR, "weight_decay": DECAY},
        "choosing_seed": CHOOSING,
        "ladder": list(LADDER),
        "plain_val_top1": done[f"validate/plain/{CHOOSING}"]["val_top1"],
        "methods": methods,
        "not_tried": NOT_TRIED,
    }


def record_of(done: Mapping[str, Any], only: Iterable[str]) -> dict[str, Any]:
    """All that tables and picture are made of: percent, points, seconds of CPU time."""
    record = choices_of(done, only)
    plain = [_of_seed(done, "published/plain", seed) for seed in SEEDS]
    methods = record["methods"]
    for name, found in methods.items():
        for kind in ("published", "chosen"):
            best = "" if kind == "published" else f"/{found.get('best')}"
            if "fault" in found or best == "/published":
                continue
            runs = [_of_seed(done, f"{kind}/{name}", seed, best) for seed in SEEDS]
            found[kind] = {"runs": runs, **_gain(runs, plain)}
    tested = [one[kind] for one in methods.values() for kind in ("published", "chosen") if one.get(kind, {}).get("p")]
    for one, p in zip(tested, holm([one["p"] for one in tested]), strict=True):
        one |= {"p_adjusted": p, "verdict": verdict(one["gain"], p)}
    tops = [run["test_top1"] for run in plain]
    return {
        **record,
        "seeds": list(SEEDS),
        "statistics": {
            "figure": "top-1 in percent on the test split, after the last update",
            "gain": "test top-1 less the plain student's of the same seed, in points",
            "interval": "95 %, paired t over seeds",
            "p": "two-sided paired t-test",
            "p_adjusted": f"Holm's, over the {len(tested)} comparisons of this table",
        },
        "plain": {"runs": plain, "mean": statistics.fmean(tops), "std": statistics.stdev(tops)},
    }


def _labels() -> int:
    return round(LABELLED_SHARE * len(_shared().datasets["train"]))


def _samples() -> dict[str, int]:
    return {split: len(dataset) for split, dataset in _shared().datasets.items()}


def _of_seed(done: Mapping[str, Any], place: str, seed: int, more: str = "") -> dict[str, Any]:
    return {"seed": seed, **done[f"{place}/{seed}{more}"]}


def _gain(runs: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    if any("fault" in run for run in runs):
        return {"mean": None, "gain": None, "interval": None, "p": None}
    gains = [run["test_top1"] - other["test_top1"] for run, other in zip(runs, plain, strict=True)]
    found = paired_gain(gains)
    mean = statistics.fmean(run["test_top1"] for run in runs)
    return {"mean": mean, "gains": gains, "gain": found.mean, "interval": found.interval, "p": found.p}


FAMILIES = {"response": "answers", "feature": "features", "relation": "relations between samples or places"}


def shown(one: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a method is sorted by: the chosen weight, which may be the published one."""
    found: Mapping[str, Any] = one.get("chosen", one["published"])
    return found


def by_gain(record: Mapping[str, Any], family: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The methods of a family that have figures, the largest gain first."""
    found = [(name, one) for name, one in record["methods"].items() if one["family"] == family and _is_measured(one)]
    return sorted(found, key=lambda pair: -shown(pair[1])["gain"])


def _is_measured(one: Mapping[str, Any]) -> bool:
    return "fault" not in one and all(one[kind]["gain"] is not None for kind in ("published", "chosen") if kind in one)


def picture(record: Mapping[str, Any]) -> str:
    """A chart a family: a line a method, its gain at the chosen weight with its interval, a ring at the published."""
    colours = {"better": GAIN, "worse": LOSS, "not shown": "soft"}
    charts = []
    for family in FAMILIES:
        rows = [
            Interval(
                one["loss"], shown(one)["gains"], shown(one)["gain"], shown(one)["interval"],
                colours[shown(one)["verdict"]], one["published"]["gain"] if "chosen" in one else None,
            )
            for _, one in by_gain(record, family)
        ]  # fmt: skip
        charts.append(interval_chart(rows, title=f"{family}: points over the plain student (ring: published weight)"))
    return svg_file(charts, scale=1.5, dark=True, below=True)


def table(record: Mapping[str, Any]) -> list[str]:
    """The lines of docs/chooser.md."""
    plain, teachers, samples = record["plain"], record["teachers"], record["data"]["samples"]
    tested = sum(kind in one for one in record["methods"].values() for kind in ("published", "chosen"))
    lines = [
        f"Plain student ({record['student']['parameters']:,} parameters, {record['data']['labels']} labels): "
        f"{plain['mean']:.1f} ± {plain['std']:.1f} % of {samples['test']} test images; frozen teacher "
        f"({teachers['Teacher']['parameters']:,} parameters, all {samples['train']:,} labels): "
        f"{teachers['Teacher']['test_top1']:.1f} %, where a method wants a teacher of the student's own architecture "
        f"{teachers['Student']['test_top1']:.1f} %. {record['training']['updates']} updates, seeds "
        f"{', '.join(map(str, record['seeds']))}. A gain is in points, with its 95 % interval; **bold** where it is "
        f"shown, better or worse, after Holm's correction for all {tested}. The chosen weight is a multiple of the one "
        "at which the term's gradient is as long as that of cross-entropy, chosen on validation with another seed.",
        "",
    ]
    for family, title in FAMILIES.items():
        lines += [
            f"| {title} | published weight | chosen weight | which is |",
            "|---|---:|---:|---|",
            *(_row(name, one) for name, one in by_gain(record, family)),
            "",
        ]
    return [*lines, _left_out(record)]


def _fault(one: Mapping[str, Any]) -> str:
    runs = [run for kind in ("published", "chosen") for run in one.get(kind, {}).get("runs", [])]
    found: str = one.get("fault") or next(run["fault"] for run in runs if "fault" in run)
    return found


def _row(name: str, one: Mapping[str, Any]) -> str:
    factor = "published" if "chosen" not in one else f"{float(one['best']) / one['equal_pull']:.0f} × ({one['best']})"
    chosen = _cell(one["chosen"]) if "chosen" in one else "the same"
    anchor = one["loss"].lower()
    return f"| [`{name}`](methods.md#{anchor}) | {_cell(one['published'])} | {chosen} | {factor} |"


def _cell(found: Mapping[str, Any]) -> str:
    low, high = found["interval"] or (found["gain"], found["gain"])
    text = f"{found['gain']:+.1f} [{low:+.1f}, {high:+.1f}]"
    return text if found["verdict"] == "not shown" else f"**{text}**"


def choices_table(record: Mapping[str, Any]) -> list[str]:
    """The lines of docs/chooser.md about validation."""
    factors = [f"{factor:.0f} ×" for factor in record["ladder"]]
    lines = []
    for family, title in FAMILIES.items():
        found = [(name, one) for name, one in record["methods"].items() if one["family"] == family and "tried" in one]
        lines += [
            f"| {title} | published | {' | '.join(factors)} | 1 × is |",
            f"|---|{'---:|' * (len(factors) + 2)}",
            *(_choice(name, one) for name, one in sorted(found, key=lambda pair: -max(pair[1]["tried"].values()))),
            "",
        ]
    return [*lines, _left_out(record)]


def _choice(name: str, one: Mapping[str, Any]) -> str:
    best = max(one["tried"].values())
    cells = [f"**{top1:.1f}**" if top1 == best else f"{top1:.1f}" for top1 in one["tried"].values()]
    return f"| [`{name}`](methods.md#{one['loss'].lower()}) | {' | '.join(cells)} | {one['equal_pull']:.3g} |"


def _left_out(record: Mapping[str, Any]) -> str:
    faults = [f"`{name}` ({_fault(one)})" for name, one in record["methods"].items() if not _is_measured(one)]
    left = [f"`{name}` ({why})" for name, why in record["not_tried"].items()]
    return f"Not tried: {'; '.join([*faults, *left])}."


def write(record: Mapping[str, Any]) -> None:
    """Tables and picture, from the record."""
    write_table(ROOT / "docs" / "chooser.md", "choices", choices_table(record))
    if "seeds" in record:
        write_text(ROOT / "docs" / "methods.svg", picture(record))
        write_table(ROOT / "docs" / "chooser.md", "methods", table(record))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--table", action="store_true", help="write table and pictures alone, train nothing")
    options.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    options.add_argument("--only", nargs="+", help="these methods alone, nothing is written but their runs")
    options.add_argument(
        "--choices",
        action="store_true",
        help="write what validation shows, and stop before the test split is looked at",
    )
    asked = options.parse_args()
    only = asked.only or [name for name in names() if name not in NOT_TRIED]
    file = WORK / "runs.json"
    if not asked.table:
        WORK.mkdir(parents=True, exist_ok=True)
        done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        _shared()  # writes the files of the images
        with multiprocessing.get_context("spawn").Pool(asked.jobs, _prepare) as pool:
            for place, group in enumerate(tasks(done, only)):
                if place == 2 and asked.choices:
                    break
                left = [task for task in group if "fault" in done.get("/".join(task), {"fault": "not done"})]
                for key, found in pool.imap_unordered(work, left):
                    done[key] = found
                    write_json(file, done)
                    print(key, json.dumps(found), flush=True)
        if asked.only:
            return
        for kind in WIDTHS:  # now that all is chosen
            if not asked.choices:
                done[f"teacher/{kind}"]["test_top1"] = accuracy(teacher(kind), "test")
        write_json(OUTPUT, choices_of(done, only) if asked.choices else record_of(done, only))
    write(json.loads(OUTPUT.read_text()))


def _prepare() -> None:
    torch.set_num_threads(1)
    os.environ["PL_DISABLE_FORK"] = "1"
    warnings.filterwarnings("ignore")
    import logging

    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
