"""Contrastive representation distillation: a sample's student and teacher embeddings agree, against a memory bank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses._distributed import gather_with_gradients
from lit_distill.losses._hyperparameters import Count, Positive, Share
from lit_distill.losses._numerics import can_look, full_precision, upcast
from lit_distill.losses.base import Example, Signal, SizedLoss, class_indices, hyperparameters

__all__ = ["CRDLoss", "crd_loss"]

_EPSILON = 1e-7
"""Published, beside K/N in the denominator; both enter as one logarithm, so no precision can lose it."""


@full_precision
def crd_loss(
    student: Tensor,
    teacher: Tensor,
    student_bank: Tensor,
    teacher_bank: Tensor,
    contrast: Tensor,
    *,
    temperature: Positive = 0.07,
    log_normalizers: Tensor | None = None,
) -> Tensor:
    r"""Noise-contrastive estimation between each network's embeddings and the other's memory bank.

    .. math::
        \frac{1}{B} \sum_i \Big[ -\log \frac{p_{i0}}{p_{i0} + K/N + ε}
        - \sum_{k=1}^{K} \log \frac{K/N}{p_{ik} + K/N + ε} \Big], \qquad
        p_{ik} = \frac{e^{\langle v_i, bank_{c_{ik}} \rangle / T}}{Z}

    once with the student's embeddings against the teacher's bank and once the other way round; the sum of both. Summed
    over negatives, averaged over the batch. Computed from logarithms alone, so no temperature overflows.

    Args:
        student: normalized embeddings (B, D).
        teacher: normalized embeddings (B, D).
        student_bank: one embedding a training sample, (N, D); no gradient.
        teacher_bank: the same of the teacher.
        contrast: rows of the banks (B, 1 + K): first the sample's own, then K negatives.
        temperature: T > 0.
        log_normalizers: log Z of the student's and of the teacher's scores, (2,); by default from this call's scores,
            Z = N · mean of exp, as in the published first step.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: T is not above 0, shapes do not fit, or the result is not finite.

    Example:
        >>> v = F.normalize(torch.randn(4, 8), dim=1)
        >>> bank = F.normalize(torch.randn(10, 8), dim=1)
        >>> crd_loss(v, v, bank, bank, torch.tensor([[0, 4, 5], [1, 6, 7], [2, 8, 9], [3, 4, 9]])).shape
        torch.Size([])
    """
    sides = _scores(student, teacher, student_bank, teacher_bank, contrast, temperature)
    size = len(student_bank)
    if log_normalizers is None:
        log_normalizers = _first_normalizers(sides, size)
    return _crd_loss(sides, size, log_normalizers)


@hyperparameters
class CRDLoss(SizedLoss):
    r"""Contrastive representation distillation: pull a sample's two embeddings together, push other classes away.

    Shapes: embeddings (B, D_s) and (B, D_t) (maps are flattened), and ``target`` two signals, the samples' positions in
    the data set (B,) and their ground truth: ``LossTerm(…, target=["SampleIndex", "GroundTruth"])``. Each network has a
    head (a linear layer and L2 normalization to ``embedding_dim``) and a memory bank, one row a training sample.
    Summed over positive and negatives, averaged over the batch, no other scaling.

    Negatives are ``negatives`` samples of other classes, uniformly and without repetition where the data has as many,
    else with (on an accelerator all of them equally often). The classes are learned from the batches: before a sample
    has been seen, in the first epoch, it counts as one of another class (its row is random then in any case). A
    sample's rows move after scoring, in training only:
    row = normalized(momentum · row + (1 - momentum) · embedding). The constants Z are set in the first training step
    and kept. Heads, banks, classes and constants are in the checkpoint, so a resumed run continues as if never stopped.

    **Mixed inputs.** With Mixup or CutMix a row holds the embedding of a mixed sample and its class is the one with the
    larger share. It trains, but the paper does not do it: turn mixing off for the published method.

    **Validation.** The rows belong to the training samples, so the term has no meaning on others: give separate
    ``val_losses``. In eval mode nothing changes, and negatives come from a generator with a fixed seed.

    **Several processes.** Each scores its own samples; embeddings, indices and classes are gathered, so that all banks
    and constants stay equal. The loss is scaled so that DDP's average is the mean over the global batch, unequal last
    batches included. ``gather=False`` leaves every process to itself.

    Formula:
        p_ik = exp(<v_i, bank[c_ik]> / T) / Z,   Z = N · mean of exp(<v, bank> / T) in the first step
        L_one = 1/B Σ_i [ -log p_i0 / (p_i0 + K/N + ε) - Σ_k log (K/N) / (p_ik + K/N + ε) ],   ε = 1e-7
        L = L_one(student's embeddings, teacher's bank) + L_one(teacher's embeddings, student's bank)

    Paper: Tian et al., "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699. Values, gradients and
        memory are those of the authors' code (RepDistiller). That keeps T and momentum in a float32 tensor; in float64
        pass ``torch.tensor(0.07).item()`` for its last digits. Its weight there is 0.8, beside cross-entropy.

    Use when: the embeddings before the classifiers carry more than the logits, and the data set fits: two banks of
        N x ``embedding_dim`` floats in memory and in every checkpoint. Batches must carry the sample index.

    Args:
        embedding_dim: D, dimension of the common space.
        negatives: K, number of negatives a sample.
        temperature: T > 0.
        momentum: share of the old row that stays, in [0, 1].
        dataset_size: N, number of training samples; by default that of the training data.
        gather: whether several processes share their embeddings.

    Raises:
        ValueError: a hyperparameter is out of its range, N is not known, an index is outside the bank, or all samples
            are of one class. On an accelerator the last two stop the device, as a look at them would make it wait.

    Example:
        >>> student, teacher = torch.randn(4, 16), torch.randn(4, 32)
        >>> target = [torch.arange(4), torch.tensor([0, 1, 0, 1])]
        >>> loss = CRDLoss(embedding_dim=8, negatives=6, dataset_size=20)
        >>> loss.build(Example(student, teacher, target))
        >>> loss(student, teacher, target).shape
        torch.Size([])
    """

    embedding_dim: Count = 128
    negatives: Count = 16384
    temperature: Positive = 0.07
    momentum: Share = 0.5
    dataset_size: int | None = None
    gather: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.student_head: nn.Linear | None = None
        self.teacher_head: nn.Linear | None = None
        self.student_bank: Tensor  # buffers, of which build knows the sizes
        self.teacher_bank: Tensor
        self.classes: Tensor
        self.log_normalizers: Tensor

    @property
    def is_built(self) -> bool:
        """Whether heads and banks exist."""
        return self.student_head is not None

    def build(self, example: Example) -> None:
        """Create heads and banks; the banks start at random, uniformly with a mean squared norm of 1.

        Raises:
            ValueError: the number of training samples is not known, or the loss was built for other embeddings.
        """
        ours, theirs = (self._flat(x).shape[1] for x in (example.student, example.teacher))
        if self.student_head is not None and self.teacher_head is not None:
            built = (self.student_head.in_features, self.teacher_head.in_features)
            if built != (ours, theirs):
                raise ValueError(f"CRDLoss was built for embeddings of {built} features, got {(ours, theirs)}")
            return
        size = example.dataset_size if self.dataset_size is None else self.dataset_size
        if size is None or size < 2:
            raise ValueError(
                f"CRDLoss needs the number of training samples, at least 2, for its memory bank; it is {size}: "
                "give dataset_size=…"
            )
        self.student_head = nn.Linear(ours, self.embedding_dim)
        self.teacher_head = nn.Linear(theirs, self.embedding_dim)
        bound = math.sqrt(3 / self.embedding_dim)
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, torch.empty(size, self.embedding_dim).uniform_(-bound, bound))
        self.register_buffer("classes", torch.full((size,), -1))
        self.register_buffer("log_normalizers", torch.full((2,), math.nan))
        self.to(self._flat(example.student).device)

    @full_precision
    def forward(
        self, student: Signal, teacher: Signal, target: Sequence[Tensor], contrast: Tensor | None = None
    ) -> Tensor:
        """The loss of one batch; in training, the banks then take its embeddings.

        Args:
            student: the student's embeddings.
            teacher: the teacher's embeddings.
            target: sample indices (B,) and ground truth, (B,) or (B, C).
            contrast: rows (B, 1 + K) to score against, the samples' own first; by default drawn.
        """
        self.require_built()
        index, classes = self._target(target)
        size = len(self.classes)
        ours, theirs = _embed(self.student_head, self._flat(student)), _embed(self.teacher_head, self._flat(teacher))
        together = self.gather and self.training and dist.is_available() and dist.is_initialized()
        gather = gather_with_gradients if together else _alone
        every_index, every_class = gather(index), gather(classes)
        if self.training:
            self.classes[every_index] = every_class
        if contrast is None:
            contrast = self.draw(index, classes)
        # The banks move below, before backward reads what was scored against: score against copies.
        banks = upcast(self.student_bank).clone(), upcast(self.teacher_bank).clone()
        normalizers = upcast(self.log_normalizers)
        sides = _scores(ours, theirs, *banks, contrast, self.temperature)
        unset = normalizers.isnan()
        if not can_look(unset) or bool(unset.any()):
            normalizers = torch.where(unset.any(), _first_normalizers(sides, size, gather), normalizers)
        loss = _crd_loss(sides, size, normalizers)
        if self.training:
            self.log_normalizers.copy_(normalizers)
            for bank, embedding in ((self.student_bank, ours), (self.teacher_bank, theirs)):
                self._remember(bank, every_index, gather(embedding.detach()))
        # DDP averages over processes: give it this one's share of the global mean, times their number.
        processes = dist.get_world_size() if together else 1
        return loss * (processes * len(index) / len(every_index))

    @torch.no_grad()
    def draw(self, index: Tensor, classes: Tensor) -> Tensor:
        """Rows to score against, (B, 1 + K): each sample's own, then K uniform ones of other classes.

        Args:
            index: sample indices (B,).
            classes: their classes (B,).

        Raises:
            ValueError: a sample has no other class to be contrasted with.
        """
        allowed = self.classes != classes[:, None]
        allowed[torch.arange(len(index), device=index.device), index] = False
        others = allowed.sum(dim=1, keepdim=True)
        generator = None if self.training else torch.Generator(index.device).manual_seed(0)
        if can_look(index):
            fewest = int(others.min())
            if fewest == 0:
                raise ValueError(f"CRDLoss needs samples of two classes at least, all {len(self.classes)} are of one")
            repeat = self.negatives > fewest
            drawn = torch.multinomial(allowed.float(), self.negatives, replacement=repeat, generator=generator)
        else:  # all samples in random order, those allowed first: multinomial reads values, on any device
            torch._assert_async((others > 0).all(), "CRDLoss needs samples of two classes at least")
            noise = torch.rand(allowed.shape, device=index.device, generator=generator)
            order = noise.masked_fill(~allowed, 2).topk(min(self.negatives, len(self.classes)), largest=False).indices
            places = torch.arange(self.negatives, device=index.device)
            drawn = order.gather(1, places % others.clamp(1, order.shape[1]))
        return torch.cat([index[:, None], drawn], dim=1)

    @torch.no_grad()
    def _remember(self, bank: Tensor, index: Tensor, embedding: Tensor) -> None:
        # A sampler that pads repeats a sample within a global batch. Its last occurrence counts, on every process.
        position = torch.arange(len(index), device=index.device)
        last = torch.zeros_like(self.classes).scatter_reduce(0, index, position, "amax")[index]
        old, new = bank[index], embedding[last].to(bank.dtype)
        moved = F.normalize(self.momentum * old + (1 - self.momentum) * new, dim=1)
        # One overflow of a half-precision step must not stay in the bank for good.
        bank[index] = torch.where(new.isfinite().all(dim=1, keepdim=True), moved, old)

    def _target(self, target: object) -> tuple[Tensor, Tensor]:
        if isinstance(target, Tensor) or not isinstance(target, Sequence) or len(target) != 2:
            raise ValueError(
                'CRDLoss needs two targets, sample indices and ground truth: target=["SampleIndex", "GroundTruth"]'
            )
        index, truth = target
        size = len(self.classes)
        if can_look(index) and (int(index.min()) < 0 or int(index.max()) >= size):
            raise ValueError(
                f"CRDLoss: sample indices {int(index.min())} to {int(index.max())} are outside its bank of {size} "
                "training samples: leave the term out of val_losses, or give the right dataset_size"
            )
        return index, class_indices(truth)

    @staticmethod
    def _flat(signal: Signal) -> Tensor:
        if not isinstance(signal, Tensor) or signal.ndim < 2:
            raise ValueError("CRDLoss compares one embedding (B, D) with one: give one reference each")
        return signal.flatten(1)


def _alone(rows: Tensor) -> Tensor:
    return rows


def _embed(head: nn.Linear | None, features: Tensor) -> Tensor:
    assert head is not None
    weight, bias = upcast((head.weight, head.bias))
    if features.shape[1] != weight.shape[1]:
        raise ValueError(f"CRDLoss was built for {weight.shape[1]} features, got {tuple(features.shape)}")
    return F.normalize(F.linear(features.to(weight.dtype), weight, bias), dim=1)


def _scores(
    student: Tensor, teacher: Tensor, student_bank: Tensor, teacher_bank: Tensor, contrast: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """log of the unnormalized p, (B, 1 + K), of both directions.

    All N products and a choice of 1 + K are much faster, and smaller, than copies of the (B, 1 + K, D) chosen rows.
    """
    if contrast.ndim != 2 or contrast.shape[1] < 2 or not len(contrast) == len(student) == len(teacher):
        raise ValueError(
            f"crd_loss expects contrast (B, 1 + K) with K >= 1, got {tuple(contrast.shape)} for student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )

    def side(anchor: Tensor, bank: Tensor) -> Tensor:
        return (anchor @ bank.T).gather(1, contrast) / temperature

    return side(student, teacher_bank), side(teacher, student_bank)


def _first_normalizers(sides: tuple[Tensor, Tensor], size: int, gather: Callable[[Tensor], Tensor] = _alone) -> Tensor:
    """log(N · mean of exp(scores)) of both directions, the mean being over the samples of all processes."""
    rows = torch.stack([side.detach().logsumexp(dim=1) for side in sides], dim=1)
    every = gather(rows)
    return every.logsumexp(dim=0) + math.log(size / (len(every) * sides[0].shape[1]))


@full_precision
def _crd_loss(sides: tuple[Tensor, Tensor], size: int, log_normalizers: Tensor) -> Tensor:
    return torch.stack([_nce(side - z, size).mean() for side, z in zip(sides, log_normalizers, strict=True)]).sum()


def _nce(log_p: Tensor, size: int) -> Tensor:
    """The loss of each sample, (B,); column 0 is the positive."""
    noise = (log_p.shape[1] - 1) / size
    log_both = math.log(noise + _EPSILON)
    positive = F.softplus(log_both - log_p[:, 0])
    negative = F.softplus(log_p[:, 1:] - log_both) + (log_both - math.log(noise))
    return positive + negative.sum(dim=1)
