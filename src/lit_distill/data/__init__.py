"""Videos or images in, batches out: list files, exact frames, the published transforms, mixing, loaders."""

from lit_distill._views import InputView, ViewsBatch, average_views
from lit_distill.data.catalogue.lists import read_class_names, read_list
from lit_distill.data.catalogue.samples import Sample
from lit_distill.data.datamodule import VideoDataModule
from lit_distill.data.datasets import VideoDataset
from lit_distill.data.decoding.decode import count_frames, probe, read_frames, read_images, scan
from lit_distill.data.decoding.encode import write_video
from lit_distill.data.decoding.layout import Limits, ShortVideoError, VideoError, VideoInfo, VideoLayout
from lit_distill.data.digits_images import DigitsImages
from lit_distill.data.images import ImageDataset, ImageFolderDataModule
from lit_distill.data.mixing import CutMix, Mixup, VideoMix
from lit_distill.data.moving_digits.datamodule import MovingDigits
from lit_distill.data.noise import NoiseData
from lit_distill.data.resumable import ResumableLoader
from lit_distill.data.samplers import EpochSampler, EvalSampler, SampleKey
from lit_distill.data.sampling import FrameSampling
from lit_distill.data.sources import Source, Video
from lit_distill.data.transforms import ClipTransform, normalize

__all__ = [
    "ClipTransform",
    "CutMix",
    "DigitsImages",
    "EpochSampler",
    "EvalSampler",
    "FrameSampling",
    "ImageDataset",
    "ImageFolderDataModule",
    "InputView",
    "Limits",
    "Mixup",
    "MovingDigits",
    "NoiseData",
    "ResumableLoader",
    "Sample",
    "SampleKey",
    "ShortVideoError",
    "Source",
    "Video",
    "VideoDataModule",
    "VideoDataset",
    "VideoError",
    "VideoInfo",
    "VideoLayout",
    "VideoMix",
    "ViewsBatch",
    "average_views",
    "count_frames",
    "normalize",
    "probe",
    "read_class_names",
    "read_frames",
    "read_images",
    "read_list",
    "scan",
    "write_video",
]
