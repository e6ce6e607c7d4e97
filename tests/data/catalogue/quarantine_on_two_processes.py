"""Run by test_quarantine.py: train on two processes that meet different unreadable videos."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lightning import Trainer

from lit_distill.callbacks import Quarantine
from lit_distill.data import VideoDataModule


def main(root: str, report: str, max_bad: str = "2") -> None:
    data = VideoDataModule(
        root=root, train_list="train.txt", val_list="val.txt", num_classes=3, num_frames=2, size=28, scale=32,
        batch_size=3, eval_batch_size=2, num_workers=1, on_bad="quarantine", max_bad=int(max_bad),
    )  # fmt: skip
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from data.recorder import Recorder

    recorder, callback = Recorder(), Quarantine(folder=f"{report}.run")
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=[callback],
    )  # fmt: skip
    trainer.fit(recorder, datamodule=data)
    assert data.quarantine is not None
    told = {
        "list": data.quarantine.to_json(),
        "stored": callback.state_dict()["quarantine"],
        "seen": recorder.seen,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
    }
    Path(f"{report}.{trainer.global_rank}").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
