"""The documents' sentences with numbers are what the committed rows say, and a row that changes changes the words."""

import re

import numpy as np
import pytest
import xarray

from figures import methods, statements, study
from figures.__main__ import FIGURES
from figures.statements import basins, bits, cifar, digits, words
from figures.study import Judged

BASE = methods.BASE


@pytest.fixture
def changed(monkeypatch):
    """Return a function that puts other rows in place of the committed ones."""

    def put(change):
        rows = change(methods.by_seed())
        monkeypatch.setattr(methods, "by_seed", lambda: rows)
        for function in (cifar._study, cifar.rivals, cifar.scan_tests):
            function.cache_clear()

    yield put
    monkeypatch.undo()
    for function in (cifar._study, cifar.rivals, cifar.scan_tests):
        function.cache_clear()


@pytest.mark.parametrize("document", statements.DOCUMENTS, ids=["README", "figures"])
def test_the_documents_are_what_the_rows_say(document):
    text = document.read_text()
    assert statements.rewritten(text) == text, "run: python -m figures.statements"


def test_every_figure_and_the_study_have_their_block_and_nothing_is_called_visible():
    readme, page = (document.read_text() for document in statements.DOCUMENTS)
    assert [name for _, name, _ in statements.BLOCK.findall(readme)] == ["found"]
    blocks = [name for _, name, _ in statements.BLOCK.findall(page)]
    assert blocks[:2] == ["cifar10", "digits"] and set(blocks[2:]) == set(FIGURES) == set(statements.OF_FIGURES)
    section = readme.partition("\n## ")[0]
    assert not re.search(r"\b(visibl[ey]|hints?)\b", section + page)
    rest = statements.BLOCK.sub("", section) + statements.BLOCK.sub("", page)
    for number in re.findall(r"\d+\.\d+ ± \d|\[−?\d+\.\d+, ", rest):
        raise AssertionError(f"{number} stands outside of the blocks")


def test_a_second_writing_changes_nothing():
    text = "before\n<!-- table_bops: python -m figures.statements -->\nold\n<!-- end -->\nafter"
    once = statements.rewritten(text)
    assert "old" not in once and "*Claim: " in once and once.startswith("before\n") and once.endswith("\nafter")
    assert statements.rewritten(once) == once


def judged(mean, verdict):
    holm, bh = {"holm": (0.01, 0.01), "bh": (0.2, 0.02), "none": (1.0, 0.6)}[verdict]
    return Judged(mean, 1.0, 4.0, 3, bh, holm, bh)


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        ({"a": (-1, "holm")}, "yes"),
        ({"a": (-1, "holm"), "b": (-2, "holm")}, "yes for both"),
        ({"a": (-1, "holm"), "b": (-2, "holm"), "c": (-1, "holm")}, "yes for all"),
        ({"a": (-1, "none"), "b": (1, "none")}, "cannot tell"),
        ({"a": (-1, "holm"), "b": (-9, "none")}, "yes for a; else we cannot tell"),
        ({"a": (-1, "bh"), "b": (1, "holm")}, "the opposite for b; yes, by Benjamini-Hochberg only, for a"),
        ({"a": (1, "bh")}, "the opposite, by Benjamini-Hochberg only, for a"),
    ],
)
def test_a_verdict_is_read_off_the_tests(tests, expected):
    found = words.conclude({name: judged(*test) for name, test in tests.items()}, -1)
    assert sorted(found.split("; ")) == sorted(expected.split("; "))


def test_other_rows_make_other_sentences(changed):
    assert " yes for " in cifar.cases() and "not known to be lower" not in cifar.cheaper()

    def as_sgd(rows):
        """SAQ's traces are of SGD's mean, with noise."""
        random, means = np.random.default_rng(0), {"w4a4": 22.5, "w2a2": 18.7}
        saq = {key: means[key[0].split("-")[2]] for key in rows if "saq" in key[0]}
        noisy = {key: rows[key] | {"trace": mean + 2 * random.standard_normal()} for key, mean in saq.items()}
        return rows | noisy

    changed(as_sgd)
    assert "by the trace? At 4 bits cannot tell; at 2 bits cannot tell" in cifar.cases()
    assert "not known to be lower" in cifar.cheaper()


def test_without_a_float_network_tuned_as_long_there_is_no_control(changed):
    assert "Quantized − FP32" in words.paragraph(cifar.float_control())
    changed(lambda rows: {key: row for key, row in rows.items() if key[0] != f"{BASE}-fp32"})
    assert "no fair control yet" in cifar.float_control()


def test_a_control_from_other_starts_is_paired_with_its_own(changed):
    """New rows tell their float network; a probe loss beside the curvature is shown where both have one."""

    def with_new(rows):
        new = {}
        for name, less in ((f"{BASE}-fp32", 0.0), (f"{BASE}-w4a4-sgd", 5.0)):
            for seed in range(3):
                values = dict.fromkeys(methods.COLUMNS, 20.0 + seed - less + 0.1 * seed * less)
                new[name, (seed, 0.6)] = values | {methods.UNCONVERGED: float("nan")}
        return {key: row for key, row in rows.items() if key[1][1]} | new

    changed(with_new)
    found = cifar.float_control()
    assert "by seed alone" not in found and "probe loss" in found and "at 4 bits" in found and "at 2 bits" not in found


def test_the_float_networks_were_tuned_as_long_as_their_quantized_copies():
    rows = study.read(methods.ROWS, *methods.KEYS)
    settings = {key[0]: row["settings"] for key, row in rows.items()}
    own, other = settings[f"{BASE}-fp32"], settings[f"{BASE}-w4a4-sgd"]
    assert own["start"] == other["start"] == BASE and own["bits"] is None
    assert {k: v for k, v in own["recipe"].items() if k not in ("seed", "fpq")} == {
        k: v for k, v in other["recipe"].items() if k not in ("seed", "fpq")
    }


def test_worst_cases_are_tested_where_every_ascent_converged(monkeypatch):
    """Case 1 is at half of SGD's; the largest radius did not converge for one seed of SGD."""
    data = digits.data_of("saq_radii")
    scatter = 1 + 1e-3 * np.random.default_rng(0).standard_normal(data.rise.shape)
    halved = xarray.where(data["variant"] == "saq1", 0.5, 1.0) * data.rise.sel(variant="sgd")
    done = xarray.ones_like(data.rise, bool)
    done.loc[{"variant": "sgd", "seed": 0, "radius": data.radius.values[-1]}] = False
    monkeypatch.setattr(
        digits, "data_of", lambda name: data.assign(rise=halved.transpose(*data.rise.dims) * scatter, converged=done)
    )
    found = " ".join(digits.saq_radii("none").split())
    cases, radii = data.sizes["variant"] - 1, data.sizes["radius"]
    assert f"Corrected over {2 * cases * (radii - 1)} tests." in found and f"For {2 * cases} of the points" in found
    assert "yes for Case 1 at 0.1 %, Case 1 at 0.2 % and Case 1 at 0.5 %" in found


def test_a_search_of_which_there_is_one_has_no_error_and_no_verdict():
    text = bits.page() + bits.table_mixed("none")
    for value in re.findall(r"[−+]\d\.\d\d(?= \((?:SAMQ|ASGA|the Hessian policy)\))", text):
        assert f"{value} ±" not in text and f"{value} [" not in text
    assert "of the searches nothing is tested" in bits.table_mixed("none")


def test_one_networks_basin_is_told_with_its_errors_over_the_images():
    data = digits.data_of("basin_of_text").isel(seed=[0])
    excess = float(data.excess_in_stderr.sel(network="RTN", bits="W2A32")[0])
    text = basins._of_one(data)
    assert f"W2 RTN {excess:+.1f}" in text.replace("\n", " ") and "Outside: W3 RTN, W3 GPTQ, W2 RTN" in text.replace(
        "\n", " "
    )
