"""What the studies of the radius and of flatness say, from dose.jsonl, flatness.jsonl and methods.jsonl."""

from functools import cache
from itertools import product
from typing import Any

from .. import dose, flatness, scatter
from ..measures import AVERAGE, MEASURES, UNITS, WORST
from ..study import Judged, decimal, markdown, marked
from .words import LEGEND, bullets, claimed, conclude, joined, listed, paragraph, upper

FAMILY = "digits-resnet8"
NAMES = {measure: title.lower() for measure, title in MEASURES.items()}
# whose claim -> what it says of QAT, in our terms: what is rounded, the measure, and the sign that it expects
LITERATURE: dict[str, tuple[str, str, str, int]] = {
    "WinQ (arXiv 2605.17471), bits": ("fewer bits have smaller eigenvalues", "weights", "top", -1),
    "WinQ, saddle points": ("quantized training ends with many negative eigenvalues", "weights", "negative", 1),
    "QT-DoG (arXiv 2410.06020)": ("rounding the weights leads to flatter minima", "weights", "average", -1),
    "GAQAT and FQAT (arXiv 2412.05551, 2509.00859)": (
        "quantization-aware training sharpens the landscape",
        "both",
        "worst",
        1,
    ),
}


@cache
def _tests(matched: str) -> dict[tuple[str, str, str, str], Judged]:
    return flatness.compared(flatness.rows_of(FAMILY), matched)


def _tested(matched: str) -> dict[tuple[str, str, str, str], Judged]:
    return {key: test for key, test in _tests(matched).items() if key[1][1] != "8"}


def _says(matched: str, units: str, kind: str, measure: str, sign: int) -> str:
    """Say whether QAT's difference in a measure has this sign at 4, 3 and 2 bits."""
    keys = {bits: ("qat", flatness.ACTIVATIONS[kind].format(bits), measure, units) for bits in (4, 3, 2)}
    tests = {f"{bits} bits": _tests(matched)[key] for bits, key in keys.items() if key in _tests(matched)}
    return conclude(tests, sign) if tests else "cannot tell (not tested)"


def literature() -> str:
    """Return a table of what others say, and whether it holds here, by unit and by what is matched."""
    columns = [(matched, units) for matched in ("epochs", "loss") for units in UNITS]
    rows = [["claim", "measure", *(f"{units}, matched {matched}" for matched, units in columns)]]
    for who, (claim, kind, measure, sign) in LITERATURE.items():
        verdicts = [_says(matched, units, kind, measure, sign) for matched, units in columns]
        rounded = "weights" if kind == "weights" else "weights and activations"
        rows.append([f"{who}: {claim}", f"{NAMES[measure]}, {rounded}", *verdicts])
    return markdown(rows).rstrip()


def flatness_by_bits(claim: str) -> str:
    """Say whether quantized networks are flatter: a verdict for every measure, and the tables."""
    parts = []
    for kind, what in (("weights", "weights alone"), ("both", "weights and activations")):
        for units in UNITS:
            verdicts = {NAMES[measure]: _says("epochs", units, kind, measure, -1) for measure in MEASURES}
            told = "; ".join(f"{name}: {verdict}" for name, verdict in verdicts.items())
            parts.append(f"Flatter than FP32, {what}, {units} units, matched epochs? {upper(told)}.")
    head = claimed(
        claim,
        headline(),
        f"""{two_bits()} ResNet-8 on the digits, {seeds()} paired seeds; a quantized network against the float one
        tuned as long (matched epochs), and against float networks trained for fewer epochs, at its own probe loss
        (matched loss); {LEGEND}, over the {len(_tested("epochs"))} and {len(_tested("loss"))} tests of QAT at 4, 3
        and 2 bits.
        Negative share: Σ|λ| over λ < 0 of Σ|λ|. Raw units: worst case within ‖ε‖ =
        {_radius(WORST)}, average at {_radius(AVERAGE)}; else at {_share(WORST)} and {_share(AVERAGE)} of each
        filter's norm.""",
    )
    tables = [
        f"QAT, {units} units, matched {matched}; ratios to FP32 (negative share: differences) with 95 % intervals:\n\n"
        + markdown(flatness.table(FAMILY, matched, units)).rstrip()
        for matched, units in (("epochs", "filter"), ("loss", "filter"), ("epochs", "raw"))
    ]
    said = """What others say of it, in our terms and as far as their texts were at hand; their networks and data are
        not these:"""
    return "\n\n".join([head, bullets([*parts, rounded()]), paragraph(said), literature(), *tables])


def rounded() -> str:
    """Say what rounding after training does."""
    tests = flatness.compared(flatness.rows_of(FAMILY), "epochs", flatness.ROUNDED)
    parts = []
    for method, measure in product(flatness.ROUNDED, ("trace", "worst")):
        own = {
            bits: test
            for (how, bits, what, units), test in tests.items()
            if (how, what, units) == (method, measure, "filter") and bits[1] != "8"
        }
        parts.append(f"{flatness.METHODS[method][0]}, {NAMES[measure]}: {conclude(own, 1)}" if own else "")
    fewest = min(test.n for test in tests.values())
    asked = f"Rounded after training ({fewest} pairs or more), filter units, matched epochs: sharper than FP32?"
    return f"{asked} {'. '.join(filter(None, parts))}."


def _radius(settings: dict[str, dict[str, Any]]) -> str:
    return f"{settings['raw']['radii'][0]:g}"


def _share(settings: dict[str, dict[str, Any]]) -> str:
    return f"{100 * settings['filter']['radii'][0]:g} %"


def seeds() -> int:
    """Return how many seeds there are."""
    return max(len(own) for own in flatness.rows_of(FAMILY).values())


def two_bits() -> str:
    """Say how sharp two bits are, against the float network tuned as long and against one of the same loss."""
    key = ("qat", "W2A2", "trace", "filter")
    told = [flatness.ratio(_tests(matched).get(key), "trace") for matched in ("epochs", "loss")]
    return f"""At W2A2 the trace (filter-relative) is {told[0]} times that of the float network tuned as long, and
        {told[1]} times that of a float network of the same loss."""


def headline() -> str:
    """Count the verdicts at 4, 3 and 2 bits."""
    tests = {key: test for key, test in _tested("epochs").items() if key[2] != "negative"}
    ways = [flatness.verdict(test) for test in tests.values()]
    return (
        f"of {len(ways)} comparisons of QAT with FP32 at 4, 3 and 2 bits and matched epochs {ways.count('sharper')} "
        f"are sharper, {ways.count('flatter')} flatter, and of {ways.count('cannot tell')} we cannot tell"
    )


@cache
def _doses() -> tuple[Any, dict[tuple[str, int, str], Judged]]:
    rows = dose.rows_of(FAMILY)
    return rows, dose.compared(rows)


def third_case() -> dict[str, Judged]:
    """Return the tests of Case 3's trace against SGD's, at the radius chosen for it."""
    tests = _doses()[1]
    return {bits: tests[bits, 3, "trace"] for bits in dose.BITS if (bits, 3, "trace") in tests}


def dose_response(claim: str) -> str:
    """Say what SAQ does at the radius that the validation split chose."""
    rows, tests = _doses()
    parts = []
    for bits in dose.BITS:
        cases = [case for case in sorted(dose.CASES) if (bits, case, "trace") in tests]
        own = {f"Case {case}": tests[bits, case, "trace"] for case in cases}
        radii = [f"{dose.chosen_radius(rows, bits, case):g}" for case in cases]
        if own:
            accuracy = {name: tests[bits, int(name[-1]), "accuracy"] for name in own}
            parts.append(
                f"""{bits}, ρ = {joined(radii)} for {joined(own)}: flatter than SGD by the trace?
                {upper(conclude(own, -1))} ({listed(own)}). More accurate? {upper(conclude(accuracy, 1))}
                ({listed(accuracy)} points)."""
            )
    rivals = {bits: tests[bits, -3, "trace"] for bits in dose.BITS if (bits, -3, "trace") in tests}
    if rivals:
        parts.append(f"Case 3 flatter than Case 2? {upper(conclude(rivals, -1))} (trace {listed(rivals)}).")
    parts.append(_trends())
    seeds = min(len(own) for own in rows.values())
    head = claimed(claim, conclude(third_case(), -1))
    about = paragraph(
        f"""{seeds} seeds, each with ρ = {joined(f"{rho:g}" for rho in dose.RADII)}; of each case the ρ of the least
        mean loss on the validation split, so the differences below are not chosen by themselves. {upper(LEGEND)}."""
    )
    return "\n\n".join([head, about, bullets(parts), markdown(dose.table(FAMILY)).rstrip()])


def _trends() -> str:
    """Say what a doubling of ρ does, over all radii and cases."""
    told = []
    for (bits, column), test in dose.trends(_doses()[0]).items():
        shown = f"{marked(test)} points" if column == "accuracy" else flatness.ratio(test, column)
        told.append(f"{bits} {dose.SHOWN[column].removesuffix(', %').lower()} {shown}")
    return f"A doubling of ρ, mean over the cases, multiplies (accuracies: adds): {', '.join(told)}."


def flatness_accuracy(claim: str) -> str:
    """Say whether the flatter of two networks is the more accurate one."""
    details = []
    for bits, (rho, low, high, n) in scatter.correlations().items():
        ends = f"[{decimal(low, 2)}, {decimal(high, 2)}]"
        details.append(f"{bits.upper()} {decimal(rho, 2, '+')} {ends} over {n} pairs")
    verdicts = [f"{bits.upper()}: {verdict}" for bits, verdict in accuracy().items()]
    told = "Rank correlation of a lower trace with a higher accuracy than SGD's of the seed"
    return claimed(claim, "; ".join(verdicts), f"{told}: {'; '.join(details)} (bootstrap over methods).")


def page() -> str:
    """Return what the page says of the digits: are quantized networks flatter, and what does SAQ's radius do?"""
    rows = _doses()[0]
    third = third_case()
    radii = joined(f"{dose.chosen_radius(rows, bits, 3):g} ({bits})" for bits in third)
    flat = f"""Are quantized networks flatter? On the digits (ResNet-8, {seeds()} seeds): {headline()}. {two_bits()}
        [By measure, unit, method and what is matched](#flatness_by_bits), with what WinQ, QT-DoG
        and FQAT say."""
    doses = f"""SAQ's radius, chosen by the loss on the digits' validation split: ρ = {radii}. Is Case 3 flatter than
        SGD there, by the trace? {upper(conclude(third, -1))} ({listed(third)}). [Dose and
        response](#dose_response)."""
    verdicts = "; ".join(f"{bits.upper()}: {verdict}" for bits, verdict in accuracy().items())
    told = f"""Is the flatter of two networks the more accurate one? On CIFAR-10, over all methods: {verdicts}
        ([rank correlations](#flatness_accuracy))."""
    return bullets([flat, doses, told])


def accuracy() -> dict[str, str]:
    """Say, by bits, whether the flatter network is the more accurate one."""
    return {
        bits: "yes" if low > 0 else "the opposite" if high < 0 else "cannot tell"
        for bits, (_, low, high, _) in scatter.correlations().items()
    }
