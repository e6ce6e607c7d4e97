"""Distillation losses by what they compare: responses, features, or relations between samples.

One method, one file: a pure function with the mathematics, and a thin module with the hyperparameters, whose docstring
has the formula, the paper and when to take it. ``response/kd.py`` is the one to read first. What the methods of a kind
share is in ``_logits.py``, ``_maps.py`` and ``_gram.py``, what all share in ``base.py``, ``_hyperparameters.py`` and
``_numerics.py``. Each file lists in its ``__all__`` what this package exports of it; a new file gets its line here.
"""

from lit_distill.losses.base import *
from lit_distill.losses.feature.ab import *
from lit_distill.losses.feature.afd import *
from lit_distill.losses.feature.affinity import *
from lit_distill.losses.feature.attention_transfer import *
from lit_distill.losses.feature.be_your_own_teacher import *
from lit_distill.losses.feature.cat_kd import *
from lit_distill.losses.feature.cross_kd import *
from lit_distill.losses.feature.cwd import *
from lit_distill.losses.feature.diffkd import *
from lit_distill.losses.feature.distance import *
from lit_distill.losses.feature.factor_transfer import *
from lit_distill.losses.feature.fbkd import *
from lit_distill.losses.feature.fitnet import *
from lit_distill.losses.feature.freekd import *
from lit_distill.losses.feature.fsp import *
from lit_distill.losses.feature.kta import *
from lit_distill.losses.feature.maskd import *
from lit_distill.losses.feature.mgd import *
from lit_distill.losses.feature.norm import *
from lit_distill.losses.feature.nst import *
from lit_distill.losses.feature.overhaul import *
from lit_distill.losses.feature.pad import *
from lit_distill.losses.feature.pefd import *
from lit_distill.losses.feature.pkd import *
from lit_distill.losses.feature.regression import *
from lit_distill.losses.feature.review_kd import *
from lit_distill.losses.feature.simkd import *
from lit_distill.losses.feature.tinybert import *
from lit_distill.losses.feature.vid import *
from lit_distill.losses.feature.vitkd import *
from lit_distill.losses.relation.correlation import *
from lit_distill.losses.relation.crd import *
from lit_distill.losses.relation.dist_plus import *
from lit_distill.losses.relation.ickd import *
from lit_distill.losses.relation.itrd import *
from lit_distill.losses.relation.minilmv2 import *
from lit_distill.losses.relation.pkt import *
from lit_distill.losses.relation.queue_relation import *
from lit_distill.losses.relation.rkd import *
from lit_distill.losses.relation.rkd_angle import *
from lit_distill.losses.relation.rkd_distance import *
from lit_distill.losses.relation.similarity import *
from lit_distill.losses.relation.srd import *
from lit_distill.losses.relation.sskd import *
from lit_distill.losses.relation.sskd_aux import *
from lit_distill.losses.relation.token_relation import *
from lit_distill.losses.response.binary_kd import *
from lit_distill.losses.response.dafl import *
from lit_distill.losses.response.deit import *
from lit_distill.losses.response.dist import *
from lit_distill.losses.response.dkd import *
from lit_distill.losses.response.dml import *
from lit_distill.losses.response.dml_group import *
from lit_distill.losses.response.hard_label import *
from lit_distill.losses.response.kd import *
from lit_distill.losses.response.mlld import *
from lit_distill.losses.response.nkd import *
from lit_distill.losses.response.quality_focal import *
from lit_distill.losses.response.sdd import *
from lit_distill.losses.response.skd import *
from lit_distill.losses.response.soft_target import *
from lit_distill.losses.response.standardized import *
from lit_distill.losses.response.streamlined_kd import *
from lit_distill.losses.response.tf_kd import *
from lit_distill.losses.response.ttm import *
from lit_distill.losses.response.uskd import *
from lit_distill.losses.response.wsld import *
