"""How a statement says what its tests say: a verdict is read off them, never written by hand."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from ..study import Judged, marked

WIDTH = 140
LEGEND = (
    "**bold** survives Holm's correction at 5 %, *italic* Benjamini and Hochberg's only; of the rest we cannot tell"
)


def joined(names: Iterable[str]) -> str:
    """Return "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def conclude(tests: Mapping[str, Judged], sign: int) -> str:
    """Return whether a claim holds: that every difference has this sign. Corrected over whatever `tests` came from."""
    by_verdict = {
        (verdict, way): [name for name, test in tests.items() if test.verdict == verdict and test.mean * way > 0]
        for verdict in ("holm", "bh")
        for way in (sign, -sign)
    }
    words = {
        ("holm", sign): "yes for",
        ("bh", sign): "yes, by Benjamini-Hochberg only, for",
        ("holm", -sign): "the opposite for",
        ("bh", -sign): "the opposite, by Benjamini-Hochberg only, for",
    }
    if len(by_verdict["holm", sign]) == len(tests):
        return "yes" if len(tests) == 1 else f"yes for {'both' if len(tests) == 2 else 'all'}"
    parts = [f"{words[key]} {joined(names)}" for key, names in by_verdict.items() if names]
    if not parts:
        return "cannot tell"
    whole = sum(map(len, by_verdict.values())) == len(tests)
    return "; ".join(parts) + ("" if whole else "; else we cannot tell")


def listed(tests: Mapping[str, Judged], unit: str = "") -> str:
    """Return every difference with its interval and the mark of its verdict."""
    return ", ".join(f"{name} {marked(test)}{unit}" for name, test in tests.items())


def upper(text: str) -> str:
    """Return text with a capital at its beginning, as a sentence has."""
    return (text[0].upper() if text[0].isascii() else text[0]) + text[1:]


def paragraph(text: str, indent: str = "") -> str:
    """Return text wrapped as the documents are."""
    options = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": indent}
    return textwrap.fill(" ".join(text.split()), WIDTH, **options)


def bullets(texts: Sequence[str]) -> str:
    """Return a list, an item per text."""
    return "\n".join(paragraph(f"- {text}", "  ") for text in texts)


def claimed(claim: str, verdict: str, *details: str) -> str:
    """Return what stands under a figure: the paper's claim, what our data say of it, and the numbers."""
    return paragraph(f"*Claim: {claim}.* **{upper(verdict)}.** {' '.join(details)}")
