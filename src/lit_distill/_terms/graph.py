"""What the autograd graph of a term's value says of its loss. It is read, not run: nothing is waited for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from lit_distill.losses.base import Signal, tensors_of

Node: TypeAlias = Any
"""Of autograd; torch has no type for what its nodes save."""

SHAPES = (
    "View", "Reshape", "UnsafeView", "Squeeze", "Unsqueeze", "ToCopy", "Clone", "Permute", "Transpose", "TBack",
    "Select", "Slice", "Index", "Expand",
)  # fmt: skip
_SCALES = ("Div", "Mul", "Sub", "Add")
_ACTIVATIONS = (
    "Softmax", "LogSoftmax", "Logsumexp", "Sigmoid", "LogSigmoid", "Softplus", "BinaryCrossEntropyWithLogits",
)  # fmt: skip
_MEAN = 1  # torch's number of reduction="mean"


class Mean(NamedTuple):
    """What a loss over class indices is the mean of: all positions but those of one label, by the classes' weights."""

    ignored: int
    weight: Tensor | None

    @property
    def is_selective(self) -> bool:
        """Whether not every label counts alike in the loss of an ordinary classifier."""
        return self.ignored != -100 or self.weight is not None

    def of_labels(self, labels: Tensor) -> Tensor:
        """The sum of the weights of what counts.

        Example:
            >>> import torch
            >>> Mean(-100, None).of_labels(torch.tensor([[2, -100], [0, 1]]))
            tensor(3.)
        """
        counts = labels != self.ignored
        if self.weight is None:
            return counts.sum().float()
        weight = self.weight.to(labels.device)[labels.where(counts, 0)]
        return weight.where(counts, 0).sum()


def nodes_of(value: Tensor, stops: Iterable[Signal] = ()) -> Iterator[Node]:
    """The nodes behind a value, those of ``stops`` included and what lies behind them left out."""
    ends = {tensor.grad_fn for signal in stops for tensor in tensors_of(signal)}
    left, seen = [value.grad_fn], {value.grad_fn}
    while left:
        node = left.pop()
        if node is None:
            continue
        yield node
        for following in () if node in ends or _is_void(node) else _behind(node):
            if following not in seen:
                seen.add(following)
                left.append(following)


def teaches(value: Tensor, first: Signal, others: Sequence[Signal] = ()) -> bool:
    """Whether the gradient of a term's value reaches the first of its signals, and through it a parameter.

    A softmax or margin over one class has no gradient, so that it reaches nobody.

    Args:
        value: of the term.
        first: its first signal.
        others: its other ones, behind which nothing is looked at.

    Example:
        >>> import torch
        >>> student = torch.ones(2, requires_grad=True) * 1.0
        >>> teaches(student.square().sum(), student), teaches(student.detach().sum(), student)
        (True, False)
    """
    leaves = {id(tensor) for tensor in tensors_of(first) if tensor.requires_grad and tensor.grad_fn is None}
    nodes = {tensor.grad_fn for tensor in tensors_of(first) if tensor.grad_fn is not None}
    if value.grad_fn is None:
        return value.requires_grad and id(value) in leaves
    stops = [first, *others]
    return any(n in nodes or id(getattr(n, "variable", None)) in leaves for n in nodes_of(value, stops))


def activates(value: Tensor, leaf: Tensor) -> bool:
    """Whether a loss takes the softmax or sigmoid of a leaf, scaled or not, as of logits.

    Example:
        >>> import torch
        >>> x = torch.ones(2, 3, requires_grad=True)
        >>> activates((x / 4).log_softmax(1).sum(), x), activates(x.log().sum(), x)
        (True, False)
    """
    return any(
        node.name().startswith(_ACTIVATIONS) and any(_leads_to(each, leaf) for each in _behind(node))
        for node in nodes_of(value)
    )


def mean_of(value: Tensor, labels: Tensor, stops: Sequence[Signal] = ()) -> Mean | None:
    """What a term's value is the mean of, where it is one over the class indices in ``labels``, whoever computed it.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[1, -1], [0, 0]])
        >>> logits = torch.zeros(2, 3, 2, requires_grad=True)
        >>> mean_of(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1), labels)
        Mean(ignored=-1, weight=None)
    """
    found = [node for node in nodes_of(value, stops) if node.name().startswith("NllLoss")]
    if len(found) != 1 or found[0]._saved_reduction != _MEAN or found[0]._saved_target.numel() != labels.numel():
        return None
    weight = found[0]._saved_weight
    return Mean(_signed(found[0]._saved_ignore_index), None if weight is None else weight.detach())


def _is_void(node: Node) -> bool:
    """Whether a node has no gradient, as what it is over has one entry."""
    name = node.name()
    if name.startswith(("SoftmaxBackward", "LogSoftmaxBackward")):
        shape, dim = node._saved_result.shape, _signed(node._saved_dim)
    elif name.startswith(("MultiMarginLossBackward", "MultilabelMarginLossBackward")):
        shape, dim = node._saved_self.shape, -1
    else:
        return False
    return bool(shape) and shape[dim] == 1


def _leads_to(node: Node, leaf: Tensor) -> bool:
    """Whether a node is a leaf's, with nothing between them but another shape or scale."""
    left = [node]
    while left:
        node = left.pop()
        if getattr(node, "variable", None) is leaf:
            return True
        if node.name().startswith((*SHAPES, *_SCALES)):
            left += _behind(node)
    return False


def _behind(node: Node) -> list[Node]:
    return [following for following, _ in node.next_functions if following is not None]


def _signed(number: int) -> int:
    """A number that torch shows without its sign."""
    return number - 2**64 if number >= 2**63 else number
