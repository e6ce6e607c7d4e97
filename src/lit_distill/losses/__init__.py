"""Distillation losses by what they compare: responses, features, or relations between samples."""

from lit_distill.losses.base import Example, Signal, SizedLoss

__all__ = [
    "Example",
    "Signal",
    "SizedLoss",
]
