"""What results and settings share: one line of text, a table, and both of them in a notebook."""

from __future__ import annotations

import html
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pandas import DataFrame


class Shown:
    """Show, in a notebook, the one-line repr and the table `frame`, both escaped."""

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
        table = self.frame.to_html(max_rows=20, border=0)
        return f"<p><code>{html.escape(repr(self))}</code></p>{self._picture()}{table}"


class Settings(Shown):
    """A dataclass of settings, whose repr holds what differs from the defaults."""

    def __repr__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in fields(cast(Any, self)) if getattr(self, f.name) != f.default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    def _rows(self) -> list[dict[str, Any]]:
        return [{"setting": f.name, "value": repr(getattr(self, f.name))} for f in fields(cast(Any, self))]
