"""Huber loss between all N³ angles of two networks, from squared distances alone, in O(N²) memory.

With d the distances, the cosine at vertex j between samples i and k is by the law of cosines

    cos_jik = (d_ji / d_jk + d_jk / d_ji - d_ik² / (d_ji d_jk)) / 2,

so for one j it is a matrix of rank 2 plus the squared distances, scaled on both sides. While no cosine of student and
teacher differ by more than 1, the Huber loss is a sum of squares, and all its sums over i, j or k are products of
N x N matrices: nothing of size N³ is formed at all (:func:`_contract`). The sum of squares of a row (j, i) bounds its
differences; rows that may hold one above 1 are looked through in float32, and the few found are corrected one by one.

Two kinds of vertices are instead summed cosine by cosine, slab by slab (:func:`_summed`): those at which the sums of
squares would lose digits, since another sample is a thousand times closer than the farthest, and those at which
more than a few per cent of the differences exceed 1.

On an accelerator and under torch.compile all vertices are summed, in larger slabs: which kind a vertex is of depends on
values, and a look at them would wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lit_distill.losses._numerics import can_look
from lit_distill.losses.relation._gram import with_slopes

_COINCIDENT = 1e-24
"""Squared distance up to which two samples are one point: the angles that it would span count as cosine 0."""

_ERROR = 2e-10
"""The absolute error of a cosine's square that the matrix products may have."""

_FEW = 32
"""Up to this number of samples, calling the matrix products costs more than they save."""

_MANY = 0.04
"""From this part of differences above 1 on, summing all is faster than correcting each."""

_PANEL = 1 << 16
"""Elements of a panel (vertices, N) of the matrix products."""

_SLAB = 1 << 17
"""Elements of a slab (vertices, i, k) of cosines: as many as a core's cache takes."""

_DEVICE_SLAB = 1 << 24
"""The same on an accelerator: 128 MiB in float64, of which a few are held at once."""


def angle_huber(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all N³ triples of the Huber loss (delta 1) between the cosines of student and teacher.

    The gradients are computed along with the value, see :func:`with_slopes`.

    Args:
        student: squared distances (N, N).
        teacher: squared distances (N, N).
    """
    return with_slopes(_value_and_slopes, student, teacher)


class _View(NamedTuple):
    """A network's distances as seen from J vertices; far and near are 0 where a sample coincides with its vertex."""

    far: Tensor  # (J, N) distance of each sample from the vertex
    near: Tensor  # (J, N) its reciprocal
    squares: Tensor  # (N, N) squared distances of all pairs

    @classmethod
    def of(cls, squares: Tensor, coincident: Tensor) -> _View:
        near = squares.rsqrt().masked_fill_(coincident, 0)
        return cls(squares * near, near, squares)

    def at(self, vertices: Tensor) -> _View:
        if len(vertices) == len(self.far):
            return self
        return self._replace(far=self.far[vertices], near=self.near[vertices])

    def to(self, dtype: torch.dtype) -> _View:
        return _View(*(x.to(dtype) for x in self))

    def cosines(self, i: slice, k: slice) -> Tensor:
        """(J, i, k)."""
        near = self.near[:, None, k]
        result = torch.addcmul(self.far[:, None, k] / 2, self.squares[i, k], near, value=-0.5)
        return result.mul_(self.near[:, i, None]).addcmul_(self.far[:, i, None], near, value=0.5)


class _Sums(NamedTuple):
    """What a slope g_jik with respect to the cosines of a network comes to, before it is one of its squared distances.

    A cosine holds far and near of both (j, i) and (j, k), and the square of (i, k); g_jik = g_jki makes one enough.
    """

    by_far: Tensor  # (J, N) sum over k of g near_k
    by_near: Tensor  # (J, N) sum over k of g (far_k - square_ik near_k)

    def minus(self, other: _Sums) -> _Sums:
        return _Sums(self.by_far - other.by_far, self.by_near - other.by_near)

    def with_cosines(self, view: _View) -> Tensor:
        """(J, N) sum over k of g times the cosine of ``view``."""
        return (view.far * self.by_far + view.near * self.by_near) / 2

    def add_to(self, slopes: Tensor, vertices: Tensor, view: _View) -> None:
        slopes.index_add_(0, vertices, (self.by_far - view.near.square() * self.by_near) * view.near / 2)


def _value_and_slopes(student: Tensor, teacher: Tensor, wanted: Sequence[bool]) -> tuple[Tensor, list[Tensor | None]]:
    """The mean loss and, where wanted, its gradients, in which entries (i, k) and (k, i) are only right as a sum."""
    n = len(student)
    # Angles have no scale: with the farthest two samples 1 apart, neither products nor float32 can overflow.
    scales = [x.amax().clamp_min(_COINCIDENT) for x in (student, teacher)]
    views = [_View.of(x / scale, x <= _COINCIDENT) for x, scale in zip((student, teacher), scales, strict=True)]
    slopes = [torch.zeros_like(view.squares) if want else None for view, want in zip(views, wanted, strict=True)]
    total = student.new_zeros(())

    everyone = torch.arange(n, device=student.device)
    looks = can_look(student)
    slab = _SLAB if looks else _DEVICE_SLAB
    smooth, summed = _sorted(views, everyone) if looks else (everyone[:0], [everyone])
    if len(smooth):
        products = [views[0].squares.square(), views[0].squares * views[1].squares, views[1].squares.square()]
        for vertices in _parts(smooth, max(64, _PANEL // n)):
            part = _multiplied(vertices, [view.at(vertices) for view in views], products, slopes)
            if part is None:
                summed.append(vertices)
            else:
                total += part
    for vertices in _parts(torch.cat(summed), max(1, slab // n**2)):
        total += _summed(vertices, [view.at(vertices) for view in views], slopes, slab)
    for slope, scale in zip(slopes, scales, strict=True):
        if slope is not None:
            slope.div_(scale * n**3)
    return total.clamp(min=0) / n**3, slopes  # rounding may leave a zero loss below zero


def _parts(indices: Tensor, size: int) -> list[Tensor]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _sorted(views: list[_View], everyone: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The vertices for matrix products, and those to be summed."""
    if len(everyone) <= _FEW:
        return everyone[:0], [everyone]
    spreads = [view.far.amax(dim=1) * view.near.amax(dim=1) for view in views]
    smooth = torch.maximum(*spreads).square() <= _ERROR / torch.finfo(spreads[0].dtype).eps
    return everyone[smooth], [everyone[~smooth]]


def _multiplied(
    vertices: Tensor, views: list[_View], products: list[Tensor], slopes: list[Tensor | None]
) -> Tensor | None:
    """The loss of some vertices by matrix products; its gradient is added to ``slopes``. None: too many above 1."""
    own = [_contract(view, view, product) for view, product in zip(views, products[::2], strict=True)]
    cross = {0: _contract(views[1], views[0], products[1])}
    squares_of_rows = (
        own[0].with_cosines(views[0]) - 2 * cross[0].with_cosines(views[0]) + own[1].with_cosines(views[1])
    )
    found = _beyond_one(views, _suspects(views, squares_of_rows))
    if found is None:
        return None

    beyond = None
    total = squares_of_rows.sum() / 2
    if len(found[0]):
        beyond, excess = _excess(views, found)
        total -= excess
    for x, (view, slope) in enumerate(zip(views, slopes, strict=True)):
        if slope is None:
            continue
        other = views[1 - x]
        if x not in cross:
            cross[x] = _contract(other, view, products[1])
        sums = own[x].minus(cross[x])
        _add_between(slope, view, other)
        if beyond is not None:
            _correct(found, -beyond if x == 0 else beyond, view, sums, slope)
        sums.add_to(slope, vertices, view)
    return total


def _contract(angles: _View, view: _View, product: Tensor) -> _Sums:
    """The sums with g = the cosines of ``angles``; ``product`` is that of both squares."""
    near, far = angles.near, angles.far
    near_near, near_far, far_near = near * view.near, near * view.far, far * view.near
    near_near_sum, far_near_sum = near_near.sum(dim=1, keepdim=True), far_near.sum(dim=1, keepdim=True)
    near_far_sum, far_far_sum = near_far.sum(dim=1, keepdim=True), (far * view.far).sum(dim=1, keepdim=True)
    if angles is view:
        near_near_squares = near_near @ view.squares
        # far times near is 1 save for the samples that coincide with the vertex, which are as far as it from all.
        ones_squares = view.squares.sum(dim=1) - (len(product) - far_near_sum) * far.square()
        others = 2 * ones_squares
        of_angles = of_view = near_near_squares
    else:
        of_angles, of_view = near_near @ angles.squares, near_near @ view.squares
        others = (near_far @ angles.squares).addmm_(far_near, view.squares)
    mixed = torch.addmm(others, near_near, product, beta=-1)
    return _Sums(
        (far * near_near_sum + near * (far_near_sum - of_angles)) / 2,
        (far * (near_far_sum - of_view) + near * (far_far_sum + mixed)) / 2,
    )


def _add_between(slope: Tensor, view: _View, other: _View) -> None:
    """The part of the gradient that arrives through the square of (i, k), with g = cosines of view minus other."""
    ones, near_near = view.far * view.near, view.near.square()
    far_near, other_near = other.far * view.near, other.near * view.near
    slope.addmm_(ones.T, near_near, alpha=-0.5).addmm_(far_near.T, other_near, alpha=0.5)
    slope.addcmul_(view.squares, near_near.T @ near_near, value=0.25)
    slope.addcmul_(other.squares, other_near.T @ other_near, value=-0.25)


def _suspects(views: list[_View], squares_of_rows: Tensor) -> Tensor:
    """The vertices that may hold a difference above 1, found without their N² differences.

    Such a row (j, i) has a sum of squares above 1. And cosines more than 1 apart differ in sign, so one of the
    networks has an obtuse angle at j: the sides d_ji² + d_jk² sum up to less than d_ik².
    """
    suspected = squares_of_rows > 0.99
    if not suspected.any():
        return suspected.new_empty(0, dtype=torch.int64)
    obtuse = torch.zeros_like(suspected)
    for far, near, squares in views:
        nearest = near.amax(dim=1, keepdim=True).square().reciprocal()
        obtuse |= far.square() + nearest < squares.amax(dim=0)
    return (suspected & obtuse).any(dim=1).nonzero()[:, 0]


def _beyond_one(views: list[_View], suspects: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """(j, i, k), i < k, of the differences that may exceed 1, among the suspected of the views' vertices."""
    n = len(views[0].squares)
    found: list[Tensor] = [suspects.new_zeros((0, 3))]
    count, many = 0, _MANY / 2 * len(views[0].far) * n**2
    if not len(suspects):
        return suspects, suspects, suspects
    narrow = [view.to(torch.float32) for view in views]
    step = min(max(16, n // 8), max(1, _SLAB // n))
    for some in _parts(suspects, max(1, _SLAB // (n * step))):
        student, teacher = (view.at(some) for view in narrow)
        for start in range(0, n, step):
            i, k = slice(start, start + step), slice(start, n)
            difference = student.cosines(i, k).sub_(teacher.cosines(i, k))
            if max(map(abs, torch.stack(difference.aminmax()).tolist())) <= 0.99:
                continue
            index = (difference.abs_() > 0.99).nonzero()
            index = index[index[:, 1] < index[:, 2]]
            count += len(index)
            if count > many:
                return None
            index[:, 0] = some[index[:, 0]]
            index[:, 1:] += start
            found.append(index)
    triples = torch.cat(found)
    return triples[:, 0], triples[:, 1], triples[:, 2]


def _excess(views: list[_View], found: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """How far each difference lies beyond ±1, and how much the sum of squares holds too much over the Huber loss."""
    j, i, k = found
    cosines = [
        (v.far[j, i] * v.near[j, k] + v.near[j, i] * v.far[j, k] - v.squares[i, k] * v.near[j, i] * v.near[j, k]) / 2
        for v in views
    ]
    difference = cosines[0] - cosines[1]
    beyond = difference - difference.clamp(-1, 1)
    return beyond, beyond.square().sum()  # half of it for (i, k), half for (k, i)


def _correct(found: tuple[Tensor, Tensor, Tensor], g: Tensor, view: _View, sums: _Sums, slope: Tensor) -> None:
    """Add the slopes ``g`` at (j, i, k) and (j, k, i) to ``sums`` and to ``slope``."""
    j, i, k = found
    n = len(slope)
    square = view.squares[i, k]
    for one, two in ((i, k), (k, i)):
        near = view.near[j, two]
        sums.by_far.view(-1).index_add_(0, j * n + one, g * near)
        sums.by_near.view(-1).index_add_(0, j * n + one, g * (view.far[j, two] - square * near))
    slope.view(-1).index_add_(0, i * n + k, -g * view.near[j, i] * view.near[j, k])


def _summed(vertices: Tensor, views: list[_View], slopes: list[Tensor | None], slab: int) -> Tensor:
    """The loss of some vertices, cosine by cosine; its gradient is added to ``slopes``."""
    n = len(views[0].squares)
    total = views[0].far.new_zeros(())
    sums = [_Sums(torch.empty_like(view.far), torch.empty_like(view.far)) for view in views]
    step = max(1, slab // (n * len(vertices)))
    for i in (slice(start, start + step) for start in range(0, n, step)):
        difference = views[0].cosines(i, slice(n)).sub_(views[1].cosines(i, slice(n)))
        g = difference.clamp(-1, 1)
        total += torch.dot(g.view(-1), difference.view(-1)) - torch.dot(g.view(-1), g.view(-1)) / 2
        for sign, view, sum_, slope in zip((1, -1), views, sums, slopes, strict=True):
            if slope is None:
                continue
            near = g * view.near[:, None]
            sum_.by_far[:, i] = near.sum(dim=2).mul_(sign)
            of_far = torch.mul(g, view.far[:, None], out=difference)
            sum_.by_near[:, i] = of_far.addcmul_(near, view.squares[i], value=-1).sum(dim=2).mul_(sign)
            slope[i].sub_(near.mul_(view.near[:, i, None]).sum(dim=0), alpha=sign / 2)
    for view, sum_, slope in zip(views, sums, slopes, strict=True):
        if slope is not None:
            sum_.add_to(slope, vertices, view)
    return total
