"""What the stages of a run are: configs of ordinary runs, and where each model begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from lit_distill.training.stages import first_stage, stages_of
from run_folders import composed

TINY = ("data=moving_digits_tiny", "run_dir=runs/x")


def plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True)


def staged(**stages: Any) -> DictConfig:
    """DML of Student and Teacher, with these stages."""
    config = composed("train", "experiment=dml_pptsmv2", *TINY)
    config.stages = stages
    return config


def test_an_ordinary_run_has_no_stages() -> None:
    config = composed("train", "experiment=dml_pptsmv2", *TINY)
    assert stages_of(config) == []
    assert first_stage(config) is config


def test_a_stage_is_the_config_with_its_overrides() -> None:
    stages = stages_of(staged(low={"data": {"size": 24}, "losses": {"dml": None}}, high={"trainer": {"max_epochs": 7}}))
    low, high = (stage.config for stage in stages)
    assert [(stage.number, stage.name, stage.folder.name) for stage in stages] == [
        (1, "low", "1_low"), (2, "high", "2_high"),
    ]  # fmt: skip
    assert (low.data.size, high.data.size) == (24, 32)
    assert set(low.losses) == {"ce", "ce_teacher"}
    assert set(high.losses) == {"ce", "dml", "ce_teacher"}
    assert (low.scheduler.epochs, high.scheduler.epochs) == (2, 7), "a schedule counts the epochs of its stage"
    assert high.callbacks.last.dirpath == str(Path("runs/x").absolute() / "stages" / "2_high" / "checkpoints")
    assert (low.stages, low.generations) == ({}, None), "an ordinary run"


def test_a_node_of_another_target_replaces_and_one_of_the_same_is_merged() -> None:
    adam = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.5}
    base = staged(a={"optimizer": {"lr": 0.25}}, b={"optimizer": adam})
    OmegaConf.update(base, "optimizer.momentum", 0.8, force_add=True)
    a, b = (stage.config for stage in stages_of(base))
    assert (a.optimizer.lr, a.optimizer.momentum) == (0.25, 0.8)
    assert plain(b.optimizer) == adam


def test_a_null_stage_is_left_out() -> None:
    assert [stage.name for stage in stages_of(staged(a=None, b={}))] == ["b"]
    assert stages_of(staged(a=None)) == []


def test_models_begin_as_the_newest_stage_that_trained_them_left_them() -> None:
    teacher_alone = {"losses": {"ce": None, "dml": None}, "val_losses": {"ce": None}, "models": {"Student": None}}
    stages = stages_of(
        staged(
            a={**teacher_alone, "student": "Teacher"},
            b={"frozen": ["Teacher"], "losses": {"ce_teacher": None}},
            c={},
            d={"start": {"Student": "fresh", "Teacher": "b/Student@best"}},
            e={"start": {"Student": "c/Teacher", "Teacher": "a/Teacher@best"}},
            f={"start": {"Student": "c/Student@best", "Teacher": "c/Teacher@best"}},
        )
    )
    last = "checkpoints/last.ckpt"
    assert [plain(stage.config.start) for stage in stages] == [
        {},
        {"Teacher": f"../1_a/{last}#Teacher"},
        {"Student": f"../2_b/{last}#Student", "Teacher": f"../1_a/{last}#Teacher"},
        {"Teacher": "../2_b/student.safetensors"},
        {"Student": f"../3_c/{last}#Teacher", "Teacher": "../1_a/student.safetensors"},
        {"Student": "../3_c/student.safetensors", "Teacher": "../3_c/checkpoints/best.ckpt#Teacher"},
    ]


def test_weights_files_are_for_the_stage_that_begins_with_them() -> None:
    config = staged(a={"frozen": ["Teacher"], "losses": {"ce_teacher": None}}, b={})
    config.models.Teacher.pretrained = "t.pth"
    config.models.Student.pretrained = "s.pth"
    a, b = (stage.config for stage in stages_of(config))
    assert (a.models.Student.pretrained, a.models.Teacher.pretrained) == ("s.pth", "t.pth")
    assert (b.models.Student.pretrained, b.models.Teacher.pretrained) == (None, "t.pth")


def test_a_stage_has_random_numbers_of_its_own_and_the_first_those_of_the_run() -> None:
    seeds = [
        [stage.config.seed for stage in stages_of(OmegaConf.merge(staged(a={}, b={}, c={"seed": 5}), {"seed": seed}))]  # type: ignore[arg-type]
        for seed in (0, 1)
    ]
    assert [run[0] for run in seeds] == [0, 1]
    assert [run[2] for run in seeds] == [5, 5]
    assert len({number for run in seeds for number in run}) == 5


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a": {"trainr": {}}}, r"stages\.a\.trainr: the config has no trainr; it has "),
        ({"a": {"run_dir": "x"}}, r"stages\.a\.run_dir: run_dir is the run's"),
        ({"a": {"trainer": {"devices": 2}}}, r"all stages run in the same processes; give trainer\.devices"),
        ({"a b": {}}, r"the name of a stage is letters"),
        ({"a": 3}, r"stages\.a is a mapping of overrides, got 3"),
        ({"a": {"start": {"Student": "b/Student"}}, "b": {}}, r"expected fresh or <earlier stage>/<Model>; .* \[\]"),
        ({"a": {}, "b": {"start": {"Student": "a/Peer"}}}, r"stage a has no model 'Peer'; it has \['Student', 'T"),
        ({"a": {"start": {"Peer": "fresh"}}}, r"\['Peer'\] are no models of it"),
        ({"a": {"frozen": ["Teacher"]}, "b": {"start": {"Teacher": "a/Teacher"}}}, r"Teacher was frozen there"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(stages: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stages_of(staged(**stages))


def born_again(*overrides: str) -> DictConfig:
    return composed("train", "experiment=born_again_pptsmv2", *TINY, *overrides)


def test_generations_learn_from_the_generation_before() -> None:
    stages = stages_of(born_again("generations=4", "models.Student.pretrained=imagenet.pth"))
    assert [stage.folder.name for stage in stages] == [f"{n}_generation_{n}" for n in (1, 2, 3, 4)]
    first, *later = (stage.config for stage in stages)
    assert (list(first.models), list(first.losses), first.frozen) == (["Student"], ["ce"], [])
    for number, config in enumerate(later, 1):
        assert plain(config.start) == {"Teacher": f"../{number}_generation_{number}/student.safetensors"}
        assert config.frozen == ["Teacher"]
        assert config.models.Student.pretrained == "imagenet.pth", "each begins as the first did"
        assert {**plain(config.models.Student), "pretrained": None} == plain(config.models.Teacher)
        assert list(config.losses) == ["ce", "kd"]


def test_the_first_generation_is_the_student_alone() -> None:
    first = plain(first_stage(born_again()))
    alone = plain(composed("train", "experiment=baseline_pptsmv2", *TINY))
    for key in ("models", "losses", "frozen", "data", "optimizer", "scheduler", "trainer", "seed"):
        if key == "trainer":
            first[key]["default_root_dir"] = alone[key]["default_root_dir"]
        assert first[key] == alone[key], key


def test_the_first_generation_learns_from_a_teacher_that_is_given() -> None:
    config = born_again()
    teacher = {"_target_": "lit_distill.models.PPTSMResNet", "pretrained": "t.pth"}
    OmegaConf.update(config, "models.Teacher", teacher, force_add=True)
    first, second, _ = (stage.config for stage in stages_of(config))
    assert (list(first.losses), first.frozen, first.models.Teacher.pretrained) == (["ce", "kd"], ["Teacher"], "t.pth")
    assert second.models.Teacher._target_ == "lit_distill.models.PPTSMv2"


def test_later_generations_of_label_refinery_see_no_labels() -> None:
    config = composed("train", "experiment=label_refinery_pptsmv2", *TINY)
    assert [list(stage.config.losses) for stage in stages_of(config)] == [["ce"], ["refined"], ["refined"]]


def test_a_teacher_cache_serves_the_stages_that_have_a_teacher() -> None:
    stages = stages_of(born_again("teacher_cache=on", "teacher_cache.models=[Teacher]"))
    assert [stage.config.teacher_cache is not None for stage in stages] == [False, True, True]
    assert {stage.config.data.views_per_sample for stage in stages} == {4}, "the data is the same in all"


@pytest.mark.parametrize("named", [None, ["Teacher"]])
def test_a_teacher_cache_serves_no_stage_whose_teacher_moves(named: list[str] | None) -> None:
    config = composed("train", "experiment=kd_pptsmv2", "teacher_cache=on", *TINY)
    config.teacher_cache.models = named
    mean = {"callbacks": {"ema": {"_target_": "lit_distill.callbacks.EMATeacher", "teacher": "Teacher"}}}
    config.stages = {"mean": mean, "still": {}}
    assert [stage.config.teacher_cache is not None for stage in stages_of(config)] == [False, True]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["generations=0"], r"generations is a number from 1, got 0"),
        (["generations=true"], r"generations is a number from 1, got True"),
        (["+stages.a={}"], r"stages or generations, not both"),
        (["generation.teacher=Student"], r"generation\.teacher=Student learns from student=Student"),
        (["losses.ce.pair=[Student,Teacher]"], r"the first generation has no Teacher yet, and all losses name it"),
        (["ckpt_path=x.ckpt"], r"is resumed by resume=auto"),
        (["student_from=first"], r"student_from is last or best"),
    ],
)
def test_generations_that_cannot_be_are_told(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stages_of(born_again(*overrides))
