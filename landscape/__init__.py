"""Measure the loss landscape of any network, quantized or not."""

from .comparison import Comparison, compare
from .curvature import Eigenvalues, density, top_eigenvalues, trace
from .densities import Density
from .operators import GGN, Hessian, Operator
from .results import Result, load, save_figure
from .sharpness import Sharpness, average_sharpness, worst_case_sharpness
from .surfaces import Line, Surface, line, plot_line, plot_surface, surface
from .traces import Trace

__all__ = [
    # curvature
    "Hessian",
    "GGN",
    "Operator",
    "trace",
    "top_eigenvalues",
    "density",
    # sharpness
    "worst_case_sharpness",
    "average_sharpness",
    # surfaces
    "line",
    "surface",
    "plot_line",
    "plot_surface",
    # several networks
    "compare",
    # results
    "load",
    "save_figure",
    "Result",
    "Trace",
    "Eigenvalues",
    "Density",
    "Sharpness",
    "Line",
    "Surface",
    "Comparison",
]
