"""Pictures with plotly and with matplotlib: this wing knows arrays and attributes, and imports no result class.

How to add a plot, say of ``Drift``:

1. Write `describe_drift(drift, *, scale="auto") -> Chart` in one module here, ``drifts.py``: curves, bands, levels and
   bars on two axes, from attributes of ``drift`` alone. `captions.caption` says what was measured, `values.is_log`
   decides on the scale. What is no chart is described by a class of its own, as `surfaces` and `trajectories` do.
   A module that has a ``plot`` and a ``draw`` of its own is drawn by these.
2. Write ``picture = "drifts.drift"`` into the class: `Result.plot` and `Result.draw` find the description by it, and
   take its options and a title.
3. Put it into RESULTS of ``tests/test_pictures.py``, and look at it.
"""

from .history import draw_history, plot_history
from .layers import draw_layers, plot_layers
from .pairing import drawing_function
from .together import draw_together, paper_style, plot_together, save_animation, save_figure, thumbnail
from .values import Kind, Scale
