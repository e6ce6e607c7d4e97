"""Distillation losses by what they compare: responses, features, or relations between samples."""

from lit_distill.losses.base import Example, Signal, SizedLoss
from lit_distill.losses.feature.afd import AFDLoss, afd_loss
from lit_distill.losses.feature.attention_transfer import AttentionTransferLoss, attention_transfer_loss
from lit_distill.losses.feature.be_your_own_teacher import BeYourOwnTeacherLoss, be_your_own_teacher_loss
from lit_distill.losses.feature.distance import DistanceLoss, distance_loss
from lit_distill.losses.feature.factor_transfer import FactorTransferLoss, factor_transfer_loss
from lit_distill.losses.feature.fitnet import FitNetLoss, fitnet_loss
from lit_distill.losses.feature.fsp import FSPLoss, fsp_loss
from lit_distill.losses.feature.mgd import MGDLoss, mgd_loss
from lit_distill.losses.feature.nst import NSTLoss, nst_loss
from lit_distill.losses.feature.overhaul import OverhaulLoss, overhaul_loss, overhaul_margin, partial_l2
from lit_distill.losses.feature.review_kd import ReviewKDLoss, review_kd_loss
from lit_distill.losses.feature.simkd import SimKD, simkd_loss
from lit_distill.losses.feature.vid import VIDLoss, vid_loss
from lit_distill.losses.relation.correlation import CorrelationLoss, correlation_loss
from lit_distill.losses.relation.crd import CRDLoss, crd_loss
from lit_distill.losses.relation.pkt import PKTLoss, pkt_loss
from lit_distill.losses.relation.rkd import RKDLoss, rkd_loss
from lit_distill.losses.relation.rkd_angle import RKDAngleLoss, rkd_angle_loss
from lit_distill.losses.relation.rkd_distance import RKDDistanceLoss, rkd_distance_loss
from lit_distill.losses.relation.similarity import SimilarityLoss, similarity_loss
from lit_distill.losses.response.dist import DISTLoss, dist_loss
from lit_distill.losses.response.dkd import DKDLoss, dkd_loss
from lit_distill.losses.response.dml import DMLLoss, dml_loss
from lit_distill.losses.response.dml_group import DMLGroupLoss, dml_group_loss
from lit_distill.losses.response.hard_label import HardLabelLoss, hard_label_loss
from lit_distill.losses.response.kd import KDLoss, kd_loss
from lit_distill.losses.response.mlld import MLLDLoss, mlld_loss
from lit_distill.losses.response.nkd import NKDLoss, nkd_loss
from lit_distill.losses.response.skd import SKDLoss, skd_loss
from lit_distill.losses.response.soft_target import SoftTargetCrossEntropy, soft_target_cross_entropy
from lit_distill.losses.response.wsld import WSLDLoss, wsld_loss

__all__ = [
    "AFDLoss",
    "AttentionTransferLoss",
    "BeYourOwnTeacherLoss",
    "CRDLoss",
    "CorrelationLoss",
    "DISTLoss",
    "DKDLoss",
    "DMLGroupLoss",
    "DMLLoss",
    "DistanceLoss",
    "Example",
    "FSPLoss",
    "FactorTransferLoss",
    "FitNetLoss",
    "HardLabelLoss",
    "KDLoss",
    "MGDLoss",
    "MLLDLoss",
    "NKDLoss",
    "NSTLoss",
    "OverhaulLoss",
    "PKTLoss",
    "RKDAngleLoss",
    "RKDDistanceLoss",
    "RKDLoss",
    "ReviewKDLoss",
    "SKDLoss",
    "Signal",
    "SimKD",
    "SimilarityLoss",
    "SizedLoss",
    "SoftTargetCrossEntropy",
    "VIDLoss",
    "WSLDLoss",
    "afd_loss",
    "attention_transfer_loss",
    "be_your_own_teacher_loss",
    "correlation_loss",
    "crd_loss",
    "dist_loss",
    "distance_loss",
    "dkd_loss",
    "dml_group_loss",
    "dml_loss",
    "factor_transfer_loss",
    "fitnet_loss",
    "fsp_loss",
    "hard_label_loss",
    "kd_loss",
    "mgd_loss",
    "mlld_loss",
    "nkd_loss",
    "nst_loss",
    "overhaul_loss",
    "overhaul_margin",
    "partial_l2",
    "pkt_loss",
    "review_kd_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "rkd_loss",
    "similarity_loss",
    "simkd_loss",
    "skd_loss",
    "soft_target_cross_entropy",
    "vid_loss",
    "wsld_loss",
]
