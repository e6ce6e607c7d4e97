"""DataFreeModule: a generator stands in for the data that a teacher was trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lit_distill._inputs import counted
from lit_distill._lightning import ends_step
from lit_distill._module.hyperparameters import Composers
from lit_distill._module.preflight import check_names
from lit_distill._module.step import RunningTerms
from lit_distill._terms.tryout import try_terms
from lit_distill.composer import LossComposer, zero_gradients
from lit_distill.data.noise import GENERATOR, is_noise
from lit_distill.module import DistillModule, Terms
from lit_distill.signals import SignalCapture
from lit_distill.terms import LossTerm, term_from_mapping


class DataFreeModule(DistillModule):
    """Trains a generator and a student in turns, on a frozen teacher's answers to images that the generator makes.

    One of the models is the generator: of a batch ``{"noise": (B, Z)}``, as :class:`lit_distill.data.NoiseData` makes
    them, it makes what all the others see. Each optimizer step belongs to one phase:

    * in the student's, ``losses`` are descended; the generator runs without a graph, and what it made is data;
    * in the generator's, ``generator_losses`` are descended; gradients pass the frozen teacher, and the student too, to
      the images, and through them to the generator.

    In a phase the other side's parameters get no gradient, so that no optimizer moves them; their BatchNorm statistics
    follow each forward pass, as always. Phases are counted in optimizer steps of the whole training, so that a resumed
    run is in the phase where it was. Automatic optimization remains, with all that relies on it: clipping, mixed
    precision, accumulation, DDP, :class:`lit_distill.callbacks.NonFinite`.

    Validation and test have real batches, which the student and the teacher see and the generator does not.

    Args:
        models: as for :class:`DistillModule`, the generator among them.
        losses: the terms of the student's phases; they name no signal of the generator.
        generator_losses: those of the generator's phases, by names that ``losses`` does not have. They are logged as
            ``train/<name>``, their total as ``train/generator_loss``. An adversary descends a negative weight:
            ``LossTerm(KDLoss(), pair=("Student", "Teacher"), weight=-1.0, detach=False)``, where ``detach=False`` keeps
            the gradient through the teacher's answer.
        generator: its name.
        phases: optimizer steps a phase, in their order, by the names of the generator and the student; one step each by
            default, the generator's first.
        **arguments: further ones of :class:`DistillModule`. A balance is of the student's terms alone; ``train_only``
            and ``inputs`` do not take the generator.

    Raises:
        ValueError: no model has the generator's name, phases of other models, terms that have a name in common, a
            student's term that names the generator; what :class:`DistillModule` raises.

    Example:
        >>> from functools import partial
        >>> import torch
        >>> from lit_distill import LossTerm
        >>> from lit_distill.losses import DAFLLoss, KDLoss
        >>> module = DataFreeModule(
        ...     models={
        ...         "Generator": nn.Linear(4, 8),
        ...         "Student": nn.Linear(8, 3),
        ...         "Teacher": nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3)),
        ...     },
        ...     frozen=["Teacher"],
        ...     losses={"kd": LossTerm(KDLoss(), pair=("Student", "Teacher"))},
        ...     generator_losses={"dafl": LossTerm(DAFLLoss(), pair=("Teacher", "Teacher.0"))},
        ...     phases={"Generator": 1, "Student": 10},
        ...     optimizer=partial(torch.optim.Adam, lr=1e-3),
        ... )
        >>> [module.phase_at(step) for step in (0, 1, 10, 11)]
        ['Generator', 'Student', 'Student', 'Generator']
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        losses: Terms,
        *,
        generator_losses: Terms,
        generator: str = GENERATOR,
        phases: Mapping[str, int] | None = None,
        **arguments: Any,
    ) -> None:
        if generator not in models:
            raise ValueError(f"generator={generator!r} names no model: they are {sorted(models)}")
        check_names(models, ())
        for name, given in {**losses, **(arguments.get("val_losses") or {})}.items():
            term = given if isinstance(given, LossTerm) else term_from_mapping(name, given)
            if any(ref.model == generator for ref in term.references):
                raise ValueError(
                    f"term {name!r} ({repr(term)[9:-1]}) names {generator}, which has no graph in the student's phase "
                    "and does not run in validation: move it to generator_losses"
                )
        # The base class evaluates, and hands the batch's inputs to, the models that it knows of here.
        super().__init__({name: model for name, model in models.items() if name != generator}, losses, **arguments)
        self.models[generator] = models[generator]
        self.generator = generator
        self.generator_composer = LossComposer(generator_losses)
        self.generator_composer.check(self.models)  # type: ignore[arg-type]
        self._generator_terms, self._stored_generator_terms = RunningTerms(), dict[str, Any]()
        self._generates = False
        self._resting: list[nn.Parameter] = []
        self.phases = dict(phases or {generator: 1, self.student: 1})
        """Optimizer steps a phase, in their order."""
        if set(self.phases) != {generator, self.student} or any(
            isinstance(steps, bool) or not isinstance(steps, int) or steps < 1 for steps in self.phases.values()
        ):
            raise ValueError(
                f"phases are numbers of steps, at least 1, of {generator!r} and {self.student!r}, got {phases!r}"
            )
        if shared := sorted(set(self.generator_composer.terms) & set(self.composer.terms)):
            raise ValueError(f"losses and generator_losses both have {shared}: give the terms names of their own")

    def phase_at(self, step: int) -> str:
        """Which model's phase an optimizer step belongs to, counted from 0 over the whole training."""
        position = step % sum(self.phases.values())
        for name, steps in self.phases.items():
            if position < steps:
                return name
            position -= steps
        raise AssertionError("unreachable")

    @property
    def turn(self) -> int:
        """The steps of both phases."""
        return sum(self.phases.values())

    @contextmanager
    def phase(self, step: int) -> Iterator[tuple[LossComposer, list[str]]]:
        """As :meth:`DistillModule.phase`, of the phase that the step belongs to."""
        self._generates = self.phase_at(step) == self.generator
        try:
            others = [name for name in self.models if name not in {*self.frozen, self.generator}]
            yield self._terms_of_step()[0], [self.generator] if self._generates else others
        finally:
            self._generates = False

    # ---------------------------------------------------------------- the forward pass

    def unpack(self, batch: Any) -> tuple[Any, ...]:
        """Noise is its own input; real batches are split as ever."""
        return (batch, None, None) if is_noise(batch) else super().unpack(batch)

    def run_models(
        self,
        inputs: Any,
        signals: SignalCapture | None = None,
        *,
        cached: bool = False,
        leave_out: Collection[str] = (),
        **how: Any,
    ) -> dict[str, Any]:
        """As :meth:`DistillModule.run_models`; of noise the generator first makes what the others see."""
        leave_out = {*leave_out, self.generator}
        if not is_noise(inputs):
            return super().run_models(inputs, signals, cached=cached, leave_out=leave_out, **how)
        images = self._run_one(self.generator, counted(inputs["noise"]))
        others = super().run_models(images, signals, leave_out=leave_out, **how)
        return {self.generator: images, **others}

    def _has_graph(self, name: str) -> bool:
        if self._generates:
            return True
        return name != self.generator and super()._has_graph(name)

    # ---------------------------------------------------------------- steps

    def build(self, batch: Any, *, dataset_size: int | None = None, num_classes: int | None = None) -> None:
        """Try the terms of both phases on an example batch of noise; terms of validation that need no labels too.

        Raises:
            ValueError: the batch is no noise, or a term does not fit.
        """
        noise = self._noise_of(batch)
        own = [] if any(term.needs_labels for term in self.val_composer.terms.values()) else [self.val_composer]
        for generates, composers in ((False, [self.composer, *own]), (True, [self.generator_composer])):
            self._generates = generates
            try:
                try_terms(
                    list({id(composer): composer for composer in composers}.values()), self.named, None, index=None,
                    batch=noise, dataset_size=dataset_size,
                    run=lambda signals: self.run_models(noise, signals, thorough=True),
                )  # fmt: skip
            finally:
                self._generates = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step of the phase that it is; returns its total."""
        self._noise_of(batch)
        self._generates = self.phase_at(self.global_step) == self.generator
        try:
            total = super().training_step(batch, batch_idx)
        finally:
            generates, self._generates = self._generates, False
        self._resting = self._parameters_of(generator=not generates)
        if generates:
            self.composed = None  # a balance weighs the student's terms
        if self.trainer.world_size > 1:  # DDP waits for a gradient of each
            total = total + zero_gradients(total.new_zeros(()), self._resting)
        return total

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Take the gradients of the side whose phase it is not: an optimizer passes over parameters without one."""
        for parameter in self._resting:
            parameter.grad = None

    def _noise_of(self, batch: Any) -> Any:
        if not is_noise(batch):
            raise ValueError(
                f"training without data expects batches {{'noise': (B, Z)}}, as lit_distill.data.NoiseData makes them, "
                f"got {type(batch).__name__}: real images are for validation and test alone"
            )
        return batch

    def _terms_of_step(self) -> tuple[LossComposer, RunningTerms]:
        return (self.generator_composer, self._generator_terms) if self._generates else super()._terms_of_step()

    def _parameters_of(self, *, generator: bool) -> list[nn.Parameter]:
        """What learns in the phases of one side: its models, and the losses' own parameters."""
        if generator:
            modules: list[nn.Module] = [self.models[self.generator], self.generator_composer]
        else:
            modules = [model for name, model in self.models.items() if name != self.generator]
            modules += [self.composer, self.val_composer]
        return list({id(p): p for module in modules for p in module.parameters() if p.requires_grad}.values())

    # ---------------------------------------------------------------- logging and checkpoints

    def drop_step(self, where: Tensor | None = None) -> None:
        """Leave the batches since the last optimizer step out of the log, whose phase ever they were."""
        super().drop_step(where)
        self._generator_terms.drop(where)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the generator's terms beside the student's, and log both."""
        if ends_step(self.trainer):
            self._generator_terms.commit()
        super().on_train_batch_end(outputs, batch, batch_idx)

    def _means_since_last(self) -> dict[str, float]:
        theirs = self._means(self.generator_composer, self._generator_terms, "generator_loss")
        return {**super()._means_since_last(), **theirs}

    def _composers(self) -> Composers:
        return {**super()._composers(), "generator_losses": ("generator_composer.", self.generator_composer)}

    def on_train_start(self) -> None:
        """Continue with the sums of the generator's terms too.

        Raises:
            ValueError: a cache of signals is on, whose samples noise does not have.
        """
        super().on_train_start()
        if self.signal_cache is not None:
            raise ValueError(
                f"{type(self).__name__}: {type(self.signal_cache).__name__} keeps what a frozen model says of samples, "
                "and images of a generator are new ones in each step: leave it out"
            )
        stored, self._stored_generator_terms = self._stored_generator_terms, {}
        self._generator_terms.load_state_dict(stored, self.global_rank, self.trainer.world_size, self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As :class:`DistillModule`, with the sums of the generator's terms."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["lit_distill"]["generator_terms"] = self._generator_terms.state_dict(self._gather_ranks)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As :class:`DistillModule`, with the sums of the generator's terms."""
        super().on_load_checkpoint(checkpoint)
        self._stored_generator_terms = dict(checkpoint["lit_distill"].get("generator_terms", {}))
