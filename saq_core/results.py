"""What results and settings share: one line of text, a table, and both of them in a notebook; settings are checked."""

from __future__ import annotations

import html
from dataclasses import asdict, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin, get_type_hints

from torch import nn

from landscape.checking import numbers, one_of

if TYPE_CHECKING:
    from pandas import DataFrame

RANGES: dict[str, dict[str, float]] = {
    ">= 0": {"at_least": 0},
    "> 0": {"above": 0},
    "from 0 to 1": {"at_least": 0, "at_most": 1},
    "from 0 to below 1": {"at_least": 0, "below": 1},
    "between 0 and 1": {"above": 0, "below": 1},
}


class Shown:
    """Show, in a notebook, a picture if there is one, the table `frame` and the one-line repr, both escaped."""

    def _rows(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _picture(self) -> str:
        return ""

    @property
    def frame(self) -> DataFrame:
        """The content as a pandas table: a row for each layer, weight, epoch or setting."""
        from pandas import DataFrame

        return DataFrame(self._rows())

    def _repr_html_(self) -> str:
        table = self.frame.to_html(max_rows=20, border=0, float_format=lambda number: f"{number:.4g}")
        return f"<div>{self._picture()}{table}<p>{html.escape(repr(self))}</p></div>"


class Settings(Shown):
    """A dataclass of settings, checked by `_check`, whose repr holds what differs from the defaults."""

    def _check(self, **rules: int | str) -> None:
        """Check all fields that are `Literal`, and those that `rules` names: by the least whole number or by `RANGES`.

        Numbers become Python's own: numpy's would not come back from a file.
        """
        for name, hint in get_type_hints(type(self)).items():
            value, rule = getattr(self, name), rules.get(name)
            if get_origin(hint) is Literal:
                one_of(name, value, hint)
            elif rule is not None:
                whole, optional = isinstance(rule, int), type(None) in get_args(hint)
                bounds: dict[str, Any] = {"at_least": rule} if isinstance(rule, int) else RANGES[rule]
                numbers(whole=whole, optional=optional, **bounds, **{name: value})
                if value is not None:
                    object.__setattr__(self, name, int(value) if whole else float(value))

    def stored(self) -> dict[str, Any]:
        """Return the settings as a file keeps them: functions by their names."""
        return {name: name_of(value) if callable(value) else value for name, value in asdict(cast(Any, self)).items()}

    def __repr__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in fields(cast(Any, self)) if getattr(self, f.name) != f.default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    def _rows(self) -> list[dict[str, Any]]:
        return [{"setting": f.name, "value": repr(getattr(self, f.name))} for f in fields(cast(Any, self))]


def name_of(function: Any) -> str:
    """Return the name of a function or class with its module, or the one that a file had of it."""
    if isinstance(function, partial):
        return f"{name_of(function.func)}({', '.join(f'{k}={v!r}' for k, v in function.keywords.items())})"
    if isinstance(function, nn.Module):  # a loss, with its settings
        kept = {k: v for k, v in vars(function).items() if k[0] != "_" and isinstance(v, bool | int | float | str)}
        kept |= {k: v.tolist() if hasattr(v, "tolist") else v for k, v in function.state_dict().items()}
        named = ", ".join(f"{k}={v}" for k, v in kept.items() if k != "training")
        return f"{name_of(type(function))}({named})"
    qualified = getattr(function, "__qualname__", type(function).__qualname__)
    return str(getattr(function, "name", f"{function.__module__}.{qualified}"))
