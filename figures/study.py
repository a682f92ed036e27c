"""What the studies share: rows in files, means over seeds, and the least difference that can be seen."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

RUNS = Path("build/runs")


def read(file: Path, *keys: str) -> dict[tuple, dict[str, Any]]:
    """Return the rows of a file of JSON lines by the values of their keys."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {tuple(row[key] for key in keys): row for row in map(json.loads, lines)}


def append(file: Path, row: dict[str, Any]) -> None:
    """Add a row to a file and print its plain values."""
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    print({key: value for key, value in row.items() if not isinstance(value, dict)}, flush=True)


def mean_and_error(values: Any) -> tuple[Any, Any]:
    """Return the mean over seeds, the first dimension, and its standard error (NaN for one)."""
    mean = np.mean(values, 0)
    return mean, np.std(values, 0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else mean * math.nan


def number(mean: float, error: float, sign: str = "") -> str:
    """Return "mean ± error" as far as there are any."""
    return "–" if math.isnan(mean) else f"{mean:{sign}.2f}" + ("" if math.isnan(error) else f" ± {error:.2f}")


def mean_shown(values: np.ndarray, sign: str = "") -> str:
    """Return mean and error over seeds, to two digits of the error."""
    return two_digits(*mean_and_error(values), sign)


def two_digits(mean: float, error: float, sign: str = "") -> str:
    """Return "mean ± error" to two digits of the error."""
    digits = max(0, 1 - math.floor(math.log10(error))) if error > 0 else 3
    return f"{mean:{sign}.{digits}f} ± {error:.{digits}f}".replace("-", "−")


def visible(differences: list[float]) -> float:
    """Return the difference that a paired t-test at 5 % on so many seeds finds four times out of five."""
    from scipy.stats import nct, t

    n = len(differences)
    if n < 2:
        return math.nan
    limit, low, high = t.ppf(0.975, n - 1), 0.0, 50.0
    for _ in range(60):  # of the noncentrality at which the power is 0.8
        middle = (low + high) / 2
        low, high = (middle, high) if nct.sf(limit, n - 1, middle) < 0.8 else (low, middle)
    return high * mean_and_error(differences)[1]


def markdown(rows: list[list[str]]) -> str:
    """Return a table whose first row holds the titles."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


LATEX = {"%": r"\%", "&": r"\&", "_": r"\_", "‰": r"\textperthousand{}", "–": "--", "−": "$-$", "±": r"$\pm$"}
LATEX |= {"×": r"$\times$", "·": r"$\cdot$", "λ": r"$\lambda$", "₁": "$_1$", "ₓ": "$_x$", "²": "$^2$", "ρ": r"$\rho$"}
LATEX |= {"Σ": r"$\Sigma$", "∇": r"$\nabla$", "ε": r"$\varepsilon$"}


def latex(rows: list[list[str]]) -> str:
    """Return the same for LaTeX with booktabs and textcomp."""
    signs = str.maketrans(LATEX)
    lines = [" & ".join(re.sub(r"(?<!\w)-(?=\d)", "−", cell).translate(signs) for cell in row) + r" \\" for row in rows]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    return f"\\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}\n{body}\n\\end{{tabular}}\n"
