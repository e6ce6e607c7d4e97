"""Weights that the package ships: whole, of the networks of their cards, and refused where they are others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from lit_distill.models import load_weights, shipped
from lit_distill.models.shipped import read_card, shipped_file, shipped_names
from lit_distill.models.state_files import file_sha256, read_state
from lit_distill.untrusted.check import check_targets

NAMES = ("shipped:digits_pptsmv2", "shipped:digits_pptsm_resnet18")


def test_every_file_has_its_card_and_every_card_its_file() -> None:
    assert shipped_names() == sorted(NAMES)
    assert sorted(file.stem for file in shipped.FOLDER.glob("*.safetensors")) == [
        n.partition(":")[2] for n in sorted(NAMES)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_weights_fill_the_network_of_their_card(name: str) -> None:
    card = read_card(name)
    network = instantiate(card["model"])
    report = load_weights(network, name)
    assert report.complete
    assert str(report.path) == name, "what a run's card says of where its network began holds on other machines"
    assert report.sha256 == card["sha256"] == file_sha256(shipped_file(name))
    assert {value.dtype for value in read_state(shipped_file(name)).values()} == {torch.float16, torch.int64}
    assert {"about", "command", "data", "date", "top1", "versions"} <= card.keys()
    assert len(card["class_names"]) == card["model"]["num_classes"] == 28
    assert shipped_file(name).stat().st_size < 500_000


def test_a_classifier_of_other_classes_is_reinitialized_where_that_is_asked_for() -> None:
    node = {**read_card(NAMES[0])["model"], "num_classes": 12, "pretrained": NAMES[0]}
    with pytest.raises(InstantiationException, match="For a fresh classifier say reset_head=True"):
        instantiate(node)
    network = instantiate({**node, "reset_head": True})
    assert set(network.load_report.reset) == {"fc.weight", "fc.bias"}
    assert not network.load_report.missing


def test_weights_that_there_are_not_are_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"ships no weights 'shipped:\.\./x'; it ships shipped:digits_pptsm_resnet18, "
    ):
        shipped_file("shipped:../x")


def test_weights_that_are_not_those_of_their_card_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(shipped.FOLDER, tmp_path / "shipped")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
    file = tmp_path / "shipped" / "digits_pptsmv2.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"not the file that its card describes.*install lit-distill again"):
        load_weights(instantiate(read_card(NAMES[0])["model"]), NAMES[0])


def test_untrusted_configs_may_name_them() -> None:
    node: dict[str, Any] = {**read_card(NAMES[0])["model"], "pretrained": NAMES[0]}
    assert check_targets({"models": {"Student": node}}) == {"models": {"Student": node}}
