"""Pictures as the files that they are, and how each kind of logger takes them: none of them needs a network."""

from __future__ import annotations

import io
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from lit_distill._files import write_bytes
from lit_distill.loggers import EventFiles, MetricsCSV
from lit_distill.runs.names import MEDIA

_PREFIX = "val/"
_STEP = re.compile(r"step_(\d{8,})")
_SECONDS = 2.0  # that a clip lasts, whatever its frames


@dataclass(frozen=True)
class Picture:
    """An image as PNG, or a clip that moves as GIF; loggers show it as ``val/<name>``."""

    name: str
    caption: str
    content: bytes
    moves: bool
    size: tuple[int, int]

    @classmethod
    def of(cls, name: str, caption: str, images: Sequence[Image.Image]) -> Picture:
        """A PNG of one image; of several a GIF that goes round in two seconds, in 256 colours that all frames share."""
        content = io.BytesIO()
        if len(images) == 1:
            images[0].save(content, format="PNG")
        else:
            tall = Image.new("RGB", (images[0].width, sum(image.height for image in images)))
            for place, image in enumerate(images):
                tall.paste(image, (0, place * image.height))
            # of every other pixel: finding the colours is most of the work
            palette = tall.resize((tall.width // 2, tall.height // 2), Image.Resampling.NEAREST).quantize(256)
            frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
            duration = max(20, round(1000 * _SECONDS / len(frames)))
            frames[0].save(
                content, format="GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0, disposal=1
            )
        return cls(_file_name(name), caption, content.getvalue(), len(images) > 1, images[0].size)

    @property
    def file(self) -> str:
        """Its file name."""
        return f"{self.name}.{'gif' if self.moves else 'png'}"


Taker: TypeAlias = Callable[[Sequence[Picture], int], None]


def taker_of(logger: Logger, *, trains: bool = True) -> Taker | None:
    """What puts pictures of a step into a logger; None where it takes none.

    Where it ``trains``, folders of later steps are of a run that is no more; otherwise they stay.

    ``metrics.csv`` has them beside it, ``media/step_00000120/confusion.png``; TensorBoard, W&B and MLflow among their
    own. A GIF needs no encoder of videos there: all of them show it as it is.
    """
    if isinstance(logger, MetricsCSV):
        return partial(_to_folder, Path(logger.save_dir) / MEDIA, trains)
    if isinstance(logger, CSVLogger):
        return partial(_to_folder, Path(logger.log_dir) / MEDIA, trains)
    if isinstance(logger, (EventFiles, TensorBoardLogger)):
        return None if logger.experiment is None else partial(_to_event_files, logger.experiment)
    if isinstance(logger, WandbLogger):
        return partial(_to_wandb, logger)
    if isinstance(logger, MLFlowLogger):
        return partial(_to_mlflow, logger)
    return None


def step_folder(step: int) -> str:
    """Name of the folder of a step's pictures; in alphabetical order they are in the order of the steps."""
    return f"step_{step:08d}"


def _to_folder(folder: Path, trains: bool, pictures: Sequence[Picture], step: int) -> None:
    for found in folder.glob("step_*"):  # of a run that stood here before, or that is gone on with from an earlier step
        name = _STEP.fullmatch(found.name)
        is_old = name is not None and (int(name[1]) == step or (trains and int(name[1]) > step))
        if is_old and found.is_dir() and not found.is_symlink():
            shutil.rmtree(found)
    for picture in pictures:
        write_bytes(folder / step_folder(step) / picture.file, picture.content)


def _to_event_files(writer: Any, pictures: Sequence[Picture], step: int) -> None:
    """As the files that they are: torch's add_video wants moviepy to make the same GIF of a tensor."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [
        Summary.Value(
            tag=f"{_PREFIX}{picture.name}",
            image=Summary.Image(
                width=picture.size[0], height=picture.size[1], colorspace=3, encoded_image_string=picture.content
            ),
        )
        for picture in pictures
    ]
    writer._get_file_writer().add_summary(Summary(value=values), step)  # what its own add_image calls


def _to_wandb(logger: WandbLogger, pictures: Sequence[Picture], step: int) -> None:
    import wandb

    media = {
        f"{_PREFIX}{picture.name}": wandb.Video(io.BytesIO(picture.content), caption=picture.caption, format="gif")
        if picture.moves
        else wandb.Image(Image.open(io.BytesIO(picture.content)), caption=picture.caption)
        for picture in pictures
    }
    logger.log_metrics(media, step=step)  # one row, at its step, as Lightning's own log_image does


def _to_mlflow(logger: MLFlowLogger, pictures: Sequence[Picture], step: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for picture in pictures:
            file = Path(folder) / picture.file
            file.write_bytes(picture.content)
            logger.experiment.log_artifact(logger.run_id, str(file), f"{MEDIA}/{step_folder(step)}")


def _file_name(name: str) -> str:
    return re.sub(r"[^\w-]", "_", name)
