"""What a module's parameters are moved by: its optimizer, and the schedule of its rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from lit_distill._lightning import load_train_data, loader_names, steps_within
from lit_distill._module.evaluated import EvaluatedModule
from lit_distill._module.scheduling import scheduler_config
from lit_distill.schedules import Schedule

OptimizerFactory: TypeAlias = Callable[..., Optimizer]
SchedulerFactory: TypeAlias = Schedule | Callable[[Optimizer], LRScheduler | ReduceLROnPlateau | Mapping[str, Any]]


class OptimizedModule(EvaluatedModule):
    """One optimizer over all models that learn and the losses' own parameters, and a schedule of it."""

    def _optimize_by(self, optimizer: OptimizerFactory | None, scheduler: SchedulerFactory | None) -> None:
        for name, given, such in (
            ("optimizer", optimizer, "partial(torch.optim.SGD, lr=0.05)"),
            ("scheduler", scheduler, "partial(torch.optim.lr_scheduler.StepLR, step_size=10)"),
        ):
            if given is not None and not callable(given):
                raise ValueError(f"{name} is a function that makes one, such as {such}, got {type(given).__name__}")
        self._optimizer_factory = optimizer
        self._scheduler_factory = scheduler
        self._monitors: str | None = None  # by a scheduler that says nothing of it

    def make_optimizer(self) -> Optimizer:
        """The optimizer over all trainable models and the losses' own parameters.

        Raises:
            ValueError: none was given.
        """
        if self._optimizer_factory is None:
            raise ValueError("training needs optimizer=…, such as partial(torch.optim.SGD, lr=0.05, momentum=0.9)")
        trainable = {name: model for name, model in self.models.items() if name not in self.frozen}
        balance = [] if self.composer.balance is None else list(self.composer.balance.parameters())
        own = {id(p) for p in balance}
        losses = unique_parameters(composer for _, composer in self._composers().values())
        extra = [p for p in losses if p.requires_grad and id(p) not in own]
        if getattr(getattr(self._optimizer_factory, "func", self._optimizer_factory), "takes_models", False):
            optimizer = self._optimizer_factory(trainable, extra)
        else:
            parameters = [p for p in unique_parameters(trainable.values()) if p.requires_grad]
            optimizer = self._optimizer_factory([*parameters, *extra])
        if balance:  # a log-variance of 0 is a weight as it is set: nothing should draw it there
            optimizer.add_param_group({"params": balance, "weight_decay": 0.0, "name": "balance"})
        return optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer over all trainable models and the losses' own parameters, and its schedule."""
        optimizer = self.make_optimizer()
        if self._scheduler_factory is None:
            return optimizer
        if isinstance(self._scheduler_factory, Schedule):
            schedule, steps = self._scheduler_factory, self._steps_per_epoch()
            scheduler: LRScheduler = LambdaLR(optimizer, lambda step: schedule(step / steps))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        try:
            made = self._scheduler_factory(optimizer)
        except TypeError as error:
            raise ValueError(f"scheduler: the factory is called with the optimizer alone: {error}") from error
        length, epochs = self._training_length()
        config = scheduler_config(made, steps=length, epochs=epochs, student=self.student)
        if not (isinstance(made, Mapping) and "monitor" in made):
            self._monitors = config.get("monitor")
        return {"optimizer": optimizer, "lr_scheduler": config}

    def on_train_start(self) -> None:
        """Let a scheduler that names no monitor watch the first of several validation loaders, too."""
        super().on_train_start()
        first, *others = loader_names(self.trainer)
        for config in self.trainer.lr_scheduler_configs:
            if others and config.monitor is not None and config.monitor == self._monitors:
                config.monitor = config.monitor.replace("val/", f"val/{first}/", 1)

    def _training_length(self) -> tuple[float, float]:
        """Optimizer steps and epochs of the training, infinite where they are not known."""
        load_train_data(self.trainer)
        batches, most, steps = self.trainer.num_training_batches, self.trainer.max_epochs, math.inf
        epochs = math.inf if most is None or most < 0 else float(most)
        if math.isfinite(batches):
            within = max(1, steps_within(self.trainer, int(batches)))
            limit = self.trainer.max_steps if self.trainer.max_steps >= 0 else math.inf
            steps = min(limit, within * epochs)
            epochs = min(epochs, math.ceil(steps / within)) if math.isfinite(steps) else epochs
        return steps, epochs

    def _steps_per_epoch(self) -> int:
        load_train_data(self.trainer)
        batches = self.trainer.num_training_batches
        if not math.isfinite(batches):
            raise ValueError(
                "a schedule by epochs needs a training loader with a length; give limit_train_batches=<number> "
                "or a scheduler factory"
            )
        return max(1, steps_within(self.trainer, int(batches)))


def unique_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters of modules that may share some, each once."""
    return list({id(p): p for module in modules for p in module.parameters()}.values())
