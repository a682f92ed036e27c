"""Sharpness-aware minimisation of float and quantized networks."""

from .radius import AdaptiveRho, checked_range
from .sam import CASES, SAM, SAQ, Case
from .step_policies import StepPolicy
from .targets import Kind, Metric, Weights, find_parameters, find_targets, kinds_of
from .vectors import common_grads, cosine, displaced, norm, restored
