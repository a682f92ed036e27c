"""What README says was found, in three lines, each by the tests of its own study."""

from ..study import marked
from . import cifar, flatness
from .words import bullets, conclude, joined, upper

PAGE = "figures/README.md"
LIKELIER = {
    "yes": "the flatter one is",
    "the opposite": "the flatter one is less accurate",
    "cannot tell": "cannot tell",
}


def found() -> str:
    """Return three lines: on rounding, on SAQ, and on accuracy."""
    tests = {
        column: {label: cifar.tests_of(bits, column, ("saq3",))["Case 3"] for bits, label in cifar.BITS.items()}
        for column in ("trace", "accuracy")
    }
    sharpest = flatness.two_bits().rstrip(".").replace("At W2A2 the trace", "At W2A2 the Hessian's trace")
    doses = conclude(flatness.third_case(), -1)
    of = {label: cifar.mean(f"{bits}-sgd", "trace") for bits, label in cifar.BITS.items()}
    traces = joined(f"by {marked(test)} from {of[label]} at {label}" for label, test in tests["trace"].items())
    likelier = "; ".join(f"at {cifar.BITS[bits]} {LIKELIER[verdict]}" for bits, verdict in flatness.accuracy().items())
    return bullets(
        [
            f"""**Does rounding sharpen?** {upper(flatness.headline())} (digits, {flatness.seeds()} seeds). {sharpest}
            ([every measure, unit and number of bits]({PAGE}#flatness_by_bits)). On CIFAR-10, at 4 and 2 bits, by trace
            and λ₁: {conclude(cifar.control(), 1)}.""",
            f"""**Does sharpness-aware quantization (SAQ) flatten?** {upper(conclude(tests["trace"], -1))}: Case 3
            changes the trace {traces} (CIFAR-10, ResNet-20). More accurate? {upper(conclude(tests["accuracy"], 1))}
            ([all methods]({PAGE}#cifar10_methods); on the digits, at a chosen ρ: {doses}).""",
            f"**Is the flatter network the more accurate one?** {upper(likelier)} ([how]({PAGE}#flatness_accuracy)).",
        ]
    )
