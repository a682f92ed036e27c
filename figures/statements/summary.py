"""What README says was found, in three lines, each by the tests of its own study."""

from ..study import marked
from . import cifar, flatness
from .words import bullets, conclude, joined, upper

PAGE = "figures/README.md"
LIKELIER = {"yes": "the flatter one is", "the opposite": "no, the less accurate one", "cannot tell": "cannot tell"}


def found() -> str:
    """Return three lines: on rounding, on SAQ, and on accuracy."""
    tests = {
        column: {label: cifar.tests_of(bits, column, ("saq3",))["Case 3"] for bits, label in cifar.BITS.items()}
        for column in ("trace", "accuracy")
    }
    of = {label: cifar.mean(f"{bits}-sgd", "trace") for bits, label in cifar.BITS.items()}
    traces = joined(f"{marked(test)} of {of[label]} at {label}" for label, test in tests["trace"].items())
    likelier = joined(f"{LIKELIER[verdict]} at {cifar.BITS[bits]}" for bits, verdict in flatness.accuracy().items())
    return bullets(
        [
            f"""**Does rounding sharpen?** {flatness.two_bits().rstrip(".")} (digits, {flatness.seeds()} seeds; [every
            measure, unit and number of bits]({PAGE}#flatness_by_bits)).""",
            f"""**Does SAQ flatten?** {upper(conclude(tests["trace"], -1))}: the trace changes by {traces} (CIFAR-10,
            ResNet-20). More accurate? {upper(conclude(tests["accuracy"], 1))} ([all
            methods]({PAGE}#cifar10_methods)).""",
            f"**Is the flatter network the more accurate one?** {upper(likelier)} ([how]({PAGE}#flatness_accuracy)).",
        ]
    )
