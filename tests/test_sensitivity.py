"""The sensitivity of layers to formats against a rounding loop, dense matrices and scipy; bits chosen by it."""

import copy
import dataclasses
import itertools

import pytest
import scipy.stats
import torch
from networks import RAGGED, X, Y, convolutional
from ranks import launched
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.nn.functional import cross_entropy, mse_loss

import landscape
import saq_core
from landscape.flatness.layer_sensitivity import _kendall

FORMATS = ("W2", "W4")
generator = torch.Generator().manual_seed(0)
INPUTS, LABELS = torch.randn(40, 4, generator=generator, dtype=torch.float64), torch.arange(40) % 3
DATA = [(INPUTS[i : i + 5], LABELS[i : i + 5]) for i in range(0, 40, 5)]


def smooth(seed=0):
    """Return a network whose Hessian and Gauss-Newton matrix differ."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def rounded(w, bits):
    """Round a tensor by hand: of fifty scales the one of least squared error."""
    top, best = 2 ** (bits - 1) - 1, None
    for share in range(1, 51):
        step = w.abs().max() / top * share / 50
        levels = torch.clamp(torch.round(w / step), -top, top) * step
        error = ((levels - w) ** 2).sum()
        best = (error, levels) if best is None or error < best[0] else best
    return best[1]


@torch.no_grad()
def loss_of(network):
    return float(cross_entropy(network.eval()(X), Y))


def by_hand(model, choice):
    """Return the losses of the samples, and their classes' log-probabilities, with some layers rounded."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer, form in choice.items():
            weight = other.get_submodule(layer).weight
            weight.copy_(rounded(weight, int(form[1:])))
        logits = other(INPUTS)
    return cross_entropy(logits, LABELS, reduction="none"), logits.log_softmax(1)


@pytest.fixture(scope="module")
def measured():
    return landscape.sensitivity(smooth(), DATA, formats=FORMATS, interactions="pairs")


def test_increases_and_divergences_are_those_of_a_rounding_loop(measured):
    before, p = by_hand(smooth(), {})
    assert measured.layers == ["0", "2", "4"] and measured.formats == ["W2", "W4"] and len(measured.rows) == 6
    for row in measured.rows:
        after, q = by_hand(smooth(), {row["layer"]: row["format"]})
        change, kl = after - before, (p.exp() * (p - q)).sum(1)
        for name, values in (("increase", change), ("kl", kl)):
            stderr = row["stderr" if name == "increase" else "kl_stderr"]
            assert row[name] == pytest.approx(float(values.mean()), rel=1e-9, abs=1e-12)
            assert stderr == pytest.approx(float(values.std() / len(values) ** 0.5), rel=1e-9)
    assert measured.array("kl")[1, 0] == measured.rows[2]["kl"]


def test_predictions_are_quadratic_forms_of_dense_matrices():
    model = smooth()
    found = landscape.sensitivity(model, DATA, formats=FORMATS)
    for layer in found.layers:
        weight = model.get_submodule(layer).weight.detach()

        def outputs(w, layer=layer):
            return functional_call(model, {f"{layer}.weight": w}, INPUTS)

        def loss(w, outputs=outputs):
            return cross_entropy(outputs(w), LABELS)

        n = weight.numel()
        h = hessian(loss)(weight).view(n, n).detach()
        j = jacrev(outputs)(weight).view(len(INPUTS), 3, n).detach()
        p = outputs(weight).detach().softmax(1)
        g = torch.einsum("sci,scd,sdj->ij", j, torch.diag_embed(p) - p[:, :, None] * p[:, None], j) / len(INPUTS)
        assert layer == "4" or (h - g).norm() > 0.05 * h.norm()  # else one would stand for the other
        for row in (row for row in found.rows if row["layer"] == layer):
            d = (rounded(weight, int(row["format"][1:])) - weight).flatten()
            assert row["hessian"] == pytest.approx(float(d @ h @ d) / 2, rel=1e-6)
            assert row["ggn"] == pytest.approx(float(d @ g @ d) / 2, rel=1e-6)
            exact = float(h.trace() / n * d @ d / 2)
            assert abs(row["trace"] - exact) < 4 * row["trace_stderr"] + 1e-9 and row["trace_stderr"] < abs(exact)
            assert 0 < row["hessian_stderr"] < 10 * abs(row["hessian"])


def test_the_error_of_a_prediction_is_that_of_the_folds(measured):
    model, row = smooth(), measured.rows[0]
    weight = model[0].weight.detach()
    d = (rounded(weight, 2) - weight).flatten()
    forms = []
    for x, y in DATA:  # eight batches: a fold each
        h = hessian(lambda w, x=x, y=y: cross_entropy(functional_call(model, {"0.weight": w}, x), y))(weight).detach()
        forms.append(float(d @ h.view(len(d), -1) @ d) / 2)
    assert row["hessian_stderr"] == pytest.approx(torch.tensor(forms).std().item() / 8**0.5, rel=1e-5)


def test_interactions_are_second_differences_and_the_whole_against_the_sum(measured):
    before = by_hand(smooth(), {})[0]

    def check(record, names):
        single = [by_hand(smooth(), {name: record["format"]})[0] - before for name in names]
        whole = by_hand(smooth(), dict.fromkeys(names, record["format"]))[0] - before
        for name, values in (("together", whole), ("alone", sum(single)), ("interaction", whole - sum(single))):
            assert record[name] == pytest.approx(float(values.mean()), rel=1e-9, abs=1e-12)
            assert record[f"{name}_stderr"] == pytest.approx(float(values.std() / len(values) ** 0.5), rel=1e-9)

    pairs = list(itertools.combinations(("0", "2", "4"), 2))
    assert [record["layers"] for record in measured.interactions] == [" + ".join(p) for p in pairs for _ in FORMATS]
    for record in measured.interactions:
        check(record, record["layers"].split(" + "))
    whole = landscape.sensitivity(smooth(), DATA, formats=FORMATS, interactions="whole", predictions=())
    assert [(r["layers"], r["format"]) for r in whole.interactions] == [("all 3", "W2"), ("all 3", "W4")]
    check(whole.interactions[0], ("0", "2", "4"))
    one = landscape.sensitivity(smooth(), DATA, layers=["2"], formats=("W1",), quantize=in_place, interactions="whole")
    assert one.interactions[0]["interaction"] == 0 and one.interactions[0]["layers"] == "all 1"
    assert not whole.correlations and "hessian" not in whole.rows[0]


def test_rank_correlations_are_scipy_s_and_resampled_layers_count_as_often():
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randint(0, 6, (2, 12), generator=generator).double()
    counts = torch.randint(0, 3, (5, 12), generator=generator).double()
    for tau, row in zip(_kendall(x, y, counts), counts.long(), strict=True):
        expected = scipy.stats.kendalltau(x.repeat_interleave(row), y.repeat_interleave(row)).statistic
        assert float(tau) == pytest.approx(expected, abs=1e-12)


def test_correlations_have_intervals_and_say_what_other_data_would_give(measured):
    for record in measured.correlations:
        rows = [row for row in measured.rows if record["format"] in ("all", row["format"])]
        columns = [[row[record[key]] for row in rows] for key in ("measured", "prediction")]
        assert record["tau"] == pytest.approx(scipy.stats.kendalltau(*columns).statistic) and record["cells"] == len(
            rows
        )
        assert record["low"] != record["low"] and record["repeat"] <= 1  # three layers tell no interval
    assert {r["format"] for r in measured.correlations} == {"all", *FORMATS} and len(measured.correlations) == 18
    torch.manual_seed(0)
    deep = nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(4, 4), nn.Tanh()))).double()
    for record in landscape.sensitivity(deep, DATA, formats=FORMATS, predictions=("ggn",)).correlations:
        assert -1 <= record["low"] <= record["high"] <= 1
        assert record["low"] < record["tau"] < record["high"] or record["format"] != "all"
    # a sixteenth of the error, the same increases: the same order again, nearly always
    many = [(x.repeat(256, 1), y.repeat(256)) for x, y in DATA]
    again = landscape.sensitivity(smooth(), many, formats=FORMATS, predictions=("trace",))
    few, more = (
        next(r["repeat"] for r in found.correlations if r["prediction"] == "trace") for found in (measured, again)
    )
    assert few < more and more > 0.95


def test_a_function_quantizes_in_any_way_and_is_predicted_where_the_weights_alone_have_moved():
    model, data = convolutional(), (X.repeat(6, 1, 1, 1), Y.repeat(6))

    def quantize(model, formats):
        torch.rand(1)
        quantized = saq_core.quantize(model, formats, first_last_bits=None, quantizer="minmax")
        return saq_core.calibrate(quantized, RAGGED)

    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = landscape.sensitivity(model, data, formats=("W3A32", "W3A2"), quantize=quantize, interactions="whole")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert found.about["no_prediction"] == "more changes than the weights: W3A2"
    before, weight = loss_of(model), model[3].weight.detach()
    for row in found.rows:
        network = quantize(model, {row["layer"]: row["format"]})
        assert row["increase"] == pytest.approx(loss_of(network) - before, abs=1e-9)
        assert all((row[name] != row[name]) == (row["format"] == "W3A2") for name in ("hessian", "ggn", "trace"))
    d = network[7].weight.detach() - model[7].weight.detach()
    assert not d.any()  # the layer keeps its own weights: what moves is what it computes with
    d = quantize(model, {"3": "W3A32"})[3].used_weight().detach() - weight
    h = hessian(lambda w: cross_entropy(functional_call(model, {"3.weight": w}, X), Y))(weight).detach()
    h = h.view(d.numel(), -1)
    assert found.array("hessian")[1, 0] == pytest.approx(float(d.flatten() @ h @ d.flatten()) / 2, rel=1e-6)
    whole = quantize(model, dict.fromkeys(found.layers, "W3A2"))
    assert found.interactions[1]["together"] == pytest.approx(loss_of(whole) - before, abs=1e-9)


def test_a_function_may_change_the_copy_that_it_is_handed():
    model = smooth()

    def halve(network, formats):
        for layer, form in formats.items():
            network.get_submodule(layer).weight.data.mul_(float(form))
        return network

    found = landscape.sensitivity(model, DATA, formats=("0.5", "1"), quantize=halve, predictions=("ggn",))
    assert torch.equal(model[0].weight, smooth()[0].weight)
    assert (found.array("increase")[:, 1] == 0).all() and (found.array("ggn")[:, 1] == 0).all()
    assert found.array("ggn")[:, 0].isfinite().all() and "no_prediction" not in found.about


def test_what_cannot_be_had_is_left_out_and_said():
    targets = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    found = landscape.sensitivity(smooth(), (INPUTS, targets), loss=mse_loss, formats=("W3",), predictions=("hessian",))
    assert all(row["kl"] != row["kl"] and row["hessian"] > 0 for row in found.rows)
    assert "no cross-entropy" in found.about["kl"]
    own = landscape.sensitivity(
        smooth(), DATA, objective=lambda model, batch: (cross_entropy(model(batch[0]), batch[1]), 5), formats=("W3",)
    )
    assert "ggn" not in own.rows[0] and "hessian" in own.rows[0]
    frozen = smooth()
    frozen[2].requires_grad_(False)
    part = landscape.sensitivity(frozen, DATA, formats=("W3",), predictions=())
    assert part.layers == ["0", "4"] and part.about["left_out"] == ["2.weight"]
    chosen = landscape.sensitivity(smooth(), DATA, layers=["2", "4.weight"], formats=("W3",))
    assert chosen.layers == ["2", "4"] and "left_out" not in chosen.about
    assert chosen.rows[0]["increase"] == landscape.sensitivity(smooth(), DATA, formats=("W3",)).rows[1]["increase"]


def test_time_is_predicted_and_a_result_survives_its_file(measured, tmp_path):
    assert 0 < measured.about["seconds_expected"] < 60 and "Kendall's τ with hessian" in repr(measured)
    again = landscape.load(measured.save(tmp_path / "sensitivity.nc"))
    assert again.rows == measured.rows and again.interactions == measured.interactions and repr(again) == repr(measured)
    assert list(measured.table.columns) == list(FORMATS) and measured.table.index.tolist() == ["0", "2", "4"]


BATCHNORM = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double().eval()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"formats": ("W4", "W1")}, '"W2" to "W16", got \'W1\''),
        ({"formats": ("W4A4",)}, "got 'W4A4': quantize="),
        ({"formats": ("W4", "W4")}, "must be different"),
        ({"formats": ()}, "must be different"),
        ({"formats": "W4"}, r"formats must be a list .* write \['W4'\]"),
        ({"layers": ["7"]}, "layers: nothing that varies is called '7'"),
        ({"model": BATCHNORM, "layers": ["0", "1"]}, "layers must name some, got '1', which has none"),
        ({"model": nn.Linear(4, 3).double().requires_grad_(False)}, "no trainable weights"),
        ({"model": saq_core.quantize(smooth(), "W4A32")}, "must be a float network, got one whose 0.weight"),
        ({"predictions": ("fisher",)}, "predictions must be"),
        ({"interactions": "triples"}, "interactions must be one of"),
        ({"quantize": lambda model, formats: None}, "quantize must return a network"),
        ({"quantize": "minmax"}, "quantize must be a function of 2 arguments"),
    ],
)
def test_bad_arguments_are_refused_in_words_and_change_nothing(arguments, message):
    model = arguments.pop("model", None) or smooth()
    state = copy.deepcopy(dict(model.named_parameters()))
    with pytest.raises((ValueError, TypeError), match=message):
        landscape.sensitivity(model, DATA, **arguments)
    assert all(torch.equal(value, state[name]) for name, value in model.named_parameters())


def in_place(network, formats):
    """Round to a grid with noise: what is drawn must be the same in all processes."""
    for layer, form in formats.items():
        weight = network.get_submodule(layer).weight.data
        weight.add_(torch.randn_like(weight) * 0.1 ** int(form[1:]))
    return network


def measure_both():
    settings = {"formats": FORMATS, "interactions": "whole"}
    yield "grid", landscape.sensitivity(smooth(), DATA, **settings)
    yield "own", landscape.sensitivity(smooth(), DATA, quantize=in_place, predictions=("ggn",), **settings)


def shared(folder):
    landscape.parallel.start()
    for name, found in measure_both():
        found.save(f"{folder}/{name}{landscape.parallel.rank()}.nc")
    landscape.parallel.stop()


def test_two_processes_give_the_numbers_of_one(tmp_path):
    launched(shared, str(tmp_path))
    for name, one in measure_both():
        for rank in range(2):
            two = landscape.load(tmp_path / f"{name}{rank}.nc")
            assert (two.array("increase") == one.array("increase")).all() and two.interactions == one.interactions
            for column in list(one.rows[0])[3:]:
                assert torch.allclose(two.array(column), one.array(column), rtol=1e-9, atol=1e-14), column


# --- bits by it -----------------------------------------------------------------------------------------------------

NETWORK = nn.Sequential(*(nn.Linear(4, width) for width in (4, 4, 4, 4, 3)))
NETWORK[1], NETWORK[2] = nn.Linear(4, 8), nn.Linear(8, 4)
EXAMPLE = torch.zeros(1, 4)


def costs(increases, formats=("W2", "W3", "W4")):
    rows = [
        {"layer": layer, "format": form, "increase": value}
        for layer, own in increases.items()
        for form, value in zip(formats, own, strict=True)
    ]
    return landscape.Sensitivity({}, rows, [], [])


def search(found, budget, **settings):
    settings = {"candidates": (2, 3, 4), "method": "sensitivity", "sensitivity": found} | settings
    return saq_core.search(NETWORK, EXAMPLE, budget=budget, **settings)


def test_a_search_by_sensitivity_finds_the_least_sum_that_fits():
    increases = {"1": (0.9, 0.2, 0.1), "2": (0.4, 0.3, 0.0), "3": (0.5, 0.1, 0.05)}
    sizes = {"1": 32, "2": 32, "3": 16}
    fixed = saq_core.cost(NETWORK, EXAMPLE, bits="W2A2").bops - 4 * sum(sizes.values())
    for budget in range(fixed + 4 * 80, fixed + 16 * 80, 48):
        policy = search(costs(increases), budget)
        fitting = [
            sum(increases[name][k] for name, k in zip(sizes, choice, strict=True))
            for choice in itertools.product(range(3), repeat=3)
            if fixed + sum(sizes[name] * (2 + k) ** 2 for name, k in zip(sizes, choice, strict=True)) <= budget
        ]
        spent = sum(increases[name][int(bits[1]) - 2] for name, bits in policy.bits.items())
        assert spent == pytest.approx(min(fitting)) and policy.bops <= budget and policy.method == "sensitivity"


def test_noise_neither_pays_for_bits_nor_makes_fewer_bits_better():
    noisy = costs({"1": (-0.2, 0.1, -0.1), "2": (0.1, 0.2, 0.05), "3": (0.0, 0.0, 0.0)})
    policy = search(noisy, saq_core.cost(NETWORK, EXAMPLE, bits="W4A4").bops)
    assert set(policy.bits.values()) == {"W4A4"}  # of equal sums the one that uses most
    assert policy.details["rises"] == {"1": [0.1, 0.1, 0.0], "2": [0.2, 0.2, 0.05], "3": [0.0, 0.0, 0.0]}
    exact = costs(dict.fromkeys("123", (0.3, 0.2, 0.1)), ("W2A2", "W3A3", "W4"))
    assert search(exact, 10_000).details["rises"]["1"] == [0.3, 0.2, 0.1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sensitivity": None}, "sensitivity must be a landscape.Sensitivity for method='sensitivity', got NoneType"),
        ({"method": "uniform"}, "sensitivity must be None for method='uniform', got Sensitivity"),
        ({"candidates": (2, 5)}, "must have all candidates and layers of the search, got none of format 'W5'"),
        ({"sensitivity": costs({"1": (1, 1, 1), "2": (1, 1, 1)})}, "got none of layer '3'"),
        ({"sensitivity": costs({name: (float("nan"), 1, 1) for name in "123"})}, "sensitivity must be finite"),
        ({"loss": mse_loss}, "loss must be None"),
    ],
)
def test_a_sensitivity_that_does_not_fit_is_refused(settings, message):
    found = costs(dict.fromkeys("123", (0.3, 0.2, 0.1)))
    with pytest.raises(ValueError, match=message):
        search(found, 10_000, **settings)


def test_a_measured_sensitivity_serves_a_search():
    data = saq_core.load_data("digits", limit=64, device="cpu")
    model = saq_core.build_model("resnet8", data)
    probe = tuple(part[:16] for part in data.probe)
    found = landscape.sensitivity(model, probe, formats=("W2", "W4"), predictions=())
    budget = saq_core.cost(model, bits="W3A3").bops
    policy = saq_core.search(
        model, data, budget=budget, method="sensitivity", sensitivity=found, candidates=("W2A2", "W4A4")
    )
    assert policy.bops <= budget and set(policy.bits) <= set(found.layers)
    policy = saq_core.search(model, data, budget=budget, method="sensitivity", sensitivity=found)
    assert policy.bops <= budget and set(policy.bits.values()) <= {"W2A2", "W4A4"}  # what was measured
    by_kl = dataclasses.replace(found, rows=[row | {"increase": row["kl"]} for row in found.rows])
    assert by_kl.array("increase").min() >= 0


class Loader:
    """An iterable that is no list and no DataLoader."""

    def __iter__(self):
        return iter(DATA)


def test_batches_of_a_loader_of_ones_own_give_what_a_list_does(monkeypatch):
    def clipped(network, choice):
        return nn.Sequential(network[0], nn.Hardtanh(-0.2, 0.2), *network[2:])

    def measured(data):
        return landscape.sensitivity(smooth(), data, formats=("A4",), quantize=clipped).frame

    assert measured(Loader()).equals(measured(DATA))
    monkeypatch.setattr("landscape.model.objective.KEPT", 0)  # as where they are too large to be kept
    found = measured(Loader())
    assert found[["kl", "hessian", "trace"]].isna().all().all()
    assert found["increase"].tolist() == pytest.approx(measured(DATA)["increase"].tolist())


def test_kl_is_a_mean_over_the_samples_whatever_they_weigh():
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1], dtype=torch.float64))
    expected = landscape.sensitivity(smooth(), DATA, formats=("W2",), predictions=()).frame
    found = landscape.sensitivity(smooth(), DATA, formats=("W2",), predictions=(), loss=weighted).frame
    assert found["kl"].tolist() == pytest.approx(expected["kl"].tolist())
    assert found["kl_stderr"].tolist() == pytest.approx(expected["kl_stderr"].tolist())
    assert found["increase"].tolist() != pytest.approx(expected["increase"].tolist())


class Masked(nn.Sequential):
    def forward(self, x):
        return super().forward(x).masked_fill(torch.tensor([False, False, False, True]), -torch.inf)


def test_kl_ignores_classes_that_are_ruled_out():
    torch.manual_seed(0)
    masked = Masked(nn.Linear(4, 4)).double()
    plain = nn.Sequential(nn.Linear(4, 3)).double()
    plain[0].load_state_dict({name: part[:3] for name, part in masked[0].state_dict().items()})

    def quantized(network, choice):
        with torch.no_grad():
            network[0].weight.mul_(0.5)
        return network

    settings = {"formats": ("half",), "predictions": (), "quantize": quantized}
    found, expected = (landscape.sensitivity(model, DATA, **settings).array("kl") for model in (masked, plain))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_and_averaged_in_single(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
    whole, half = (
        landscape.sensitivity(copy.deepcopy(model).to(kind), DATA, formats=("W4",), predictions=()).rows
        for kind in (torch.float32, dtype)
    )
    for row, expected in zip(half, whole, strict=True):
        assert row["kl"] == pytest.approx(expected["kl"], rel=0.5)
        assert abs(row["increase"] - expected["increase"]) < 0.004  # a step of bfloat16 at a loss of 1.1 is 0.008


def test_a_search_asks_for_formats_that_it_knows():
    found = landscape.sensitivity(smooth(), DATA, formats=("int4",), quantize=lambda network, _: network)
    data = saq_core.Data((INPUTS, LABELS), (INPUTS, LABELS), (INPUTS, LABELS), 3)
    with pytest.raises(ValueError, match='sensitivity must have formats like "W4" or "W4A4" for a search, got \'int4'):
        saq_core.search(smooth(), data, method="sensitivity", sensitivity=found, budget=1e9)
