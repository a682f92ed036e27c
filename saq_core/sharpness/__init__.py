"""Sharpness-aware minimisation of float and quantized networks."""

from .radius import AdaptiveRho, checked_range
from .sam import CASES, SAM, SAQ
from .step_policies import Stepper, StepPolicy
from .targets import TINY, Metric, dot, in_both, norm
