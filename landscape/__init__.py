"""Measure the loss landscape of any network, quantized or not."""

from .comparison import Comparison, compare
from .curvature import Eigenvalues, density, top_eigenvalues, trace
from .densities import Density
from .measures import Sharpness, SharpnessTable, average_sharpness, sharpness, worst_case_sharpness
from .operators import GGN, Hessian, Operator
from .paths import Trajectory, trajectory
from .plotting.layers import draw_layers, plot_layers
from .plotting.together import draw_together, paper_style, plot_together
from .results import Result, load, save_figure
from .rounding import RoundingSharpness, rounding_sharpness
from .scales import ScaleCurvature, curvature_at_scale
from .surfaces import BatchNormCheck, Line, Surface, batchnorm_check, line, plot_line, plot_surface, surface
from .traces import Trace
from .widgets import Explorer, explore

__all__ = [
    # curvature
    "Hessian",
    "GGN",
    "Operator",
    "trace",
    "top_eigenvalues",
    "density",
    "curvature_at_scale",
    # sharpness
    "sharpness",
    "rounding_sharpness",
    "worst_case_sharpness",
    "average_sharpness",
    # surfaces
    "line",
    "surface",
    "plot_line",
    "plot_surface",
    "trajectory",
    "batchnorm_check",
    # one number per layer
    "plot_layers",
    "draw_layers",
    # several networks
    "compare",
    "explore",
    "plot_together",
    "draw_together",
    # results
    "load",
    "save_figure",
    "paper_style",
    "Result",
    "Trace",
    "Eigenvalues",
    "Density",
    "Sharpness",
    "SharpnessTable",
    "RoundingSharpness",
    "ScaleCurvature",
    "Line",
    "Surface",
    "Trajectory",
    "BatchNormCheck",
    "Comparison",
    "Explorer",
]
