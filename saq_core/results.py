"""What results and settings share: one line of text, a table, and both of them in a notebook."""

from __future__ import annotations

import html
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pandas import DataFrame


class Shown:
    """Show, in a notebook, the one-line repr and the table `frame`, both escaped."""

    @property
    def frame(self) -> DataFrame:
        """The content as a pandas table."""
        raise NotImplementedError

    def _picture(self) -> str:
        return ""

    def _repr_html_(self) -> str:
        return (
            f"<p><code>{html.escape(repr(self))}</code></p>{self._picture()}{self.frame.to_html(max_rows=20, border=0)}"
        )


class Settings(Shown):
    """A dataclass of settings, whose repr holds what differs from the defaults."""

    def __repr__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in fields(cast(Any, self)) if getattr(self, f.name) != f.default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    @property
    def frame(self) -> DataFrame:
        """A row for each setting: its name and its value."""
        from pandas import DataFrame

        rows = [(f.name, repr(getattr(self, f.name))) for f in fields(cast(Any, self))]
        return DataFrame(rows, columns=["setting", "value"])
