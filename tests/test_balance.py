"""Balanced weights in closed form: learned uncertainties at their minimum, gradient norms in the set proportion."""

from __future__ import annotations

import csv
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillModule, LossComposer, LossTerm
from lit_distill.balance import Balancer, GradientNorm, Uncertainty
from lit_distill.loggers import MetricsCSV
from lit_distill.optim import paddle_momentum


def built(balance: Balancer, count: int) -> Balancer:
    balance.build([f"term{i}" for i in range(count)])
    return balance


# ---------------------------------------------------------------- uncertainty


def test_the_gradient_of_a_log_variance_is_that_of_the_formula() -> None:
    balance = built(Uncertainty(), 3)
    assert isinstance(balance, Uncertainty)
    losses, weights = torch.tensor([2.0, 0.5, 7.0]), torch.tensor([1.0, 0.25, 0.0])
    with torch.no_grad():
        balance.log_variance.copy_(torch.tensor([0.3, -1.0, 2.0]))
    balanced, penalty = balance(weights)
    assert penalty is not None
    total = losses @ balanced + penalty
    s = balance.log_variance.detach()
    torch.testing.assert_close(total.detach(), (weights * (torch.exp(-s) * losses + s / 2)).sum())
    total.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(balance.log_variance.grad, weights * (0.5 - torch.exp(-s) * losses))


def test_descent_ends_where_every_weighted_term_is_half_its_share() -> None:
    balance = built(Uncertainty(), 3)
    losses, weights = torch.tensor([8.0, 0.5, 0.02]), torch.tensor([1.0, 1.0, 0.5])
    optimizer = torch.optim.SGD(balance.parameters(), lr=0.5)
    for _ in range(300):
        balanced, penalty = balance(weights)
        optimizer.zero_grad()
        (losses @ balanced + penalty).backward()  # type: ignore[operator, no-untyped-call]
        optimizer.step()
    torch.testing.assert_close((losses * balance(weights)[0]).detach(), weights / 2)


def test_a_loss_that_goes_to_zero_does_not_outgrow_the_others() -> None:
    balance = built(Uncertainty(max_change=10.0), 2)
    losses = torch.tensor([0.0, 0.5])
    optimizer = torch.optim.SGD(balance.parameters(), lr=0.5)
    for step in range(400):
        balanced, penalty = balance(torch.ones(2))
        assert balanced[0] <= 10.0 * (1 + 1e-6)
        optimizer.zero_grad()
        (losses @ balanced + penalty).backward()  # type: ignore[operator, no-untyped-call]
        optimizer.step()
        if step == 200:
            assert balanced[0].item() == pytest.approx(10.0)
            losses = torch.tensor([0.5, 0.5])  # and comes back from the limit
    assert balance(torch.ones(2))[0][0].item() == pytest.approx(1.0, rel=1e-3)


# ---------------------------------------------------------------- gradient norms


def pulls(balance: Balancer, norms: list[float], weights: Tensor) -> Tensor:
    return balance(weights)[0] * torch.tensor(norms)


def observe(balance: Balancer, *norms: float) -> None:
    place = torch.zeros(2, requires_grad=True)
    direction = torch.tensor([0.6, 0.8])
    balance.observe([norm * (direction @ place) for norm in norms], [place])


def test_terms_pull_in_the_proportion_of_their_weights() -> None:
    balance, weights = built(GradientNorm(), 3), torch.tensor([1.0, 2.0, 0.5])
    norms = [0.1, 3.0, 40.0]
    observe(balance, *norms)
    found = pulls(balance, norms, weights)
    torch.testing.assert_close(found / found[0], weights / weights[0])
    changes = balance(weights)[0] / weights
    assert float((weights / weights.sum()) @ changes.log()) == pytest.approx(0.0, abs=1e-6), "their mean is none"


def test_equal_weights_of_two_terms_meet_at_the_geometric_mean() -> None:
    balance = built(GradientNorm(), 2)
    observe(balance, 2.0, 32.0)
    torch.testing.assert_close(pulls(balance, [2.0, 32.0], torch.ones(2)), torch.tensor([8.0, 8.0]))


def test_the_average_is_of_logarithms_and_begins_with_the_first_measurement() -> None:
    balance = built(GradientNorm(momentum=0.5), 2)
    observe(balance, 1.0, 1.0)
    observe(balance, 8.0, 1.0)
    # log-means: (0.25 log 1 + 0.5 log 8) / 0.75 = 2 log 2, and 0
    expected = 2.0 / torch.tensor([4.0, 1.0])
    torch.testing.assert_close(balance(torch.ones(2))[0], expected)


def test_before_a_measurement_and_without_a_gradient_weights_are_as_set() -> None:
    balance, weights = built(GradientNorm(), 3), torch.tensor([1.0, 2.0, 0.5])
    torch.testing.assert_close(balance(weights)[0], weights)
    observe(balance, 0.0, 4.0, math.nan)
    torch.testing.assert_close(balance(weights)[0], weights)
    place, other = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    balance.observe([2 * place.sum(), other.sum(), 8 * place.sum()], [place])
    changed = balance(torch.ones(3))[0]
    assert changed[0].item() == pytest.approx(4 * changed[2].item()), "2 and 8, and the second keeps its 4"
    assert changed.isfinite().all()


def test_a_weight_of_zero_is_silent_and_weighs_nothing_in_the_mean() -> None:
    balance = built(GradientNorm(), 3)
    observe(balance, 2.0, 32.0, 1e6)
    torch.testing.assert_close(balance(torch.tensor([1.0, 1.0, 0.0]))[0], torch.tensor([4.0, 0.25, 0.0]))


def test_changes_stay_within_the_limit() -> None:
    balance = built(GradientNorm(max_change=10.0), 2)
    observe(balance, 1e-6, 1e6)
    torch.testing.assert_close(balance(torch.tensor([0.5, 0.5]))[0], torch.tensor([5.0, 0.05]))


def test_the_scale_of_the_loss_and_the_mean_over_ranks_are_taken_out_and_in() -> None:
    plain, scaled, ranks = (built(GradientNorm(), 2) for _ in range(3))
    place = torch.zeros(1, requires_grad=True)
    terms = [3 * place.sum(), 5 * place.sum()]
    plain.observe(terms, [place])
    scaled.observe(terms, [place], scale=65536.0)
    torch.testing.assert_close(plain(torch.ones(2))[0], scaled(torch.ones(2))[0])
    ranks.observe(terms, [place], mean_over_ranks=lambda squares: (squares + torch.tensor([16.0, 49.0])) / 2)
    expected = torch.tensor([math.sqrt(12.5), math.sqrt(37.0)])
    torch.testing.assert_close(ranks.get_buffer("log_norm").exp(), expected**0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uncertainty(max_change=1.0), "Uncertainty: max_change is a finite number above 1, got 1.0"),
        (lambda: GradientNorm(max_change=math.inf), "GradientNorm: max_change"),
        (lambda: GradientNorm(every_n_steps=0), "every_n_steps is a number of optimizer steps from 1, got 0"),
        (lambda: GradientNorm(momentum=1.0), "momentum is from 0 to below 1, got 1.0"),
        (lambda: built(built(Uncertainty(), 2), 2), "balances .*'term0', 'term1'.* already"),
    ],
)
def test_values_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------- in a composer and a module


class Slope(nn.Module):
    """A loss of value |direction| * place, and so with a gradient of norm |direction|."""

    def __init__(self, norm: float) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        return self.norm * student.mean() + 1.0


class Place(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.place.expand(len(x), 1)


def slopes(balance: Balancer | None, *, optimizer: Any = None) -> DistillModule:
    terms = {
        "small": LossTerm(Slope(0.1), pair=("Student", "GroundTruth")),
        "large": LossTerm(Slope(10.0), pair=("Student", "GroundTruth"), weight=2.0),
    }
    return DistillModule(
        {"Student": Place()}, terms, metrics=None, balance=balance,
        optimizer=optimizer or partial(torch.optim.SGD, lr=1e-3, weight_decay=0.5),
    )  # fmt: skip


def fit(module: DistillModule, folder: Path, **more: Any) -> list[dict[str, str]]:
    loader = DataLoader(TensorDataset(torch.zeros(24, 1), torch.zeros(24, 1)), batch_size=2)
    arguments: dict[str, Any] = {"max_epochs": 1, "log_every_n_steps": 1, **more}
    trainer = Trainer(
        accelerator="cpu", logger=MetricsCSV(folder), enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **arguments,
    )  # fmt: skip
    trainer.fit(module, loader, DataLoader(TensorDataset(torch.zeros(2, 1), torch.zeros(2, 1)), batch_size=2))
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_gradient_norms_are_balanced_from_the_second_step_on_and_logged(tmp_path: Path) -> None:
    module = slopes(GradientNorm(every_n_steps=4))
    rows = [row for row in fit(module, tmp_path) if row["train/loss"]]
    assert len(rows) == 12
    first, *rest = [(float(row["train/small_weight"]), float(row["train/large_weight"])) for row in rows]
    assert first == (1.0, 2.0)
    for small, large in rest:
        assert large * 10.0 == pytest.approx(2 * small * 0.1)
    for row in rows:
        weighted = float(row["train/small_weighted"]), float(row["train/large_weighted"])
        assert sum(weighted) == pytest.approx(float(row["train/loss"]))
        assert weighted[1] == pytest.approx(float(row["train/large_weight"]) * float(row["train/large"]))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_measured_at_the_steps_that_are_due(accumulate: int, tmp_path: Path) -> None:
    seen: list[int] = []

    class Counting(GradientNorm):
        def observe(self, *args: Any, **kwargs: Any) -> None:
            seen.append(module.trainer.fit_loop.epoch_loop.batch_idx)
            super().observe(*args, **kwargs)

    module = slopes(Counting(every_n_steps=2))
    fit(module, tmp_path, accumulate_grad_batches=accumulate)
    assert seen == ([0, 2, 4, 6, 8, 10] if accumulate == 1 else [2, 8])


def test_log_variances_learn_without_decay_and_are_in_the_state(tmp_path: Path) -> None:
    module = slopes(Uncertainty())
    optimizer = module.make_optimizer()
    groups = [(len(group["params"]), group["weight_decay"], group["lr"]) for group in optimizer.param_groups]
    assert groups == [(1, 0.5, 1e-3), (1, 0.0, 1e-3)]
    assert optimizer.param_groups[1]["params"][0] is module.composer.balance.log_variance  # type: ignore[union-attr]
    fit(module, tmp_path)
    state = module.state_dict()["composer.balance.log_variance"]
    assert (state != 0).all()
    assert float(state[1]) > float(state[0]), "the larger loss is trusted less"


def test_the_published_optimizer_takes_them_too() -> None:
    module = slopes(Uncertainty(), optimizer=partial(paddle_momentum, lr=0.1))
    groups = [(group["name"], group["weight_decay"]) for group in module.make_optimizer().param_groups]
    assert groups == [("Student/all", 1e-4), ("balance", 0.0)]


def test_validation_has_the_set_weights(tmp_path: Path) -> None:
    rows = fit(slopes(GradientNorm(every_n_steps=1)), tmp_path)
    (row,) = [row for row in rows if row["val/loss"]]
    assert float(row["val/loss"]) == pytest.approx(float(row["val/small"]) + 2 * float(row["val/large"]))


def test_a_composer_of_its_own_is_balanced_by_hand() -> None:
    terms = {name: LossTerm(Slope(norm), pair=("Student", "GroundTruth")) for name, norm in (("a", 1.0), ("b", 16.0))}
    composer, student = LossComposer(terms, balance=GradientNorm()), Place()

    def step() -> Any:
        with composer.capture({"Student": student}) as signals:
            student(torch.zeros(2, 1))
        return composer(signals, torch.zeros(2, 1))

    result = step()
    assert composer.balance is not None
    composer.balance.observe(result.terms, list(student.parameters()), weights=result.weights)
    assert step().weights.tolist() == pytest.approx([4.0, 0.25])
    composer.eval()
    assert step().weights.tolist() == [1.0, 1.0]


def test_weights_below_zero_cannot_be_balanced() -> None:
    term = LossTerm(Slope(1.0), pair=("Student", "GroundTruth"), weight=lambda epoch: -epoch)
    composer, student = LossComposer({"a": term}, balance=Uncertainty()), Place()
    with composer.capture({"Student": student}) as signals:
        student(torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"term 'a': its weight is -2\.0, but only weights from 0 can be balanced"):
        composer(signals, torch.zeros(2, 1), epoch=2.0)


# ---------------------------------------------------------------- half precision, and several candidates


def test_half_precision_holds_the_norm_of_a_term_of_small_weight() -> None:
    balance, place = built(GradientNorm(), 2), torch.zeros(1, requires_grad=True)
    terms = [500 * place.half().float().sum(), 2 * place.half().float().sum()]  # half at 65536 times: infinite
    balance.observe(terms, [place], weights=torch.tensor([1e-3, 0.125]), scale=65536.0)
    torch.testing.assert_close(balance.get_buffer("log_norm").exp(), torch.tensor([500.0, 2.0]) ** 0.1)


def test_buffers_of_half_precision_hold_what_was_measured_in_single() -> None:
    balance = built(GradientNorm(), 2).half()
    place = torch.zeros(1, requires_grad=True)
    balance.observe([1e5 * place.sum(), 10 * place.sum()], [place], mean_over_ranks=lambda squares: squares)
    found = balance(torch.ones(2, dtype=torch.float16))[0]
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, torch.tensor([0.01, 100.0], dtype=torch.float16), rtol=0.02, atol=0)


def test_a_term_that_was_never_usable_is_told_once() -> None:
    balance, weights = built(GradientNorm(), 4), torch.ones(4)
    place, other = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    factors = [math.nan, 2.0, 0.0]

    def measure(times: int) -> None:
        for _ in range(times):
            balance.observe([*(factor * place.sum() for factor in factors), other.sum()], [place])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(9)
    with pytest.warns(UserWarning, match=r"gradients of \['term0', 'term2'\] .* first 10 measurements"):
        measure(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(20)
    assert balance(weights)[0].tolist() == [1.0, 1.0, 1.0, 1.0]


def test_the_module_gives_what_half_precision_holds(tmp_path: Path) -> None:
    class HalfPlace(Place):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).half()

    class WideSlope(Slope):
        def forward(self, student: Tensor, target: Tensor) -> Tensor:
            return super().forward(student.float(), target)

    terms = {
        "large": LossTerm(WideSlope(100.0), pair=("Student", "GroundTruth"), weight=1e-3),
        "small": LossTerm(WideSlope(0.25), pair=("Student", "GroundTruth"), weight=1e-3),
    }
    balance = GradientNorm(every_n_steps=100)
    module = DistillModule(
        {"Student": HalfPlace()}, terms, metrics=None, balance=balance, optimizer=partial(torch.optim.SGD, lr=1e-3)
    )
    fit(
        module,
        tmp_path,
        plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))],
        limit_train_batches=1,
    )
    torch.testing.assert_close(balance.log_norm, 0.1 * torch.tensor([100.0, 0.25]).log(), rtol=1e-3, atol=0)


def test_with_several_candidates_it_measures_all_of_them(tmp_path: Path) -> None:
    terms = {name: LossTerm(Slope(norm), pair=(name, "GroundTruth")) for name, norm in (("A", 3.0), ("B", 48.0))}
    balance = GradientNorm(every_n_steps=100)
    module = DistillModule(
        {"A": Place(), "B": Place()}, terms, student="best", balance=balance,
        optimizer=partial(torch.optim.SGD, lr=1e-3),
    )  # fmt: skip
    fit(module, tmp_path, limit_train_batches=1, limit_val_batches=0)
    torch.testing.assert_close(balance.log_norm, 0.1 * torch.tensor([3.0, 48.0]).log())


def test_strategies_that_shard_parameters_are_refused_before_training() -> None:
    class Sharded:
        strategy = FSDPStrategy()
        datamodule = None

    module = slopes(GradientNorm())
    module._trainer = Sharded()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="GradientNorm needs whole parameters on each device, FSDPStrategy shards"):
        module.setup("fit")
    Uncertainty().check(Sharded())  # type: ignore[arg-type]
