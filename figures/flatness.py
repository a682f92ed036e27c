"""Are quantized networks flatter? By bits, method, measure and unit, at matched epochs and at matched probe loss.

Networks of one family: the float one tuned as long as its quantized copies, those trained with the rounding (LSQ, SGD),
and those rounded after training, by GPTQ and to the nearest level; and float networks trained for fewer epochs, between
which a measure is read off at the probe loss of a quantized one. Run from the top folder; networks are kept in
build/runs, a row per network in flatness.jsonl beside this file:

    python -m figures.flatness run --family digits-resnet8 --seeds 0 1 2 3 4           (an hour on one core)
    python -m figures.flatness run --family cifar10-resnet20 --seeds 0 1 2 --root DIR  (a day on one core)
    python -m figures.flatness table
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import saq_core

from .drawing import legend, note, panels
from .measures import MEASURES, UNITS, all_measures, command_line, objective_of, settings_of, tested
from .study import RUNS, Judged, append, judge, markdown, read

ROWS = Path(__file__).with_suffix(".jsonl")
KEYS = ("family", "method", "bits", "seed")
BITS = (8, 4, 3, 2)
WIDTHS = {"digits-resnet8": BITS, "cifar10-resnet20": (4, 2)}
EPOCHS = {"digits-resnet8": (2, 3, 5, 8), "cifar10-resnet20": (5, 10)}  # of float networks that fit less
METHODS = {
    "qat": ("QAT (LSQ)", "#D55E00", "o"),
    "gptq": ("GPTQ", "#0072B2", "s"),
    "nearest": ("Nearest", "#777777", "^"),
}  # label, colour, mark
ROUNDED = ("gptq", "nearest")  # after training
ACTIVATIONS = {"weights": "W{0}A32", "both": "W{0}A{0}"}

Rows = dict[tuple[str, str], dict[int, dict[str, Any]]]  # (method, bits) -> seed -> row


def wanted(family: str, seeds: list[int]) -> Iterator[tuple[str, str, str, int]]:
    """Return the keys of all networks, those that are trained before those that are rounded."""
    widths = [form.format(b) for b in WIDTHS[family] for form in ACTIVATIONS.values()]
    for seed in seeds:
        yield from ((family, "fp32", epochs, seed) for epochs in ("tuned", "start", *map(str, EPOCHS[family])))
        yield from ((family, "qat", bits, seed) for bits in widths)
    yield from ((family, method, bits, seed) for seed, bits, method in product(seeds, widths, ROUNDED))


def experiment(family: str, method: str, bits: str) -> saq_core.Experiment:
    """Return the training of a network, or of the one that is rounded afterwards."""
    base = saq_core.EXPERIMENTS[family]
    if method == "qat":
        sgd = saq_core.EXPERIMENTS[f"{family}-w4a4-sgd"]
        return replace(sgd, name=f"{family}-{bits.lower()}-sgd", bits=bits)
    if bits.isdigit():
        return replace(base, name=f"{family}-epochs{bits}", recipe=replace(base.recipe, epochs=int(bits)))
    return base if bits == "start" else saq_core.EXPERIMENTS[f"{family}-fp32"]


def run(family: str, root: str | None, seeds: list[int], **how: Any) -> None:
    """Train, round and measure what has no row yet."""
    done, base = read(ROWS, *KEYS), saq_core.EXPERIMENTS[family]
    data = saq_core.load_data(base.data, root, limit=base.limit)
    for keys in wanted(family, seeds):
        if keys in done:
            continue
        (_, method, bits, seed), chosen = keys, experiment(*keys[:3])
        model = saq_core.reproduce(chosen, root, seed=seed, out=RUNS, **how)
        if method == "gptq":
            model = saq_core.gptq(model, data, bits)
        if method == "nearest":
            model = saq_core.calibrate(saq_core.quantize(model, bits), data)
        found = all_measures(objective_of(model, data, family)) | tested(model, data)
        found["settings"] = settings_of(f"{RUNS}/{chosen.name}-{seed}")
        append(ROWS, dict(zip(KEYS, keys, strict=True)) | found)


def rows_of(family: str) -> Rows:
    """Return the rows of a family by method and bits, then seed."""
    found: Rows = {}
    for (own, method, bits, seed), row in sorted(read(ROWS, *KEYS).items()):
        if own == family:
            found.setdefault((method, bits), {})[seed] = row
    return found


def value(row: dict[str, Any], measure: str, units: str) -> float:
    """Return what is compared: the logarithm of a measure, a share as it is; NaN where an ascent did not converge."""
    own = row[f"{measure}_{units}"]
    if measure == "worst" and not row[f"converged_{units}"]:
        return math.nan
    return own if measure == "negative" else math.log(own) if own > 0 else math.nan


def at_loss(rows: Rows, seed: int, loss: float, measure: str, units: str) -> float:
    """Return the value that the float network of a seed has at a probe loss, between those of fewer and more epochs.

    Linear in log loss between the two that enclose it; NaN outside of what was trained.
    """
    own = [seeds[seed] for (method, _), seeds in rows.items() if method == "fp32" and seed in seeds]
    points = sorted((math.log(row["loss"]), value(row, measure, units)) for row in own)
    x, y = np.array([point for point in points if not math.isnan(point[1])]).reshape(-1, 2).T
    inside = len(x) > 1 and x[0] <= math.log(loss) <= x[-1]
    return float(np.interp(math.log(loss), x, y)) if inside else math.nan


def compared(rows: Rows, matched: str, methods: tuple[str, ...] = ("qat",)) -> dict[tuple[str, str, str, str], Judged]:
    """Test quantized networks against the float one, at matched "epochs" or "loss".

    (method, bits, measure, units) -> the mean over the seeds of the difference of `value`: a log ratio, or of shares.
    QAT at 4, 3 and 2 bits is one table; 8 bits, where nothing is expected, are another, and so is rounding afterwards.
    No variance is borrowed: it grows as the bits get fewer, so what 4 bits scatter says nothing about 2.
    """
    differences: dict[tuple[str, str, str, str], list[float]] = {}
    for (method, bits), seeds in rows.items():
        if method not in methods:
            continue
        for measure, units in product(MEASURES, UNITS):
            base = {
                seed: value(rows["fp32", "tuned"][seed], measure, units)
                if matched == "epochs"
                else at_loss(rows, seed, row["loss"], measure, units)
                for seed, row in seeds.items()
                if seed in rows.get(("fp32", "tuned"), {})
            }
            own = [value(seeds[seed], measure, units) - there for seed, there in base.items()]
            differences[method, bits, measure, units] = [d for d in own if not math.isnan(d)]
    tables = [{k: d for k, d in differences.items() if (k[1][1] == "8") == control} for control in (False, True)]
    return {key: test for own in tables for key, test in judge(own).items()}


def verdict(judged: Judged | None) -> str:
    """Return "flatter", "sharper", or "cannot tell", by Holm's correction over the table."""
    if judged is None or judged.verdict != "holm":
        return "cannot tell"
    return "flatter" if judged.mean < 0 else "sharper"


def ratio(judged: Judged | None, measure: str) -> str:
    """Return a ratio to the float network (a difference of shares) with its interval; bold if it survives Holm."""
    if judged is None:
        return "–"
    numbers = [judged.mean, *judged.interval]
    told = [f"{x:+.2f}".replace("-", "−") if measure == "negative" else f"{math.exp(x):.2f}" for x in numbers]
    text = f"{told[0]} [{told[1]}, {told[2]}]"
    return {"holm": f"**{text}**", "bh": f"*{text}*", "none": text}[judged.verdict]


def tests_of(rows: Rows, matched: str) -> dict[tuple[str, str, str, str], Judged]:
    """Return the tests of both tables."""
    return compared(rows, matched) | compared(rows, matched, ROUNDED)


def table(
    family: str = "digits-resnet8", matched: str = "epochs", units: str = "filter", methods: tuple[str, ...] = ("qat",)
) -> list[list[str]]:
    """Return quantized networks' measures as ratios to the float network's, with 95 % intervals; titles first."""
    rows = rows_of(family)
    tests = compared(rows, matched, methods)
    found = [["", "networks", "probe loss", "accuracy, %", "corrupted, %", *MEASURES.values()]]
    for (method, bits), seeds in sorted(rows.items(), key=lambda pair: _order(*pair[0])):
        own = [tests.get((method, bits, measure, units)) for measure in MEASURES]
        if method not in methods and (method != "fp32" or matched == "loss"):
            continue
        name = f"FP32, {bits}{' epochs' * bits.isdigit()}" if method == "fp32" else f"{METHODS[method][0]}, {bits}"
        means = [np.mean([row[c] for row in seeds.values()]) for c in ("loss", "accuracy", "corrupted")]
        cells = [ratio(judged, measure) for judged, measure in zip(own, MEASURES, strict=True)]
        found.append([name, str(len(seeds)), f"{means[0]:.2g}", f"{means[1]:.1f}", f"{means[2]:.1f}", *cells])
    return found


def _order(method: str, bits: str) -> tuple[Any, ...]:
    return (
        method != "fp32",
        "A32" not in bits,
        -int(bits[1]) if bits[1:2].isdigit() and method != "fp32" else 0,
        bits,
        method,
    )


def draw(family: str = "digits-resnet8", matched: str = "epochs") -> Any:
    """Draw the ratio to the float network against the bits: a panel for every measure, a row for each unit."""
    tests = tests_of(rows_of(family), matched)
    figure, axes = panels(len(MEASURES), 1.7, len(UNITS))
    for panel, (ax, (units, measure)) in enumerate(zip(axes, product(UNITS, MEASURES), strict=True)):
        ax.axhline(0 if measure == "negative" else 1, color="0.5", linewidth=0.6)
        for place, ((method, (label, colour, mark)), (kind, form)) in enumerate(
            product(METHODS.items(), ACTIVATIONS.items())
        ):
            keys = [(method, form.format(bits), measure, units) for bits in WIDTHS[family]]
            points = [(x, tests[key]) for x, key in enumerate(keys) if key in tests]
            if not points:
                continue
            shown = (lambda y: y) if measure == "negative" else np.exp
            means = np.array([shown(judged.mean) for _, judged in points])
            ends = np.array([[shown(end) for end in judged.interval] for _, judged in points])
            x = np.array([x for x, _ in points]) + 0.1 * (place - 2.5)
            filled = {"mfc": colour if kind == "both" else "white", "ms": 3.2, "color": colour}
            name = f"{label}, {'weights' if kind == 'weights' else 'weights and activations'}"
            ax.errorbar(x, means, np.abs(ends.T - means), fmt="none", lw=0.8, color=colour, alpha=0.5)
            ax.plot(x, means, mark, linestyle="-" if kind == "both" else ":", lw=0.6, label=name, **filled)
        ax.set_xticks(range(len(WIDTHS[family])), map(str, WIDTHS[family]))
        if measure != "negative":
            ax.set_yscale("log")
            shown_means = [np.exp(test.mean) for key, test in tests.items() if key[2:] == (measure, units)]
            ax.set_ylim(0.2 * min(shown_means, default=1), 5 * max(shown_means, default=1))  # intervals may leave it
        if panel < len(MEASURES):
            ax.set_title(MEASURES[measure], fontsize=8)
        else:
            ax.set_xlabel("Bits")
        if measure == next(iter(MEASURES)):
            ax.set_ylabel(f"{units} / FP32")
    legend(figure, axes[0], 3)
    how = "float network tuned as long" if matched == "epochs" else "float network at the same probe loss"
    note(figure, f"{family}; {how}; paired by seed, 95 % intervals; negative share: a difference")
    return figure


def _tables(family: str) -> str:
    parts = product(("epochs", "loss"), UNITS)
    return "\n".join(f"matched {how}, {units} units\n\n{markdown(table(family, how, units))}" for how, units in parts)


if __name__ == "__main__":
    command_line(__doc__, run, _tables)
