"""DistillMixin: a LightningModule that exists learns from a teacher too, without a line of it being edited."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_distill._inputs import left_as_given
from lit_distill._lightning import takes_batch_idx
from lit_distill._module.batches import BatchKeys, Unpacked, is_hugging_face, keywords_of, unpack_batch
from lit_distill._module.compiling import StepCompiler
from lit_distill._module.frozen import FrozenRecord, changed_error, shared_tensors, warned_of_calls
from lit_distill._module.hyperparameters import Composers, keep_settings, loss_settings, settings_that_held
from lit_distill._module.preflight import (
    Classes,
    Part,
    answers_of,
    as_modules,
    check_names,
    explained_batch_norm,
    try_example,
)
from lit_distill._module.step import fractional_epoch
from lit_distill._screen import few
from lit_distill.composer import LossComposer, zero_gradients
from lit_distill.signals import SignalCapture
from lit_distill.terms import LossTerm, Weight, check_weight, weight_error

Module = TypeVar("Module", bound="DistillMixin")

STUDENT = "Student"
_RECORD = "lit_distill_teachers"
_LOSSES = "lit_distill_losses"


class DistillMixin(LightningModule):
    r"""Stands before a LightningModule of yours, and adds terms of distillation to the loss of its ``training_step``.

    ``class Distilled(DistillMixin, YourModule): …`` and :meth:`distill` are all. The step stays yours, with its loss,
    its logging, its optimizers and its validation; while it runs, the signals that the terms name are captured. The
    teachers are given exactly what your step gives the student, after your augmentation and mixing:

    .. math:: L = w \cdot L_{yours} + \sum_i w_i L_i

    Teachers are frozen: in eval mode, without gradients, and no part of the module, so that they are in no optimizer,
    no checkpoint and no DDP; checkpoints record their hashes. Unless a loss has parameters or buffers of its own, a
    checkpoint of ``Distilled`` is one of ``YourModule``, and each loads the other's. Where one has,
    ``YourModule.load_from_checkpoint(path, strict=False)`` leaves them out.

    Terms are logged as ``distill/<term>``, before their weights, and a scheduled weight as ``distill/<term>_weight``.
    All names that are added to those of your module begin with ``distill`` or ``_distill``.

    Raises:
        ValueError: from ``fit``: :meth:`distill` was not called, your module optimizes by hand, has no step, or one
            that goes past this one; a signal does not exist or fit; a teacher changes its input in place; or the
            parameters of a loss are in no optimizer.

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
        teacher: nn.Module | Callable[..., Any] | Mapping[str, nn.Module | Callable[..., Any]],
        *,
        losses: Mapping[str, LossTerm | Mapping[str, Any]],
        student: str = "",
        own_weight: Weight = 1.0,
        answer: Part | Mapping[str, Part] | None = None,
        classes: Mapping[str, Classes] | None = None,
        batch: Mapping[str, str | Sequence[str]] | None = None,
        preflight: bool = True,
        replaced_teachers: bool = False,
        compile: str | Mapping[str, Any] | None = None,
    ) -> Module:
        """Say what is learned from whom; before ``fit``, and before a checkpoint is loaded into the module by hand.

        Args:
            teacher: the trained network, named ``Teacher`` in the terms; or several by name. A function or a program of
                ``torch.export`` will do.
            losses: the terms by name, as :class:`LossTerm` or a mapping of its arguments.
            student: the submodule that your step calls, by its qualified name, such as ``"net"``; it is ``Student`` in
                the terms. ``""`` is the module itself, where your step calls ``self(…)``.
            own_weight: of the loss of your step: a number, or a function of the fractional epoch.
            answer: where the answer of a network, its logits, stands in a structure that it gives, such as ``"out"``;
                of all, or of each by its name; by default it is the one tensor that is named ``logits``.
            classes: of a teacher those of its classes that the data has, in the data's order, by its name.
            batch: which entries of a mapping batch are ``inputs``, ``target`` and ``index``, as for
                :class:`lit_distill.DistillModule`. The inputs are only those of the example batch.
            preflight: try one example batch before training, so that a wrong reference or shape shows at once; losses
                with parameters, and taps whose tensor is changed in place, need it. It runs the student on
                :meth:`distill_unpack`'s inputs, not your step. A stream that can be read but once loses a batch to it.
            replaced_teachers: whether they may be others than those that a loaded checkpoint was trained with.
            compile: ``"step"`` compiles the teachers and the terms, a graph each, by ``torch.compile``; ``"models"``
                compiles the teachers alone. A mapping adds its arguments. Your step runs as you wrote it.

        Returns:
            The module itself.

        Raises:
            ValueError: your module stands before the mixin in the class, or has something of a name of the mixin's; a
                name or reference that does not exist, a weight that is not finite, a teacher that shares parameters
                with the module, or a second call.
        """
        _check_class(self)
        if hasattr(self, "distillation"):
            raise ValueError(f"{type(self).__name__} has an attribute distillation already: call distill() once")
        check_weight("own_weight", own_weight)
        teachers = as_modules(teacher if isinstance(teacher, Mapping) else {"Teacher": teacher})
        try:
            learner = self.get_submodule(student)
        except AttributeError:
            names = [name for name, _ in self.named_children()]
            raise ValueError(f"{type(self).__name__} has no submodule {student!r}: its children are {names}") from None
        if STUDENT in teachers:
            raise ValueError(f"{STUDENT!r} is the student: give the teacher another name")
        networks = {STUDENT: learner, **teachers}
        answers = answers_of(networks, answer, classes, list(teachers))
        check_names(networks, list(teachers))
        for name, network in teachers.items():
            if shared := shared_tensors(self, network):
                raise ValueError(
                    f"{name} shares parameters, buffers or dropouts with {type(self).__name__}: {few(shared)}; "
                    "freezing it would freeze both: give it a copy (copy.deepcopy)"
                )
            network.requires_grad_(False).eval()
        composer = LossComposer(losses, answers=answers)
        composer.check(networks)
        if unused := sorted(teachers.keys() - composer.model_names):
            raise ValueError(f"no term names {unused}: add a term for it or leave it out")
        # In plain dictionaries: the teachers must not become parts of the module, nor the student twice.
        self._distill_networks, self._distill_teachers = networks, teachers
        self._distill_keys = BatchKeys.of(batch)
        self._distill_own_weight, self._distill_preflight = own_weight, preflight
        self._distill_replaced = replaced_teachers
        self._distill_compiler = StepCompiler(compile)
        self._distill_record = FrozenRecord(teachers)
        self._distill_stepped = self._distill_looked = False
        self._distill_changed: list[str] = []
        self.distillation = composer
        self._distill_settings = loss_settings(self._distill_composers(), own_weight=self._distill_own_weight)
        return self

    # ---------------------------------------------------------------- to override

    def distill_unpack(self, batch: Any) -> tuple[Any, ...]:
        """What the student is given of a batch, its target, sample index and further entries.

        Override it for batches of another form. The inputs are only those of the example batch, the others are asked
        for where terms name them; a tuple of the first two or three will do.
        """
        models = self._distill_networks.values()
        return unpack_batch(batch, hook="distill_unpack", keys=self._distill_keys, models=models)

    def distill_run_teacher(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Run a teacher on what the student is given; override it for one that takes something else.

        One of Hugging Face that is given keywords takes those that its ``forward`` names.
        """
        teacher = self._distill_teachers[name]
        if kwargs and not args and is_hugging_face(teacher):
            kwargs = keywords_of(name, teacher, kwargs)
        return teacher(*args, **kwargs)

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
        if getattr(super().training_step, "__func__", None) is LightningModule.training_step:
            raise ValueError(
                f"no class behind DistillMixin has a training_step, whose loss is added to: write class "
                f"{type(self).__name__}(DistillMixin, YourModule), where YourModule has it"
            )
        self._distill_record_teachers()  # before a precision or a device changes them
        self._distill_settings = loss_settings(self._distill_composers(), own_weight=self._distill_own_weight)
        for teacher in self._distill_teachers.values():
            self.trainer.precision_plugin.convert_module(teacher)
            teacher.to(self.device)
        self._distill_record.moved(self._distill_teachers)
        self._distill_compiler.require_compiler()
        if self._distill_preflight:
            try_example(self, self._distill_build)

    def _distill_build(self, batch: Any, dataset_size: int | None) -> None:
        said: set[str] = set()

        def run(name: str, inputs: Any) -> Any:
            network = self._distill_networks[name]
            keywords: Mapping[str, Any] = {}
            if isinstance(inputs, Mapping) and (self._distill_keys.by_keyword or is_hugging_face(network)):
                inputs, keywords = None, keywords_of(name, network, inputs)
            given = () if keywords else (inputs,)
            if name == STUDENT:
                return network(*given, **keywords)
            with warned_of_calls(name, network, {type(self).__name__: self}, said):
                return self._distill_ask(name, *given, **keywords)

        inputs, target, index, entries = Unpacked.of(self.distill_unpack(batch), batch, "distill_unpack")
        signals = self.distillation.build(
            self._distill_networks, inputs, target, index=index, batch=entries, dataset_size=dataset_size, run=run
        )
        self._distill_compiler.require_traceable(self.distillation, signals)

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
        for teacher in self._distill_teachers.values():
            teacher.to(self.device).eval()
        self._distill_record.moved(self._distill_teachers)
        self._distill_changed, self._distill_looked = [], False

    def on_train_epoch_start(self) -> None:
        """After your own: the teachers are in eval mode, and were not changed in the epoch before."""
        super().on_train_epoch_start()
        if self.current_epoch:
            self._distill_hold()
        for teacher in self._distill_teachers.values():
            teacher.eval()

    def on_train_epoch_end(self) -> None:
        """After your own: warn of terms that are NaN or infinite."""
        super().on_train_epoch_end()
        for name, term in self.distillation.terms.items():
            value = self.trainer.callback_metrics.get(f"distill/{name}")
            if value is not None and not math.isfinite(float(value)):
                rank_zero_warn(f"distill/{name} is {float(value)} ({repr(term)[9:-1]}) in epoch {self.current_epoch}")

    # ---------------------------------------------------------------- steps

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Your own step on (batch, batch_idx), and the terms added to its loss; what else it returns is kept."""
        self._distill_stepped = True
        (batch, batch_idx), step = (*args, *kwargs.values()), super().training_step
        arguments = (batch, batch_idx) if takes_batch_idx(step) else (batch,)
        epoch = fractional_epoch(self.trainer, batch_idx)
        signals = self.distillation.capture(self._distill_networks, epoch=epoch)
        compiled = self._distill_compiler.step(self.distillation, self._distill_networks, self._distill_given)
        with signals if compiled is None else compiled.capturing(signals):
            names = [name for name in self._distill_teachers if signals.texts_of(name)]
            teach = partial(self._distill_teach, names, signals, epoch)
            hook = self._distill_networks[STUDENT].register_forward_pre_hook(teach, with_kwargs=True)
            try:
                with explained_batch_norm():
                    output = step(*arguments)
            finally:
                hook.remove()
        if output is None:
            return None  # as Lightning has it: this batch is left out
        target = index = entries = None
        if any(reference.is_data for reference in self.distillation.references):
            _, target, index, entries = Unpacked.of(self.distill_unpack(batch), batch, "distill_unpack")
        if self._distill_compiler.takes_terms:
            self.distillation.put_data(signals, target, index, entries)
            if run := self._distill_compiler.graph(self.distillation, None, signals, (), epoch=epoch):
                run()
        with explained_batch_norm():
            result = self.distillation(signals, target, index=index, batch=entries, epoch=epoch)
        self.log_dict({f"distill/{name}": value for name, value in result.unweighted.items()})
        for name, weight in zip(result.names, result.weights, strict=True):
            if not self.distillation.terms[name].has_fixed_weight:
                self.log(f"distill/{name}_weight", weight)
        given = self._distill_own_weight
        own = float(given(epoch) if callable(given) else given)
        if not math.isfinite(own):
            raise weight_error("own_weight", own, epoch)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            got = type(loss).__name__ + (" as 'loss'" if isinstance(output, Mapping) else "")
            if isinstance(output, Mapping) and "loss" not in output:
                got = f"a dict of {list(output)}"
            raise ValueError(
                f"the training_step of {type(self).__name__} must return the loss as a tensor, a dict that has it as "
                f"'loss', or None to leave the batch out, got {got}"
            )
        mine = own * loss if own else zero_gradients(loss.new_zeros(()), self.parameters())  # which may be infinite
        total = mine + result.total
        return {**output, "loss": total} if isinstance(output, Mapping) else total

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After your own: hold that the first step was one of distillation."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if not self._distill_stepped and batch is not None:  # of no batch, no step is made
            raise ValueError(
                f"the training_step of {type(self).__name__} goes past DistillMixin's, so that nothing is learned from "
                "the teacher: call super().training_step(…) in it, or move it to YourModule of "
                "class X(DistillMixin, YourModule); a term that is to start later has a weight that is 0 until then"
            )
        if not self._distill_looked:
            self._distill_looked = True
            self._distill_hold()

    @torch.no_grad()
    def _distill_teach(
        self,
        names: Sequence[str],
        signals: SignalCapture,
        epoch: float,
        student: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Before the student runs, since it may change its input in place."""
        for name in names:
            if self._distill_teachers[name].training:  # someone called .train() on it
                self._distill_teachers[name].eval()
        run = self._distill_compiler.graph(self.distillation, (args, kwargs), signals, names, epoch=epoch, terms=False)
        if run is not None:
            run()
            return
        for name in names:
            self._distill_ask(name, *args, **kwargs)

    def _distill_given(self, name: str, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        args, kwargs = inputs
        return self.distill_run_teacher(name, *args, **kwargs)

    def _distill_ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        remedy = (
            f"the student would be trained on what it leaves; override distill_run_teacher in {type(self).__name__} "
            "and give it a clone() of the input"
        )
        with left_as_given(name, (args, kwargs), remedy):
            return self.distill_run_teacher(name, *args, **kwargs)

    # ---------------------------------------------------------------- checkpoints

    def _distill_record_teachers(self) -> None:
        """Take them as they stand, where they were given other weights since :meth:`distill`."""
        if not self._distill_record.is_of(self._distill_teachers):
            self._distill_record = FrozenRecord(self._distill_teachers)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """After your own: record the hashes of the teachers, which are held to what they were."""
        super().on_save_checkpoint(checkpoint)
        if hasattr(self, "distillation"):
            if not self.trainer.training and not self.trainer.validating:
                self._distill_record.require_unchanged(self._distill_teachers)
            elif changed := self._distill_record.changed(self._distill_teachers):
                self._distill_changed = changed  # written all the same: the student is not to be lost
            checkpoint[_RECORD] = self._distill_record.stored
            checkpoint[_LOSSES] = settings_that_held(
                self._distill_composers(), self._distill_settings, own_weight=self._distill_own_weight
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """After your own: raise ValueError if a teacher is another one than the checkpoint was trained with."""
        super().on_load_checkpoint(checkpoint)
        if hasattr(self, "distillation"):
            self._distill_record_teachers()
            replaced = list(self._distill_teachers) if self._distill_replaced else []
            self._distill_record.compare(checkpoint.get(_RECORD, {}), replaced, admit="replaced_teachers=True")
            stored = checkpoint.get(_LOSSES, {})
            for key in ("state_dict", "current_model_state"):  # the second of Lightning's WeightAveraging
                if key in checkpoint:
                    keep_settings(
                        self._distill_composers(), self._distill_settings, stored, checkpoint[key],
                        warn=key == "state_dict",
                    )  # fmt: skip

    def _distill_composers(self) -> Composers:
        return {"losses": ("distillation.", self.distillation)}

    def on_train_end(self) -> None:
        """After your own: hold that the teachers are what they were, every byte."""
        super().on_train_end()
        self._distill_compiler.close()
        self._distill_hold(thorough=True)

    def _distill_hold(self, *, thorough: bool = False) -> None:
        if self._distill_changed:
            raise changed_error(self._distill_changed)
        self._distill_record.require_unchanged(self._distill_teachers, thorough=thorough)


def _check_class(module: DistillMixin) -> None:
    """Raise ValueError where the class has its bases in the wrong order, or would lose something by the mixin."""
    kind = type(module)
    at = kind.__mro__.index(DistillMixin)
    for base in kind.__mro__[:at]:
        if issubclass(base, LightningModule) and not issubclass(base, DistillMixin):
            raise ValueError(
                f"{base.__name__} stands before DistillMixin, so that its step goes past the one of distillation: "
                f"write class {kind.__name__}(DistillMixin, {base.__name__})"
            )
    names = {name for name in vars(DistillMixin) if not (name.startswith("__") or hasattr(LightningModule, name))}
    for base in kind.__mro__[at + 1 :]:
        _refuse(base.__name__, names & vars(base).keys())
    _refuse(kind.__name__, names & {*vars(module), *module._modules})


def _refuse(owner: str, names: set[str]) -> None:
    if names:
        raise ValueError(f"{owner} has {sorted(names)} of its own, and so has DistillMixin: give them other names")
