"""Training parts of models: the rest takes no gradient, and stands still in eval mode."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # of BatchNorm, SyncBatchNorm and InstanceNorm

from lit_distill._module.patterns import names

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
NORMS = ":norms"


class TrainOnly:
    """The parts of models that are trained, where not all of them are.

    What is not named takes no gradient and is in no optimizer; modules without anything that is trained are in eval
    mode, so that their statistics stand still and their dropout is off. A module without parameters goes with the
    nearest module around it that has some: a dropout is on where any of those are trained, a normalisation layer takes
    in statistics where all of them are.

    Args:
        models: the models that are trained, by name.
        patterns: ``Student`` is a model, ``Student.fc`` a part, ``Student.fc.bias`` a parameter; ``*`` stands for
            anything; ``Student:norms`` are all of a model's normalisation layers. None or nothing for all of it.

    Raises:
        ValueError: a pattern names nothing, or a model is left without anything to train.

    Example:
        >>> student = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> TrainOnly({"Student": student}, ["Student.2", "Student:norms"]).hold()
        >>> [name for name, p in student.named_parameters() if p.requires_grad]
        ['1.weight', '1.bias', '2.weight', '2.bias']
        >>> [module.training for module in student]
        [False, True, True]
    """

    def __init__(self, models: Mapping[str, nn.Module], patterns: Collection[str] | None) -> None:
        if isinstance(patterns, str):
            raise ValueError(f"train_only is a list of names, got the text {patterns!r}: write [{patterns}]")
        self._still: list[nn.Module] = []
        if not patterns:
            return
        chosen: dict[str, set[int]] = {pattern: set() for pattern in patterns}
        for name, model in models.items():
            parameters = {f"{name}.{key}": id(p) for key, p in model.named_parameters()}
            for pattern, ids in chosen.items():
                if pattern == f"{name}{NORMS}":
                    ids.update(id(p) for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters())
                else:
                    ids.update(number for key, number in parameters.items() if names(pattern, key))
        if idle := [pattern for pattern, ids in chosen.items() if not ids]:
            raise ValueError(
                f"train_only names {idle}, where there is nothing to train; the models that learn are {list(models)}: "
                "expected names such as Student.fc, Student.stages.* or Student:norms"
            )
        trained = set().union(*chosen.values())
        for name, model in models.items():
            if not any(id(p) in trained for p in model.parameters()):
                raise ValueError(f"train_only leaves nothing of {name} to train: add it, or say frozen=[{name}]")
            for parameter in model.parameters():
                if id(parameter) not in trained:
                    parameter.requires_grad_(False)
            self._still += [part for path, part in model.named_modules() if _stands_still(model, path, trained)]

    def hold(self) -> None:
        """Put what stands still into eval mode."""
        for module in self._still:
            module.eval()


def _stands_still(model: nn.Module, path: str, trained: Collection[int]) -> bool:
    """Whether nothing is trained in a part of a model or, where it has no parameters, around it."""
    part = model.get_submodule(path)
    while not (learns := [id(p) in trained for p in model.get_submodule(path).parameters()]):
        path = path.rpartition(".")[0]  # ends at the model, which has some
    only_statistics = isinstance(part, _NormBase) and next(part.parameters(), None) is None
    return not (all(learns) if only_statistics else any(learns))
