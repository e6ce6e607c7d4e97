"""A teacher that is the moving average of the student (mean teacher)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lit_distill._lightning import ends_step
from lit_distill.callbacks.non_finite import step_was_dropped
from lit_distill.module import DistillModule


class EMATeacher(Callback):
    r"""After every optimizer step moves the teacher towards the student (Tarvainen & Valpola, NeurIPS 2017).

    .. math:: \theta_T \leftarrow d_t \theta_T + (1 - d_t) \theta_S, \quad d_t = \min(d, t / (t + 1))

    :math:`t` counts optimizer steps from 1: at first the teacher is the plain mean of the student's weights so far,
    later the moving average. The teacher is frozen for gradients, starts as the student's copy, and is part of the
    checkpoints, unlike teachers that stand still: its name is added to ``DistillModule.moving``. All ranks have the
    first one's buffers.

    Args:
        teacher: name of the averaged model; it must be in the module's ``frozen``.
        student: name of the model that is averaged; of the same architecture.
        decay: :math:`d`, from 0 to below 1.
        warmup: whether :math:`d_t` grows as above; otherwise it is ``decay`` from the first step.
        buffers: ``"copy"`` the student's buffers, such as BatchNorm's running means, or ``"average"`` them like the
            parameters; those of integers are always copied.

    Raises:
        ValueError: a value out of its range; at the start of training, a model that is not there, a teacher that is not
            frozen or differs in names or shapes.

    Example:
        >>> EMATeacher(decay=0.99).decay_at(1), EMATeacher(decay=0.99).decay_at(1000)
        (0.5, 0.99)
    """

    averages_weights = True  # NonFinite then looks at each step at once, as a dropped one moves no average

    def __init__(
        self,
        *,
        teacher: str = "Teacher",
        student: str = "Student",
        decay: float = 0.999,
        warmup: bool = True,
        buffers: Literal["copy", "average"] = "copy",
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMATeacher: decay is from 0 to below 1, got {decay!r}")
        if buffers not in ("copy", "average"):
            raise ValueError(f'EMATeacher: buffers is "copy" or "average", got {buffers!r}')
        if teacher == student:
            raise ValueError(f"EMATeacher: teacher and student are both {teacher!r}")
        self.teacher, self.student, self.decay, self.warmup, self.buffers = teacher, student, decay, warmup, buffers
        self._averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._copied: list[tuple[Tensor, Tensor]] = []
        self._buffers: list[Tensor] = []

    @property
    def state_key(self) -> str:
        """One for each teacher."""
        return f"{type(self).__qualname__}[{self.teacher}]"

    def decay_at(self, step: int) -> float:
        """The decay of an optimizer step, counted from 1."""
        return min(self.decay, step / (step + 1)) if self.warmup else self.decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the two models, and begin with a copy of the student; a checkpoint's teacher is loaded over it."""
        if stage != "fit":
            return
        teacher, student = self._models(pl_module)
        assert isinstance(pl_module, DistillModule)
        pl_module.moving.add(self.teacher)
        teacher.load_state_dict(student.state_dict())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pair the tensors, on their device by now."""
        teacher, student = self._models(pl_module)
        pairs = list(zip(teacher.parameters(), student.parameters(), strict=True))
        buffers = list(zip(teacher.buffers(), student.buffers(), strict=True))
        average = [pair for pair in buffers if self.buffers == "average" and pair[0].is_floating_point()]
        self._averaged = [a for a, _ in (*pairs, *average)], [b for _, b in (*pairs, *average)]
        self._copied = [] if average else buffers
        if average:
            self._copied = [pair for pair in buffers if not pair[0].is_floating_point()]
        self._buffers = [ours for ours, _ in buffers]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the teacher, if this batch ended an optimizer step."""
        if not ends_step(trainer) or step_was_dropped(trainer):
            return
        average = get_ema_multi_avg_fn(self.decay_at(trainer.global_step))  # type: ignore[no-untyped-call]
        average(*self._averaged, trainer.global_step)
        with torch.no_grad():
            for ours, theirs in self._copied:
                ours.copy_(theirs)
            if trainer.world_size > 1:  # the student's buffers are each rank's own, until DDP's next forward pass
                _broadcast(self._buffers)

    def _models(self, module: LightningModule) -> tuple[nn.Module, nn.Module]:
        if not isinstance(module, DistillModule):
            raise ValueError(f"EMATeacher moves a model of a DistillModule, got a {type(module).__name__}")
        for name in (self.teacher, self.student):
            if name not in module.models:
                raise ValueError(f"EMATeacher: there is no model {name!r}; they are {list(module.models)}")
        if self.teacher not in module.frozen or self.student in module.frozen:
            raise ValueError(
                f"EMATeacher: {self.teacher} must be frozen and {self.student} trained, frozen={list(module.frozen)}"
            )
        teacher, student = module.models[self.teacher], module.models[self.student]
        ours, theirs = ({n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (teacher, student))
        if differing := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
            name = differing[0]
            raise ValueError(
                f"EMATeacher: {self.teacher} and {self.student} must be of the same architecture; they differ in "
                f"{len(differing)} tensors, such as {name}: {ours.get(name)} and {theirs.get(name)}"
            )
        return teacher, student


def _broadcast(tensors: list[Tensor]) -> None:
    """Give all ranks the first one's tensors, one exchange for each type of number."""
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        some = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in some])
        dist.broadcast(flat, src=0)
        for tensor, values in zip(some, torch.split(flat, [tensor.numel() for tensor in some]), strict=True):
            tensor.copy_(values.view_as(tensor))
