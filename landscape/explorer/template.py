"""The page's template, filled: its script's data, the pictures of results, and the policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from ..results import Result
from ..surfaces import Basin
from .wording import plain_table

_ROWS = 20  # of a table that is open from the start


def pictured(name: str, result: Result) -> str:
    """Return a section with a result's pictures and its table."""
    from ..plotting.paper import png

    views: list[dict[str, Any]] = [{}]
    if isinstance(result, Basin):
        views = [{"view": view} for view in ("plane", "lines", "layers")[not result.surfaces :]]
    images = [base64.b64encode(png(result.draw(**view))).decode() for view in views]
    heading = html.escape(" · ".join(filter(None, [name, type(result).__name__])))
    pictures = "".join(f'<img class="print" alt="{heading}" src="data:image/png;base64,{image}">' for image in images)
    below = f'<p class="soft small">{html.escape(" · ".join(filter(None, [result._caption(), result.how])))}</p>'
    table = plain_table(result)
    if len(result.table) > _ROWS:
        table = f"<details><summary>All numbers</summary>{table}</details>"
    return f"<section><h2>{heading}</h2>{pictures}{table}{below}</section>"


def script_json(value: Any) -> str:
    """Return JSON that ends no script: without <, > and &, and without JavaScript's line separators."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def asset(name: str) -> str:
    """Return the text of a file beside this one."""
    return (files(__package__) / name).read_text("utf-8")


def filled(fields: Mapping[str, str]) -> bytes:
    """Fill the template, in one pass: a name that looks like a field stays what it is; allow its own script alone."""
    own = {"SCRIPT": asset("page.js"), "STYLE": asset("page.css")}
    hashes = {name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for name, text in own.items()}
    images = "img-src data:; " if fields["OTHERS"] else ""
    sources = f"{images}script-src 'sha256-{hashes['SCRIPT']}'; style-src 'sha256-{hashes['STYLE']}'"
    fields = {**fields, **own, "POLICY": f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"}
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda found: fields[found[1]], asset("page.html")).encode()
