"""`python -m lit_distill.compare`: what it plans, that it goes on run by run, and that its table says what it may."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import pytest
from omegaconf import DictConfig

import processes
from comparison.fakes import TINY, FakePool, config, leave, quiet, text
from lit_distill.compare import main
from lit_distill.comparison import compare
from lit_distill.comparison.plan import make_plan
from lit_distill.comparison.record import require_its_own
from lit_distill.training.plain import plain_of

TWO = "experiments=[baseline,dml]"


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakePool]:
    def stand_in(given: DictConfig, top1: Callable[[str, int], float], *, stop: int = 99) -> FakePool:
        fake = FakePool(given, top1, stop=stop)
        monkeypatch.setattr(compare, "Pool", fake)
        monkeypatch.setattr(compare, "_prepare", lambda plan: None)
        return fake

    return stand_in


def gains_of_two(name: str, seed: int) -> float:
    return 60.0 + seed + (2.0 + 0.1 * seed if name != "baseline" else 0.0)


# ---------------------------------------------------------------- the plan


def test_every_strategy_has_the_same_seeds_and_only_those_that_need_it_a_frozen_teacher(tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path))
    assert [s.name for s in plan.strategies] == ["baseline", "kd", "dml", "self", "rkd", "overhaul", "dkd", "dist"]
    assert {run.seed for run in plan.runs} == {0, 1, 2, 3, 4}
    assert [run.name for run in plan.runs[:8]] == [s.name for s in plan.strategies], "seed by seed"
    frozen = {s.name for s in plan.strategies if "Teacher" in s.runs[0].config.frozen}
    assert frozen == {"kd", "rkd", "overhaul", "dkd", "dist"}
    assert plan.teacher is not None
    weights = str(plan.teacher.folder / "student.safetensors")
    for strategy in plan.strategies:
        for run in strategy.runs:
            assert run.config.seed == run.seed == run.config.data.seed
            if strategy.name in frozen:
                assert run.config.models.Teacher.pretrained == weights
    assert plan.teacher.config.models.Student._target_ == "lit_distill.models.PPTSMResNet"
    assert {s.name: s.teacher for s in plan.strategies}["self"] == "pptsmv2, learns along"


def test_a_strategys_own_overrides_and_variants(tmp_path: Path) -> None:
    given = config(
        tmp_path, "experiments=[baseline,kd,hot]", "variants={hot: kd}", "seeds=[7]", "teacher.epochs=9",
        "overrides={hot: ['+losses.kd.loss.temperature=8']}",
    )  # fmt: skip
    plan = make_plan(given)
    assert [run.config.losses.get("kd", {}).get("loss", {}).get("temperature") for run in plan.runs] == [None, None, 8]
    assert [run.folder.relative_to(tmp_path).as_posix() for run in plan.runs] == [
        "baseline/seed7", "kd/seed7", "hot/seed7",
    ]  # fmt: skip
    assert plan.teacher is not None
    assert plan.teacher.config.trainer.max_epochs == 9


def test_runs_are_planned_with_what_their_networks_start_from(tmp_path: Path) -> None:
    """As their commands will store it: a folder is known by its config."""
    plan = make_plan(config(tmp_path, "experiments=[baseline,kd,dml]", train=["data=digits_few_labels"]))
    assert plan.teacher is not None
    assert plan.teacher.config.models.Student.pretrained == "shipped:digits_pptsm_resnet18"
    assert {run.config.models.Student.pretrained for run in plan.runs} == {"shipped:digits_pptsmv2"}
    kd, dml = (strategy.runs[0].config.models.Teacher.pretrained for strategy in plan.strategies[1:])
    assert (kd, dml) == (str(plan.teacher.folder / "student.safetensors"), "shipped:digits_pptsm_resnet18")
    assert [strategy.teacher for strategy in plan.strategies[1:]] == [
        "pptsm_resnet18, frozen", "pptsm_resnet18, learns along",
    ]  # fmt: skip


def test_without_a_teacher_experiments_run_as_they_stand(tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path, "experiments=[baseline,dkd]", "teacher=null"))
    assert plan.teacher is None
    assert list(plan.strategies[1].runs[0].config.frozen) == []


def test_experiments_of_the_users_own_folder(tmp_path: Path) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    lines = ["# @package _global_", "defaults: [dml_pptsmv2, _self_]", "losses: {dml: {weight: 0.25}}"]
    (tmp_path / "conf/experiment/mine.yaml").write_text("\n".join(lines))
    plan = make_plan(
        config(tmp_path / "runs", "experiments=[baseline,mine]", "teacher=null", "--config-dir", f"{tmp_path}/conf")
    )
    mine = plan.strategies[1].runs[0]
    assert mine.config.losses.dml.weight == 0.25
    assert f"hydra.searchpath=['file://{tmp_path}/conf']" in mine.arguments, "the run finds it too"
    with pytest.raises(ValueError, match="--config-dir /nowhere is no folder"):
        make_plan(config(tmp_path / "runs", TWO, "--config-dir=/nowhere"))


def test_a_given_teacher_is_not_trained(tmp_path: Path) -> None:
    (tmp_path / "t.safetensors").touch()
    plan = make_plan(config(tmp_path, "experiments=[baseline,kd]", f"teacher.weights={tmp_path}/t.safetensors"))
    assert plan.teacher is None
    assert plan.runs[1].config.models.Teacher.pretrained == f"{tmp_path}/t.safetensors"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiments=[baseline]"], "at least two different names"),
        (["experiments=[baseline,kd,kd]"], "at least two different names"),
        (["experiments=[baseline,teacher]"], "none of them 'teacher'"),
        (["experiments=[baseline,kdd]"], "no experiment kdd_pptsmv2 or kdd; there are .*dkd, .*kd, "),
        ([TWO, "seeds=0"], "seeds is how many"),
        ([TWO, "seeds=[1,1]"], "seeds is how many"),
        ([TWO, "reference=kd"], r"reference names kd, not in experiments=\[baseline,dml\]"),
        ([TWO, "overrides={kd: ['a=1']}"], "overrides names kd"),
        ([TWO, "jobs=0"], "jobs is how many runs at a time"),
        ([TWO, "overrides={dml: ['trainer.max_epochs=9']}"], "dml is no pair of baseline: it has trainer.max_epochs=9"),
        ([TWO, "overrides={dml: ['data.batch_size=4']}"], "dml is no pair of baseline: it has data.batch_size=4"),
        ([TWO, "overrides={dml: ['models.Student.scale=1']}"], "no pair of baseline: it has models.Student.scale=1"),
        (["experiments=[baseline,born_again]"], r"born_again is a run of several trainings \(generations\)"),
        (["experiments=[baseline,billion_scale]"], r"billion_scale is a run of several trainings \(stages\)"),
        (["experiments=[baseline,kd]", "teacher.weights=/nowhere.ckpt"], "teacher.weights=/nowhere.ckpt is no file"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    overrides: list[str], message: str, tmp_path: Path, pool: Callable[..., FakePool]
) -> None:
    with pytest.raises(ValueError, match=message):
        compare.run(config(tmp_path / "runs", *overrides), console=quiet())
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.parametrize("argument", ["seed=3", "experiment=kd_pptsmv2", "resume=auto"])
def test_what_compare_sets_itself_is_refused(argument: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is what compare sets itself"):
        make_plan(config(tmp_path, TWO, train=["data=moving_digits_tiny", argument]))


def test_the_arguments_of_train_are_passed_on_as_they_were_typed() -> None:
    typed = [
        "seeds=2",
        "data.root=/a b/it's",
        "+trainer.limit_train_batches=3",
        "teacher.epochs=4",
        "--config-dir",
        "x",
    ]
    assert main.overrides(typed) == [
        "seeds=2", "teacher.epochs=4", "config_dir='x'",
        r"train=['data.root=/a b/it\'s','+trainer.limit_train_batches=3']",
        r"""command='python -m lit_distill.compare seeds=2 "data.root=/a b/it\'s" +trainer.limit_train_batches=3 """
        "teacher.epochs=4 --config-dir x'",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("-m", "compare is a sweep itself"),
        ("hydra.run.dir=x", "hydra.run.dir is what compare sets itself"),
        ("teacher=frozen", "not teacher=frozen"),
    ],
)
def test_arguments_that_mean_something_else_here_are_refused(argument: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main.overrides([argument])


# ---------------------------------------------------------------- what it writes


def test_the_table_and_the_figures(tmp_path: Path, pool: Callable[..., FakePool]) -> None:
    given = config(tmp_path, TWO, "seeds=3", "plots=false")
    pool(given, gains_of_two)
    record = compare.run(given, console=quiet())
    assert compare.is_whole(record)
    assert json.loads((tmp_path / "compare.json").read_text()) == json.loads(json.dumps(record))
    dml = record["strategies"]["dml"]
    assert dml["gains"] == {"0": pytest.approx(2.0), "1": pytest.approx(2.1), "2": pytest.approx(2.2)}
    assert dml["gain"] == pytest.approx(2.1)
    t = 2.1 * 3**0.5 / 0.1
    assert dml["p"] == pytest.approx(1 - t / (2 + t * t) ** 0.5, rel=1e-3)
    assert [run["folder"] for run in dml["runs"]] == ["dml/seed0", "dml/seed1", "dml/seed2"]
    assert dml["runs"][0]["val_curve"] == [25.0, 50.0]
    written = (tmp_path / "compare.md").read_text()
    assert "| baseline | - | 61.00 ± 1.00 | - | - | the reference | 1.5 (1.0) | 512 |" in written
    row = "| dml | pptsm_resnet50, learns along | 63.10 ± 1.10 | +2.10 [+1.85, +2.35] | 0.0008 | **better** |"
    assert row in written
    assert "40 updates of the Student" in written
    assert str(tmp_path) not in written


def test_the_share_of_the_teachers_gap_is_that_of_those_who_learn_from_it(
    tmp_path: Path, pool: Callable[..., FakePool]
) -> None:
    given = config(tmp_path, "experiments=[baseline,kd,dml]", "teacher.overrides=['+data.labelled_share=0.5']")
    pool(given, lambda name, seed: {"baseline": 60.0, "kd": 72.0, "dml": 66.0, "teacher": 84.0}[name])
    record = compare.run(given, console=quiet())
    assert record["strategies"]["kd"]["gap_closed"] == pytest.approx(0.5)
    assert "gap_closed" not in record["strategies"]["dml"]
    written = (tmp_path / "compare.md").read_text()
    assert "| +12.00 | 50 % |" in written or "| +12.00 [+12.00, +12.00] | 50 % |" in written
    assert "on 50 % of the labels (the strategies: 100 %): 84.00 % on test" in written


def test_p_values_are_those_of_all_strategies_together(tmp_path: Path, pool: Callable[..., FakePool]) -> None:
    spread = (0.0, 1.0, -0.5)
    given = config(tmp_path, "experiments=[baseline,dml,self]", "seeds=3", "plots=false")
    pool(
        given,
        lambda name, seed: {"baseline": 50.0, "dml": 53.2, "self": 40.0}[name] + (name != "baseline") * spread[seed],
    )
    strategies = compare.run(given, console=quiet())["strategies"]
    assert 0.01 < strategies["dml"]["p"] < 0.05
    assert strategies["dml"]["p_adjusted"] == strategies["dml"]["p"], "the largest of them is not changed"
    assert strategies["self"]["p_adjusted"] == 2 * strategies["self"]["p"]
    assert (strategies["dml"]["verdict"], strategies["self"]["verdict"]) == ("better", "worse")


@pytest.mark.parametrize("seeds", [1, 2])
def test_ties_and_a_single_seed_are_not_shown(seeds: int, tmp_path: Path, pool: Callable[..., FakePool]) -> None:
    given = config(tmp_path, TWO, f"seeds={seeds}", "plots=false")
    pool(given, lambda name, seed: 50.0)
    record = compare.run(given, console=quiet())
    assert record["strategies"]["dml"]["verdict"] == "not shown"
    assert record["strategies"]["dml"]["interval"] is None
    assert "| +0.00 |" in (tmp_path / "compare.md").read_text()


def test_the_last_lines_say_the_gain_and_what_to_do_next(tmp_path: Path, pool: Callable[..., FakePool]) -> None:
    given = config(
        tmp_path, "experiments=[plain,kd,dml]", "variants={plain: baseline}", "seeds=[0]", "plots=false",
        f"teacher.weights={tmp_path / 't.safetensors'}",
    )  # fmt: skip
    (tmp_path / "t.safetensors").touch()
    pool(given, lambda name, seed: {"plain": 50.1, "kd": 49.0, "dml": 54.9}[name])
    console = quiet()
    console.width = 400
    compare.run(given, console=console)
    shown = text(console)
    assert "plain 50.1 %, with dml 54.9 %: +4.8 points (one seed, which may be luck: seeds=5 says more)" in shown
    assert "plain 50.1 %, with kd 49.0 %: -1.1 points" in shown
    assert f"written to {tmp_path / 'compare.md'}" in shown
    assert f"python -m lit_distill.report {tmp_path / 'plain/seed0'} {tmp_path / 'kd/seed0'}" in shown
    checkpoint = tmp_path / "dml" / "seed0" / "checkpoints" / "best.ckpt"
    command = "python -m lit_distill.train experiment=kd_pptsmv2 data=moving_digits_tiny trainer=cpu"
    assert f"{command} models.Teacher.pretrained='{checkpoint}#Teacher'" in shown


def test_a_record_keeps_what_the_plain_student_depends_on(tmp_path: Path, pool: Callable[..., FakePool]) -> None:
    given = config(tmp_path, TWO, "seeds=2", "plots=false")
    pool(given, gains_of_two)
    record = compare.run(given, console=quiet())
    assert record["settings"]["trainer"]["max_epochs"] == 2
    assert record["settings"]["student"]["_target_"] == "lit_distill.models.PPTSMv2"
    assert plain_of(record)["validation"] == [60.0, 61.0]


@pytest.mark.parametrize(("key", "value"), [("steps", 39), ("order", "other"), ("pixels", "other")])
def test_a_pair_that_is_none_is_named_and_left_out(
    key: str, value: Any, tmp_path: Path, pool: Callable[..., FakePool]
) -> None:
    given = config(tmp_path, TWO, "seeds=3", "plots=false")
    pool(given, gains_of_two).accounts = {("dml", 1): {key: value}}
    record = compare.run(given, console=quiet())
    assert not compare.is_whole(record)
    assert set(record["strategies"]["dml"]["gains"]) == {"0", "2"}
    said = {"steps": "updates", "order": "samples", "pixels": "pixels"}[key]
    assert f"**dml is not paired**: seed 1: {said} differ" in (tmp_path / "compare.md").read_text()


def test_a_failed_run_is_told_and_the_others_go_on(tmp_path: Path, pool: Callable[..., FakePool]) -> None:
    given = config(tmp_path, TWO, "seeds=3", "plots=false")
    fake = pool(given, gains_of_two)
    fake.faults = {("baseline", 1): "no memory"}
    console = quiet()
    record = compare.run(given, console=console)
    assert len(fake.begun) == 6
    assert not compare.is_whole(record)
    assert "baseline, seed 1: failed: no memory" in text(console)
    assert set(record["strategies"]["dml"]["gains"]) == {"0", "2"}, "a seed without its reference is no pair"
    assert "**baseline, seed 1**: no memory" in (tmp_path / "compare.md").read_text()
    assert "(2 of 3 seeds)" in (tmp_path / "compare.md").read_text()
    fake.faults = {}
    fake.begun.clear()
    assert compare.is_whole(compare.run(given, console=quiet()))
    assert fake.begun == [("baseline", 1)], "only what failed is done again"


def test_without_its_teacher_nothing_begins(tmp_path: Path, pool: Callable[..., FakePool]) -> None:
    given = config(tmp_path, "experiments=[baseline,kd]", "seeds=1", "plots=false")
    fake = pool(given, gains_of_two)
    fake.faults = {("teacher", 0): "bad luck"}
    record = compare.run(given, console=quiet())
    assert fake.begun == [("teacher", 0)]
    assert not compare.is_whole(record)
    assert "**Frozen Teacher**: bad luck" in (tmp_path / "compare.md").read_text()


# ---------------------------------------------------------------- going on


def test_an_interrupted_comparison_goes_on_run_by_run(tmp_path: Path, pool: Callable[..., FakePool]) -> None:
    given = config(tmp_path, "experiments=[baseline,kd]", "seeds=3", "plots=false")
    fake = pool(given, gains_of_two, stop=4)
    with pytest.raises(KeyboardInterrupt):
        compare.run(given, console=quiet())
    assert fake.begun == [("teacher", 0), ("baseline", 0), ("kd", 0), ("baseline", 1)]
    assert "(2 of 3 seeds)" in (tmp_path / "compare.md").read_text(), "what is done is written"
    fake.begun.clear()
    fake.stop = 99
    record = compare.run(given, console=quiet())
    assert fake.begun == [("kd", 1), ("baseline", 2), ("kd", 2)]
    assert compare.is_whole(record)
    fake.begun.clear()
    assert compare.run(given, console=quiet())["strategies"] == record["strategies"]
    assert fake.begun == []


def test_an_interrupted_run_is_not_a_finished_one(tmp_path: Path, pool: Callable[..., FakePool]) -> None:
    given = config(tmp_path, TWO, "seeds=1", "plots=false")
    fake = pool(given, gains_of_two)
    run = make_plan(given).runs[1]
    leave(run, 50.0)
    (run.folder / "results.json").write_text(json.dumps({"interrupted": "SIGTERM", "best": {}}))
    compare.run(given, console=quiet())
    assert ("dml", 0) in fake.begun


def test_a_run_that_was_trained_but_not_tested_is_only_tested(tmp_path: Path) -> None:
    run = make_plan(config(tmp_path, TWO, "seeds=1")).runs[0]
    leave(run, 50.0)
    (run.folder / "test.json").unlink()
    assert [command[0] for command in compare._job(run).commands] == ["lit_distill.test"]
    (run.folder / "account.json").unlink()
    assert [command[0] for command in compare._job(run).commands] == ["lit_distill.train", "lit_distill.test"]


def test_another_comparisons_folder_is_refused(tmp_path: Path, pool: Callable[..., FakePool]) -> None:
    given = config(tmp_path, TWO, "seeds=1", "plots=false")
    pool(given, gains_of_two)
    compare.run(given, console=quiet())
    other = config(tmp_path, TWO, "seeds=1", "plots=false", train=[*TINY, "trainer.max_epochs=7"])
    with pytest.raises(ValueError, match=r"holds another run, it differs in trainer\.max_epochs.*folder=<another>"):
        compare.run(other, console=quiet())


def test_the_presets_weights_are_given_where_nothing_else_is_said(tmp_path: Path) -> None:
    def weights(*overrides: str, train: tuple[str, ...] = ()) -> dict[str, Any]:
        given = config(
            tmp_path, "seeds=1", "teacher=null", *overrides, train=[*TINY, "+preset.weights.dml=0.5", *train]
        )
        return {run.name: run.config.losses.get("dml", {}).get("weight") for run in make_plan(given).runs}

    assert weights(TWO) == {"baseline": None, "dml": 0.5}
    assert weights(TWO, "overrides={dml: ['+losses.dml.weight=2']}")["dml"] == 2
    assert weights(TWO, "overrides={dml: ['+weight@losses.dml.weight=step']}")["dml"].schedule._target_.endswith("Step")
    own = weights("experiments=[baseline,dml_ramp]")["dml_ramp"]
    assert own.schedule._target_ == "lit_distill.schedules.RampUp", "an experiment's own schedule stands"


def test_a_presets_weights_do_not_make_other_runs_of_what_has_been_trained(tmp_path: Path) -> None:
    two = ["experiments=[baseline,dkd]", "seeds=1", "teacher=null"]
    for run in make_plan(config(tmp_path, *two)).runs:
        leave(run, 50.0)
    baseline, dkd = make_plan(config(tmp_path, *two, train=[*TINY, "+preset.weights.dkd=0.5"])).runs
    require_its_own(baseline)
    with pytest.raises(ValueError, match=r"it differs in losses\.dkd\.weight"):
        require_its_own(dkd)


def test_the_presets_weights_are_told(tmp_path: Path, pool: Callable[..., FakePool]) -> None:
    ramp = "{_target_: lit_distill.schedules.Linear, start: 0.0, end: 1.0, epochs: 2}"
    weighted = [*TINY, "+preset.weights.kd=3", f"+preset.weights.dml={ramp}"]
    given = config(tmp_path, TWO, "seeds=1", "plots=false", train=weighted)
    pool(given, gains_of_two)
    record = compare.run(given, console=quiet())
    assert record["strategies"]["dml"]["weights"]["dml"]["end"] == 1.0
    assert record["strategies"]["baseline"]["weights"] == {"ce": 1.0}
    told = "Weights that the data's preset has in place of the published: dml Linear(start=0, end=1, epochs=2)."
    assert told in (tmp_path / "compare.md").read_text(), "that of kd is nobody's here"


# ---------------------------------------------------------------- plots and the command


def test_the_plots_are_pictures(tmp_path: Path, pool: Callable[..., FakePool]) -> None:
    given = config(tmp_path / "runs", TWO, "seeds=2", f"output={tmp_path}/told")
    pool(given, gains_of_two)
    compare.run(given, console=quiet())
    for name in ("gains.svg", "curves.svg"):
        assert ElementTree.parse(tmp_path / "told" / name).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert f"![{name}]({name})" in (tmp_path / "told/compare.md").read_text()


class Forked:
    """A run's process, forked from one that has imported everything; test_pool.py starts fresh interpreters."""

    def __init__(self, command: Sequence[str], log: IO[bytes], *, environment: Mapping[str, str], **_: Any) -> None:
        self._process, self._log = processes.start(["-m", *command], env=environment), log

    def wait(self) -> int | None:
        self._log.write("".join(self._process.communicate(300)).encode())
        return self._process.returncode


def test_a_real_comparison_trains_and_tests_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_distill.comparison.pool.start_process", Forked)
    monkeypatch.chdir(tmp_path)
    command = [
        "lit_distill.compare", "experiments=[baseline,self]", "seeds=1", "jobs=1",
        "data=moving_digits_tiny", "trainer=cpu", "trainer.max_epochs=1", "+trainer.limit_train_batches=2",
        "+trainer.limit_val_batches=1", f"folder={tmp_path}/runs", "teacher=null", "plots=false",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", command)
    main()
    record = json.loads((tmp_path / "runs/compare.json").read_text())
    assert record["strategies"]["self"]["unpaired"] == []
    for strategy in record["strategies"].values():
        (run,) = strategy["runs"]
        assert run["fault"] == ""
        assert run["peak_mib"] > 0
        assert 0 <= run["top1"] <= 100


@pytest.mark.slow
def test_a_real_comparison_of_two_strategies_and_two_seeds(tmp_path: Path) -> None:
    command = [
        "-m", "lit_distill.compare", "experiments=[baseline,kd]", "seeds=2", "data=moving_digits_tiny",
        "trainer=cpu", "trainer.max_epochs=1", f"folder={tmp_path}/runs", "teacher.epochs=2",
    ]  # fmt: skip
    first = processes.run(command, timeout=600)
    assert first.returncode == 0, first.stderr[-3000:] + first.stdout[-3000:]
    record = json.loads((tmp_path / "runs/compare.json").read_text())
    kd = record["strategies"]["kd"]
    assert set(kd["gains"]) == {"0", "1"}, "both pairs were shown the same samples and pixels"
    assert kd["unpaired"] == []
    digests = [(run["order"], run["pixels"]) for run in kd["runs"]]
    assert digests[0] != digests[1], "another seed is another order"
    assert all(run["peak_mib"] > 0 and run["seconds"] > 0 for run in kd["runs"])
    assert record["teacher"]["epochs"] == 2
    (tmp_path / "runs/kd/seed1/test.json").unlink()
    second = processes.run(command, timeout=600)
    assert second.returncode == 0
    assert "4 done before" in second.stdout
    assert json.loads((tmp_path / "runs/compare.json").read_text())["strategies"] == record["strategies"]
