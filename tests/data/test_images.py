from __future__ import annotations

import pickle
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from image_folders import CLASSES, write_images
from lit_distill.data import CutMix, EvalSampler, ImageDataset, ImageFolderDataModule, Mixup, SampleKey, normalize
from lit_distill.data.images import training_transform
from lit_distill.data.samplers import seeded
from lit_distill.data.sources.images import read_image

from .test_datamodule import Recorder, trainer


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def make(root: Path, **arguments: Any) -> ImageFolderDataModule:
    given = {"root": root, "num_classes": 3, "size": 28, "scale": 32, "batch_size": 4, "num_workers": 0}
    return ImageFolderDataModule(**{**given, **arguments})


def fit(data: ImageFolderDataModule, epochs: int = 2) -> dict[str, list[tuple[Tensor, Tensor, Tensor]]]:
    recorder = Recorder()
    trainer(epochs).fit(recorder, datamodule=data)
    return recorder.batches


def assert_equal_batches(one: Any, other: Any) -> None:
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_batches(root: Path) -> None:
    data = make(root)
    batches = fit(data)
    assert data.class_names == CLASSES
    assert [len(index) for _, _, index in batches["val"]] == 2 * [4, 2]
    for inputs, target, index in (*batches["train"], *batches["val"]):
        assert inputs.shape == (len(index), 3, 28, 28)
        assert (inputs.dtype, target.dtype, index.dtype) == (torch.float32, torch.int64, torch.int64)
    assert all(torch.equal(target, index // 4) for _, target, index in batches["train"])
    assert all(torch.equal(target, index // 2) for _, target, index in batches["val"])
    for epoch in (batches["train"][:3], batches["train"][3:]):
        assert sorted(torch.cat([index for _, _, index in epoch]).tolist()) == list(range(12))


def test_evaluation_equals_torchvisions_own_pipeline(root: Path) -> None:
    transform = v2.Compose(
        [
            v2.Resize(32),
            v2.CenterCrop(28),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    reference = ImageFolder(root / "val", transform=transform)
    batches = fit(make(root), epochs=1)["val"]
    torch.testing.assert_close(torch.cat([inputs for inputs, _, _ in batches]), torch.stack([x for x, _ in reference]))
    assert torch.cat([target for _, target, _ in batches]).tolist() == [label for _, label in reference]


def test_training_views_are_torchvisions_own(root: Path) -> None:
    """The same transform after the same seed, outside of the data set."""
    data = make(root, augment="trivialaugment", seed=5)
    data.setup("fit")
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(28, interpolation=v2.InterpolationMode.BILINEAR),
            v2.RandomHorizontalFlip(),
            v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR),
            v2.PILToTensor(),
        ]
    )
    dataset = data.datasets["train"]
    for epoch, index in ((0, 0), (3, 7)):
        image, label, position = dataset[SampleKey(epoch, index)]
        torch.manual_seed(seeded("image", 5, epoch, index).getrandbits(63))
        assert torch.equal(image, transform(read_image(dataset.samples[index][0])))
        assert (label, position) == (index // 4, index)


@pytest.mark.parametrize("augment", [None, "autoaugment", "randaugment", "trivialaugment"])
@pytest.mark.parametrize("mix", [None, Mixup(), CutMix(alpha=1.0)], ids=["plain", "mixup", "cutmix"])
def test_an_item_is_a_function_of_its_key(root: Path, augment: Any, mix: Any) -> None:
    data = make(root, augment=augment, mix=mix)
    data.setup("fit")
    dataset = data.datasets["train"]
    keys = [SampleKey(epoch, index) for epoch in (0, 1) for index in range(12)]
    first = {key: dataset[key][0] for key in keys}
    random.Random(0).shuffle(keys)
    torch.manual_seed(99)
    assert all(torch.equal(dataset[key][0], first[key]) for key in keys)
    assert all(not torch.equal(first[SampleKey(0, i)], first[SampleKey(1, i)]) for i in range(12))
    assert torch.equal(dataset[3][0], first[SampleKey(0, 3)])


def test_workers_change_nothing(root: Path) -> None:
    alone, helped = (fit(make(root, num_workers=n, mix=CutMix(alpha=1.0), augment="randaugment")) for n in (0, 2))
    assert_equal_batches(alone["train"], helped["train"])
    assert_equal_batches(alone["val"], helped["val"])


def test_a_resumed_run_sees_what_an_unbroken_one_sees(root: Path, tmp_path: Path) -> None:
    unbroken = fit(make(root), epochs=3)["train"]
    first, resumed = Recorder(), Recorder()
    stopped = trainer(epochs=2)
    stopped.fit(first, datamodule=make(root))
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    trainer(epochs=3).fit(resumed, datamodule=make(root), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert_equal_batches(unbroken, (*first.batches["train"], *resumed.batches["train"]))


def test_the_seed_changes_order_and_views(root: Path) -> None:
    one, two = (fit(make(root, seed=seed), epochs=1)["train"][0] for seed in (0, 1))
    assert not torch.equal(one[2], two[2])
    views = [ImageDataset([(str(root / "train/cat/0.jpg"), 0)], transform=training_transform(size=8), seed=s)[0][0]
             for s in (0, 1)]  # fmt: skip
    assert not torch.equal(*views)


def test_loading_leaves_the_global_generator_alone(root: Path) -> None:
    data = make(root, augment="randaugment")
    data.setup()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    for _ in data.train_dataloader():
        pass
    assert torch.equal(torch.get_rng_state(), state)


def test_mixing_gives_soft_targets_while_training_only(root: Path) -> None:
    mixer = Mixup(alpha=5.0)
    plain, mixed = fit(make(root)), fit(make(root, mix=mixer))
    for step, ((before, target, index), given) in enumerate(zip(plain["train"], mixed["train"], strict=True)):
        mix = mixer.draw(4, 28, 28, seeded("mix", 0, step // 3, int(index[0])))
        assert_equal_batches([given], [(*mix(before, target, 3), index)])
        assert given[1].shape == (4, 3)
        torch.testing.assert_close(given[1].sum(1), torch.ones(4))
    assert_equal_batches(plain["val"], mixed["val"])


def test_every_validation_image_is_seen_once_by_two_processes(root: Path) -> None:
    data = make(root)
    data.setup("validate")
    seen = [key.position for rank in (0, 1) for key in EvalSampler(data.datasets["val"], num_replicas=2, rank=rank)]
    assert sorted(seen) == list(range(6))


def test_own_transforms_come_from_a_config(root: Path) -> None:
    """The usual view of CIFAR; a config alone, no Python."""
    prefix = "torchvision.transforms.v2"
    config = OmegaConf.create(
        {
            "_target_": "lit_distill.data.ImageFolderDataModule",
            "root": str(root),
            "num_classes": 3,
            "size": 28,
            "crop_scale": [0.5, 1.0],
            "batch_size": 4,
            "num_workers": 0,
            "train_transform": {
                "_target_": f"{prefix}.Compose",
                "transforms": [
                    {"_target_": f"{prefix}.Resize", "size": [28, 28]},
                    {"_target_": f"{prefix}.RandomCrop", "size": 28, "padding": 4},
                    {"_target_": f"{prefix}.RandomHorizontalFlip"},
                ],
            },
            "eval_transform": {"_target_": f"{prefix}.Resize", "size": [20, 20]},
        }
    )
    batches = fit(instantiate(config), epochs=1)
    black = normalize(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert batches["train"][0][0].shape == (4, 3, 28, 28)
    assert any(bool((inputs == black).all(1).any()) for inputs, _, _ in batches["train"]), "the padding is black"
    assert batches["val"][0][0].shape == (4, 3, 20, 20)


def test_a_transform_that_gives_floats_is_refused(root: Path) -> None:
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    dataset = ImageDataset([(str(root / "val/cat/0.jpg"), 0)], transform=transform)
    with pytest.raises(ValueError, match=r"got \(3, 32, 40\) float32: leave floats and normalisation to data\.mean"):
        dataset[0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file)
    image = read_image(file)
    assert (image.mode, image.size) == ("RGB", (12, 9))
    with Image.open(file) as reference:
        assert np.array_equal(np.asarray(image), np.asarray(reference.convert("RGB")))


def broken(file: Path, kind: str) -> None:
    whole = file.read_bytes()
    if kind == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif kind == "text":
        file.write_text("not an image")
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "broken png":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file, "PNG")
        whole = file.read_bytes()
        file.write_bytes(whole[:60] + bytes(40) + whole[100:])
    elif kind == "16 bits":
        Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(file, "PNG")
    else:
        file.unlink()


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "broken png", "16 bits", "gone"])
def test_an_unreadable_image_is_named_and_never_swapped(root: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(root, tmp_path / "images")
    data = make(tmp_path / "images")
    data.setup("validate")
    file = tmp_path / "images" / "val" / "dog" / "1.jpg"
    broken(file, kind)
    with pytest.raises(ValueError, match=f"can't read the image {re.escape(str(file))}: .+"):
        list(data.val_dataloader())


def test_a_missing_root_says_path_override_and_layout() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        make(Path("data/nowhere")).setup("fit")
    message = str(caught.value)
    assert str(Path("data/nowhere").absolute()) in message
    assert "data.root=<folder>" in message
    assert "train/<class>/<image> and val/<class>/<image>, with the same classes" in message


def test_a_missing_split_says_path_override_and_layout(root: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        make(root, val="valid").setup("fit")
    message = str(caught.value)
    assert message.startswith(f"no folder {root / 'valid'}, set data.val=<its name> or data.root=<folder>")
    assert "train/<class>/<image> and valid/<class>/<image>" in message


def test_folders_without_classes_or_images(root: Path, tmp_path: Path) -> None:
    images = shutil.copytree(root, tmp_path / "images")
    (images / "val" / "dog" / "0.jpg").unlink()
    (images / "val" / "dog" / "1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"val: found no image for the classes dog"):
        make(images).setup("fit")
    shutil.rmtree(images / "val")
    (images / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no class folders in .*val; the root must hold train/<class>/<image>"):
        make(images).setup("fit")


def test_another_number_of_classes(root: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"data\.num_classes is 10, but .*train holds 3 classes \(cat, dog, emu\): set data\.num_classes=3",
    ):
        make(root, num_classes=10).setup("fit")


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_splits_of_other_classes_would_number_them_otherwise(root: Path, tmp_path: Path, stage: str) -> None:
    images = shutil.copytree(root, tmp_path / "images")
    (images / "val" / "dog").rename(images / "val" / "fox")
    with pytest.raises(ValueError, match=r"val must hold the classes of .*train, .*: it lacks dog and has fox besides"):
        make(images).setup(stage)


def test_a_test_split_of_its_own(root: Path, tmp_path: Path) -> None:
    images = shutil.copytree(root, tmp_path / "images")
    shutil.copytree(images / "val", images / "held_out")
    (images / "held_out" / "emu" / "1.jpg").unlink()
    recorder = Recorder()
    trainer().test(recorder, datamodule=make(images, test="held_out"), verbose=False)
    assert sum(len(index) for _, _, index in recorder.batches["test"]) == 5
    trainer().test(recorder, datamodule=make(images), verbose=False)
    assert sum(len(index) for _, _, index in recorder.batches["test"]) == 5 + 6


def test_too_few_images_for_a_batch(root: Path) -> None:
    with pytest.raises(ValueError, match=r"12 training images .* set data\.batch_size to at most 12"):
        make(root, batch_size=13).train_dataloader()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, r"data\.num_classes must be at least 1, got 0"),
        ({"eval_batch_size": 0}, r"data\.eval_batch_size must be at least 1, got 0"),
        ({"size": 40}, r"set data\.size or data\.scale"),
        ({"crop_scale": (0.5, 0.2)}, r"data\.crop_scale is two shares"),
        ({"crop_scale": (0.5,)}, r"data\.crop_scale is two shares"),
        ({"flip": 1.5}, r"data\.flip is a probability"),
        ({"augment": "augmix"}, r"data\.augment is one of \['autoaugment', 'randaugment', 'trivialaugment'\]"),
        ({"interpolation": "cubic"}, r"data\.interpolation is one of .*'bicubic'"),
    ],
)
def test_arguments_are_checked(root: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(root, **arguments)


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        ImageDataset([], transform=training_transform(size=8))


def test_it_pickles(root: Path) -> None:
    data = pickle.loads(pickle.dumps(make(root, mix=Mixup(), augment="autoaugment")))
    assert len(data.train_dataloader()) == 3
