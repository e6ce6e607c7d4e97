"""Lightning callbacks that watch a run, keep its promises, or move its teacher."""

from lit_distill.callbacks.account import Account
from lit_distill.callbacks.agreement import Agreement
from lit_distill.callbacks.ema_teacher import EMATeacher
from lit_distill.callbacks.exact_resume import ExactResume, StepSeed
from lit_distill.callbacks.last_checkpoint import LastCheckpoint
from lit_distill.callbacks.media_logger import MediaLogger
from lit_distill.callbacks.non_finite import NonFinite, NonFiniteError
from lit_distill.callbacks.preemption import Interrupted, Preemption
from lit_distill.callbacks.progress import Progress
from lit_distill.callbacks.quarantine import Quarantine
from lit_distill.callbacks.rank_guard import RankGuard
from lit_distill.callbacks.teacher_cache import CacheCounts, TeacherCache
from lit_distill.callbacks.term_gradients import TermGradients

__all__ = [
    "Account",
    "Agreement",
    "CacheCounts",
    "EMATeacher",
    "ExactResume",
    "Interrupted",
    "LastCheckpoint",
    "MediaLogger",
    "NonFinite",
    "NonFiniteError",
    "Preemption",
    "Progress",
    "Quarantine",
    "RankGuard",
    "StepSeed",
    "TeacherCache",
    "TermGradients",
]
