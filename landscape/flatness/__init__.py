"""Sharpness: how much the loss increases when the weights are perturbed."""

from .layer_sensitivity import Sensitivity, sensitivity
from .rounding import RoundingSharpness, rounding_gap, rounding_sharpness
from .sharpness_table import (
    MEASURES,
    RADII,
    WORST_RADII,
    Sharpness,
    SharpnessTable,
    average_sharpness,
    sharpness,
    worst_case_sharpness,
)
