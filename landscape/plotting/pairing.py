"""Two pictures of whatever is described once: `plot` with plotly, and behind it, or alone, `draw` with matplotlib."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def plotted(described: T, title: str | None, plot: Callable[..., Any], draw: Callable[..., Any]) -> Any:
    """Draw what is described with plotly; where no front end draws that, the picture by matplotlib stands there."""
    figure = plot(described, title)
    figure._print = functools.partial(draw, described, None, title)
    return figure


def pictures(
    describe: Callable[..., T], plot: Callable[..., Any], draw: Callable[..., Any], **defaults: Any
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return ``plot_x`` and ``draw_x``, which draw what a function describes, and take its options and ``title=``.

    Args:
        describe: (result, options) → what is to be drawn.
        plot: (described, title) → plotly's figure.
        draw: (described, axes or None, title) → matplotlib's.
        defaults: options that ``draw_x`` has another default for.
    """

    @functools.wraps(describe)
    def plot_x(result: Any, *, title: str | None = None, **options: Any) -> Any:
        return plotted(describe(result, **options), title, plot, draw)

    @functools.wraps(describe)
    def draw_x(result: Any, ax: Any = None, *, title: str | None = None, **options: Any) -> Any:
        return draw(describe(result, **defaults | options), ax, title)

    result, *options = inspect.signature(describe).parameters.values()
    options.append(inspect.Parameter("title", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="str | None"))
    ax = inspect.Parameter("ax", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation="Axes | None")
    others = [option.replace(default=defaults.get(option.name, option.default)) for option in options]
    vars(plot_x)["__signature__"] = inspect.Signature([result, *options])
    vars(draw_x)["__signature__"] = inspect.Signature([result, ax, *others])
    return plot_x, draw_x
