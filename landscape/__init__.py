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
from .plotting import (
    draw_history,
    draw_layers,
    draw_together,
    paper_style,
    plot_history,
    plot_layers,
    plot_together,
    save_figure,
)
from .results import Result, plotted
from .surfaces import (
    BatchNormCheck,
    Line,
    Surface,
    Trajectory,
    batchnorm_check,
    line,
    surface,
    trajectory,
)

plot_line = plotted(line)
plot_surface = plotted(surface)
plot_trace = plotted(trace)
plot_top_eigenvalues = plotted(top_eigenvalues)
plot_density = plotted(density)
plot_curvature_at_scale = plotted(curvature_at_scale)
plot_sharpness = plotted(sharpness)

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
    "trajectory",
    "batchnorm_check",
    # measured and drawn in one call
    "plot_line",
    "plot_surface",
    "plot_trace",
    "plot_top_eigenvalues",
    "plot_density",
    "plot_curvature_at_scale",
    "plot_sharpness",
    # numbers of your own: one per layer, or per epoch
    "plot_layers",
    "draw_layers",
    "plot_history",
    "draw_history",
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
