"""What the study of methods on CIFAR-10 says, from methods.jsonl and feature_traces.jsonl."""

from functools import cache
from typing import Any

import numpy as np

from .. import methods
from ..drawing import METHODS
from ..study import DISAGREEMENT, Judged, judge, markdown, mean_and_error, number, read, two_digits
from .digits import short
from .words import LEGEND, bullets, claimed, conclude, joined, listed, paragraph, upper

Rows = dict[tuple, dict[str, float]]
CASES = ("saq1", "saq2", "saq3")
CHEAPER = ("saq3-subset", "saq3-momentum")
DISTILLED = ("csd", "fpq", "fpq-p0.5", "fpq-p1")
BITS = {"w4a4": "4 bits", "w2a2": "2 bits"}
_SHARP = {"trace": "trace", "top": "λ₁"}
SCAN = {"csd": "0", "fpq": "0.1", "fpq-p0.5": "0.5", "fpq-p1": "1"}  # FPQ by its probability p


@cache
def _study() -> tuple[Rows, dict[tuple[str, str], Judged]]:
    rows = methods.by_seed()
    return rows, methods.judged(rows)


def tests_of(bits: str, column: str, variants: Any = tuple(METHODS)) -> dict[str, Judged]:
    """Return what the table's tests say of a column at these bits: method -> test."""
    keys = {short(v): (f"{methods.BASE}-{bits}-{v}", column) for v in variants}
    return {name: _study()[1][key] for name, key in keys.items() if key in _study()[1] and not key[0].endswith("-sgd")}


def values(name: str, column: str) -> list[float]:
    """Return a column of all networks of a recipe ("w4a4-sgd") for which it was measured."""
    found = [row[column] for (own, _), row in sorted(_study()[0].items()) if own == f"{methods.BASE}-{name}"]
    return [value for value in found if not np.isnan(value)]


def mean(name: str, column: str) -> str:
    """Return its mean and standard error."""
    return number(*mean_and_error(values(name, column)))


def page() -> str:
    """Return the page's section: how it was done, the table, what it says of the methods."""
    rows, tests = _study()
    network, images, epochs = methods.about()
    beside = methods.pairs(rows, f"{methods.BASE}-w2a2-fpq", f"{methods.BASE}-w2a2-sgd")
    sgd = [rows[f"{methods.BASE}-w2a2-sgd", seed] for seed in beside]
    own = {column: number(*mean_and_error([row[column] for row in sgd])) for column in ("accuracy", "trace")}
    fewest = min(test.n for test in tests.values())
    about = f"""{network}, {images.replace(" ", " training ")}; every network, the float one (FP32) too, is tuned for
        {epochs} from a float network of its seed. Trace filter-relative, on {methods.SAMPLES} training images. Below
        LSQ's own numbers (mean ± standard error over seeds) stand differences to it, paired by seed and float network
        ({fewest} pairs or more), with 95 % intervals: {LEGEND}. The variance of a difference is borrowed over the
        methods (moderated t), that of an accuracy is at least the scatter of the test images, and the correction is
        over the {len(tests)} tests of [the whole table](cpu/table_methods.md). LSQ's numbers at 2 bits are of
        {len(values("w2a2-sgd", "trace"))} networks; FPQ's differences are to the {len(beside)} of them that were
        trained beside it ({own["accuracy"]} %, trace {own["trace"]}). [More of what the rows
        say](#cifar10_methods)."""
    return "\n\n".join([paragraph(about), markdown(methods.summary()).rstrip(), bullets(_bullets())])


def _bullets() -> list[str]:
    return [float_control(), cases(), cheaper(), fpq_noise(), distillation(), scan()]


def float_control() -> str:
    """Say what rounding does to the landscape: quantized against float networks, both tuned as long."""
    fp32, parts, verdicts = f"{methods.BASE}-fp32", [], {}
    for bits, label in BITS.items():
        own = {
            c: _study()[1].get((f"{methods.BASE}-{bits}-sgd", c)) for c in ("trace", "top", "probe_loss", "accuracy")
        }
        names = {"trace": "trace", "top": "λ₁", "probe_loss": "probe loss", "accuracy": "test accuracy, points,"}
        found = {names[c]: test for c, test in own.items() if test}
        if found:
            parts.append(f"at {label} {listed(found)}")
            verdicts |= {f"{name} at {label}": test for name, test in found.items() if name in ("trace", "λ₁")}
    if not parts:
        return (
            "Are fewer bits flatter? There is no fair control yet: no float network tuned as long from the same start."
        )
    pairs = max(test.n for test in verdicts.values())
    starts = {seed[1] for name, seed in _study()[0] if name == fp32}
    older = " (of the older rows by seed alone: they do not tell their float network)" if 0.0 in starts else ""
    return f"""Are fewer bits flatter, against the float network tuned as long (FP32: {mean("fp32", "accuracy")} %,
        trace {mean("fp32", "trace")}, λ₁ {mean("fp32", "top")})? {upper(conclude(verdicts, -1))}. Quantized − FP32,
        {pairs} pairs{older}: {"; ".join(parts)}."""


def control() -> dict[str, Judged]:
    """Return the tests of trace and λ₁ of quantized networks against the float one, tuned as long."""
    keys = {f"{n} at {label}": (f"{methods.BASE}-{b}-sgd", c) for b, label in BITS.items() for c, n in _SHARP.items()}
    return {name: _study()[1][key] for name, key in keys.items() if key in _study()[1]}


def cases() -> str:
    """Say whether SAQ is flatter and more accurate than SGD, and Case 3 than Case 2."""
    flat = "; ".join(f"at {label} {conclude(tests_of(b, 'trace', CASES), -1)}" for b, label in BITS.items())
    better = "; ".join(f"at {label} {conclude(tests_of(b, 'accuracy', CASES), 1)}" for b, label in BITS.items())
    return f"""Is SAQ flatter than SGD by the trace? {upper(flat)}. More accurate? {upper(better)}. Is Case 3 flatter
        than Case 2 (SAM on the latent weights, of which rounding is said to swallow most)?
        {upper(conclude(rivals(), -1))}: trace {listed(rivals())}. All this at one radius, ρ = {_rho()}; of another it
        says nothing."""


@cache
def rivals() -> dict[str, Judged]:
    """Test the trace of Case 3 against that of Case 2."""
    names = {label: (f"{methods.BASE}-{bits}-saq3", f"{methods.BASE}-{bits}-saq2") for bits, label in BITS.items()}
    return judge({label: methods.paired(_study()[0], *pair)["trace"] for label, pair in names.items()})


def _rho() -> str:
    radii = {
        row["settings"]["recipe"]["sam"]["rho"]
        for row in read(methods.ROWS, *methods.KEYS).values()
        if row["settings"]["recipe"]["sam"]
    }
    return joined(f"{rho:g}" for rho in sorted(radii))


def cheaper() -> str:
    """Say what the cheaper policies keep of Case 3's lower trace, where that one is known to be lower."""
    rows, tests = _study()
    parts = []
    for bits, label in BITS.items():
        whole = tests[f"{methods.BASE}-{bits}-saq3", "trace"]
        for variant in CHEAPER if whole.verdict == "holm" else ():
            name = f"{methods.BASE}-{bits}-{variant}"
            if (name, "trace") in tests:
                share, ends = methods.kept(rows, name, "trace")
                low, high = (f"{100 * end:.0f}".replace("-", "−").replace("inf", "∞") for end in ends)
                keeps = f"{100 * share:.0f} % [{low}, {high}]"
                parts.append(f'"{variant.removeprefix("saq3-")}" {keeps} at {label}')
    if not parts:
        return "What cheaper policies keep of Case 3's lower trace is not asked: it is not known to be lower."
    return f"""Of Case 3's lower trace, cheaper policies keep {", ".join(parts)} (ratio of paired means with Fieller's
        95 % interval): an interval with 0 in it says nothing is known to be kept, one with 100 nothing to be lost."""


def fpq_noise() -> str:
    """Say what FPQ's noise alone does."""
    columns = ("trace", "top", "feature_trace", "accuracy")
    weak = {
        f"{methods.COLUMNS[c].removesuffix(', %')} at {label}": tests_of(bits, c, ("sfp",))["SFP"]
        for bits, label in BITS.items()
        for c in columns
    }
    always = {methods.COLUMNS[c]: tests_of("w2a2", c, ("sfp-p1",))["SFP (p = 1)"] for c in ("feature_trace", "trace")}
    of = " and ".join(two_digits(*_beside(column)) for column in ("feature_trace", "trace"))
    return f"""FPQ's noise alone (SFP), at the paper's p = 0.1: does it lower trace, λ₁, the features' Σ s²·Tr ∇²ₓL
        (what it is said to penalise) or accuracy? {upper(conclude(weak, -1))}. In every pass (p = 1), at 2 bits?
        {upper(conclude(always, -1))}: {listed(always)}, of {of}."""


def _beside(column: str) -> tuple[float, float]:
    """Return mean and error of SGD at 2 bits over the networks that were trained beside FPQ's."""
    rows = _study()[0]
    seeds = methods.pairs(rows, f"{methods.BASE}-w2a2-fpq", f"{methods.BASE}-w2a2-sgd")
    return mean_and_error([rows[f"{methods.BASE}-w2a2-sgd", seed][column] for seed in seeds])


def distillation() -> str:
    """Say what FPQ's distillation does, alone (CSD) and with the noise."""
    flat = "; ".join(f"at {label} {conclude(tests_of(b, 'trace', DISTILLED), -1)}" for b, label in BITS.items())
    worse = "; ".join(f"at {label} {conclude(tests_of(b, 'accuracy', DISTILLED), -1)}" for b, label in BITS.items())
    share = -100 * tests_of("w2a2", "trace", ("csd",))["CSD"].mean / _beside("trace")[0]
    return f"""FPQ's distillation, alone (CSD) or with the noise: flatter by the trace? {upper(flat)} (CSD takes
        {share:.0f} % off at 2 bits). Less accurate? {upper(worse)}."""


def scan() -> str:
    """Say what FPQ's probability p does at 2 bits."""
    tests = scan_tests()
    accuracies = ", ".join(f"{mean(f'w2a2-{v}', 'accuracy')} % at p = {p}" for v, p in SCAN.items())
    features = ", ".join(f"{np.mean(values(f'w2a2-{v}', 'feature_trace')):.2f}" for v in SCAN)
    return f"""FPQ at 2 bits by p: {accuracies}; Σ s²·Tr ∇²ₓL {features}. Less accurate than p = 0.1, paired and
        corrected over these {len(tests)}? {upper(conclude(tests, -1))}: {listed(tests)} points."""


@cache
def scan_tests() -> dict[str, Judged]:
    """Test FPQ's accuracies at other p against p = 0.1."""
    rows, base = _study()[0], f"{methods.BASE}-w2a2-fpq"
    names = {f"p = {p}": f"{methods.BASE}-w2a2-{v}" for v, p in SCAN.items() if v != "fpq"}
    differences = {label: methods.paired(rows, name, base)["accuracy"] for label, name in names.items()}
    images = {label: methods.images(rows, name, base) for label, name in names.items()}
    return judge(differences, images=images)


def cifar10_methods(claim: str) -> str:
    """Say what the figure and the whole table show, column by column."""
    verdicts = [
        f"SAQ's cases {word} at {label}: {conclude(tests_of(bits, column, CASES), sign)}"
        for word, column, sign in (("flatter", "trace", -1), ("more accurate", "accuracy", 1))
        for bits, label in BITS.items()
    ]
    verdicts.append(f"Case 3 flatter than Case 2: {conclude(rivals(), -1)}")
    parts = [
        f"{methods.COLUMNS[column].removesuffix(', %')} at {label}: {conclude(tests_of(bits, column), -1)}"
        for column in methods.TESTED
        for bits, label in BITS.items()
        if tests_of(bits, column)
    ]
    lower = f"Of all methods, lower than LSQ with SGD? {'. '.join(map(upper, parts))}."
    rest = f"The [table](cpu/table_methods.md) has the numbers. {_worst()} {_flips()} {_repeated()}"
    return "\n\n".join([claimed(claim, ". ".join(verdicts)), paragraph(lower), paragraph(rest)])


def _worst() -> str:
    """Say what is missing of the worst case."""
    old = sum(not np.isnan(row[methods.UNCONVERGED]) for row in _study()[0].values())
    return (
        f"""Worst cases of {old} of {len(_study()[0])} networks († in the table) are of an ascent that has not
        converged (five steps at 1 %, in the older rows) and are not tested. Accuracies of rows without hit vectors
        are given the scatter of two networks that disagree on {100 * DISAGREEMENT:.0f} % of the test images."""
        if old
        else ""
    )


def _flips() -> str:
    """Say how many weights change level under ε."""
    shares = [
        f"{np.mean(values(f'{b}-sgd', 'flip_rate')):.1f} (FPQ: {np.mean(values(f'{b}-fpq', 'flip_rate')):.0f})"
        for b in BITS
    ]
    return f"""Under an ε of {methods.RHO} in Case 2, {joined(shares)} in a thousand weights change level at 4 and 2
        bits."""


def _repeated() -> str:
    """Say what a training repeated on another machine differs by."""
    rows, name = _study()[0], f"{methods.BASE}-w2a2-sgd"
    again = [
        (rows[own, s]["accuracy"], rows[own, (s[0], 0.0)]["accuracy"])
        for own, s in rows
        if own == name and s[1] and (own, (s[0], 0.0)) in rows
    ]
    if not again:
        return ""
    text = ", ".join(f"{new - old:+.2f}".replace("-", "−") for new, old in again)
    return f"""Another machine repeats a training only roughly: LSQ's {len(again)} networks at 2 bits that were trained
        again differ by {text} points, so rows tell their float network by its loss, and only those of one start are
        paired; the older rows do not tell it and are paired by seed alone."""


def table_fpq(claim: str) -> str:
    """Say what the table of FPQ's accuracies shows."""
    by_bits = {label: tests_of(bits, "accuracy", ("sfp", "csd", "fpq")) for bits, label in BITS.items()}
    parts = [f"at {label} {conclude(tests, 1)}" for label, tests in by_bits.items()]
    numbers = "; ".join(f"at {label} {listed(tests)}" for label, tests in by_bits.items())
    more = f"Other p against 0.1 at 2 bits: {listed(scan_tests())} points: lower? {upper(conclude(scan_tests(), -1))}."
    return claimed(claim, f"more accurate than LSQ: {'; '.join(parts)}", f"Less LSQ, {numbers} points.", more)


def table_methods(claim: str) -> str:
    """Say what the table holds, and which case is the most accurate."""
    rows = _study()[0]
    best = {}
    for bits, label in BITS.items():
        for other in ("saq1", "saq2"):
            names = f"{methods.BASE}-{bits}-saq3", f"{methods.BASE}-{bits}-{other}"
            best[f"Case {other[-1]} at {label}"] = (
                methods.paired(rows, *names)["accuracy"],
                methods.images(rows, *names),
            )
    tests = judge({key: own for key, (own, _) in best.items()}, images={key: own for key, (_, own) in best.items()})
    return claimed(claim, f"Case 3 above the others: {conclude(tests, 1)}", f"Case 3 less {listed(tests)} points.")
