"""Distillation losses by what they compare: responses, features, or relations between samples."""

from lit_distill.losses.base import Example, Signal, SizedLoss
from lit_distill.losses.feature.mgd import MGDLoss, mgd_loss
from lit_distill.losses.feature.review_kd import ReviewKDLoss, review_kd_loss
from lit_distill.losses.feature.simkd import SimKD, simkd_loss
from lit_distill.losses.relation.crd import CRDLoss, crd_loss
from lit_distill.losses.response.dist import DISTLoss, dist_loss
from lit_distill.losses.response.dkd import DKDLoss, dkd_loss
from lit_distill.losses.response.dml import DMLLoss, dml_loss
from lit_distill.losses.response.hard_label import HardLabelLoss, hard_label_loss
from lit_distill.losses.response.kd import KDLoss, kd_loss
from lit_distill.losses.response.mlld import MLLDLoss, mlld_loss
from lit_distill.losses.response.nkd import NKDLoss, nkd_loss
from lit_distill.losses.response.skd import SKDLoss, skd_loss
from lit_distill.losses.response.soft_target import SoftTargetCrossEntropy, soft_target_cross_entropy
from lit_distill.losses.response.wsld import WSLDLoss, wsld_loss

__all__ = [
    "CRDLoss",
    "DISTLoss",
    "DKDLoss",
    "DMLLoss",
    "Example",
    "HardLabelLoss",
    "KDLoss",
    "MGDLoss",
    "MLLDLoss",
    "NKDLoss",
    "ReviewKDLoss",
    "SKDLoss",
    "Signal",
    "SimKD",
    "SizedLoss",
    "SoftTargetCrossEntropy",
    "WSLDLoss",
    "crd_loss",
    "dist_loss",
    "dkd_loss",
    "dml_loss",
    "hard_label_loss",
    "kd_loss",
    "mgd_loss",
    "mlld_loss",
    "nkd_loss",
    "review_kd_loss",
    "simkd_loss",
    "skd_loss",
    "soft_target_cross_entropy",
    "wsld_loss",
]
