"""How large a radius ρ should SAQ take? Curvature, worst case and accuracy against ρ, chosen on the validation split.

Run from the top folder; networks are kept in build/runs, a row per network in dose.jsonl beside this file:

    python -m figures.dose run --family digits-resnet8 --seeds 0 1 2 3 4               (an hour on one core)
    python -m figures.dose run --family cifar10-resnet20 --seeds 0 --root DIR          (a day on one core)
    python -m figures.dose table
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import landscape
import saq_core

from .drawing import MARKERS, METHODS, legend, note, panels
from .measures import TEST_IMAGES, WORST, command_line, curvature, objective_of, settings_of, tested, worst_case
from .study import (
    RUNS,
    Judged,
    append,
    images_of,
    judge,
    markdown,
    marked,
    mean_and_error,
    mean_shown,
    read,
    unpack_hits,
)

ROWS = Path(__file__).with_suffix(".jsonl")
KEYS = ("family", "bits", "case", "rho", "seed")
BITS, CASES, RADII = ("W2A2", "W4A4"), (3, 2, 1), (0.05, 0.1, 0.2, 0.5, 1.0)
SHOWN = {
    "trace": "Trace",
    "top": "λ₁",
    "worst": "Worst-case increase",
    "loss": "Probe loss",
    "accuracy": "Test accuracy, %",
}


def experiment(family: str, bits: str, case: int, rho: float) -> saq_core.Experiment:
    """Return SAQ's training of a family at this radius; SGD's at ρ = 0."""
    base = saq_core.EXPERIMENTS[f"{family}-{bits.lower()}-{f'saq{case}' if rho else 'sgd'}"]
    if not rho:
        return base
    recipe = replace(base.recipe, sam=replace(base.recipe.sam, rho=rho))
    return replace(base, name=f"{family}-{bits.lower()}-saq{case}-rho{rho:g}", recipe=recipe)


def wanted(family: str, seeds: list[int]) -> Iterator[tuple[str, str, int, float, int]]:
    """Return the keys of all networks, whole seeds first."""
    for seed in seeds:
        for bits in BITS:
            yield family, bits, 0, 0.0, seed
            yield from ((family, bits, case, rho, seed) for case, rho in product(CASES, RADII))


def run(family: str, root: str | None, seeds: list[int], **changes: Any) -> None:
    """Train and measure what has no row yet."""
    done, limit = read(ROWS, *KEYS), saq_core.EXPERIMENTS[family].limit
    data = saq_core.load_data(saq_core.EXPERIMENTS[family].data, root, limit=limit)
    for keys in wanted(family, seeds):
        if keys in done:
            continue
        chosen, seed = experiment(*keys[:4]), keys[4]
        model = saq_core.reproduce(chosen, root, seed=seed, out=RUNS, **changes)
        function = objective_of(model, data, family)
        found = {"loss": float(function.centre.loss), "val_loss": saq_core.evaluate(model, data.val).loss}
        found |= curvature(landscape.Hessian(function).filter_relative()) | worst_case(function, "filter")
        settings = settings_of(f"{RUNS}/{chosen.name}-{seed}")
        append(ROWS, dict(zip(KEYS, keys, strict=True)) | found | tested(model, data) | {"settings": settings})


def rows_of(family: str) -> dict[tuple[str, int, float], dict[int, dict[str, Any]]]:
    """Return (bits, case, ρ) -> seed -> row; SGD is case 0 at ρ = 0."""
    found: dict[tuple[str, int, float], dict[int, dict[str, Any]]] = {}
    for (own, bits, case, rho, seed), row in sorted(read(ROWS, *KEYS).items()):
        if own == family:
            found.setdefault((bits, case, rho), {})[seed] = row
    return found


def chosen_radius(rows: dict[tuple[str, int, float], dict[int, dict[str, Any]]], bits: str, case: int) -> float | None:
    """Return the radius of the least mean loss on the validation split, over the seeds that all radii have."""
    own = {rho: rows[bits, case, rho] for rho in RADII if (bits, case, rho) in rows}
    shared = set.intersection(*map(set, own.values())) if len(own) == len(RADII) else set()
    losses = {rho: np.mean([seeds[seed]["val_loss"] for seed in shared]) for rho, seeds in own.items()}
    return min(losses, key=lambda rho: losses[rho]) if shared else None


def compared(rows: dict[tuple[str, int, float], dict[int, dict[str, Any]]]) -> dict[tuple[str, int, str], Judged]:
    """Test every case at its chosen radius against SGD, and Cases 1 and 3 against Case 2; (bits, case, column) -> test.

    Differences to Case 2 have the case as a negative number.
    """
    differences, images = {}, {}
    for bits in BITS:
        radii = {case: chosen_radius(rows, bits, case) for case in CASES}
        pairs = {case: ((bits, case, rho), (bits, 0, 0.0)) for case, rho in radii.items()}
        pairs |= {-case: ((bits, case, radii[case]), (bits, 2, radii[2])) for case in (1, 3)}
        for case, (ours, theirs) in pairs.items():
            if None in (*ours, *theirs) or theirs not in rows:
                continue
            both = [(rows[ours][s], rows[theirs][s]) for s in sorted(rows[ours].keys() & rows[theirs].keys())]
            for column in SHOWN:
                differences[bits, case, column] = [a[column] - b[column] for a, b in both if _holds(column, a, b)]
            if len(both) > 1:
                hits = zip(*(_hits(a, b) for a, b in both), strict=True)
                images[bits, case, "accuracy"] = images_of(*map(list, hits))
    return judge(differences, lambda key: (key[0], key[1] < 0, key[2]), images)


def trends(rows: dict[tuple[str, int, float], dict[int, dict[str, Any]]]) -> dict[tuple[str, str], Judged]:
    """Test how each column goes with ρ: a seed's slope against log₂ ρ, mean over the cases; (bits, column) -> test.

    Slopes of logarithms, but of the accuracy itself; of worst cases over the radii at which the ascent converged.
    """
    slopes: dict[tuple[str, str], list[float]] = {}
    for bits in BITS:
        own = {(case, rho): rows.get((bits, case, rho), {}) for case, rho in product(CASES, RADII)}
        for column, seed in product(SHOWN, sorted(set.intersection(*map(set, own.values())))):
            found = []
            for case in CASES:
                points = [(rho, own[case, rho][seed]) for rho in RADII]
                x, y = np.array([(np.log2(rho), row[column]) for rho, row in points if _holds(column, row)]).T
                found.append(np.polyfit(x, y if column == "accuracy" else np.log(y), 1)[0])
            slopes.setdefault((bits, column), []).append(float(np.mean(found)))
    return judge(slopes)


def _holds(column: str, *rows: dict[str, Any]) -> bool:
    return column != "worst" or all(row["converged"] for row in rows)


def _hits(*rows: dict[str, Any]) -> list[np.ndarray]:
    return [unpack_hits(row["hits"], TEST_IMAGES[row["settings"]["data"]]) for row in rows]


def table(family: str = "digits-resnet8") -> list[list[str]]:
    """Return SGD's means, and each case's differences to it at the radius chosen on the validation split; titles first.

    With 95 % intervals; bold where they survive Holm's correction over the whole table, in italics where only
    Benjamini and Hochberg's.
    """
    rows = rows_of(family)
    tests, found = compared(rows), [["", "ρ", "networks", *SHOWN.values()]]
    for bits in BITS:
        if sgd := rows.get((bits, 0, 0.0)):
            means = [mean_shown(np.array([r[c] for r in sgd.values() if _holds(c, r)])) for c in SHOWN]
            found.append([f"{METHODS['sgd'][0]}, {bits}", "–", str(len(sgd)), *means])
        for case in (1, 2, 3, -1, -3):
            own = {column: tests[bits, case, column] for column in SHOWN if (bits, case, column) in tests}
            if own:
                name = METHODS[f"saq{abs(case)}"][0] + (f" − {METHODS['saq2'][0]}" if case < 0 else " − SGD")
                cells = [marked(own[c]) if c in own else "–" for c in SHOWN]
                radius = f"{chosen_radius(rows, bits, abs(case)):g}"
                found.append([f"{name}, {bits}", radius, str(own["trace"].n), *cells])
    return found


def draw(family: str = "digits-resnet8") -> Any:
    """Draw trace, worst case and accuracy against ρ, mean and 95 % interval over the seeds; rings: the chosen ρ."""
    rows = rows_of(family)
    columns = [c for c in SHOWN if c != "top"]
    bits_shown = [bits for bits in BITS if (bits, 0, 0.0) in rows]
    figure, axes = panels(len(columns), 1.9, len(bits_shown))
    for panel, (ax, (bits, column)) in enumerate(zip(axes, product(bits_shown, columns), strict=True)):
        sgd = [row[column] for row in rows[bits, 0, 0.0].values() if _holds(column, row)]
        ax.axhline(np.mean(sgd), color=METHODS["sgd"][1], linewidth=0.8, label=METHODS["sgd"][0])
        for case in sorted(CASES):
            label, colour, dash = METHODS[f"saq{case}"]
            radii = [rho for rho in RADII if (bits, case, rho) in rows]
            values = [[r[column] for r in rows[bits, case, rho].values() if _holds(column, r)] for rho in radii]
            means = [np.mean(own) if own else np.nan for own in values]
            place = np.array(radii) * 1.06 ** (case - 2)  # beside each other
            errors = [_half(own) for own in values]
            mark = MARKERS[f"saq{case}"]
            ax.plot(place, means, mark, color=colour, linestyle=dash, ms=3, lw=1, label=label)
            ax.errorbar(place, means, errors, fmt="none", color=colour, lw=0.8, alpha=0.5)
            best = chosen_radius(rows, bits, case)
            if best is not None:
                at = radii.index(best)
                ax.plot(place[at], means[at], "o", mfc="none", color=colour, ms=7)
        ax.set_xscale("log")
        ax.set_xticks(RADII, [f"{rho:g}" for rho in RADII])
        ax.minorticks_off()
        if panel < len(columns):
            ax.set_title(SHOWN[column])
        else:
            ax.set_xlabel("ρ")
        if column == columns[0]:
            ax.set_ylabel(bits)
    legend(figure, axes[0], 4)
    seeds = min(len(own) for own in rows.values())
    told = f"{family}, {seeds} seeds, 95 % intervals; rings: ρ of the least validation loss"
    note(figure, f"{told}; filter-relative, worst case at {100 * WORST['filter']['radii'][0]:g} %")
    return figure


def _half(values: list[float]) -> float:
    """Return half of the 95 % interval of a mean; NaN for one value."""
    from scipy.stats import t

    error = mean_and_error(values)[1] if len(values) > 1 else np.nan
    return float(t.ppf(0.975, max(len(values) - 1, 1)) * error)


if __name__ == "__main__":
    command_line(__doc__, run, lambda family: markdown(table(family)))
