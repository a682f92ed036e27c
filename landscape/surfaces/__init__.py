"""Losses along lines, over planes and along the path of training."""

from .axes import describe, resolved
from .batchnorm import BatchNormCheck, batchnorm_check
from .grids import Line, Surface, grid, line, surface
from .survey import COLUMNS, COMPUTED, FAILED, PENDING, evaluate_points
from .trajectories import Trajectory, trajectory

__all__ = [
    "BatchNormCheck",
    "COLUMNS",
    "COMPUTED",
    "FAILED",
    "Line",
    "PENDING",
    "Surface",
    "Trajectory",
    "batchnorm_check",
    "describe",
    "evaluate_points",
    "grid",
    "line",
    "resolved",
    "surface",
    "trajectory",
]
