"""Be your own teacher: auxiliary classifiers on a network's stages learn from its deepest one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_distill.losses._hyperparameters import NonNegative, Positive, Share
from lit_distill.losses._numerics import full_precision, kl_from_logits, upcast
from lit_distill.losses.base import Example, Signal, SizedLoss, hyperparameters, tensors_of
from lit_distill.losses.response._logits import check_labels, label_cross_entropy

__all__ = ["BeYourOwnTeacherLoss", "be_your_own_teacher_loss"]


@full_precision
def be_your_own_teacher_loss(
    heads: Sequence[Tensor],
    embeddings: Sequence[Tensor],
    deepest: Tensor,
    deepest_embedding: Tensor,
    target: Tensor,
    *,
    alpha: Share = 0.3,
    temperature: Positive = 3.0,
    hint: NonNegative = 1e-4,
) -> Tensor:
    """What auxiliary classifiers have to learn, summed over them; see :class:`BeYourOwnTeacherLoss`.

    Args:
        heads: logits (B, C) of every auxiliary classifier.
        embeddings: what each of them classifies, (N, D).
        deepest: logits (B, C) of the network itself.
        deepest_embedding: its embedding (N, D).
        target: class indices (B,) or class probabilities (B, C).
        alpha: share of the deepest classifier's answers.
        temperature: of both answers.
        hint: weight of the squared distance of the embeddings.

    Returns:
        The loss, a scalar in float32 or better.

    Raises:
        ValueError: shapes differ, a hyperparameter is out of its range, or a number is not finite.

    Example:
        >>> logits, embedding, target = torch.zeros(2, 4), torch.zeros(2, 8), torch.tensor([0, 3])
        >>> round(be_your_own_teacher_loss([logits], [embedding], logits, embedding, target, alpha=0.5).item(), 4)
        0.6931
    """
    if len(heads) != len(embeddings) or not heads:
        raise ValueError(
            f"be_your_own_teacher_loss expects an embedding a head, got {len(heads)} heads and {len(embeddings)}"
        )
    target = check_labels("be_your_own_teacher_loss", deepest, target)
    parts = []
    for logits, embedding in zip(heads, embeddings, strict=True):
        if logits.shape != deepest.shape or embedding.shape != deepest_embedding.shape:
            raise ValueError(
                f"be_your_own_teacher_loss: a head gives {tuple(logits.shape)} of {tuple(embedding.shape)}, the "
                f"deepest {tuple(deepest.shape)} of {tuple(deepest_embedding.shape)}"
            )
        labels = label_cross_entropy(logits.log_softmax(dim=1), target).mean()
        answers = kl_from_logits(deepest, logits, temperature=temperature).mean()
        distance = (embedding - deepest_embedding).square().sum(dim=1).mean()
        parts.append((1 - alpha) * labels + alpha * answers + hint * distance)
    return torch.stack(parts).sum()


@hyperparameters
class BeYourOwnTeacherLoss(SizedLoss):
    r"""Self-distillation by depth: classifiers on the shallow stages learn from the labels and the deepest classifier.

    Signals: first the maps (N, c, h, w) of the shallow stages, one or a list; second the list of the network's last map
    (N, D, H, W) and its logits (B, C); third the labels. N is B, or B * T for the frames of clips; a head averages its
    embeddings over the T frames of a clip before it classifies.

    ``pair: [[Student.stages.0, Student.stages.1, Student.stages.2], [Student.stages.3, Student]]``,
    ``target: GroundTruth``. The deepest classifier is the network's own, whose cross-entropy is a separate term; it
    and the last map are constant here, so that the deepest teaches and never waits for the shallow ones. Through the
    shallow maps the auxiliary classifiers train the network's early stages too.

    A head is what brings its stage to the last map: while it is at least twice as high, a block of separable
    convolutions that halves the size and moves the channels towards D, at least one block; then the mean over height
    and width gives the embedding, and a linear layer the logits. Heads are sized from an example batch, trained and
    saved with the run, and are no part of the network: ``student.safetensors`` is the bare network, as fast as before.

    Formula:
        L = Σ_k (1 - α) CE(z_k, y) + α KL(softmax(z/τ) || softmax(z_k/τ)) + λ ‖f_k - f‖²
        z_k, f_k: logits and embedding of head k; z, f: those of the deepest classifier, without gradient

    Averaged over samples (the distance over N, summed over D), summed over heads. There is no τ² here, as in the
    authors' code.

    Paper: Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
        Distillation", ICCV 2019, arXiv:1905.08094. α, τ, the blocks and the scaling of the divergence are those of the
        authors' later code, which leaves the hint out; its λ here is that of a public reimplementation (1e-6 on the sum
        over 128 samples).

    Use when: there is no teacher and no memory or time for a peer: one network, one run, some heads more in training.

    Args:
        alpha: α, 0 to 1: the share of the deepest classifier's answers against that of the labels.
        temperature: τ, above 0.
        hint: λ, at least 0.

    Raises:
        ValueError: a hyperparameter is out of its range, or the signals are not those above.

    Example:
        >>> stages = [torch.randn(4, 8, 8, 8), torch.randn(4, 16, 4, 4)]
        >>> last, logits, target = torch.randn(4, 32, 2, 2), torch.randn(2, 5), torch.tensor([0, 4])  # 2 frames a clip
        >>> loss = BeYourOwnTeacherLoss()
        >>> loss.build(Example(stages, [last, logits], target))
        >>> loss(stages, [last, logits], target).shape
        torch.Size([])
    """

    alpha: Share = 0.3
    temperature: Positive = 3.0
    hint: NonNegative = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.heads = nn.ModuleList()
        self._sizes: tuple[tuple[int, ...], ...] = ()

    @property
    def is_built(self) -> bool:
        """Whether the heads exist."""
        return bool(self._sizes)

    def build(self, example: Example) -> None:
        """Create a head a stage.

        Raises:
            ValueError: the signals are not the expected ones, or the loss was built for other channels.
        """
        stages, last, logits = _checked_signals(example.student, example.teacher)
        sizes = tuple((stage.shape[1], last.shape[1], logits.shape[1]) for stage in stages)
        if self._sizes and sizes != self._sizes:
            raise ValueError(
                f"BeYourOwnTeacherLoss was built for (channels, last channels, classes) {list(self._sizes)}, "
                f"got {list(sizes)}"
            )
        if not self._sizes:
            self.heads.extend(_Head(stage.shape, last.shape, logits.shape[1]) for stage in stages)
            self._sizes = sizes
            self.to(last.device)

    @full_precision
    def forward(self, stages: Signal, deepest: Signal, target: Tensor) -> Tensor:
        """The loss of one batch.

        Args:
            stages: the maps of the shallow stages, one or a list.
            deepest: the last map and the logits.
            target: class indices (B,) or class probabilities (B, C).
        """
        self.require_built()
        shallow, last, logits = _checked_signals(stages, deepest)
        if len(shallow) != len(self.heads):
            raise ValueError(f"BeYourOwnTeacherLoss was built for {len(self.heads)} stages, got {len(shallow)}")
        dtype = next(self.heads.parameters()).dtype
        both = [head(stage.to(dtype), len(logits)) for head, stage in zip(self.heads, shallow, strict=True)]
        return be_your_own_teacher_loss(
            [upcast(head) for head, _ in both],
            [upcast(embedding) for _, embedding in both],
            logits.detach(),
            last.detach().mean(dim=(2, 3)),
            target,
            **self.hyperparameters,
        )


class _Head(nn.Module):
    """A stage's map to an embedding as wide as the last map, and to logits."""

    def __init__(self, stage: Sequence[int], last: Sequence[int], classes: int) -> None:
        super().__init__()
        channels, height, width = stage[1], stage[2], last[1]
        halvings = 0
        while height >= 2 * last[2] << halvings:
            halvings += 1
        blocks: list[nn.Module] = []
        for left in reversed(range(max(1, halvings))):
            outputs = max(channels, width >> left) if channels < width else width  # as the network's own stages widen
            blocks += _separable(channels, outputs, stride=2 if halvings else 1)
            channels = outputs
        self.bottleneck = nn.Sequential(*blocks)
        self.fc = nn.Linear(width, classes)

    def forward(self, stage: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        embedding = self.bottleneck(stage).mean(dim=(2, 3))
        return self.fc(embedding.unflatten(0, (batch, -1)).mean(dim=1)), embedding


def _separable(inputs: int, outputs: int, *, stride: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for wide, step in ((inputs, stride), (outputs, 1)):
        depthwise = nn.Conv2d(inputs, inputs, 3, stride=step, padding=1, groups=inputs, bias=False)
        pointwise = nn.Conv2d(inputs, wide, 1, bias=False)
        for conv in (depthwise, pointwise):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers += [depthwise, pointwise, nn.BatchNorm2d(wide), nn.ReLU()]
    return layers


def _checked_signals(stages: Signal, deepest: Signal) -> tuple[list[Tensor], Tensor, Tensor]:
    shallow, second = tensors_of(stages), tensors_of(deepest)
    shapes = f"got {[tuple(t.shape) for t in shallow]} and {[tuple(t.shape) for t in second]}"
    if len(second) != 2 or second[0].ndim != 4 or second[1].ndim != 2 or any(t.ndim != 4 for t in shallow):
        raise ValueError(
            "BeYourOwnTeacherLoss expects maps (N, c, h, w) first, then the last map (N, D, H, W) and logits (B, C): "
            f"[[Student.stages.0, …], [Student.stages.3, Student]]; {shapes}"
        )
    last, logits = second
    if not shallow or any(len(t) != len(last) for t in shallow) or not len(logits) or len(last) % len(logits):
        raise ValueError(
            f"BeYourOwnTeacherLoss expects maps of the same N, a whole number of frames for each of B clips: {shapes}"
        )
    return shallow, last, logits
