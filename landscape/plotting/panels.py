"""Several charts in one figure, up to three in a row: `plot` with plotly, `draw` with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from . import interactive, paper
from .charts import Chart
from .style import ONE_COLUMN, TWO_COLUMNS, at, laid_out


def plot(charts: Sequence[Chart], title: str | None = None) -> go.Figure:
    """Draw charts side by side with plotly, up to three in a row."""
    high, wide = laid_out(len(charts))
    between = {"horizontal_spacing": 0.1, "vertical_spacing": 0.2}
    figure = make_subplots(high, wide, figure=interactive.empty_figure(), **between)
    for index, chart in enumerate(charts):
        interactive.add_chart(figure, chart, **at(index, len(charts)))
    interactive.finish(figure, title or "", [])
    figure.update_layout(height=120 + 260 * high, showlegend=True, legend_tracegroupgap=0)
    return figure


def draw(charts: Sequence[Chart], axes: Any = None, title: str | None = None) -> Figure:
    """Draw charts side by side with matplotlib, up to three in a row; into axes the first ones, as many as they are."""
    high, wide = laid_out(len(charts))
    with paper.style():
        is_whole = axes is None or len(np.ravel(axes)) == len(charts)
        if axes is None:
            size = (TWO_COLUMNS if wide > 1 else ONE_COLUMN, 2.3 + 1.9 * (high - 1))
            axes = plt.figure(figsize=size, layout="constrained").subplots(high, wide)
            for ax in np.ravel(axes)[len(charts) :]:
                ax.remove()
        axes = list(np.ravel(axes))
        for ax, chart in zip(axes, charts, strict=False):
            paper.add_chart(ax, chart)
            if chart.empty:
                paper.say_empty(ax, chart.empty)
        if title:
            axes[0].figure.suptitle(title, fontsize=8) if is_whole else axes[0].set_title(title)
    return paper.figure_of(axes[0])
