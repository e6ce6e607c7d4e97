"""References parse, taps capture the right tensor, and anything unclear is an error that names the reference."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from lit_distill import SignalCapture
from lit_distill.signals import Reference, parse_references
from lit_distill.structures import Answer


class TwoBranches(nn.Module):
    """Has a branch that is not taken, a module that is called twice, and a tuple on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.twice = nn.ReLU()
        self.pair = nn.LSTM(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.used(x)))
        return self.head(self.pair(x)[0])  # type: ignore[no-any-return]


@pytest.fixture
def net() -> TwoBranches:
    torch.manual_seed(0)
    return TwoBranches()


@pytest.mark.parametrize(
    "text", ["", ".fc", "Student.", "Student..fc", "Student:a..b", "Student::a", "a:b:c", "Student:", "GroundTruth.x"]
)
def test_malformed_reference_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"reference|no submodules"):
        Reference.parse(text)


def test_a_reference_must_be_text() -> None:
    with pytest.raises(ValueError, match="got 3"):
        parse_references([3])  # type: ignore[list-item]


def test_output_and_input_of_a_submodule(net: TwoBranches) -> None:
    x = torch.randn(3, 4)
    with SignalCapture({"S": net}, parse_references(["S", "S.used", "S.head:input", "S:input"])) as signals:
        output = net(x)
    assert torch.equal(signals["S"], output)
    assert torch.equal(signals["S.used"], net.used(x))
    assert torch.equal(net.head(signals["S.head:input"]), output)
    assert signals["S:input"] is x


def test_hooks_are_removed_on_exit_even_after_an_error(net: TwoBranches) -> None:
    references = parse_references(["S", "S.used", "S.head:input"])
    with pytest.raises(RuntimeError), SignalCapture({"S": net}, references):
        net(torch.randn(3, 5))
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_unknown_model_and_submodule_list_the_closest(net: TwoBranches) -> None:
    with pytest.raises(ValueError, match=r"'Studnet' names no model: closest are \['Student'\]"):
        Reference.parse("Studnet").module({"Student": net})
    with pytest.raises(ValueError, match=r"'Student.usde' names no submodule of Student: closest are \['used'"):
        Reference.parse("Student.usde").module({"Student": net})


def test_capture_that_never_fires_is_named(net: TwoBranches) -> None:
    with SignalCapture({"S": net}, parse_references("S.unused")) as signals:
        net(torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"'S.unused' never fired"):
        signals["S.unused"]


def test_capture_that_fires_twice_is_an_error(net: TwoBranches) -> None:
    with SignalCapture({"S": net}, parse_references("S.twice")) as signals:
        net(torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"'S.twice' fired 2 times"):
        signals["S.twice"]


def test_a_call_among_several_is_named() -> None:
    """As a detector calls its head on each level of a pyramid."""

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.Linear(4, 3), nn.ReLU())

        def forward(self, levels: list[Tensor]) -> Tensor:
            return torch.stack([self.head(level).sum() for level in levels]).sum()

    net, levels = Levels(), list(torch.randn(3, 2, 4))
    texts = ["S.head.0@0", "S.head.0@2", "S.head@1:input", "S.head@3", "S.head"]
    with SignalCapture({"S": net}, parse_references(texts)) as signals:
        net(levels)
    assert torch.equal(signals["S.head.0@0"], net.head[0](levels[0]))
    assert torch.equal(signals["S.head.0@2"], net.head[0](levels[2]))
    assert signals["S.head@1:input"] is levels[1]
    with pytest.raises(ValueError, match=r"'S.head@3' never fired: its module was called 3 times"):
        signals["S.head@3"]
    with pytest.raises(ValueError, match=r"fired 3 times.*or say which call, from 'S.head@0' to 'S.head@2'"):
        signals["S.head"]
    signals.forget("S")
    with signals:
        net(levels[1:])
    assert torch.equal(signals["S.head.0@0"], net.head[0](levels[1]))


@pytest.mark.parametrize("text", ["S@0", "S.head@", "S.head@-1", "S.head@x", "GroundTruth@0"])
def test_what_is_no_call_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"behind @ stands which call of a submodule is meant"):
        Reference.parse(text)


def test_output_that_is_no_tensor_is_an_error(net: TwoBranches) -> None:
    with (
        pytest.raises(ValueError, match=r"'S.pair' gives a tuple, not a tensor"),
        SignalCapture({"S": net}, parse_references("S.pair")),
    ):
        net(torch.randn(3, 4))


def test_missing_ground_truth_says_what_a_batch_is(net: TwoBranches) -> None:
    with SignalCapture({"S": net}, parse_references("GroundTruth")) as signals:
        net(torch.randn(3, 4))
    with pytest.raises(ValueError, match="batches are"):
        signals["GroundTruth"]


def test_tap_before_an_inplace_relu_is_detected_and_cloned_right() -> None:
    torch.manual_seed(0)
    net = resnet18(num_classes=3).eval()
    x = torch.randn(2, 3, 32, 32)
    references = parse_references("S.layer1.0.bn1")
    with SignalCapture({"S": net}, references) as signals:
        net(x)
    assert signals.changed_in_place() == {"S.layer1.0.bn1"}
    with pytest.raises(ValueError, match="changed in place"):
        signals["S.layer1.0.bn1"]

    with SignalCapture({"S": net}, references, clone={"S.layer1.0.bn1"}) as signals:
        output = net(x)
    block = net.layer1[0]
    expected = block.bn1(block.conv1(net.maxpool(net.relu(net.bn1(net.conv1(x))))))
    torch.testing.assert_close(signals["S.layer1.0.bn1"], expected)
    assert (signals["S.layer1.0.bn1"] < 0).any(), "values before the ReLU must be negative somewhere"
    signals["S.layer1.0.bn1"].sum().backward()  # type: ignore[no-untyped-call]
    assert net.conv1.weight.grad is not None
    assert torch.equal(output, net(x))


def test_a_number_below_zero_counts_a_sequence_from_its_end() -> None:
    first, last, named = nn.Linear(2, 2), nn.ReLU(), nn.Tanh()
    models = {"Net": nn.Sequential(nn.Sequential(first, last), nn.ModuleDict({"-1": named}))}
    assert Reference.parse("Net.0.-1").module(models) is last
    assert Reference.parse("Net.-2.-2:input").module(models) is first
    assert Reference.parse("Net.1.-1").module(models) is named, "a name is a name"
    with pytest.raises(ValueError, match=r"'Net.0.-3' names no submodule of Net"):
        Reference.parse("Net.0.-3").module(models)
    with pytest.raises(ValueError, match=r"names no submodule"):
        Reference.parse("Net.0.-0").module(models)


class Structures(nn.Module):
    """Gives what networks give: a dataclass with logits, tuples within it, what is None."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Output:
        hidden = self.block(x, bias=torch.ones(4))
        return Output(self.head(hidden[0]) * scale, (x, hidden[0]), None)


class Block(nn.Module):
    def forward(self, x: Tensor, bias: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x + bias, {"bias": bias}


@dataclass
class Output:
    logits: Tensor
    hidden_states: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...] | None


def capture(*texts: str, net: nn.Module | None = None, **given: Any) -> tuple[SignalCapture, Any, Tensor]:
    torch.manual_seed(0)
    net, x = net or Structures(), torch.randn(2, 4)
    with SignalCapture({"S": net}, parse_references(texts), **given) as signals:
        output = net(x)
    return signals, output, x


def test_a_part_of_an_output_is_an_attribute_a_key_or_an_index() -> None:
    signals, output, x = capture("S:logits", "S:hidden_states.-1", "S.block:output.1.bias", "S.block:output.0")
    assert signals["S:logits"] is output.logits
    assert signals["S:hidden_states.-1"] is output.hidden_states[1]
    assert torch.equal(signals["S.block:output.1.bias"], torch.ones(4))
    assert torch.equal(signals["S.block:output.0"], x + 1)


def test_the_first_item_of_a_layer_that_gives_one_tensor_is_that() -> None:
    signals, output, _ = capture("S.head:output.0")
    assert torch.equal(signals["S.head:output.0"], output.logits)


def test_a_part_of_the_input_is_an_argument_by_position_or_name() -> None:
    signals, _, x = capture("S.block:input", "S.block:input.1", "S.block:input.bias", "S.block:input.x")
    assert signals["S.block:input"] is signals["S.block:input.x"] is x
    assert signals["S.block:input.1"] is signals["S.block:input.bias"]


def test_a_model_by_its_name_is_its_answer() -> None:
    signals, output, _ = capture("S")
    assert signals["S"] is output.logits
    signals, output, _ = capture("S", "S:hidden_states.0", answers={"S": Answer(("hidden_states", "0"))})
    assert signals["S"] is signals["S:hidden_states.0"] is output.hidden_states[0]


def test_a_tensor_is_its_own_answer() -> None:
    """As of networks that give a structure in training alone."""
    signals, output, _ = capture("S", "S:logits", net=nn.Linear(4, 2))
    assert signals["S"] is signals["S:logits"] is output
    signals, output, _ = capture("S:1", net=nn.Linear(4, 2), answers={"S": Answer(("1",))})
    assert signals["S:1"] is output


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("S:logit", r"'S:logit': a Output has no part 'logit'; its tensors are \['logits', 'hidden_states.0', 'hidden"),
        ("S:attentions.0", r"no part 'attentions': it is None \(a Hugging Face model gives it by config.output_attent"),
        ("S:hidden_states.2", r"a tuple of 2 has no part '2'; its tensors are \['0', '1'\]"),
        ("S:hidden_states", r"gives a tuple, not a tensor: name a part of it, such as 'S:hidden_states.0'"),
        ("S.block", r"'S.block' gives a tuple, not .* such as 'S.block:output.0', 'S.block:output.1.bias'"),
        ("S.head:inputs", r"a tensor \(2, 3\) has no part 'inputs'"),
        ("S.block:input.mask", r"a dict of x, bias has no part 'mask'"),
    ],
)
def test_a_part_that_is_not_there_names_those_that_are(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        capture(text)


def test_other_objects_have_attributes() -> None:
    class Objects(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(scores=x, more=[x])

    signals, output, _ = capture("S:scores", "S:more.0", net=Objects())
    assert signals["S:scores"] is signals["S:more.0"] is output.scores
    with pytest.raises(ValueError, match=r"'S' gives a SimpleNamespace, not a tensor: .* answer='scores'"):
        capture("S", net=Objects())


def test_several_logits_are_no_answer() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {"one": {"logits": x}, "two": {"logits": x + 1}}

    with pytest.raises(ValueError, match=r"such as 'S:one.logits', 'S:two.logits', or say .* answer='one.logits'"):
        capture("S", net=Two())
