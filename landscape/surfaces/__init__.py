"""Losses along lines, over planes and along the path of training."""

from .axes import resolved
from .batchnorm import BatchNormCheck, batchnorm_check
from .grids import Line, Surface, grid, line, plot_line, plot_surface, surface
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
    "evaluate_points",
    "grid",
    "line",
    "plot_line",
    "plot_surface",
    "resolved",
    "surface",
    "trajectory",
]
