"""Pictures with plotly and with matplotlib: this wing knows arrays and attributes, and imports no result class.

How to add a plot, say of ``Drift``:

1. Write `plot_drift(drift, *, scale="auto", title=None)` (plotly, returns its figure) and
   `draw_drift(drift, ax=None, *, scale="auto", title=None)` (matplotlib, returns the figure of ``ax``) in one module
   here, ``drifts.py``, the first of them below ``@paired``: where no front end draws plotly's picture (GitHub,
   nbconvert), the second stands there. Both take the same options and read attributes of ``drift`` alone.
2. Begin with ``interactive.empty_figure()`` and end with ``interactive.finish(figure, title, notes)``; for print, draw
   inside of ``with paper.style():`` into ``ax or paper.new_axes(2.3)``, then `paper.label_axes`, `paper.entitle`, and
   return ``paper.figure_of(ax)``. `captions.caption` says what was measured, `values.is_log` decides on the scale.
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
