import math

import pytest
import torch
from networks import RAGGED, X, Y, case, convolutional, filter_scale, perceptron, quantized, rescaled

from landscape import Comparison, average_sharpness, compare, line, surface, worst_case_sharpness
from landscape.comparison import Measured, _difference
from landscape.model.objective import Objective

QUICK = {"radii": (0.05,), "points": 3}


@pytest.fixture(scope="module")
def singles():
    return compare({"FP32": convolutional(), "W4A4": quantized("W4A4")}, RAGGED, rtol=0.02, **QUICK)


@pytest.fixture(scope="module")
def seeds():
    groups = {"a": [convolutional(i) for i in (0, 1, 2)], "b": [convolutional(i) for i in (3, 4, 5)]}
    settings = {"radii": (0.05,), "points": 0, "rtol": 0.3}
    alone = compare({"FP32": convolutional(7), "three": groups["b"]}, RAGGED, **settings)
    return compare(groups, RAGGED, **settings), alone


def row_of(comparison, network, quantity):
    (row,) = [r for r in comparison.rows if (r["network"], r["quantity"]) == (network, quantity)]
    assert (row["value"], row["stderr"]) == pytest.approx(comparison.value(network, quantity), rel=0, nan_ok=True)
    return row


@pytest.mark.parametrize(("network", "name"), [("FP32", "float"), ("W4A4", "W4A4 quantized")])
def test_the_numbers_are_those_of_the_dense_hessian(singles, network, name):
    model, space, dense = case(name)
    d = filter_scale(model, space)
    for units, matrix in (("raw", dense), ("filter", d[:, None] * dense * d)):
        values = torch.linalg.eigvalsh(matrix)
        found = row_of(singles, network, f"trace_{units}")
        assert abs(found["value"] - float(matrix.trace())) < 4 * found["stderr"]
        assert row_of(singles, network, f"lambda1_{units}")["value"] == pytest.approx(float(values[-1]), rel=1e-3)
    assert row_of(singles, network, "lambda1_over_lambda5")["value"] == pytest.approx(
        float(values[-1] / values[-5]), rel=0.01
    )
    loss, accuracy = (float(value) for value in Objective(model, RAGGED).centre[:2])
    assert (row_of(singles, network, "loss")["value"], row_of(singles, network, "accuracy")["value"]) == (
        loss,
        accuracy,
    )


def test_rises_lines_and_surfaces_are_those_of_the_single_calls(singles):
    for network, model in (("FP32", convolutional()), ("W4A4", quantized("W4A4"))):
        for name, measure in (("worst", worst_case_sharpness), ("average", average_sharpness)):
            found = measure(model, RAGGED, radii=(0.05,))
            row = row_of(singles, network, f"{name}_0.05")
            errors = [float(error) for error in (found.stderr, found.stderr_data) if not error.isnan()]
            expected = (float(found.delta_loss), math.hypot(*errors))
            assert (row["value"], row["stderr"]) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
        assert torch.equal(singles.surfaces[network].loss, surface(model, RAGGED, points=3).loss)
        assert torch.equal(singles.lines[network].loss, line(model, RAGGED, points=7).loss)


def test_rises_of_single_networks_are_paired_by_draw_and_by_sample(singles):
    for name, measure in (("average", average_sharpness), ("worst", worst_case_sharpness)):
        mine, theirs = (measure(m, RAGGED, radii=(0.05,)) for m in (quantized("W4A4"), convolutional()))
        row, moved = row_of(singles, "W4A4", f"{name}_0.05"), (mine.data_delta_loss - theirs.data_delta_loss)[0]
        assert (
            row["delta"]
            == pytest.approx(float(mine.delta_loss - theirs.delta_loss))
            == pytest.approx(float(moved.mean()))
        )
        draws = float((mine.samples - theirs.samples).std()) / 10**0.5 if name == "average" else 0.0
        assert row["delta_stderr"] == pytest.approx(math.hypot(draws, float(moved.std()) / len(moved) ** 0.5))


def test_traces_are_paired_by_probe_as_far_as_both_have_probes(singles):
    first, second = (Measured(**singles.seeds[network][0]["trace_filter"]) for network in ("FP32", "W4A4"))
    common = min(len(first.parts), len(second.parts))
    pairs = torch.tensor(second.parts[:common]) - torch.tensor(first.parts[:common])
    row = row_of(singles, "W4A4", "trace_filter")
    assert row["delta"] == pytest.approx(second.value - first.value)
    assert row["delta_stderr"] == pytest.approx(float(pairs.std() / common**0.5), rel=1e-5)
    assert row["delta_stderr"] < math.hypot(first.stderr, second.stderr)


def test_one_network_against_several_adds_their_errors():
    one, several = [Measured(1.0, 0.3)], [Measured(2.0, 0.1), Measured(4.0, 0.1)]
    assert _difference(several, one) == pytest.approx((2.0, math.hypot(0.3, 1.0), 1))


def test_an_interval_is_students_with_the_degrees_of_freedom_of_what_tells_the_error(singles, seeds):
    from scipy.stats import t

    for comparison, pair, quantity, df in (
        (seeds[0], ("b", "a"), "trace_filter", 2),  # three pairs of seeds
        (seeds[1], ("three", "FP32"), "loss", 2),  # three seeds of the one, seven samples of the other
        (singles, ("W4A4", "FP32"), "average_0.05", 6),  # 10 pairs, 7 samples
        (singles, ("W4A4", "FP32"), "loss", 6),
    ):
        difference, stderr = comparison.difference(*pair, quantity)
        for level in (0.68, 0.95):
            expected = t.interval(level, df, difference, stderr)
            assert comparison.interval(*pair, quantity, level) == pytest.approx(expected), quantity
        row = row_of(comparison.select(*pair[::-1]), pair[0], quantity)
        assert row["delta_df"] == df
    assert f"{seeds[0].table['b − a'].iloc[0]}".endswith("(2 df)") and "df" not in seeds[0].table["a"].iloc[0]
    assert "Student's t" in str(singles) and singles.interval("FP32", "FP32", "loss") == (0.0, 0.0)
    assert all(map(math.isnan, singles.interval("W4A4", "FP32", "lambda1_over_lambda5")))
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        singles.interval("W4A4", "FP32", "loss", 1.0)


def test_a_verdict_says_which_is_lower_or_that_nothing_tells():
    values = {"SGD": (3.0, 4.1, 4.9), "SAQ": (1.0, 2.0, 3.0), "a*b": (2.9, 4.1, 5.0), "NaN": (math.nan,) * 3}
    seeds = {n: [{"trace_filter": {"value": v}} for v in row] for n, row in values.items()}
    seeds["SAQ"][0]["trace_filter"]["converged"] = False
    found = Comparison({}, seeds, {}, {})
    lower = "Trace, filter-relative: **SAQ is lower than SGD**, 4.000 → 2.000 †, −2.000 [−2.248, −1.752] (95 %)"
    higher = "Trace, filter-relative: **SGD is higher than SAQ**, 2.000 † → 4.000, +2.000 [1.598, 2.402] (98 %)"
    assert found.verdict("SAQ", "SGD") == lower and found.verdict("SGD", "SAQ", level=0.98) == higher
    alike = "**a\\*b is not told apart from SGD**, 4.000 → 4.000, −0.000 [−0.248, 0.248] (95 %)"
    assert found.verdict("a*b", "SGD").endswith(alike)
    assert found.verdict("NaN", "SGD").endswith("is not told apart from SGD**, 4 → nan, +nan without an error")
    assert found.verdict("SGD", "SGD").endswith("**SGD is not told apart from SGD**, 4 → 4, +0 [0, 0] (95 %)")
    single = Comparison({}, {n: [{"lambda1_raw": {"value": v}}] for n, v in (("x", 1.5), ("y", 2.0))}, {}, {})
    assert single.verdict("y", "x", "lambda1_raw").startswith("λ₁, raw \\*: **y is not told apart from x**, 1.5 → 2")


def test_an_accuracy_that_no_image_changes_has_an_error_of_one_image():
    model = convolutional()
    found = compare({"a": model, "b": rescaled(model)}, (X, Y), radii=(0.05,), points=0)
    assert found.difference("b", "a", "accuracy") == pytest.approx((0.0, 1 / 7))
    assert "±" in found.table["b − a"]["accuracy"]
    hits = (model.eval()(X).argmax(1) == Y).double()
    scatter = float(hits.std()) / 7**0.5
    assert found.value("a", "accuracy") == pytest.approx((float(hits.mean()), math.hypot(scatter, 1 / 7)))


def test_networks_over_seeds_are_paired_by_seed(seeds):
    losses = torch.tensor([Objective(convolutional(i), RAGGED).centre.loss.item() for i in range(6)]).double()
    row = row_of(seeds[0], "b", "loss")
    assert row["seeds"] == 3 and row["value"] == pytest.approx(float(losses[3:].mean()))
    assert row["stderr"] == pytest.approx(float(losses[3:].std()) / 3**0.5)
    difference = losses[3:] - losses[:3]
    assert row["delta"] == pytest.approx(float(difference.mean()))
    assert row["delta_stderr"] == pytest.approx(float(difference.std()) / 3**0.5)


def test_one_network_against_several_cannot_be_paired(seeds):
    first, row = (row_of(seeds[1], network, "average_0.05") for network in ("FP32", "three"))
    assert row["delta"] == pytest.approx(row["value"] - first["value"])
    assert row["delta_stderr"] == pytest.approx(math.hypot(row["stderr"], first["stderr"]))
    assert seeds[1].lines == seeds[1].surfaces == {}


def test_filter_relative_columns_do_not_see_the_scale_of_weights_in_front_of_a_batchnorm():
    found = compare({"model": convolutional(), "twin": rescaled(convolutional())}, RAGGED, radii=(0.05,), points=0)
    for row in found.rows[len(found.rows) // 2 :]:
        same = "raw" not in row["quantity"] and row["quantity"] != "weight_norm"
        first = row_of(found, "model", row["quantity"])["value"]
        assert (row["value"] == pytest.approx(first, rel=1e-5)) == same, row["quantity"]


def test_the_table_puts_what_can_be_compared_first(singles):
    table = singles.table
    assert list(table.columns) == ["FP32", "W4A4", "W4A4 − FP32"]
    names = list(table.index)
    assert names.index("trace, filter-relative") < names.index("trace, raw *") < names.index("‖w‖")
    assert "compare only at equal weight norm" in str(singles) and "straight-through" in repr(singles)
    assert "\n" not in repr(singles)
    assert len(singles.frame) == len(singles.rows) and "±" in table.loc["trace, filter-relative", "FP32"]
    assert singles.about["space"] == "quantized" and singles.about["samples"] == 7


def test_differences_are_to_any_network(singles):
    assert singles.difference("W4A4", "W4A4", "loss") == (0.0, 0.0)
    forwards, backwards = (singles.difference(a, b, "average_0.05") for a, b in (("W4A4", "FP32"), ("FP32", "W4A4")))
    assert forwards == pytest.approx((-backwards[0], backwards[1]))


def test_a_selection_is_a_comparison_of_its_own(singles):
    turned = singles.select("W4A4", "FP32")
    assert list(turned.surfaces) == list(turned.lines) == ["W4A4", "FP32"]
    assert row_of(turned, "FP32", "loss")["delta"] == -row_of(singles, "W4A4", "loss")["delta"]
    assert [row["network"] for row in singles.select("W4A4").rows] == ["W4A4"] * len(turned.seeds["W4A4"][0])


def test_unknown_names_list_the_known_ones(singles):
    with pytest.raises(KeyError, match="no quantity 'trace' of 'FP32'; there are .*trace_filter"):
        singles.value("FP32", "trace")
    for call in (lambda: singles.value("FP", "loss"), lambda: singles.select("FP")):
        with pytest.raises(KeyError, match="no network 'FP'; there are .*'FP32', 'W4A4'"):
            call()


def probed(model, probe):
    model.probe = probe
    return model


def test_the_common_probe_is_the_default():
    models = {"a": probed(perceptron(), (X[:, 0, 0], Y)), "b": probed(perceptron(1), (X[:, 0, 0].clone(), Y.clone()))}
    with pytest.raises(ValueError, match="shapes cannot be multiplied"):  # four features for five: the probe was used
        compare(models, **QUICK)
    flat = X.flatten(1)[:, :5]
    models = {name: probed(model, (flat, Y)) for name, model in models.items()}
    found = compare(models, radii=(0.05,), points=0)
    assert row_of(found, "a", "loss")["value"] == Objective(models["a"], (flat, Y)).centre.loss.item()


FLAT = X.flatten(1)[:, :5]
SMALL = [(FLAT[:3], Y[:3]), (FLAT[3:], Y[3:])]


@pytest.mark.parametrize(
    ("models", "settings", "error", "message"),
    [
        ({}, {}, ValueError, "models must name at least one network each, got {}"),
        ({"a": []}, {}, ValueError, "models must name at least one network each, got {'a': 0}"),
        ([perceptron()], {}, TypeError, "models must be a mapping .each value a network"),
        ({"a": perceptron()}, {"data": None}, ValueError, "'a' carries no probe"),
        (
            {"a": probed(perceptron(), (FLAT, Y)), "b": probed(perceptron(), (FLAT + 1, Y))},
            {"data": None},
            ValueError,
            r"'b' carries another probe than the first network: pass data=\(x, y\)",
        ),
        ({"a": perceptron()}, {"points": 4}, ValueError, "points must be odd"),
        ({"a": perceptron()}, {"span": -1.0}, ValueError, "span must be > 0"),
        ({"a": perceptron()}, {"radii": (0.0,)}, ValueError, "radii must be finite numbers > 0"),
        ({"a": perceptron()}, {"data": iter(SMALL)}, TypeError, "can be read only once"),
    ],
)
def test_bad_input_is_refused_in_words(models, settings, error, message):
    with pytest.raises(error, match=message):
        compare(models, **({"data": SMALL} | QUICK | settings))


def test_bad_pictures_are_refused_before_anything_is_measured():
    def loss(output, target):
        raise AssertionError("measured")

    with pytest.raises(ValueError, match="points must be odd"):
        compare({"a": perceptron()}, SMALL, points=6, loss=loss)


def test_the_loss_of_single_networks_is_paired_by_sample():
    pair = {"FP32": convolutional(), "W4A4": quantized("W4A4")}
    found = compare(pair, (X, Y), radii=(0.05,), points=0)
    mine, theirs = (
        torch.nn.functional.cross_entropy(m.eval()(X), Y, reduction="none") for m in reversed(pair.values())
    )
    scatter = (mine - theirs).detach().std() / len(X) ** 0.5
    assert found.difference("W4A4", "FP32", "loss")[1] == pytest.approx(float(scatter))


def test_what_has_no_error_states_none():
    found = compare({"a": convolutional(0), "b": convolutional(1)}, (X, Y), radii=(0.05,), points=0)
    assert math.isnan(found.difference("b", "a", "lambda1_filter")[1])  # one batch: no folds to tell it from
    assert "±" not in found.table["b"].filter(like="λ₁, filter").iloc[0]
    assert "±" in found.table["b"].filter(like="worst").iloc[0]  # over the samples


def test_radii_close_together_keep_their_rows():
    found = compare({"a": convolutional()}, (X, Y), radii=(0.01, 0.011, 0.005), points=0)
    assert {f"worst-case loss increase at {r}%" for r in ("1", "1.1", "0.5")} <= set(found.table.index)
