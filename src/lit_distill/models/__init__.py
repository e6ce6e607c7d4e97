"""Video networks of PaddleVideo's distillation recipe, and the reading of their weights."""

from lit_distill.models.pptsm_resnet import PPTSMResNet
from lit_distill.models.pptsm_v2 import PPTSMv2
from lit_distill.models.simkd import SimKDStudent
from lit_distill.models.temporal import temporal_shift

__all__ = ["PPTSMResNet", "PPTSMv2", "SimKDStudent", "temporal_shift"]
