"""What the studies share: rows in files, how numbers are shown, and how a table of paired differences is judged.

A table is judged at ALPHA as a whole. Seeds are few, so a difference borrows its variance from the other differences of
its group (`moderate`); t quantiles; Holm's correction over all that the table tests, and Benjamini and Hochberg's as
the weaker mark. Test accuracies of all seeds share their test images, which the scatter over seeds cannot see: see
`Images`. What is shown in brackets is a 95 % interval for one difference by itself.
"""

import base64
import json
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import special, stats

RUNS = Path("build/runs")
ALPHA = 0.05
FEWEST = 6  # differences of a group that share what is known of their variance: of fewer, d₀ is chance itself
DISAGREEMENT = 0.12  # of two networks' hits: the largest share seen, for rows that did not keep them


def read(file: Path, *keys: str) -> dict[tuple, dict[str, Any]]:
    """Return the rows of a file of JSON lines by the values of their keys."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {tuple(row[key] for key in keys): row for row in map(json.loads, lines)}


def append(file: Path, row: dict[str, Any]) -> None:
    """Add a row to a file and print its plain values."""
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    plain = {key: value for key, value in row.items() if not isinstance(value, dict) and key != "hits"}
    print(plain, flush=True)


def pack_hits(hits: Any) -> str:
    """Return which test images a network classifies rightly, in test order, as text: base64 of numpy.packbits."""
    return base64.b64encode(np.packbits(np.asarray(hits, bool)).tobytes()).decode()


def unpack_hits(text: str, images: int) -> np.ndarray:
    """Return the (images,) booleans that `pack_hits` wrote."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=images).astype(bool)


def mean_and_error(values: Any) -> tuple[Any, Any]:
    """Return the mean over seeds, the first dimension, and its standard error (NaN for one)."""
    mean = np.mean(values, 0)
    return mean, np.std(values, 0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else mean * math.nan


class Images(NamedTuple):
    """Variance of a mean accuracy difference that comes from the test images, in squared points.

    Hits of all seeds are on the same test images, so seeds and images are crossed: the variance of the mean is
    V(seeds) + V(images) - V(cells) (clustering in two ways: Cameron, Gelbach and Miller 2011), at least V(images).
    """

    shared: float  # V(images) - V(cells), at least 0: what an image does alike in every seed
    least: float  # V(images)


def images_of(hits: Sequence[np.ndarray], base_hits: Sequence[np.ndarray]) -> Images:
    """Return the variances over test images of the mean over paired seeds of the hits' differences."""
    differences = 100.0 * (np.asarray(hits, float) - np.asarray(base_hits, float))  # (seeds, images)
    seeds, images = differences.shape
    over_images = differences.mean(0).var(ddof=1) / images
    over_cells = differences.var(1, ddof=1).mean() / (seeds * images)
    return Images(max(0.0, over_images - over_cells), over_images)


def images_unknown(seeds: int, images: int, disagreement: float = DISAGREEMENT) -> Images:
    """Return the same where no hits were kept: of a share of images that two networks disagree on, new in every seed.

    Networks of this study disagree on 5 to 12 % of the test images, a variance of 100² times that share for an image.
    """
    return Images(0.0, 1e4 * disagreement / (seeds * images))


@dataclass(frozen=True)
class Judged:
    """A mean paired difference, its standard error and degrees of freedom, and p: as it is, after Holm, after BH."""

    mean: float
    error: float
    df: float
    n: int
    p: float
    holm: float = math.nan
    bh: float = math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 1 - ALPHA interval of this difference by itself."""
        half = stats.t.ppf(1 - ALPHA / 2, self.df) * self.error
        return self.mean - half, self.mean + half

    @property
    def verdict(self) -> Literal["holm", "bh", "none"]:
        """Which correction over the table the difference survives at ALPHA."""
        return "holm" if self.holm <= ALPHA else "bh" if self.bh <= ALPHA else "none"


def judge(
    differences: Mapping[Any, Sequence[float]],
    group: Callable[[Any], Hashable] = lambda key: key,
    images: Mapping[Any, Images] | None = None,
) -> dict[Any, Judged]:
    """Test the mean paired differences of one table against zero.

    Args:
        differences: key -> over the seeds; keys with fewer than two are left out.
        group: of a key: those of one group measure one quantity against one baseline, and share what is known of its
            variance; by default each stands alone.
        images: key -> what the test images add to the variance, for accuracies.
    """
    values = {key: np.asarray(own, float) for key, own in differences.items() if len(own) > 1}
    groups: dict[Hashable, list[Any]] = {}
    for key in values:
        groups.setdefault(group(key), []).append(key)
    found = {}
    for keys in groups.values():
        raw = np.array([values[key].var(ddof=1) for key in keys])
        variances, freedom = moderate(raw, np.array([len(values[key]) - 1.0 for key in keys]))
        for key, variance, df in zip(keys, variances, freedom, strict=True):
            shared, least = (images or {}).get(key, Images(0.0, 0.0))
            mean, n = values[key].mean(), len(values[key])
            over_seeds = variance / n
            if over_seeds > 0:  # Satterthwaite's; the images are so many that their part counts as known
                df *= (1 + shared / over_seeds) ** 2
            error = math.sqrt(max(over_seeds + shared, least))
            found[key] = Judged(float(mean), error, float(df), n, float(p_value(mean, error, df)))
    p = np.array([found[key].p for key in values])
    corrected = zip(values, holm(p), benjamini_hochberg(p), strict=True)
    return {key: replace(found[key], holm=float(h), bh=float(b)) for key, h, b in corrected}


def p_value(mean: Any, error: Any, df: Any) -> Any:
    """Return the two-sided p of Student's t; 1 for a difference of zero without an error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(2 * stats.t.sf(np.abs(mean) / np.asarray(error), df), nan=1.0)


def moderate(variances: np.ndarray, freedom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the moderated variances and degrees of freedom of the differences of one group, (..., differences).

    s̃² = (d₀s₀² + d s²) / (d₀ + d) with d₀ + d degrees of freedom, d₀ and s₀² as in `prior_of`. Departure: all
    differences of a group are taken to one baseline, so with equal variances they correlate by ½ and their s² by ¼,
    and n of them are worth no more than Σd / (1 + (n - 1)/4) degrees of freedom. d₀ + d is not let beyond that, and
    groups of less than FEWEST borrow nothing. Simulated tables of pure chance in the shape of the study's (54 tests of
    three seeds, Holm): 2 % have a mark where the methods' variances are alike, 4 % where the logarithms of their
    standard deviations scatter by 0.5, 11 % by 1; with limma's bound, Σd, 9, 19 and 32 %.

    Source: Smyth 2004; limma's squeezeVar.
    """
    if len(freedom) < FEWEST:
        return variances, freedom
    most = freedom.sum() / (1 + (len(freedom) - 1) / 4)
    prior, scale = (np.asarray(own)[..., None] for own in prior_of(variances, freedom))
    prior = np.clip(prior, 0.0, np.maximum(most - freedom, 0.0))
    return (prior * scale + freedom * variances) / (prior + freedom), prior + freedom


def prior_of(variances: np.ndarray, freedom: np.ndarray) -> tuple[Any, Any]:
    """Return d₀ and s₀² of limma's fitFDist, from the moments of log s²; d₀ = ∞ where one variance scatters as much."""
    pooled = (variances * freedom).sum(-1) / freedom.sum()
    least = np.maximum(1e-5 * np.median(variances, -1, keepdims=True), 1e-300)
    logs = np.log(np.maximum(variances, least)) - special.digamma(freedom / 2) + np.log(freedom / 2)
    excess = logs.var(-1, ddof=1) - special.polygamma(1, freedom / 2).mean()
    half = inverse_trigamma(np.where(excess > 0, excess, 1.0))
    scale = np.exp(logs.mean(-1) + special.digamma(half) - np.log(half))
    return np.where(excess > 0, 2 * half, math.inf), np.where(excess > 0, scale, pooled)


def inverse_trigamma(values: Any) -> np.ndarray:
    """Return x with trigamma(x) = values by Newton's steps on 1/trigamma, which is nearly linear (Smyth 2004)."""
    values = np.asarray(values, float)
    x = 0.5 + 1 / values
    for _ in range(20):
        trigamma = special.polygamma(1, x)
        x = x + trigamma * (1 - trigamma / values) / special.polygamma(2, x)
    return x


def holm(p: np.ndarray) -> np.ndarray:
    """Return Holm's adjusted p over the last dimension: those at most ALPHA hold together, whatever depends on what."""
    count, order = p.shape[-1], np.argsort(p, -1)
    steps = np.take_along_axis(p, order, -1) * np.arange(count, 0, -1)
    return _put_back(np.minimum(np.maximum.accumulate(steps, -1), 1.0), order)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Return Benjamini and Hochberg's adjusted p: of those at most ALPHA a share of ALPHA is expected to be chance."""
    count, order = p.shape[-1], np.argsort(p, -1)
    steps = np.take_along_axis(p, order, -1) * count / np.arange(1, count + 1)
    return _put_back(np.minimum(np.minimum.accumulate(steps[..., ::-1], -1)[..., ::-1], 1.0), order)


def _put_back(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    found = np.empty_like(values)
    np.put_along_axis(found, order, values, -1)
    return found


def fieller(ours: Sequence[float], whole: Sequence[float]) -> tuple[float, float]:
    """Return Fieller's 1 - ALPHA interval of mean(ours) / mean(whole), paired: the r with ours - r·whole near zero.

    It is the whole line where `whole` itself cannot be told from zero.
    """
    n, (a, b) = len(ours), (float(np.mean(own)) for own in (ours, whole))
    share = stats.t.ppf(1 - ALPHA / 2, n - 1) ** 2 / n
    (aa, ab), (_, bb) = share * np.cov(ours, whole)
    square = b * b - bb
    root = (a * b - ab) ** 2 - square * (a * a - aa)
    if square <= 0 or root < 0:
        return -math.inf, math.inf
    return (a * b - ab - math.sqrt(root)) / square, (a * b - ab + math.sqrt(root)) / square


def visible(differences: list[float]) -> float:
    """Return the difference that a paired t-test at 5 % on so many seeds finds four times out of five.

    For planning a study. As a verdict on the same differences it is a t-test of another level, which falls with seeds.
    """
    n = len(differences)
    if n < 2:
        return math.nan
    limit, low, high = stats.t.ppf(1 - ALPHA / 2, n - 1), 0.0, 50.0
    for _ in range(60):  # of the noncentrality at which the power is 0.8
        middle = (low + high) / 2
        low, high = (middle, high) if stats.nct.sf(limit, n - 1, middle) < 0.8 else (low, middle)
    return high * mean_and_error(differences)[1]


def number(mean: float, error: float, sign: str = "") -> str:
    """Return "mean ± error" as far as there are any."""
    return "–" if math.isnan(mean) else decimal(mean, 2, sign) + ("" if math.isnan(error) else f" ± {error:.2f}")


def decimal(value: float, digits: int, sign: str = "") -> str:
    """Return a number with a minus sign proper, and none before a zero."""
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def mean_shown(values: np.ndarray, sign: str = "") -> str:
    """Return mean and error over seeds, to two digits of the error."""
    return two_digits(*mean_and_error(values), sign)


def two_digits(mean: float, error: float, sign: str = "") -> str:
    """Return "mean ± error" to two digits of the error."""
    digits = digits_of(error)
    return f"{decimal(mean, digits, sign)} ± {error:.{digits}f}"


def digits_of(error: float) -> int:
    """Return the decimals that show two digits of an error."""
    return max(0, 1 - math.floor(math.log10(error))) if error > 0 else 3


def with_interval(judged: Judged) -> str:
    """Return "mean [low, high]" to two digits of the error."""
    digits, ends = digits_of(judged.error), judged.interval
    return f"{decimal(judged.mean, digits, '+')} [{', '.join(decimal(end, digits) for end in ends)}]"


def marked(judged: Judged) -> str:
    """Return the same, bold where it survives Holm, in italics where only Benjamini and Hochberg."""
    around = {"holm": "**", "bh": "*", "none": ""}[judged.verdict]
    return f"{around}{with_interval(judged)}{around}"


def markdown(rows: list[list[str]]) -> str:
    """Return a table whose first row holds the titles."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


LATEX = {"%": r"\%", "&": r"\&", "_": r"\_", "‰": r"\textperthousand{}", "–": "--", "−": "$-$", "±": r"$\pm$"}
LATEX |= {"×": r"$\times$", "·": r"$\cdot$", "λ": r"$\lambda$", "₁": "$_1$", "ₓ": "$_x$", "²": "$^2$", "ρ": r"$\rho$"}
LATEX |= {"Σ": r"$\Sigma$", "∇": r"$\nabla$", "ε": r"$\varepsilon$", "†": r"$\dagger$"}
FACES = {r"\*\*(.+?)\*\*": r"\\textbf{\1}", r"\*(.+?)\*": r"\\textit{\1}"}


def latex(rows: list[list[str]]) -> str:
    """Return the same for LaTeX with booktabs and textcomp."""

    def translated(cell: str) -> str:
        cell = re.sub(r"(?<!\w)-(?=\d)", "−", cell).translate(str.maketrans(LATEX))
        for pattern, face in FACES.items():
            cell = re.sub(pattern, face, cell)
        return cell

    lines = [" & ".join(map(translated, row)) + r" \\" for row in rows]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    return f"\\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}\n{body}\n\\end{{tabular}}\n"
