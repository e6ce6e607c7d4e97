"""Several networks as one: their answers averaged, weighted, or weighted by how sure each is of a sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from lit_distill._views import InputView
from lit_distill.optim import ParameterGroup, groups_of

Mode: TypeAlias = Literal["logits", "probabilities", "confidence"]


class Ensemble(nn.Module):
    r"""One named model of several members, such as a group of teachers.

    With members' logits :math:`z_k`, probabilities :math:`p_k = softmax(z_k)`, their entropies :math:`H_k` and weights
    :math:`w_k`, scaled so that they sum to 1, the answer is

    .. math::
        \begin{aligned}
        \text{logits} &: \textstyle\sum_k w_k z_k \\
        \text{probabilities} &: \log \textstyle\sum_k w_k p_k \\
        \text{confidence} &: \log \textstyle\sum_k a_k p_k,\quad a_k \propto w_k e^{-H_k}
            \text{ of each sample, } \textstyle\sum_k a_k = 1
        \end{aligned}

    in every case logits (B, C) for losses and metrics: the softmax of a logarithm of probabilities is those
    probabilities. Under ``confidence`` a member that is sure of a sample speaks louder there: from 1/C times its
    weight where it knows nothing to its whole weight where it has no doubt. Computed in float32 or better.

    A member is a submodule: ``Teacher.members.<name>`` is its answer, ``Teacher.members.<name>.fc:input`` its
    embedding. Each reads its own weights file (``models.Teacher.members.<name>.pretrained=…``), and may see an input of
    its own, a :class:`lit_distill.data.InputView` of the ensemble's. The logits' average is that of Hinton et al., 2015
    (geometric mean of the probabilities), the weighting by entropy follows Kwon et al., "Adaptive Knowledge
    Distillation Based on Entropy", ICASSP 2020, here by :math:`e^{-H}`, which has no pole.

    Args:
        members: the networks by name, or in a list, where they are named 0, 1, …; all of the same classes.
        weights: a number above 0 a member, by name or in order; equal ones where none are given.
        mode: see above.
        inputs: ``num_frames`` and ``size`` of what a member sees, by its name; of the others all.

    Raises:
        ValueError: no members, weights that do not fit them, an unknown mode, or answers of different shapes.

    Example:
        >>> ensemble = Ensemble([nn.Linear(4, 3), nn.Linear(4, 3)], weights=[2, 1], mode="probabilities")
        >>> probabilities = ensemble(torch.zeros(5, 4)).exp()
        >>> probabilities.shape, bool(((probabilities.sum(dim=1) - 1).abs() < 1e-6).all())
        (torch.Size([5, 3]), True)
    """

    def __init__(
        self,
        members: Mapping[str, nn.Module] | Sequence[nn.Module],
        *,
        weights: Mapping[str, float] | Sequence[float] | None = None,
        mode: Mode = "logits",
        inputs: Mapping[str, InputView | Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        if mode not in get_args(Mode):
            raise ValueError(f"Ensemble: mode is one of {', '.join(get_args(Mode))}, got {mode!r}")
        named = _named(members)
        for name, member in named.items():
            if not name or "." in name or hasattr(nn.ModuleDict, name) or not isinstance(member, nn.Module):
                raise ValueError(
                    f"Ensemble: {name!r}: {type(member).__name__} is no member: a name without dots and a torch module"
                )
        if not named:
            raise ValueError("Ensemble needs members, such as members: {first: …, second: …}")
        self.mode: Mode = mode
        self.members = nn.ModuleDict(named)
        self.weights = _scaled(weights, list(named))
        """A share a member, in their order; they sum to 1."""
        self.inputs = {str(name): InputView.of(given) for name, given in (inputs or {}).items()}
        if unknown := sorted(set(self.inputs) - set(named)):
            raise ValueError(f"Ensemble: inputs names {unknown}, which are no members: {list(named)}")

    def forward(self, inputs: Tensor) -> Tensor:
        """The ensemble's answer as logits (B, C).

        Raises:
            ValueError: the members' answers differ in shape.
        """
        answers = {
            name: member(self.inputs[name](inputs) if name in self.inputs else inputs)
            for name, member in self.members.items()
        }
        shapes = {name: tuple(answer.shape) for name, answer in answers.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"Ensemble: the members' answers differ in shape: {shapes}")
        logits = torch.stack(list(answers.values()))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.mode == "logits":
            return torch.stack([w * z for w, z in zip(self.weights, logits, strict=True)]).sum(dim=0)
        log_p = logits.log_softmax(dim=-1)
        if self.mode == "probabilities":
            shares = [math.log(w) + row for w, row in zip(self.weights, log_p, strict=True)]
        else:
            minus_entropy = (log_p.exp() * log_p).sum(dim=-1, keepdim=True)
            trust = torch.stack([math.log(w) + h for w, h in zip(self.weights, minus_entropy, strict=True)])
            shares = list(trust.log_softmax(dim=0) + log_p)
        return torch.logsumexp(torch.stack(shares), dim=0)

    def parameter_groups(self) -> list[ParameterGroup]:
        """The members' own groups."""
        return [
            replace(group, name=f"{name}/{group.name}")
            for name, member in self.members.items()
            for group in groups_of(member)
        ]

    def extra_repr(self) -> str:
        """Shown in the module's print."""
        shares = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(self.members, self.weights, strict=True))
        return f"mode={self.mode!r}, weights: {shares}"


def _named(members: Mapping[str, nn.Module] | Sequence[nn.Module]) -> dict[str, nn.Module]:
    if isinstance(members, Mapping):
        return {str(name): member for name, member in members.items()}
    return {str(number): member for number, member in enumerate(members)}


def _scaled(weights: Mapping[str, float] | Sequence[float] | None, names: list[str]) -> tuple[float, ...]:
    if weights is None:
        return (1 / len(names),) * len(names)
    given = weights if isinstance(weights, Mapping) else dict(zip(names, weights, strict=False))
    fit = set(map(str, given)) == set(names) and len(weights) == len(names)
    if not fit or not all(0 < float(weight) < math.inf for weight in given.values()):
        shown = dict(weights) if isinstance(weights, Mapping) else list(weights)
        raise ValueError(f"Ensemble: weights are a number above 0 for each of {names}, got {shown}")
    by_name = {str(name): float(weight) for name, weight in given.items()}
    return tuple(by_name[name] / sum(by_name.values()) for name in names)
