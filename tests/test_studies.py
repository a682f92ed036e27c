"""The studies in figures/: their statistics, their rows, and one that runs from search to table on the digits."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

import landscape
import saq_core
from figures import methods, mixed_precision, study

TINY = saq_core.Experiment("tiny", "digits", "resnet8", saq_core.Recipe(epochs=1, lr=0.1, batch_size=50), limit=100)


def test_means_errors_and_what_is_shown_of_them():
    assert study.mean_and_error([1.0, 2.0, 6.0]) == pytest.approx((3.0, math.sqrt(7 / 3)))
    assert study.mean_and_error([4.0])[0] == 4 and math.isnan(study.mean_and_error([4.0])[1])
    assert study.number(1.234, 0.056, "+") == "+1.23 ± 0.06"
    assert study.number(1.234, math.nan) == "1.23" and study.number(math.nan, 1.0) == "–"
    assert study.number(-1.234, 0.056, "+") == "−1.23 ± 0.06" and study.number(-0.001, math.nan) == "0.00"


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_least_visible_difference_is_found_four_times_out_of_five(n):
    unit = np.arange(n) - (n - 1) / 2
    least = study.visible(list(unit / unit.std(ddof=1)))
    random = np.random.default_rng(0)
    found = stats.ttest_1samp(random.normal(least, 1.0, (20_000, n)), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)
    assert math.isnan(study.visible([1.0]))


def test_rows_are_kept_by_their_keys(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    assert study.read(file, "a") == {}
    for row in ({"a": 1, "b": {"c": 2}}, {"a": 2, "b": {}}):
        study.append(file, row)
    assert study.read(file, "a") == {(1,): {"a": 1, "b": {"c": 2}}, (2,): {"a": 2, "b": {}}}
    assert capsys.readouterr().out == "{'a': 1}\n{'a': 2}\n"


@pytest.mark.parametrize("module", [methods, mixed_precision])
def test_tables_come_from_the_committed_rows_alone(module):
    rows = module.table()
    assert len({len(row) for row in rows}) == 1 and "nan" not in study.markdown(rows)
    assert module is not methods or any(row[0] == "− LSQ, SGD, W4A4" for row in rows)


def rows_of(values: dict[str, list[float]], **others: float) -> dict[tuple, dict[str, float]]:
    """Rows whose columns all hold the value of their seed."""
    columns = (*methods.COLUMNS, methods.UNCONVERGED)
    return {
        (f"{methods.BASE}-{name}", (seed, 0.0)): dict.fromkeys(columns, value) | others
        for name, own in values.items()
        for seed, value in enumerate(own)
    }


def test_the_summary_marks_what_survives_the_tables_correction(monkeypatch):
    """The same mean difference of 5 with an error of 0.06 and of 2.9, over the whole table's tests."""
    values = {"w4a4-sgd": [1.0, 2.0, 3.0], "w4a4-saq1": [5.9, 7.0, 8.1], "w2a2-sgd": [0.0] * 3, "w2a2-saq1": [0, 5, 10]}
    monkeypatch.setattr(methods, "by_seed", lambda: rows_of(values, probe_loss=math.nan))
    shown = methods.summary()[1:]
    assert shown[0] == ["LSQ, SGD", *["2.00 ± 0.58"] * 2, *["0.00 ± 0.00"] * 2]
    assert shown[1][2] == "**+5.000 [4.752, 5.248]**" and shown[1][1] == "**+5.00 [4.14, 5.86]**"
    assert shown[1][3:] == ["+5.0 [−7.4, 17.4]"] * 2
    monkeypatch.setattr(methods, "by_seed", lambda: rows_of(values))
    assert methods.summary()[0][2::3] == ["W4A4: probe loss", "W2A2: probe loss"]


def test_a_worst_case_that_did_not_converge_is_shown_and_not_tested(monkeypatch):
    values = {"w4a4-sgd": [1.0, 2.0, 3.0], "w4a4-saq1": [5.9, 7.0, 8.1]}
    monkeypatch.setattr(methods, "by_seed", lambda: rows_of(values, worst_case=math.nan))
    at = list(methods.COLUMNS).index("worst_case") + 2
    assert [row[at] for row in methods.table()[1:]] == ["2.00 ± 0.58†", "7.00 ± 0.64†", "+5.00 ± 0.06†"]
    assert all(column != "worst_case" for _, column in methods.judged(methods.by_seed()))
    monkeypatch.setattr(methods, "by_seed", lambda: rows_of(values, worst_case_unconverged=math.nan))
    assert methods.table()[3][at] == "**+5.000 [4.752, 5.248]**"


def test_older_rows_have_no_worst_case_that_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(methods, "ROWS", tmp_path / "rows")
    for seed, own in enumerate(({}, {"converged": False}, {"converged": True, "probe_loss": 0.5})):
        keys = dict(zip(methods.KEYS, (f"{methods.BASE}-w2a2-sgd", seed, None), strict=True))
        study.append(methods.ROWS, keys | {"worst_case": 3.0} | own)
    rows = list(methods.by_seed().values())
    assert [math.isnan(row["worst_case"]) for row in rows] == [True, True, False]
    assert [row[methods.UNCONVERGED] for row in rows[:2]] == [3.0, 3.0] and rows[2]["probe_loss"] == 0.5


def test_accuracies_use_the_hits_that_both_networks_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(methods, "ROWS", tmp_path / "rows")
    random, hits = np.random.default_rng(0), {}
    for variant in ("sgd", "saq1"):
        for seed in range(3):
            hits[variant, seed] = random.random(methods.TEST_IMAGES) < 0.75
            keys = dict(zip(methods.KEYS, (f"{methods.BASE}-w2a2-{variant}", seed, 0.5), strict=True))
            study.append(methods.ROWS, keys | {"hits": study.pack_hits(hits[variant, seed])})
    assert "hits" not in capsys.readouterr().out
    names = [f"{methods.BASE}-w2a2-{variant}" for variant in ("saq1", "sgd")]
    own = [[hits[variant, seed] for seed in range(3)] for variant in ("saq1", "sgd")]
    assert methods.images(methods.by_seed(), *names) == study.images_of(*own)
    keys["seed"] = 3
    for name in names:
        study.append(methods.ROWS, keys | {"recipe": name})
    assert methods.images(methods.by_seed(), *names) == study.images_unknown(4, methods.TEST_IMAGES)


def test_what_a_cheaper_policy_keeps_is_a_ratio_of_paired_means():
    """Differences of -4 and -6 where Case 3 has -8 and -12: half, exactly; a seed that one of them lacks is out."""
    values = {"w4a4-sgd": [20.0, 30.0, 9.0], "w4a4-saq3": [12.0, 18.0], "w4a4-saq3-momentum": [16.0, 24.0, 1.0]}
    share, ends = methods.kept(rows_of(values), f"{methods.BASE}-w4a4-saq3-momentum", "trace")
    assert share == 0.5 and ends == (-math.inf, math.inf)  # two seeds: Case 3's own difference is not told from zero
    values = {name: [*own[:2], 25.0 - own[0] + own[1]] for name, own in values.items()}
    values["w4a4-saq3"] = [12.0, 22.0, 26.9]
    share, (low, high) = methods.kept(rows_of(values), f"{methods.BASE}-w4a4-saq3-momentum", "trace")
    assert low < share < high < math.inf


def test_networks_are_paired_by_seed_and_by_the_float_network_that_they_start_from(tmp_path, monkeypatch, capsys):
    """A training repeated elsewhere is another one: its row stays beside the first, and its pairs are its own."""
    monkeypatch.setattr(methods, "ROWS", tmp_path / "rows")
    monkeypatch.setattr(methods, "FEATURES", tmp_path / "features")
    for variant, start, accuracy in (("sgd", None, 70.0), ("sgd", 0.5, 80.0), ("fpq", 0.5, 81.0), ("saq3", None, 72.0)):
        own = dict(zip(methods.KEYS, (f"{methods.BASE}-w2a2-{variant}", 0, start), strict=True))
        study.append(methods.ROWS, own | {"accuracy": accuracy})
    study.append(methods.FEATURES, own | {"start_loss": 0.5, "feature_trace": 3.0})  # of a network without a row
    rows = methods.by_seed()
    assert len(rows) == 4 and all(math.isnan(row["feature_trace"]) for row in rows.values())
    for variant, difference in (("fpq", 1.0), ("saq3", 2.0)):
        assert methods.paired(rows, f"{methods.BASE}-w2a2-{variant}")["accuracy"] == [difference]


def test_a_network_is_measured_once_for_every_float_network_that_it_starts_from(tmp_path, monkeypatch, capsys):
    name = f"{methods.BASE}-w2a2-sgd"
    for attribute, value in {"RUNS": tmp_path, "ROWS": tmp_path / "rows", "_measured": lambda stem, root: {}}.items():
        monkeypatch.setattr(methods, attribute, value)
    (tmp_path / f"{name}-1.pt").touch()
    for loss in (0.7, 0.7, 0.6):
        (tmp_path / f"{methods.BASE}-1.json").write_text(json.dumps({"test": {"loss": loss}}))
        methods.measure("data", [name, methods.NAMES[0]], [0, 1])
    assert list(study.read(methods.ROWS, *methods.KEYS)) == [(name, 1, 0.7), (name, 1, 0.6)]


def test_a_new_row_holds_hits_probe_loss_and_how_the_ascent_ended(tmp_path, monkeypatch):
    worst = SimpleNamespace(delta_loss=torch.tensor([2.0]), gain=torch.tensor([0.1]), converged=torch.tensor([True]))
    asked = []
    monkeypatch.setattr(landscape, "worst_case_sharpness", lambda *data, **settings: asked.append(settings) or worst)
    for name, coarse in (("trace", {"num_probes": 2, "rtol": 1.0}), ("top_eigenvalues", {"tol": 0.5})):
        measured = getattr(landscape, name)
        monkeypatch.setattr(landscape, name, lambda *data, _m=measured, _c=coarse, **own: _m(*data, **(own | _c)))
    monkeypatch.setattr(methods, "SAMPLES", 16)
    model = saq_core.reproduce(TINY, None, out=tmp_path)
    row = methods._measured(str(tmp_path / "tiny-0"), None)
    assert asked == [{"radii": [methods.RADIUS]}]
    assert (row["worst_case_gain"], row["converged"]) == (pytest.approx(0.1), True)
    x, y = saq_core.load_data("digits", limit=100).test
    hits = study.unpack_hits(row["hits"], len(y))
    assert hits.tolist() == (model.eval()(x).argmax(1) == y).tolist()
    record = json.loads((tmp_path / "tiny-0.json").read_text())
    assert row["accuracy"] == pytest.approx(100 * record["test"]["accuracy"]) and row["space"] == "float"
    inputs, labels = (part[:16] for part in model.probe)
    loss = torch.nn.functional.cross_entropy(model(inputs), labels).item()
    assert row["probe_loss"] == pytest.approx(loss, rel=1e-4) and json.dumps(row)


def test_committed_rows_belong_to_recipes_that_exist():
    rows = study.read(methods.ROWS, "recipe", "seed")
    assert rows and {name for name, _ in rows} <= set(methods.NAMES)
    for (name, seed), row in rows.items():
        recipe = saq_core.EXPERIMENTS[name].recipe
        assert row["settings"]["recipe"]["seed"] == seed and row["settings"]["recipe"]["epochs"] == recipe.epochs
        assert row["settings"]["recipe"]["lr"] == recipe.lr and row["settings"]["limit"] == 10_000


def test_every_network_of_the_mixed_study_has_its_policy():
    wanted = mixed_precision.wanted([0, 1, 2])
    assert len(set(wanted)) == len(wanted) == 3 * 4 + 5 + 3 * 3 + 3 * 4
    assert {label for label, *_ in wanted} == set(mixed_precision.SEARCHES)


def test_the_mixed_study_runs_from_search_to_table(tmp_path, monkeypatch):
    quick = saq_core.ASGA(epochs=1, batch_size=50, lr=0.02)
    for name, value in {
        "BASE": TINY,
        "STARTS": {"digits": "test_studies:TINY"},
        "TUNED": replace(TINY.recipe, lr=0.01),
        "ROWS": tmp_path / "rows",
        "POLICIES": tmp_path / "policies",
        "RUNS": tmp_path,
        "SEARCHES": {"uniform": {"method": "uniform"}, "asga": {"method": "asga", "settings": quick}},
    }.items():
        monkeypatch.setattr(mixed_precision, name, value)
    for label in ("uniform", "asga", "asga"):
        mixed_precision.search(label, "digits", None)
        mixed_precision.tune(label, "digits", "digits", 0, None)
    policies = study.read(tmp_path / "policies", "policy", "searched_on")
    assert (
        len((tmp_path / "policies").read_text().splitlines()) == len((tmp_path / "rows").read_text().splitlines()) == 2
    )
    for row in study.read(tmp_path / "rows", "policy").values():
        policy = policies[row["policy"], "digits"]
        assert row["bops"] == policy["bops"] <= policy["budget"] and 0 < row["accuracy"] <= 100
    record = json.loads((tmp_path / "digits-resnet20-mixed-asga-of-digits-0.json").read_text())
    assert record["bits"] == policies["asga", "digits"]["bits"]
    assert len(mixed_precision.table()) == 3


def test_policies_are_compared_with_uniform_bits_of_the_same_seed_and_data(tmp_path, monkeypatch):
    bits = {"conv": "W3A3"}
    policy = {"searched_on": "c", "bits": bits, "bops": 1, "seconds": 2, "resident_mib": 9, "resident_before_mib": 4}
    for name, part in (("ROWS", "rows"), ("POLICIES", "policies")):
        monkeypatch.setattr(mixed_precision, name, tmp_path / part)
    for label in ("uniform", "asga"):
        study.append(tmp_path / "policies", {"policy": label, **policy})
        for on, less in (("c", 0), ("d", 20)):
            for seed, accuracy in enumerate((50, 60) if label == "uniform" else (51, 63, 99)):
                own = {"policy": label, "searched_on": "c", "trained_on": on, "seed": seed}
                study.append(tmp_path / "rows", own | {"accuracy": accuracy - less, "bops": 1})
    rows = [dict(zip(mixed_precision.table()[0], row, strict=True)) for row in mixed_precision.table()[1:]]
    assert [row["trained on"] for row in rows] == ["c", "c", "d", "d"]
    for row in rows:
        expected = {"uniform": ("–", "–"), "asga": ("1", "+2.00")}[
            row["policy"]
        ]  # one search: tuning has the only spread
        assert (row["searches"], row["− uniform"]) == expected and row["MiB"] == "+5"
        assert ("±" in row["accuracy, %"]) == (row["policy"] == "uniform")


def test_random_policies_are_tested_over_their_seeds(tmp_path, monkeypatch):
    """Five policies on three float networks are three pairs."""
    monkeypatch.setattr(mixed_precision, "ROWS", tmp_path / "rows")
    for label, accuracies in {
        "uniform": [70, 72, 74],
        "random 0": [68],
        "random 1": [0, 69.5],
        "random 3": [69],
    }.items():
        for seed, accuracy in enumerate(accuracies):
            own = {"policy": label, "searched_on": "cifar10", "trained_on": "cifar10", "seed": seed}
            if accuracy:
                study.append(tmp_path / "rows", own | {"accuracy": accuracy})
    assert mixed_precision.less_uniform("random", "cifar10", "cifar10") == {0: -1.5, 1: -2.5}
    judged = mixed_precision.against_uniform("random")
    assert (judged.n, judged.mean) == (2, -2.0) and judged.error >= math.sqrt(1e4 * study.DISAGREEMENT / 2e4)
