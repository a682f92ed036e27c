"""A picture for print behind every interactive one: where no front end draws plotly, matplotlib's stands there."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
Picture = TypeVar("Picture")


def paired(plot: Callable[P, Picture]) -> Callable[P, Picture]:
    """Let what ``plot_x`` returns know how ``draw_x`` of the same module, with the same options, draws it."""
    options = {p.name: p.default for p in inspect.signature(plot).parameters.values() if p.kind is p.KEYWORD_ONLY}
    name = plot.__name__.replace("plot_", "draw_", 1)

    @functools.wraps(plot)
    def run(*args: P.args, **kwargs: P.kwargs) -> Picture:
        figure: Any = plot(*args, **kwargs)
        figure._print = functools.partial(getattr(sys.modules[plot.__module__], name), *args, **(options | kwargs))
        return figure

    return run
