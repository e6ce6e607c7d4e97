"""Whether the student says what its teachers say, epoch by epoch."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_distill._module.metrics import TermMeans
from lit_distill.module import DistillModule


class Agreement(Callback):
    r"""Logs of each validation how far the student's class probabilities are from every other model's.

    ``val/<Student>-<Teacher>/agreement`` is the share of the samples that both take for the same class, and

    .. math:: \text{val/<Student>-<Teacher>/kl} = \frac1N \sum_n \sum_c t_{nc} \log \frac{t_{nc}}{s_{nc}}

    the mean Kullback-Leibler divergence of the student's probabilities s from the teacher's t, at temperature 1, in
    nats. Both are over all samples of all processes. It looks at what validation computes anyway. With several
    candidates (``student="best"``) every pair with one of them is logged, the earlier one taken for the student. Models
    whose output is not (B, C) with equal C above 1, or that validation does not run, and runs of one model, have none.
    Test is the same under ``test/``.

    Raises:
        ValueError: at the start of a validation, another module than a DistillModule.

    Example:
        >>> trainer = Trainer(callbacks=[Agreement()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        self._means: dict[tuple[str, str], TermMeans] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from zero."""
        if not isinstance(pl_module, DistillModule):
            raise ValueError(f"Agreement is of the models of a DistillModule, got a {type(pl_module).__name__}")
        self._means = {}
        for place, student in enumerate(pl_module.candidates):
            for other in pl_module.models:
                if other not in pl_module.candidates[: place + 1]:
                    means = TermMeans(1).to(pl_module.device)
                    means.update(torch.zeros(2, device=pl_module.device), 0)  # a process may have no batch
                    self._means[student, other] = means

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Count one batch."""
        for (student, teacher), means in self._means.items():
            s, t = outputs.get(student), outputs.get(teacher)  # a generator does not run in validation
            if (
                isinstance(s, Tensor)
                and isinstance(t, Tensor)
                and s.ndim == 2
                and s.shape == t.shape
                and s.shape[1] > 1
            ):
                means.update(agreement_and_kl(s, t), len(s))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what it comes to."""
        self._log(pl_module, "val")

    on_test_start, on_test_batch_end = on_validation_start, on_validation_batch_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As for validation."""
        self._log(pl_module, "test")

    def _log(self, module: LightningModule, stage: str) -> None:
        values: dict[str, float] = {}
        for (student, teacher), means in self._means.items():
            agreement, kl = means.compute()[0].tolist()
            if not math.isnan(agreement):  # no sample on any rank: their outputs are no class scores alike
                values |= {f"{stage}/{student}-{teacher}/agreement": agreement, f"{stage}/{student}-{teacher}/kl": kl}
        # reduced over ranks already
        module.log_dict(values, on_epoch=True, sync_dist=False)


def agreement_and_kl(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Share of the rows with the same highest logit, and the mean :math:`KL(teacher \| student)` in nats.

    Of logits or log-probabilities (B, C); float32 at least.

    Example:
        >>> logits = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
        >>> agreement_and_kl(logits + 1, logits)
        tensor([1., 0.])
    """
    s, t = (logits.detach().to(torch.promote_types(logits.dtype, torch.float32)) for logits in (student, teacher))
    log_s, log_t = s.log_softmax(1), t.log_softmax(1)
    kl = torch.nn.functional.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
    return torch.stack([(s.argmax(1) == t.argmax(1)).to(kl.dtype).mean(), kl])
