"""Losses along lines, over planes and along the path of training."""

from .axes import resolve_directions
from .batchnorm import BatchNormCheck, batchnorm_check
from .grids import Line, Surface, grid, line, plot_line, plot_surface, surface
from .survey import COLUMNS, COMPUTED, FAILED, PENDING, evaluate_points
from .trajectories import Trajectory, trajectory
