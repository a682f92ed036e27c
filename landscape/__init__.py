"""Measure the loss landscape of any network, quantized or not."""

from .comparison import Comparison, compare
from .curvature import GGN, Hessian, ScaleCurvature, curvature_at_scale, density, top_eigenvalues, trace
from .explorer import Explorer, explore
from .flatness import (
    RoundingSharpness,
    Sharpness,
    SharpnessTable,
    average_sharpness,
    rounding_sharpness,
    sharpness,
    worst_case_sharpness,
)
from .io import load
from .linalg import Density, Eigenvalues, Operator, Trace
from .model import Objective
from .plotting import draw_layers, draw_together, paper_style, plot_layers, plot_together, save_figure
from .results import Result
from .surfaces import (
    BatchNormCheck,
    Line,
    Surface,
    Trajectory,
    batchnorm_check,
    line,
    plot_line,
    plot_surface,
    surface,
    trajectory,
)

__all__ = [
    "Objective",
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
