"""Colours, widths and panels that all pictures share."""

from __future__ import annotations

# Okabe and Ito's colours, which colour-blind readers can distinguish; yellow is left out, too pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
HIGHLIGHT = "#D55E00"
DOUBTFUL = "#888888"
ONE_COLUMN, TWO_COLUMNS = 3.25, 6.75  # inches, as ICML has them


def colour_of(index: int) -> str:
    """Return the colour of a curve."""
    return COLOURS[index % len(COLOURS)]


def laid_out(panels: int) -> tuple[int, int]:
    """Return how many rows of panels there are, and how many stand in a row: up to three, and four as two by two."""
    wide = 2 if panels == 4 else min(panels, 3)
    return -(-panels // wide), wide


def numbered(axis: str, index: int) -> str:
    """Return what plotly calls the axis of a panel: the first has no number."""
    return f"{axis}{index + 1}" if index else axis


def at(index: int, panels: int) -> dict[str, int]:
    """Return the row and column of a panel, as plotly counts them."""
    _, wide = laid_out(panels)
    return {"row": index // wide + 1, "col": index % wide + 1}
