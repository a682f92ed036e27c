"""The studies in figures/: their statistics, their rows, and one that runs from search to table on the digits."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import saq_core
from figures import methods, mixed_precision, study

TINY = saq_core.Experiment("tiny", "digits", "resnet8", saq_core.Recipe(epochs=1, lr=0.1, batch_size=50), limit=100)


def test_means_errors_and_what_is_shown_of_them():
    assert study.mean_and_error([1.0, 2.0, 6.0]) == pytest.approx((3.0, math.sqrt(7 / 3)))
    assert study.mean_and_error([4.0])[0] == 4 and math.isnan(study.mean_and_error([4.0])[1])
    assert study.number(1.234, 0.056, "+") == "+1.23 ± 0.06"
    assert study.number(1.234, math.nan) == "1.23" and study.number(math.nan, 1.0) == "–"


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
    assert module is not methods or any(row[0] == "– SGD" for row in rows)


def test_readme_shows_the_summary_of_the_committed_rows():
    readme = (Path(methods.__file__).parents[1] / "README.md").read_text()
    assert study.markdown(methods.summary()) in readme


def test_the_summary_is_bold_where_three_seeds_would_see_it(monkeypatch):
    """The same mean difference of 5 with an error of 0.58 and of 2.9: 5.7 errors are visible, fewer are not."""
    values = {"w4a4-sgd": [1.0, 2.0, 3.0], "w4a4-saq1": [5.0, 7.0, 9.0], "w2a2-sgd": [0.0] * 3, "w2a2-saq1": [0, 5, 10]}
    rows = {
        (f"{methods.BASE}-{n}", s): dict.fromkeys(methods.COLUMNS, v)
        for n, o in values.items()
        for s, v in enumerate(o)
    }
    monkeypatch.setattr(methods, "by_seed", lambda: rows)
    assert methods.summary()[1:] == [
        ["LSQ, SGD", *["2.00 ± 0.58"] * 2, *["0.00 ± 0.00"] * 2],
        ["SAQ, Case 1", *["**+5.00 ± 0.58**"] * 2, *["+5.00 ± 2.89"] * 2],
    ]


def test_what_a_cheaper_policy_keeps_is_a_ratio_of_paired_means():
    """Differences of -4 and -6 where Case 3 has -8 and -12: half, exactly; a seed that one of them lacks is out."""
    values = {"sgd": [20.0, 30.0, 9.0], "saq3": [12.0, 18.0], "saq3-momentum": [16.0, 24.0, 1.0]}
    stem, nothing = f"{methods.BASE}-w4a4", dict.fromkeys(methods.COLUMNS, 0.0)
    rows = {(f"{stem}-{n}", s): nothing | {"trace": value} for n, own in values.items() for s, value in enumerate(own)}
    assert methods.kept(rows, f"{stem}-saq3-momentum", "trace") == (0.5, 0.0)
    rows[f"{stem}-saq3-momentum", 1] = nothing | {"trace": 26.0}  # -4, where the share 0.4 expects -3.2 and -4.8
    assert methods.kept(rows, f"{stem}-saq3-momentum", "trace") == pytest.approx((0.4, 0.08))


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
    for attribute, value in {"RUNS": tmp_path, "ROWS": tmp_path / "rows", "_measured": lambda stem: {}}.items():
        monkeypatch.setattr(methods, attribute, value)
    (tmp_path / f"{name}-1.pt").touch()
    for loss in (0.7, 0.7, 0.6):
        (tmp_path / f"{methods.BASE}-1.json").write_text(json.dumps({"test": {"loss": loss}}))
        methods.measure([name, methods.NAMES[0]], [0, 1])
    assert list(study.read(methods.ROWS, *methods.KEYS)) == [(name, 1, 0.7), (name, 1, 0.6)]


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
        paired = f"+2.00 ± 1.00 ({study.visible([1, 3]):.2f})"
        assert row["− uniform"] == ("–" if row["policy"] == "uniform" else paired) and row["MiB"] == "+5"
