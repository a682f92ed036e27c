"""Two pictures of whatever is described once: `plot` with plotly, and behind it, or alone, `draw` with matplotlib."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal


@functools.cache
def drawing_function(picture: str, how: Literal["plot", "draw"]) -> Callable[..., Any]:
    """Return what draws a picture, "module.name", by `how`; it takes the options of ``describe_name`` and ``title=``.

    What is described is drawn by the module's own ``plot`` (described, title) and ``draw`` (described, axes or None,
    title), or as a chart. Its ``DRAWN`` has the options that ``draw`` has another default for.
    """
    from . import interactive, paper

    module, _, name = picture.partition(".")
    own = import_module(f".{module}", __package__)
    describe: Callable[..., Any] = getattr(own, f"describe_{name}")
    plot, draw = getattr(own, "plot", interactive.plot), getattr(own, "draw", paper.draw)
    defaults = getattr(own, "DRAWN", {})

    @functools.wraps(describe)
    def plot_x(result: Any, *, title: str | None = None, **options: Any) -> Any:
        described = describe(result, **options)
        figure = plot(described, title)
        figure._print = functools.partial(draw, described, None, title)  # stands where no front end draws plotly's
        return figure

    @functools.wraps(describe)
    def draw_x(result: Any, ax: Any = None, *, title: str | None = None, **options: Any) -> Any:
        return draw(describe(result, **defaults | options), ax, title)

    result, *options = inspect.signature(describe).parameters.values()
    options.append(inspect.Parameter("title", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="str | None"))
    ax = inspect.Parameter("ax", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation="Axes | None")
    others = [option.replace(default=defaults.get(option.name, option.default)) for option in options]
    vars(plot_x)["__signature__"] = inspect.Signature([result, *options])
    vars(draw_x)["__signature__"] = inspect.Signature([result, ax, *others])
    return plot_x if how == "plot" else draw_x
