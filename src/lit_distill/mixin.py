"""DistillMixin: a LightningModule that exists learns from a teacher too, without a line of it being edited."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

from lit_distill._frozen import FrozenRecord
from lit_distill._preflight import check_names, try_example, unpack_batch
from lit_distill._step import fractional_epoch
from lit_distill.composer import LossComposer
from lit_distill.terms import WEIGHT_TEXT, LossTerm, Weight

Module = TypeVar("Module", bound="DistillMixin")

STUDENT = "Student"
_RECORD = "lit_distill_teachers"


class DistillMixin(LightningModule):
    r"""Stands before a LightningModule of yours, and adds terms of distillation to the loss of its ``training_step``.

    ``class Distilled(DistillMixin, YourModule): …`` and :meth:`distill` are all. The step stays yours, with its loss,
    its logging, its optimizers and its validation; while it runs, the signals that the terms name are captured. The
    teachers are given exactly what your step gives the student, after your augmentation and mixing:

    .. math:: L = w \cdot L_{yours} + \sum_i w_i L_i

    Teachers are frozen: in eval mode, without gradients, and no part of the module, so that they are in no optimizer,
    no checkpoint and no DDP; checkpoints record their hashes. Unless a loss has parameters of its own, a checkpoint of
    ``Distilled`` is one of ``YourModule``, and each loads the other's.

    Raises:
        ValueError: from ``fit``: :meth:`distill` was not called, your module optimizes by hand, a signal does not
            exist or fit, or the parameters of a loss are in no optimizer.

    Example:
        >>> class YourModule(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = nn.Linear(8, 3)
        ...     def training_step(self, batch, batch_idx):
        ...         return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        >>> class Distilled(DistillMixin, YourModule):
        ...     pass
        >>> kd = LossTerm(nn.MSELoss(), pair=("Student", "Teacher"), weight=0.5)
        >>> module = Distilled().distill(nn.Linear(8, 3), student="net", losses={"mse": kd})
        >>> sorted(module.state_dict())
        ['net.bias', 'net.weight']
    """

    distillation: LossComposer
    """The terms, once :meth:`distill` was called."""

    def distill(
        self: Module,
        teacher: nn.Module | Mapping[str, nn.Module],
        *,
        losses: Mapping[str, LossTerm | Mapping[str, Any]],
        student: str = "",
        own_weight: Weight = 1.0,
        preflight: bool = True,
        replaced_teachers: bool = False,
    ) -> Module:
        """Say what is learned from whom; before ``fit``, and before a checkpoint is loaded into the module by hand.

        Args:
            teacher: the trained network, named ``Teacher`` in the terms; or several by name.
            losses: the terms by name, as :class:`LossTerm` or a mapping of its arguments.
            student: the submodule that your step calls, by its qualified name, such as ``"net"``; it is ``Student`` in
                the terms. ``""`` is the module itself, where your step calls ``self(…)``.
            own_weight: of the loss of your own step: a number, or a function of the fractional epoch.
            preflight: try one example batch before training, so that a wrong reference or shape shows at once; losses
                with parameters, and taps whose tensor is changed in place, need it. It runs the student on
                :meth:`unpack`'s inputs, not your step.
            replaced_teachers: whether they may be others than those that a loaded checkpoint was trained with.

        Returns:
            The module itself.

        Raises:
            ValueError: a name or reference that does not exist, a weight that is not finite, a teacher that shares
                parameters with the module, an attribute ``distillation`` of yours, or a second call.
        """
        if hasattr(self, "distillation"):
            raise ValueError(f"{type(self).__name__} has an attribute distillation already: call distill() once")
        if not callable(own_weight) and not math.isfinite(own_weight):
            raise ValueError(f"own_weight must be {WEIGHT_TEXT}, got {own_weight!r}")
        teachers = {"Teacher": teacher} if isinstance(teacher, nn.Module) else dict(teacher)
        try:
            learner = self.get_submodule(student)
        except AttributeError:
            names = [name for name, _ in self.named_children()]
            raise ValueError(f"{type(self).__name__} has no submodule {student!r}: its children are {names}") from None
        if STUDENT in teachers:
            raise ValueError(f"{STUDENT!r} is the student: give the teacher another name")
        networks = {STUDENT: learner, **teachers}
        check_names(networks, list(teachers))
        own = {id(p) for p in self.parameters()}
        for name, network in teachers.items():
            if any(id(p) in own for p in network.parameters()):
                raise ValueError(f"{name} shares parameters with {type(self).__name__}: freezing it would freeze both")
            network.requires_grad_(False).eval()
        composer = LossComposer(losses)
        composer.check(networks)
        if unused := sorted(teachers.keys() - composer.model_names):
            raise ValueError(f"no term names {unused}: add a term for it or leave it out")
        # In plain dictionaries: the teachers must not become parts of the module, nor the student twice.
        self._networks, self._teachers = networks, teachers
        self._own_weight, self._preflight, self._replaced = own_weight, preflight, replaced_teachers
        self._teacher_record = FrozenRecord(teachers)
        self.distillation = composer
        return self

    # ---------------------------------------------------------------- to override

    def unpack(self, batch: Any) -> tuple[Any, Tensor | None, Tensor | None]:
        """What the student is given of a batch, its target and sample index; override it for batches of another form.

        The inputs are only those of the example batch, the target and index are asked for where terms name them.
        """
        return unpack_batch(batch)

    def run_teacher(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Run a teacher on what the student is given; override it for one that takes something else."""
        return self._teachers[name](*args, **kwargs)

    # ---------------------------------------------------------------- before training

    def setup(self, stage: str) -> None:
        """After your own: try one example batch, which gives losses their shapes before the optimizer is made."""
        super().setup(stage)
        if stage != "fit":
            return
        if not hasattr(self, "distillation"):
            raise ValueError(f"{type(self).__name__} was not told from whom to learn: call distill(teacher, …) before")
        if not self.automatic_optimization:
            raise ValueError(
                f"{type(self).__name__} optimizes by hand, so that its step returns no loss to add to: use the "
                "LossComposer within the step"
            )
        for teacher in self._teachers.values():
            self.trainer.precision_plugin.convert_module(teacher)
            teacher.to(self.device)
        if self._preflight:
            try_example(self, self._build)

    def _build(self, batch: Any, dataset_size: int | None) -> None:
        def run(name: str, inputs: Any) -> Any:
            return self._networks[name](inputs) if name == STUDENT else self.run_teacher(name, inputs)

        inputs, target, index = self.unpack(batch)
        self.distillation.build(self._networks, inputs, target, index=index, dataset_size=dataset_size, run=run)

    def on_fit_start(self) -> None:
        """After your own: hold that what the losses learn is in an optimizer, and take the teachers to the device."""
        super().on_fit_start()
        trained = {id(p) for o in self.trainer.optimizers for group in o.param_groups for p in group["params"]}
        left = [name for name, p in self.distillation.named_parameters() if p.requires_grad and id(p) not in trained]
        if left:
            raise ValueError(
                f"no optimizer of {type(self).__name__} trains the losses' own parameters {left}: override "
                "configure_optimizers there, and add self.distillation.parameters() to what super() gives"
            )
        for teacher in self._teachers.values():
            teacher.to(self.device)
        self._teacher_record.moved(self._teachers)

    # ---------------------------------------------------------------- steps

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Your own step on (batch, batch_idx), and the terms added to its loss; what else it returns is kept."""
        (batch, batch_idx), step = (*args, *kwargs.values()), super().training_step
        arguments = (batch, batch_idx) if is_param_in_hook_signature(step, "batch_idx", min_args=2) else (batch,)
        with self.distillation.capture(self._networks) as signals:
            hook = self._networks[STUDENT].register_forward_pre_hook(self._teach, with_kwargs=True)
            try:
                output = step(*arguments)
            finally:
                hook.remove()
        if output is None:
            return None  # as Lightning has it: this batch is left out
        target = index = None
        if any(reference.is_data for reference in self.distillation.references):
            _, target, index = self.unpack(batch)
        epoch = fractional_epoch(self.trainer, batch_idx)
        result = self.distillation(signals, target, index=index, epoch=epoch)
        self.log_dict({f"train/{name}": value for name, value in result.unweighted.items()})
        for name, weight in zip(result.names, result.weights, strict=True):
            if not self.distillation.terms[name].has_fixed_weight:
                self.log(f"train/{name}_weight", weight)
        own = self._own_weight(epoch) if callable(self._own_weight) else self._own_weight
        if isinstance(output, Tensor):
            return own * output + result.total
        return {**output, "loss": own * output["loss"] + result.total}

    @torch.no_grad()
    def _teach(self, student: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the student runs, since it may change its input in place."""
        for name, teacher in self._teachers.items():
            if teacher.training:  # someone called .train() on it
                teacher.eval()
            self.run_teacher(name, *args, **kwargs)

    # ---------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """After your own: record the hashes of the teachers, which are held to what they were."""
        super().on_save_checkpoint(checkpoint)
        if hasattr(self, "distillation"):
            self._teacher_record.require_unchanged(self._teachers)
            checkpoint[_RECORD] = self._teacher_record.stored

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """After your own: raise ValueError if a teacher is another one than the checkpoint was trained with."""
        super().on_load_checkpoint(checkpoint)
        if hasattr(self, "distillation"):
            replaced = list(self._teachers) if self._replaced else []
            self._teacher_record.compare(checkpoint.get(_RECORD, {}), replaced)

    def on_train_end(self) -> None:
        """After your own: hold that the teachers are what they were, every byte."""
        super().on_train_end()
        self._teacher_record.require_unchanged(self._teachers, thorough=True)
