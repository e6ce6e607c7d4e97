"""How hard each term pulls at the student, and whether the terms pull the same way."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_distill._lightning import ends_step, logged_step
from lit_distill.callbacks.non_finite import step_was_dropped
from lit_distill.gradients import flattened, gradients_of, gram_matrix, loss_scale, require_whole_parameters
from lit_distill.module import DistillModule


class TermGradients(Callback):
    r"""Every ``every_n_steps`` optimizer steps logs each term's gradient norm and the cosine of each pair of terms.

    With :math:`g_i = \nabla_\theta\, w_i L_i` over the parameters of one model, all of them that learn:

    .. math:: \text{grad/}i = \lVert g_i \rVert, \qquad
              \text{grad\_cos/}i\text{/}j = \frac{g_i \cdot g_j}{\lVert g_i \rVert \lVert g_j \rVert}

    Weighted as they enter the total, before clipping. A term that does not reach the model has norm 0, and no cosine;
    nor has one whose gradient is not finite. A cosine below 0 says that two terms work against each other on this
    batch. Under DDP gradients are the averages over
    the ranks, as the optimizer gets them; where gradients are accumulated they are those of the window's last batch.

    Training is the same bit for bit with and without it: the graph of the step is walked once more for each term,
    nothing is accumulated and no random number drawn. It costs a backward pass a term at the steps that are due, and
    memory of one more set of gradients a term.

    Args:
        every_n_steps: optimizer steps between two measurements, at least 1.
        model: whose parameters; the student by default.

    Raises:
        ValueError: a value out of its range; at the start of training, another module than a DistillModule, a model
            that does not learn, or a strategy that shards parameters.

    Example:
        >>> TermGradients(every_n_steps=50).every_n_steps
        50
    """

    def __init__(self, *, every_n_steps: int = 100, model: str | None = None) -> None:
        if isinstance(every_n_steps, bool) or every_n_steps < 1:
            raise ValueError(f"TermGradients: every_n_steps is a number of optimizer steps from 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.model = model
        self.last: dict[str, float] = {}
        """What was measured last, by the names of the log."""
        self._due = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is something to measure."""
        if not isinstance(pl_module, DistillModule):
            raise ValueError(f"TermGradients looks at the terms of a DistillModule, got a {type(pl_module).__name__}")
        require_whole_parameters(trainer, "TermGradients")
        name = self.model or pl_module.student
        if name not in pl_module.models or name in pl_module.frozen:
            learning = [model for model in pl_module.models if model not in pl_module.frozen]
            raise ValueError(f"TermGradients: model={name!r} is none that learns; they are {learning}")
        if not any(p.requires_grad for p in pl_module.models[name].parameters()):
            raise ValueError(f"TermGradients: no parameter of {name} learns, so no term has a gradient there")
        self._due = False

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Measure, where it is due; autocast has ended here."""
        assert isinstance(pl_module, DistillModule)
        composed = pl_module.composed
        if composed is None or (trainer.global_step + 1) % self.every_n_steps or not ends_step(trainer):
            return
        scale = loss_scale(trainer)
        student = pl_module.models[self.model or pl_module.student]  # student=best: another one after a validation
        parameters = [p for p in student.parameters() if p.requires_grad]
        names, none = composed.names, [None] * len(parameters)
        # Times their weights before the backward pass: half precision then holds what it holds in the step's own one.
        flat = [
            flattened(gradients_of(term, parameters, scale=scale * weight) if weight else none, parameters)
            for term, weight in zip(composed.terms, composed.weights.tolist(), strict=True)
        ]
        flat = [trainer.strategy.reduce(gradient, reduce_op="mean") for gradient in flat]
        gram = (gram_matrix(flat) / scale**2).tolist()
        norms = [math.sqrt(gram[i][i]) for i in range(len(flat))]
        self.last = {f"grad/{name}": norm for name, norm in zip(names, norms, strict=True)}
        for (i, one), (j, other) in combinations(enumerate(names), 2):
            if 0 < norms[i] * norms[j] < math.inf:  # not of NaN, which min and max would make a number of
                self.last[f"grad_cos/{one}/{other}"] = max(-1.0, min(1.0, gram[i][j] / (norms[i] * norms[j])))
        self._due = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what was measured, in the step's own row, whatever ``log_every_n_steps`` is."""
        due, self._due = self._due, False
        if not due or step_was_dropped(trainer):
            return
        for logger in trainer.loggers:
            logger.log_metrics(self.last, step=logged_step(trainer))
