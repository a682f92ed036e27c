"""The sentences with numbers of README.md and figures/README.md, made from the rows and from the figures' data.

    python -m figures.statements        rewrites what stands between the markers in both documents

A sentence follows from what is computed: a row that changes changes the numbers, and the words with them.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..__main__ import FIGURES
from . import basins, bits, cifar, digits, flatness, summary

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "figures" / "README.md")
OF_FIGURES: dict[str, Callable[[str], str]] = {
    function.__name__: function
    for function in (
        cifar.cifar10_methods,
        flatness.flatness_accuracy,
        flatness.flatness_by_bits,
        flatness.dose_response,
        digits.saq_surfaces,
        digits.saq_staircase,
        digits.saq_radii,
        digits.saq_flips,
        digits.saq_curvature,
        digits.saq_fluctuation,
        digits.saq_steps,
        cifar.table_methods,
        digits.table_bops,
        digits.fpq_variance,
        digits.fpq_gradients,
        digits.fpq_channels,
        digits.fpq_histograms,
        digits.fpq_traces,
        cifar.table_fpq,
        bits.saq_bits,
        bits.saq_front,
        bits.asga_surfaces,
        bits.asga_convergence,
        bits.asga_proxies,
        bits.asga_bits,
        bits.sensitivity_front,
        bits.table_mixed,
        basins.basin_by_bits,
        basins.basin_of_text,
        digits.edge_of_stability,
    )
}
BLOCKS: dict[str, Callable[[], str]] = {
    "found": summary.found,
    "cifar10": lambda: f"{cifar.page()}\n{bits.page()}",
    "digits": flatness.page,
    **{name: partial(function, FIGURES[name].claim) for name, function in OF_FIGURES.items()},
}
BLOCK = re.compile(r"(<!-- (\w+): python -m figures\.statements -->\n).*?(\n<!-- end -->)", re.DOTALL)


def rewritten(text: str) -> str:
    """Return a document with every marked block as the rows have it."""
    return BLOCK.sub(lambda found: found[1] + BLOCKS[found[2]]() + found[3], text)


def main() -> None:
    """Rewrite both documents."""
    for document in DOCUMENTS:
        document.write_text(rewritten(document.read_text()))
