"""Distillation losses by what they compare: responses, features, or relations between samples."""

from lit_distill.losses.base import Example, Signal, SizedLoss
from lit_distill.losses.feature.mgd import MGDLoss, mgd_loss
from lit_distill.losses.feature.review_kd import ReviewKDLoss, review_kd_loss
from lit_distill.losses.feature.simkd import SimKD, simkd_loss
from lit_distill.losses.relation.crd import CRDLoss, crd_loss

__all__ = [
    "CRDLoss",
    "Example",
    "MGDLoss",
    "ReviewKDLoss",
    "Signal",
    "SimKD",
    "SizedLoss",
    "crd_loss",
    "mgd_loss",
    "review_kd_loss",
    "simkd_loss",
]
