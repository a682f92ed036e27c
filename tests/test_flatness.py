"""The studies of flatness and of the radius: what is paired, matched, chosen and concluded, on rows made here."""

import math

import numpy as np
import pytest
import torch

import saq_core
from figures import dose, flatness, measures, scatter
from figures.study import pack_hits, unpack_hits

SEEDS = range(5)


def row(loss=0.1, factor=1.0, share=0.3, converged=True, **own):
    """Return the row of a network whose measures are multiples of those at loss² (so that log ones are lines)."""
    found = {"loss": loss, "accuracy": 90.0, "corrupted": 50.0}
    for units in measures.UNITS:
        numbers = dict.fromkeys(("trace", "top", "worst", "average"), factor * loss**2) | {"negative": share}
        found |= {f"{name}_{units}": value for name, value in numbers.items()} | {f"converged_{units}": converged}
    return found | own


def rows_of(quantized):
    """Return five seeds of float networks at three losses, and a quantized one at every number of bits."""
    noise = np.random.default_rng(0).normal(0, 0.02, (6, 5))
    rows = {
        ("fp32", name): {s: row(loss) for s in SEEDS} for name, loss in (("2", 0.4), ("start", 0.2), ("tuned", 0.1))
    }
    widths = [form.format(bits) for bits in (4, 3, 2) for form in flatness.ACTIVATIONS.values()]
    return rows | {("qat", bits): {s: quantized(math.exp(noise[k][s])) for s in SEEDS} for k, bits in enumerate(widths)}


def test_a_network_that_is_as_sharp_as_its_loss_says_is_sharper_at_matched_epochs_alone():
    rows = rows_of(lambda noise: row(0.2, factor=noise, share=0.3 + 0.01 * math.log(noise)))
    epochs, loss = (flatness.compared(rows, matched) for matched in ("epochs", "loss"))
    assert len(epochs) == len(loss) == 6 * 5 * 2
    for (_, _, measure, _), test in epochs.items():
        assert flatness.verdict(test) == ("cannot tell" if measure == "negative" else "sharper")
        if measure != "negative":
            assert math.exp(test.mean) == pytest.approx(4, rel=0.05)
    assert {flatness.verdict(test) for test in loss.values()} == {"cannot tell"}
    assert flatness.ratio(epochs["qat", "W4A32", "trace", "raw"], "trace").startswith("**4.")
    assert flatness.ratio(None, "trace") == "–"


def test_between_float_networks_is_read_off_on_a_line_and_nowhere_else():
    rows = rows_of(lambda _: row(0.3))
    assert flatness.at_loss(rows, 0, 0.3, "trace", "raw") == pytest.approx(2 * math.log(0.3))
    assert math.isnan(flatness.at_loss(rows, 0, 0.5, "trace", "raw"))
    assert math.isnan(flatness.at_loss(rows, 0, 0.05, "trace", "raw"))


def test_an_ascent_that_has_not_converged_is_not_compared():
    rows = rows_of(lambda noise: row(0.2, factor=noise, converged=False))
    assert {key[2] for key in flatness.compared(rows, "epochs")} == set(measures.MEASURES) - {"worst"}


def doses(val_losses):
    """Return rows of SGD and of every radius: the trace falls with ρ in Case 3, by a tenth of that in Case 2."""
    hits = {"hits": pack_hits(np.arange(360) % 10 > 0), "settings": {"data": "digits"}}
    noise = np.random.default_rng(1).normal(0, 0.01, 5)
    found = {}
    for case, rho in [(0, 0.0), *((case, rho) for case in dose.CASES for rho in dose.RADII)]:
        effect = {0: 0, 1: 1, 2: 0.1, 3: 1}[case] * rho
        found["W2A2", case, rho] = {
            s: {"val_loss": val_losses.get(rho, 1.0), "trace": 2 - effect + (0 if case == 0 else noise[s]), "top": 1.0}
            | {"worst": 0.1, "converged": True, "loss": 0.1, "accuracy": 90.0, **hits}
            for s in SEEDS
        }
    return found


def test_the_radius_is_that_of_the_least_validation_loss_whatever_the_trace_says():
    rows = doses({0.2: 0.5})
    assert [dose.chosen_radius(rows, "W2A2", case) for case in dose.CASES] == [0.2] * 3
    assert dose.chosen_radius(rows, "W4A4", 3) is None
    tests = dose.compared(rows)
    assert tests["W2A2", 3, "trace"].mean == pytest.approx(-0.2, abs=0.02)
    assert tests["W2A2", 3, "trace"].verdict == "holm" and tests["W2A2", 3, "accuracy"].mean == 0
    assert tests["W2A2", -3, "trace"].mean == pytest.approx(-0.18, abs=1e-9)  # against Case 2


def test_a_trend_is_the_slope_of_the_logarithm_over_doublings():
    rows = doses({})
    for (_, case, rho), own in rows.items():
        worst, accuracy = (0.1 * rho**-0.5, 90 + math.log2(rho)) if case else (0.1, 90.0)
        for seed, found in own.items():
            found.update(worst=worst * (1 + 0.01 * seed), accuracy=accuracy)
    tests = dose.trends(rows | {("W4A4", c, r): own for (_, c, r), own in rows.items()})
    assert math.exp(tests["W2A2", "worst"].mean) == pytest.approx(2**-0.5)
    assert tests["W4A4", "accuracy"].mean == pytest.approx(1)


def test_experiments_of_a_radius_differ_in_it_alone():
    found = dose.experiment("digits-resnet8", "W2A2", 3, 0.5)
    assert found.recipe.sam.rho == 0.5 and found.recipe.sam.case == 3 and found.bits == "W2A2"
    assert dose.experiment("digits-resnet8", "W4A4", 0, 0.0).name == "digits-resnet8-w4a4-sgd"
    assert len(set(dose.wanted("digits-resnet8", [0, 1]))) == 2 * 2 * (1 + 15)


def test_correlation_is_of_pairs_and_its_interval_of_methods():
    groups = [np.array([[k + 0.1 * s, k + 0.2 * s] for s in range(3)]) for k in range(8)]
    rho, low, high, n = scatter._correlation(groups)
    assert n == 24 and rho > 0.9 and low > 0.5 and high <= 1
    assert scatter._correlation([group * [1, -1] for group in groups])[0] < -0.9


def test_hits_and_corruptions_are_of_the_test_images():
    data = saq_core.load_data("digits", device="cpu")

    class Right(torch.nn.Module):
        """Right on the images as they are, wrong on any others."""

        def forward(self, x):
            known = (x.flatten(1)[:, None] == data.test[0].flatten(1)[None]).all(2)
            labels = torch.nn.functional.one_hot(data.test[1][known.float().argmax(1)], 10).float()
            return torch.where(known.any(1, keepdim=True), labels, 1 - labels)

    found = measures.tested(Right(), data)
    assert found["accuracy"] == 100 and unpack_hits(found["hits"], 360).all() and found["corrupted"] < 50
    x = data.test[0]
    bad = measures.corrupted(x)
    assert float(bad["contrast"].std()) < float(x.std()) and float((bad["noise"] - x).std()) == pytest.approx(
        0.5, rel=0.05
    )
    assert torch.allclose(bad["blur"][0, 0, 3, 3], x[0, 0, 2:5, 2:5].mean(), atol=1e-6)
