"""Measure the loss landscape of any network, quantized or not.

    landscape.trace(model, data)                    the Hessian's trace, with its errors over probes and over data
    landscape.surface(model, data).plot()           or landscape.plot_surface(model, data)
    landscape.compare({"float": a, "W4A4": b})      one table with error bars, one set of pictures

Every measuring function takes a network (or an `Objective`, the network with its data and loss), touches nothing, and
returns a `Result`: numbers with error bars and how they came about (``about``), ``.plot()`` with plotly, ``.draw()``
with matplotlib, ``.frame`` for pandas, ``.save(path)`` for `load`.

Where to look: `model` (what varies, the loss, what holds a network still), `linalg` (eigenvalues, traces, densities of
any symmetric operator), `curvature` (the Hessian), `flatness` (sharpness), `surfaces`, `comparison`, `plotting`, `io`,
`explorer`. A wing imports only what stands further left, and from a wing only what its ``__init__`` hands on.

To add

a direction   a case in ``model.directions.resolve_directions``, its name in ``NAMES`` there, and its axis' label
              in ``plotting.captions.axis``. It returns name → tensor for what it moves; nothing but a random direction
              is ever rescaled.
a sharpness   a function (model, data, …) → `Sharpness` in ``flatness``, from ``balls.mean_increases`` or
              ``balls.largest_increases``, and a row in ``flatness.sharpness_table.MEASURES``.
a quantity    of `compare`: a `Measured` with error bars in ``comparison._measure``, its label in ``_LABELS``.
a result      a frozen dataclass that derives from `Result`; ``columns`` names what `frame` shows. Files, the table in a
              notebook and the pictures follow from it.
a plot        a description in ``plotting``, of curves, bands and bars from arrays and attributes, which a result's
              class names: plotly and matplotlib both draw it.
a format      of other people's files: a reader in ``io`` that `load` chooses by what the file holds.
"""

import sys
from importlib.metadata import PackageNotFoundError, version

from .auditing import audit
from .checking import check_public
from .comparison import Comparison, compare
from .curvature import GGN, Hessian, ScaleCurvature, curvature_at_scale, density, top_eigenvalues, trace
from .explorer import Explorer, explore, page
from .flatness import (
    RoundingSharpness,
    Sensitivity,
    Sharpness,
    SharpnessTable,
    average_sharpness,
    rounding_sharpness,
    sensitivity,
    sharpness,
    worst_case_sharpness,
)
from .io import load
from .linalg import Density, Eigenvalues, Operator, Trace
from .model import Objective
from .monitoring import Monitor, TrainingCurvature
from .parallel import check_agreement
from .plotting import (
    draw_history,
    draw_layers,
    draw_together,
    paper_style,
    plot_history,
    plot_layers,
    plot_together,
    save_animation,
    save_figure,
)
from .results import Result, plotted
from .surfaces import (
    Basin,
    BatchNormCheck,
    Line,
    Surface,
    Trajectory,
    basin,
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
plot_basin = plotted(basin)
plot_sensitivity = plotted(sensitivity)

# fmt: off
__all__ = [
    "Objective", "Hessian", "GGN", "Operator",
    "trace", "top_eigenvalues", "density", "curvature_at_scale",
    "sharpness", "rounding_sharpness", "worst_case_sharpness", "average_sharpness", "sensitivity",
    "line", "surface", "plot_line", "plot_surface", "trajectory", "batchnorm_check", "basin", "plot_basin",
    "plot_trace", "plot_top_eigenvalues", "plot_density", "plot_curvature_at_scale", "plot_sharpness",
    "plot_sensitivity",
    "plot_layers", "draw_layers", "plot_history", "draw_history",
    "plot_together", "draw_together", "paper_style", "save_figure", "save_animation",
    "compare", "explore", "page", "load", "audit",
    "Result", "Trace", "Eigenvalues", "Density", "Sharpness", "SharpnessTable", "RoundingSharpness",
    "Sensitivity", "ScaleCurvature", "Line", "Surface", "Trajectory", "BatchNormCheck", "Basin", "Comparison",
    "Explorer", "Monitor", "TrainingCurvature",
]
# fmt: on
check_public(sys.modules[__name__], check_agreement)
try:
    __version__ = version("saq-landscape")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
