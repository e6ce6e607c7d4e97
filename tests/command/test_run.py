"""What the arguments of a command become, and what it says of those that nothing takes."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from lit_distill._command.arguments import open_data
from lit_distill._command.command import conf_dir
from lit_distill._command.run import user_error_text
from lit_distill.data import FrameSampling


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_every_argument_of_the_data_is_a_key(plus: str) -> None:
    typed = [f"{plus}data.views=dense", f"{plus}data.limits.seconds=5", f"{plus}data.num_workers=0"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("index", open_data(["data=video_list", *typed]))
    data = instantiate(config.data, _convert_="all")
    assert (data.views, data.limits.seconds, data.num_workers) == ("dense", 5, 0)


@pytest.mark.parametrize(
    ("data", "key", "meant"),
    [
        ("video_list", "fromat", "VideoDataModule takes no data.fromat; did you mean data.format?"),
        ("video_list", "batchsize", "VideoDataModule takes no data.batchsize; did you mean data.batch_size?"),
        ("moving_digits", "vews", "MovingDigits takes no data.vews; did you mean data.views?"),
        ("image_folder", "cropscale", "ImageFolderDataModule takes no data.cropscale; did you mean data.crop_scale?"),
        ("video_list", "zzz", "VideoDataModule takes no data.zzz"),
    ],
)
def test_a_mistyped_key_of_the_data_is_one_line(data: str, key: str, meant: str) -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("index", open_data([f"data={data}", f"data.{key}=1", "data.num_classes=12"]))
    with pytest.raises(InstantiationException) as raised:
        instantiate(config.data)
    text = user_error_text(raised.value)
    assert text is not None
    assert text.endswith(meant)


class Broken:
    def __init__(self, *, num_frames: int) -> None:
        FrameSampling(num_frames=num_frames, length=3)  # type: ignore[call-arg]


def test_an_error_within_a_constructor_is_not_the_users() -> None:
    with pytest.raises(InstantiationException) as raised:
        instantiate({"_target_": f"{__name__}.Broken", "num_frames": 3})
    assert user_error_text(raised.value) is None
