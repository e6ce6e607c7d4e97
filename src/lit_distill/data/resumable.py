"""A loader that begins where the trainer's progress says: exact after a resume in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from lightning import Trainer
from torch.utils.data import DataLoader

from lit_distill._lightning import batches_begun, loaders_cycle

T_co = TypeVar("T_co", covariant=True)


class ResumableLoader(DataLoader[T_co]):
    """A DataLoader whose iteration begins behind the batches that the trainer has done in this epoch.

    The position is not stored with the data: it is the trainer's own progress, which is in every checkpoint, so it
    holds under any number of workers. The loader asks its sampler, and sets its workers going, at the first batch only:
    Lightning makes an iterator before it restores a checkpoint and tells the sampler the epoch, and workers that had
    been set going then would begin a resumed run with the samples of epoch 0.

    Give it an :class:`lit_distill.data.EpochSampler`, and the Trainer an :class:`lit_distill.callbacks.ExactResume`,
    which calls :meth:`follow`.

    Example:
        >>> from lit_distill.data.samplers import EpochSampler, SampleKey
        >>> keys = {SampleKey(0, index): index for index in range(6)}  # a data set of which keys give samples
        >>> loader = ResumableLoader(keys, batch_size=2, sampler=EpochSampler(keys), collate_fn=len)
        >>> loader.position = lambda: 1
        >>> len(loader), len(list(loader))
        (3, 2)
    """

    position: Callable[[], int] | None = None
    """Gives the number of batches of this epoch that are done; None starts at the beginning."""

    def follow(self, trainer: Trainer) -> None:
        """Begin where this trainer's training is."""
        if loaders_cycle(trainer):  # beside a longer loader this one begins again within an epoch
            self.position = lambda: batches_begun(trainer) % max(1, len(self))
        else:
            self.position = lambda: batches_begun(trainer)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        done = 0 if self.position is None else self.position()
        if hasattr(self.sampler, "start"):
            self.sampler.start = done * (self.batch_size or 1)
        elif done:
            raise ValueError(
                f"training goes on behind batch {done} of its epoch, but a {type(self.sampler).__name__} cannot begin "
                "there: sample by lit_distill.data.EpochSampler, or resume from a checkpoint of an epoch's end"
            )
        yield from super().__iter__()
