"""Video networks of PaddleVideo's distillation recipe, image classifiers by name, and the reading of their weights."""

from lit_distill.models.ensemble import Ensemble
from lit_distill.models.generator import ImageGenerator
from lit_distill.models.pptsm_resnet import PPTSMResNet
from lit_distill.models.pptsm_v2 import PPTSMv2
from lit_distill.models.simkd import SimKDStudent
from lit_distill.models.small_resnet import SmallResNet
from lit_distill.models.temporal import temporal_shift
from lit_distill.models.vision import timm_model, torchvision_model
from lit_distill.models.weights import LoadReport, WeightsError, load_weights, read_state

__all__ = [
    "Ensemble",
    "ImageGenerator",
    "LoadReport",
    "PPTSMResNet",
    "PPTSMv2",
    "SimKDStudent",
    "SmallResNet",
    "WeightsError",
    "load_weights",
    "read_state",
    "temporal_shift",
    "timm_model",
    "torchvision_model",
]
