"""Sharpness-aware minimisation of float and quantized networks."""

from .radius import AdaptiveRho
from .sam import CASES, METRICS, SAM, SAQ
from .step_policies import Stepper, StepPolicy
from .targets import TINY, dot, in_both, norm

__all__ = [
    "CASES",
    "METRICS",
    "SAM",
    "SAQ",
    "TINY",
    "AdaptiveRho",
    "StepPolicy",
    "Stepper",
    "dot",
    "in_both",
    "norm",
]
