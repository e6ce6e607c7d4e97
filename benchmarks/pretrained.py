"""Makes the weights that the package ships, from nothing: `make pretrained`.

python benchmarks/pretrained.py [override …]

Each network is trained on stills and then on clips of `data=digits_pretext`, in runs/pretrained/, and written into the
package as float16 with a card beside it: command, data, versions, accuracy on validation. With overrides, such as
`seed=1`, nothing is written: the accuracies are printed, which is how much runs differ.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from hydra.utils import instantiate
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_distill import load_student
from lit_distill.data import VideoDataModule
from lit_distill.models.shipped import FOLDER
from lit_distill.models.state_files import file_sha256
from lit_distill.runs.artifacts import read_json, write_json
from lit_distill.runs.names import CARD_FILE, RESULTS_FILE

ROOT: Final = Path(__file__).resolve().parents[1]
# A still tells nothing of its motion: the labels of its first stage are the digits, of clips of one motion.
_SHARED: Final = (
    "experiment=stills_first_pptsmv2", "data=digits_pretext", "+stages.stills.data.motions=[left]",
    "+stages.stills.data.num_classes=7",
)  # fmt: skip
RUNS: Final[Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        "digits_pptsmv2": (*_SHARED, "stages.clips.fresh=[Student.temporal_attention,Student.fc]"),
        "digits_pptsm_resnet18": (
            *_SHARED, "stages.clips.fresh=[Student.fc]", "model@models.Student=pptsm_resnet18",
        ),
    }
)  # fmt: skip
_OF_THE_RUN: Final = ("model", "data", "class_names", "seed", "versions")


def command(name: str) -> str:
    """The training of a network, as it is typed."""
    return shlex.join(["python", "-m", "lit_distill.train", *RUNS[name]])


def in_half_precision(network: nn.Module) -> dict[str, Tensor]:
    """The network's tensors, floating-point ones as float16."""
    state = network.state_dict()
    return {key: (value.half() if value.is_floating_point() else value).contiguous() for key, value in state.items()}


@torch.no_grad()
def accuracy(network: nn.Module, data: VideoDataModule) -> float:
    """Top-1 in percent on the validation split."""
    right = count = 0
    for batch in data.val_dataloader():
        inputs, target, _ = data.on_after_batch_transfer(batch, 0)
        right += int((network(inputs).argmax(1) == target).sum())
        count += len(target)
    return 100 * right / count


def write(name: str, run: Path, folder: Path = FOLDER, *, most_lost: float = 0.5) -> dict[str, Any]:
    """Write the student of a run as weights of the package, and return its card.

    Raises:
        ValueError: float16 costs more than `most_lost` points on the validation split.
    """
    card, results = read_json(run / CARD_FILE), read_json(run / RESULTS_FILE)
    network = load_student(run)
    data: VideoDataModule = instantiate(card["data"], _convert_="all")
    data.prepare_data()
    data.setup("validate")
    whole = accuracy(network, data)
    state = in_half_precision(network)
    network.load_state_dict(state)
    half = accuracy(network, data)
    if half < whole - most_lost:
        raise ValueError(f"{name}: {half:.2f} % on validation in float16, {whole:.2f} % in float32")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.safetensors"
    save_file(state, file)
    made = {
        "about": "the digits 3 to 9 in motion (data=digits_pretext)",
        "command": command(name),
        "sha256": file_sha256(file),
        "numbers": "float16",
        "top1": {"validation": round(half, 2), "validation, float32": round(whole, 2)},
        "seconds": {stage: part["seconds"] for stage, part in results["stages"].items()},
        "date": str(datetime.now(UTC).date()),
        **{key: card[key] for key in _OF_THE_RUN},
    }
    made["data"]["root"] = None
    made["model"]["pretrained"] = None
    write_json(folder / f"{name}.json", made)
    return made


def main() -> None:
    torch.set_num_threads(1)
    overrides = sys.argv[1:]
    for name in RUNS:
        run = ROOT / "runs" / "pretrained" / "_".join([name, *overrides])
        arguments = [*RUNS[name], "trainer=cpu", *overrides, f"hydra.run.dir={run}", "resume=auto"]
        subprocess.run([sys.executable, "-m", "lit_distill.train", *arguments], check=True)
        results = read_json(run / RESULTS_FILE)
        if overrides:
            print(f"{name}: {100 * results['best']['val/Student/top1']:.2f} % on validation")
        else:
            made = write(name, run)
            print(f"{FOLDER / name}.safetensors: {made['top1']}, sha256 {made['sha256'][:12]}")


if __name__ == "__main__":
    main()
