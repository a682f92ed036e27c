"""The papers' tables with our numbers beside theirs, and the study of all methods on CIFAR-10.

Theirs are the published ones; what differs in the set-up stands in the last column. Ours are read from the rows beside
this file (`figures.methods`, `figures.mixed_precision`), which hold what was trained so far.
"""

from dataclasses import replace

import numpy as np
import torch
import xarray

import saq_core

from . import dose, flatness, methods, mixed_precision, scatter
from .catalogue import Figure
from .drawing import METHODS, intervals, note, panels
from .profiles import Profile
from .study import mean_and_error, number

THEIRS = "theirs: ResNet-18, asymmetric LSQ, all 50,000, 200 epochs, one number without an error"
# network -> classes, size of its images, unit, bits -> printed by SAQ's released analyser (PreResNet-20: CIFAR-100)
PRINTED: dict[tuple[str, int, int, str], dict[int, float]] = {
    ("preresnet20", 100, 32, "M"): {2: 190.2, 3: 392.1, 4: 674.6, 5: 1038.0, 8: 2612.4, 32: 41798.6},
    ("mobilenet_v2", 100, 32, "M"): {2: 425.8, 3: 877.1, 4: 1508.9, 5: 2321.3, 8: 5841.3, 32: 93460.6},
    ("resnet18", 1000, 224, "G"): {2: 14.37, 3: 22.85, 4: 34.71, 32: 1857.6},
    ("resnet34", 1000, 224, "G"): {2: 21.77, 3: 39.49, 4: 64.31, 32: 3751.7},
    ("resnet50", 1000, 224, "G"): {2: 23.56, 3: 43.41, 4: 71.19, 32: 4187.3},
    ("mobilenet_v2", 1000, 224, "G"): {2: 1.93, 3: 3.37, 4: 5.39},
}
UNITS = {"M": 1e6, "G": 1e9}
# FPQ's tables 1 to 3, CIFAR-10, ResNet-18: what it calls the row -> (bits, ours, accuracy in the paper)
FPQ_ROWS = {
    "table 1, W4A4: FP": ("fp32", 88.72),
    "table 1, W4A4: LSQ + SAM": ("w4a4-saq2", 89.75),
    "table 1, W4A4: FPQ": ("w4a4-fpq", 90.16),
    "table 2, W2A4: LSQ": ("w2a2-sgd", 88.36),
    "table 2, W2A4: + SFP": ("w2a2-sfp", 89.30),
    "table 2, W2A4: + CSD": ("w2a2-csd", 89.66),
    "table 2, W2A4: both": ("w2a2-fpq", 89.92),
    "table 3, W2A4: both, p = 0.5": ("w2a2-fpq-p0.5", 89.83),
    "table 3, W2A4: both, p = 1": ("w2a2-fpq-p1", 89.48),
}


def compute_bops(profile: Profile) -> xarray.Dataset:
    """Count the bit operations of one image, first and last layer at 8 bits."""
    found = []
    for (name, classes, size, unit), printed in PRINTED.items():
        if size > profile.effort(224, 32):
            continue
        images, labels = torch.zeros(classes, 3, size, size), torch.arange(classes)
        model = saq_core.build_model(name, saq_core.Data(*[(images, labels)] * 3, classes))
        for bits, theirs in printed.items():
            ours = saq_core.cost(model, (3, size, size), bits=None if bits == 32 else f"W{bits}A{bits}").bops
            found.append((name, size, bits, unit, theirs, ours / UNITS[unit]))
    names = ("network", "size", "bits", "unit", "theirs", "ours")
    return xarray.Dataset(
        {n: ("row", np.array(column)) for n, column in zip(names, zip(*found, strict=True), strict=True)}
    )


def table_bops(data: xarray.Dataset) -> list[list[str]]:
    """Return theirs and ours, to the digits that they print."""
    rows = [["network", "images", "bits", "theirs", "ours", "difference"]]
    for k in range(data.sizes["row"]):
        one = {name: values.values[k] for name, values in data.items()}
        digits = 2 if one["unit"] == "G" and one["bits"] < 32 else 1
        bits = "FP32" if one["bits"] == 32 else f"W{one['bits']}A{one['bits']}"
        difference = round(float(one["ours"]), digits) - float(one["theirs"])
        cells = [f"{one[name]:,.{digits}f} {one['unit']}" for name in ("theirs", "ours")]
        rows.append([str(one["network"]), f"{one['size']} px", bits, *cells, f"{difference:.{digits}f}"])
    return rows


def table_fpq() -> list[list[str]]:
    """Return FPQ's tables 1 to 3 beside ours; table 3 has CSD as p = 0 and both as p = 0.1."""
    found = methods.by_seed()
    ours = "ours: {}, symmetric LSQ, {}, {}".format(*methods.about())
    rows = [["FPQ's row", "theirs, %", "ours, %", "ours at", "networks", "what differs"]]
    for label, (name, theirs) in FPQ_ROWS.items():
        own = [row["accuracy"] for (other, _), row in sorted(found.items()) if other == f"{methods.BASE}-{name}"]
        accuracy = number(*mean_and_error(own)) if own else "not trained yet"
        differs = "the same, and inputs of 2 bits" if "W2A4" in label else "the same"
        differs = f"{ours}; {THEIRS}" if len(rows) == 1 else differs
        rows.append([label, f"{theirs:.2f}", accuracy, name.split("-")[0].upper(), str(len(own)), differs])
    return rows


def draw_methods():
    """Draw trace and accuracy of every method against LSQ's with SGD, paired; side by side by bits, flattest first."""
    rows = methods.by_seed()
    tests, blocks = methods.judged(rows), {}
    for bits in ("w4a4", "w2a2"):
        sgd = f"{methods.BASE}-{bits}-sgd"
        names = [name for name in methods.NAMES if methods.baseline(name) == sgd and (name, "accuracy") in tests]
        base = {name: np.mean([rows[sgd, seed]["trace"] for seed in methods.pairs(rows, name, sgd)]) for name in names}
        blocks[bits] = dict(sorted(base.items(), key=lambda pair: tests[pair[0], "trace"].mean / pair[1]))
    figure, axes = panels(4, 0.9 + 0.17 * max(map(len, blocks.values())), width_ratios=[1.3, 1, 1.3, 1])
    for ax, other in zip(axes, axes[2:], strict=False):
        ax.sharex(other)
    for (bits, base), left, right in zip(blocks.items(), axes[::2], axes[1::2], strict=True):
        variants = [name.removeprefix(f"{methods.BASE}-{bits}-") for name in base]
        shares = [(tests[name, "trace"], 100 / sgd) for name, sgd in base.items()]
        shares = [replace(test, mean=100 + scale * test.mean, error=scale * test.error) for test, scale in shares]
        intervals(left, shares, variants)
        intervals(right, [tests[name, "accuracy"] for name in base], variants)
        for ax, even in ((left, 100), (right, 0)):
            ax.axvline(even, color=METHODS["sgd"][1], linewidth=0.8, zorder=0)
        right.tick_params(labelleft=False)
        left.set(title=f"{bits.upper()}: trace", xlabel="% of LSQ's")
        right.set(title="test accuracy", xlabel="Points")
    pairs = sorted({tests[name, "accuracy"].n for base in blocks.values() for name in base})
    about = (
        f"{', '.join(methods.about())}; {' to '.join(map(str, pairs))} pairs each; 95 % intervals; orange: LSQ with SGD"
    )
    note(figure, f"{about}\nFilled: survives Holm's correction over the {len(tests)} tests of table_methods, at 5 %")
    return figure


FIGURES = [
    Figure(
        "flatness_accuracy",
        "ours",
        "what makes a quantized network flatter makes it more accurate",
        None,
        scatter.draw,
    ),
    Figure(
        "flatness_by_bits",
        "ours, after WinQ, QT-DoG and FQAT, which disagree",
        "quantized networks are flatter than the float ones",
        None,
        flatness.draw,
    ),
    Figure(
        "dose_response",
        "ours: SAQ's radius",
        "SAQ is flatter than SGD where its radius is chosen on the validation split",
        None,
        dose.draw,
    ),
    Figure(
        "cifar10_methods",
        "SAQ and FPQ, the main comparison",
        "SAQ and FPQ are more accurate and flatter than LSQ with SGD, Case 3 most of all cases",
        None,
        draw_methods,
    ),
    Figure(
        "table_methods",
        "SAQ, ablation of the cases, and FPQ",
        "Case 3 is the most accurate (the paper's own numbers could not be had)",
        None,
        methods.table,
    ),
    Figure(
        "table_bops",
        "SAQ's released code, bit operations",
        "our cost model counts as theirs does",
        compute_bops,
        table_bops,
    ),
    Figure("table_fpq", "FPQ, tables 1 to 3", "noise and distillation each help, both together most", None, table_fpq),
    Figure(
        "table_mixed",
        "SAQ's and ASGA's searches at one budget",
        "bits found by sharpness beat uniform and random ones",
        None,
        mixed_precision.table,
    ),
]
