"""The curves of a training over its epochs: `interactive` with plotly, `paper` with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as Interactive

Curves = Mapping[str, Sequence[float]]
LABELS = {"loss": "training", "val_loss": "validation"}


def interactive(epochs: Sequence[int], curves: Curves) -> Interactive:
    """Return a plotly figure with a line for each curve; values that are not finite are gaps."""
    from .interactive import empty_figure, finish

    figure = empty_figure()
    for name, values in curves.items():
        figure.add_scatter(x=list(epochs), y=list(values), name=LABELS.get(name, name), mode="lines+markers")
    figure.update_xaxes(title="epoch")
    figure.update_yaxes(title="loss")
    finish(figure, "Loss over the training", [])
    return figure


def paper(epochs: Sequence[int], curves: Curves, ax: Axes | None = None) -> Figure:
    """Draw a line for each curve with matplotlib, into `ax` or a new figure; return the figure."""
    import matplotlib.pyplot as plt

    from .paper import ONE_COLUMN
    from .together import paper_style

    with paper_style():
        ax = ax or plt.figure(figsize=(ONE_COLUMN, 2.3), layout="constrained").add_subplot()
        for (name, values), line in zip(curves.items(), ("-", "--", ":", "-."), strict=False):
            ax.plot(epochs, values, line, marker="o", label=LABELS.get(name, name))
        ax.set(xlabel="epoch", ylabel="loss")
        ax.legend(frameon=False)
    return cast("Figure", ax.figure)
