"""Losses along lines, over planes and along the path of training; the basin of a network."""

from .basins import Basin, basin
from .batchnorm_comparison import BatchNormCheck, batchnorm_check
from .grids import Line, Surface, grid, line, surface
from .survey import COLUMNS, COMPUTED, FAILED, PENDING, evaluate_points
from .trajectories import Trajectory, trajectory
