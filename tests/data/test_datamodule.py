from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from lit_distill import DistillModule, LossTerm
from lit_distill.data import Mixup, VideoDataModule, VideoMix, ViewsBatch, average_views, normalize
from lit_distill.data.samplers import seeded

from .conftest import grey, write_images, write_lines


def make(videos: Path, **arguments: Any) -> VideoDataModule:
    given = {
        "root": videos,
        "train_list": "train.txt",
        "val_list": "val.txt",
        "num_classes": 3,
        "num_frames": 4,
        "size": 28,
        "scale": 32,
        "batch_size": 4,
        "num_workers": 0,
    }
    return VideoDataModule(**{**given, **arguments})


class Recorder(LightningModule):
    """Keeps the batches that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.batches: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"train": [], "val": [], "test": []}

    def _keep(self, stage: str, batch: Any) -> Tensor:
        inputs, target, index = (part.clone() for part in batch)
        self.batches[stage].append((inputs, target, index))
        return self.weight * torch.mean(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._keep("train", batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._keep("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._keep("test", batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return batch[2]  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(epochs: int = 2) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(data: VideoDataModule) -> Recorder:
    recorder = Recorder()
    trainer().fit(recorder, datamodule=data)
    return recorder


def test_batches(videos: Path) -> None:
    batches = fit(make(videos)).batches
    assert len(batches["train"]) == 2 * 3
    assert [len(index) for _, _, index in batches["val"]] == 2 * [4, 3]
    for inputs, target, index in (*batches["train"], *batches["val"]):
        assert inputs.shape == (len(index), 4, 3, 28, 28)
        assert (inputs.dtype, target.dtype, index.dtype) == (torch.float32, torch.int64, torch.int64)
        assert torch.equal(target, index // 4)
    assert torch.cat([index for _, _, index in batches["val"]]).tolist() == 2 * list(range(7))
    for epoch in (batches["train"][:3], batches["train"][3:]):
        assert sorted(torch.cat([index for _, _, index in epoch]).tolist()) == list(range(12))


def test_incomplete_training_batches_are_dropped(videos: Path) -> None:
    assert [len(index) for _, _, index in fit(make(videos, batch_size=5)).batches["train"]] == 2 * [5, 5]


def test_inputs_are_the_normalised_bytes_of_the_data_set(videos: Path) -> None:
    data = make(videos)
    inputs, _, index = fit(data).batches["val"][0]
    dataset: Any = data.datasets["val"]
    clips = torch.stack([dataset[i][0] for i in index.tolist()])
    assert clips.dtype == torch.uint8
    torch.testing.assert_close(inputs, normalize(clips, data.mean, data.std), rtol=0, atol=0)


@pytest.mark.parametrize("mix", [None, Mixup(), VideoMix()], ids=["plain", "mixup", "videomix"])
def test_workers_change_nothing(videos: Path, mix: Any) -> None:
    """Two epochs, so that workers that live on must learn of the second."""
    alone, helped = (fit(make(videos, num_workers=workers, mix=mix)).batches for workers in (0, 2))
    for stage in ("train", "val"):
        for one, other in zip(alone[stage], helped[stage], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    first, second = (dict(zip(i.tolist(), x, strict=True)) for x, _, i in (alone["train"][0], alone["train"][3]))
    shared = first.keys() & second.keys()
    assert all(not torch.equal(first[i], second[i]) for i in shared)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_what_an_unbroken_one_sees(videos: Path, tmp_path: Path, workers: int) -> None:
    unbroken, first, resumed = Recorder(), Recorder(), Recorder()
    trainer(epochs=3).fit(unbroken, datamodule=make(videos, num_workers=workers))
    stopped = trainer(epochs=2)
    stopped.fit(first, datamodule=make(videos, num_workers=workers))
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    data = make(videos, num_workers=workers)
    trainer(epochs=3).fit(resumed, datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    both = (*first.batches["train"], *resumed.batches["train"])
    for one, other in zip(unbroken.batches["train"], both, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_seed_changes_order_and_clips(videos: Path) -> None:
    one, two = (fit(make(videos, seed=seed)).batches["train"][0] for seed in (0, 1))
    assert not torch.equal(one[2], two[2])


def test_loading_leaves_the_global_generator_alone(videos: Path) -> None:
    data = make(videos)
    data.setup()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for _ in data.train_dataloader():
        pass
    assert torch.equal(torch.get_rng_state(), state)


def test_mixing_while_training_only(videos: Path) -> None:
    mixer = Mixup(alpha=5.0)
    plain, mixed = fit(make(videos)).batches, fit(make(videos, mix=mixer)).batches
    for step, ((before, target, index), given) in enumerate(zip(plain["train"], mixed["train"], strict=True)):
        mix = mixer.draw(4, 28, 28, seeded("mix", 0, step // 3, int(index[0])))
        inputs, soft = mix(before, target, 3)
        assert all(torch.equal(a, b) for a, b in zip(given, (inputs, soft, index), strict=True))
    assert len({float(soft.square().sum()) for _, soft, _ in mixed["train"]}) > 3
    for one, other in zip(plain["val"], mixed["val"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_dense_views(videos: Path) -> None:
    data = make(videos, views="dense")
    recorder = Recorder()
    trainer().validate(recorder, datamodule=data)
    assert [inputs.shape for inputs, _, _ in recorder.batches["val"]] == 7 * [(1, 30, 4, 3, 28, 28)]
    trainer().validate(recorder, datamodule=make(videos, views="dense", eval_batch_size=3, num_frames=2))
    assert recorder.batches["val"][7][0].shape == (3, 30, 2, 3, 28, 28)


def test_dense_views_are_declared_by_their_batches(videos: Path) -> None:
    kinds: dict[str, set[type]] = {}

    class Kinds(Recorder):
        def _keep(self, stage: str, batch: Any) -> Tensor:
            kinds.setdefault(stage, set()).add(type(batch))
            return super()._keep(stage, batch)

    for views, evaluated in (("dense", ViewsBatch), ("center", tuple)):
        recorder, data = Kinds(), make(videos, views=views, num_frames=2)
        kinds.clear()
        trainer(1).fit(recorder, datamodule=data)
        trainer().test(recorder, datamodule=data, verbose=False)
        assert kinds == {"train": {tuple}, "val": {evaluated}, "test": {evaluated}}


def test_dense_views_are_averaged_in_plain_python(videos: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4 * 3 * 28 * 28, 3)).eval()
    losses = {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))}
    module = DistillModule(models={"Student": network}, losses=losses, optimizer=torch.optim.SGD)
    (logged,) = trainer().validate(module, datamodule=make(videos, views="dense"), verbose=False)
    data = make(videos, views="dense")
    total = 0.0
    with torch.no_grad():
        for batch in data.val_dataloader():
            inputs, target, _ = data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)
            total += float(nn.functional.cross_entropy(average_views(network, inputs), target, reduction="sum"))
    assert logged["val/loss"] == pytest.approx(total / 7, rel=1e-5)


def test_test_and_predict(videos: Path) -> None:
    recorder = Recorder()
    write_lines(videos / "test.txt", ["swim/0.mp4 2", "run/1.mp4 1"])
    trainer().test(recorder, datamodule=make(videos, test_list="test.txt"), verbose=False)
    assert recorder.batches["test"][0][1].tolist() == [2, 1]
    trainer().test(recorder, datamodule=make(videos), verbose=False)
    assert len(recorder.batches["test"]) == 1 + 2
    predicted = trainer().predict(recorder, datamodule=make(videos))
    assert torch.cat(predicted).tolist() == list(range(7))  # type: ignore[arg-type]


def test_frame_folders_and_comma_lists(tmp_path: Path) -> None:
    for folder, frames in (("a b", 9), ("c,d", 3)):
        write_images(tmp_path / folder, grey(frames, 20), suffix="f{}.jpg")
    write_lines(tmp_path / "train.csv", ["a b,9,0", "c,d,3,1"])
    data = make(tmp_path, train_list="train.csv", val_list="train.csv", format="frames", suffix="f{}.jpg", batch_size=2)
    inputs, target, index = fit(data).batches["val"][0]
    assert inputs.shape == (2, 4, 3, 28, 28)
    assert target.tolist() == index.tolist() == [0, 1]


def test_class_names(videos: Path) -> None:
    data = make(videos, class_names="classes.txt")
    data.setup("validate")
    assert data.class_names == ("jump", "run", "swim")
    data = make(videos, class_names=["a", "b", "c"])
    data.setup("validate")
    assert data.class_names == ("a", "b", "c")
    with pytest.raises(ValueError, match=r"data\.class_names has 2 names, data\.num_classes is 3"):
        make(videos, class_names=["a", "b"]).setup()
    with pytest.raises(FileNotFoundError, match=r"no class names .*names\.txt, set data\.class_names=<file>"):
        make(videos, class_names="names.txt").setup()


def test_a_missing_root_says_path_override_and_layout() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        make(Path("data/nowhere")).setup("fit")
    message = str(caught.value)
    assert str(Path("data/nowhere").absolute()) in message
    assert "data.root=<folder>" in message
    assert "train.txt, val.txt (a line 'path label' each) and the videos" in message


def test_a_missing_list_says_path_override_and_layout(videos: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        make(videos, val_list="valid.txt", format="frames").setup("validate")
    message = str(caught.value)
    assert str(videos / "valid.txt") in message
    assert "set data.val_list=<file> or data.root=<folder>" in message
    assert "(a line 'dir frames label' each) and the folders of frames named img_{:05}.jpg" in message
    make(videos, val_list="valid.txt", test_list="val.txt").setup("test")


def test_missing_videos_are_counted_and_named(videos: Path) -> None:
    write_lines(videos / "gone.txt", ["run/0.mp4 1", *(f"run/gone{i}.mp4 1" for i in range(7))])
    with pytest.raises(
        FileNotFoundError, match=r"7 of the 8 entries of .*gone\.txt are missing: .*run/gone0\.mp4.* and 2 more;"
    ):
        make(videos, val_list="gone.txt", max_missing=6).setup("validate")
    data = make(videos, val_list="gone.txt", max_missing=7)
    with pytest.warns(UserWarning, match="7 of the 8 entries .* are left out"):
        data.setup("validate")
    assert [sample.path for sample in data.datasets["val"].samples] == [str(videos / "run/0.mp4")]


def test_too_few_videos_for_a_batch(videos: Path) -> None:
    with pytest.raises(ValueError, match=r"12 training videos .* set data\.batch_size to at most 12"):
        make(videos, batch_size=13).train_dataloader()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"views": "train"}, r"data\.views is 'center' or 'dense', got 'train'"),
        ({"batch_size": 0}, r"data\.batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, r"data\.num_workers must be at least 0, got -1"),
        ({"mean": (0.5,)}, r"data\.mean and data\.std are 3 numbers"),
        ({"std": (0.5, 0.0, 1.0)}, "std above 0"),
        ({"sampling": "random"}, "sampling is one of"),
        ({"size": 40}, r"set data\.size or data\.scale"),
    ],
)
def test_arguments_are_checked(videos: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(videos, **arguments)


def test_workers_by_default(videos: Path) -> None:
    data = make(videos, num_workers=None)
    assert 0 <= data.train_dataloader().num_workers <= 8


def test_it_pickles(videos: Path) -> None:
    data = pickle.loads(pickle.dumps(make(videos, mix=Mixup())))
    assert len(data.train_dataloader()) == 3
