"""SIGTERM, SIGINT, SIGUSR1: a checkpoint within a step on all ranks together, the exit code, and an exact resume."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lightning import Callback, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from lit_distill import SafeCheckpointIO
from lit_distill.callbacks import Interrupted, LastCheckpoint, Preemption
from lit_distill.callbacks.preemption import _requeue
from lit_distill.checkpoints import read_checkpoint

from .killing import Server, differences, samples_lost_and_repeated
from .report import report

PLAIN, RANKS = "DML, Adam, dropout", "DML on two ranks"
ACCUMULATED = "Mixup, gradients accumulated over 3 batches"


@pytest.mark.parametrize(
    ("name", "scenario", "event", "at", "to"),
    [
        ("SIGTERM", PLAIN, "backward", 5, [0]),
        ("SIGINT", PLAIN, "validation", 2, [0]),
        ("SIGUSR1", ACCUMULATED, "backward", 2, [0]),
        ("SIGTERM", RANKS, "backward", 4, [1]),
        ("SIGINT", RANKS, "backward", 5, [0, 1]),
        ("SIGTERM", RANKS, "validation", 1, [0]),
    ],
)
def test_a_signal_ends_with_a_checkpoint_that_goes_on_exactly(
    server: Server, references: dict[str, Path], tmp_path: Path, name: str, scenario: str, event: str, at: int, to: Any
) -> None:
    ranks = 2 if scenario == RANKS else 1
    answer = server.run(tmp_path, scenario, signal=name, event=event, at=at, to=to, hold=True)
    log = (tmp_path / "log0.txt").read_text()
    assert answer["codes"] == [128 + signal.Signals[name]] * ranks, log
    assert f"{name}: step" in log

    saved = read_checkpoint(tmp_path / "last.ckpt")
    if event == "backward" and scenario != ACCUMULATED:
        assert at - 1 <= saved["global_step"] <= at + ranks - 1, "the step under way, and with ranks the next"
    if event == "validation" and ranks == 1:
        assert "validated" not in answer["after"], "the validation is not waited for"
    assert server.run(tmp_path, scenario)["codes"] == [0] * ranks, (tmp_path / "log0.txt").read_text()
    found, lost = differences(references[scenario], tmp_path), samples_lost_and_repeated(references[scenario], tmp_path)
    report(
        f"signal: {name} to rank {' and '.join(map(str, to))} of {ranks} in {event}",
        tried=1, survived=int(not found), lost=sum(lost),
    )  # fmt: skip
    assert (found, lost) == ([], (0, 0))


def test_a_second_signal_ends_at_once(server: Server, tmp_path: Path) -> None:
    # two that a busy machine delivers together are one, so more are sent until it has ended
    answer = server.run(tmp_path, PLAIN, signal="SIGTERM", event="backward", at=1, times=20, pause=0.3, long="backward")
    assert answer["codes"] == [-signal.SIGTERM]
    assert not (tmp_path / "last.ckpt").exists()


def test_no_handler_is_left_behind(tmp_path: Path) -> None:
    from .tiny import loader, module, trainer

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    fit = trainer(tmp_path, callbacks=[LastCheckpoint(tmp_path), Preemption()], enable_checkpointing=True, max_epochs=1)
    fit.fit(module(), loader())
    assert [signal.getsignal(number) for number in numbers] == before


def test_where_nothing_could_be_written_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from .tiny import loader, module, trainer

    class Full(SafeCheckpointIO):
        def save_checkpoint(self, *_: Any, **__: Any) -> None:
            """As with on_error=warn."""

    class Signal(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    given = {"callbacks": [LastCheckpoint(tmp_path), Preemption(["SIGTERM"]), Signal()], "enable_checkpointing": True}
    for plugin, told in ((SafeCheckpointIO(), "step 1 is saved in"), (Full(), "step 1 COULD NOT BE SAVED, ")):
        with pytest.raises(Interrupted):
            trainer(tmp_path, plugins=[plugin], **given).fit(module(), loader())
        assert told in capsys.readouterr().err


def test_a_signal_behind_the_last_step_is_left_for_whoever_goes_on(tmp_path: Path) -> None:
    from .tiny import loader, module, trainer

    class Signal(Callback):
        def on_train_end(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    preemption = Preemption(["SIGTERM"])
    fit = trainer(tmp_path, callbacks=[Signal(), LastCheckpoint(tmp_path), preemption], enable_checkpointing=True)
    fit.fit(module(), loader())
    assert preemption.left == signal.SIGTERM


def test_it_needs_a_checkpoint_to_save(tmp_path: Path) -> None:
    from .tiny import loader, module, trainer

    with pytest.raises(ValueError, match="LastCheckpoint"):
        trainer(tmp_path, callbacks=[Preemption()]).fit(module(), loader())
    with pytest.raises(ValueError, match="SIGNONE"):
        Preemption(["SIGNONE"])


def test_a_slurm_job_is_put_back_into_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    environment = SLURMEnvironment(auto_requeue=True)
    _requeue(cast(Trainer, SimpleNamespace(_accelerator_connector=SimpleNamespace(cluster_environment=environment))))
    assert (tmp_path / "called").read_text() == "requeue 17\n"
