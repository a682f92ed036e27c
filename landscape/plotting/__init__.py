"""Pictures with plotly and with matplotlib: this wing knows arrays and attributes, and imports no result class.

How to add a plot, say of ``Drift``:

1. Write `describe_drift(drift, *, scale="auto") -> Chart` in one module here, ``drifts.py``: curves, bands, levels and
   bars on two axes, from attributes of ``drift`` alone. `captions.caption` says what was measured, `values.is_log`
   decides on the scale. What is no chart is described by a class of its own, as `surfaces` and `trajectories` do.
2. End with ``plot_drift, draw_drift = pictures(describe_drift, interactive.plot, paper.draw)``: both take the options
   of the description, and a title.
3. Write ``picture = "drifts.drift"`` into the class: `Result.plot` and `Result.draw` find both functions by it.
4. Put it into RESULTS of ``tests/test_pictures.py``, and look at it.
"""

from importlib import import_module
from typing import Any, Literal

from .history import draw_history, plot_history
from .layers import draw_layers, plot_layers
from .together import draw_together, paper_style, plot_together, save_animation, save_figure, thumbnail
from .values import Kind, Scale


def drawing_function(picture: str, how: Literal["plot", "draw"]) -> Any:
    """Return the function that draws a picture, "module.name", by `how`."""
    module, _, name = picture.partition(".")
    return getattr(import_module(f".{module}", __name__), f"{how}_{name}")
