"""What is said of the time ahead, and progress bars."""

import pytest
import torch
from networks import RAGGED, convolutional

from landscape import GGN, Hessian, density, sensitivity, top_eigenvalues, trace
from landscape import progress as timing
from landscape.curvature.products import Probe


@pytest.fixture
def switched_on(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


def slow(make=Hessian, memory=1e12):
    """An operator on 7 samples that takes itself for slow: 1 s to build a sample's graph of 2 GB, 2 s for a product."""
    operator = make(convolutional(), RAGGED, memory=memory)
    operator.probe = Probe(build_seconds=1.0, product_seconds=2.0, graph_bytes=2e9)
    return operator


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (lambda: trace(slow(), num_probes=2), "30 matrix-vector products, 7 min 7 s; graphs hold 14.0 GB"),
        (lambda: trace(slow(memory=0), num_probes=2), "30 matrix-vector products, 10 min 30 s; graphs hold 0 MB"),
        (lambda: trace(slow(memory=7e9), num_probes=2), "30 matrix-vector products, 9 min 3 s; graphs hold 6.0 GB"),
        (lambda: top_eigenvalues(slow(GGN), k=1), "4 matrix-vector products, 1 min 3 s; graphs hold 14.0 GB"),
        (lambda: top_eigenvalues(slow().filter_relative(), k=1), "4 matrix-vector products, 1 min 3 s"),
        (lambda: density(slow(), k=1, num_probes=1, steps=3), "matrix-vector products"),
    ],
)
def test_what_takes_long_is_announced_once_before_it_begins(switched_on, capsys, measure, said):
    measure()
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if "products" in line]
    assert line.startswith("ahead: about ") and said in line and not printed.out


def test_a_sensitivity_announces_its_passes_too(switched_on, monkeypatch, capsys):
    monkeypatch.setattr("landscape.flatness.layer_sensitivity.Hessian", lambda function: slow())
    found = sensitivity(convolutional(), RAGGED, formats=("W2",), predictions=("hessian",))
    said = "ahead: about 3 passes over the data and 3 matrix-vector products, 49 s; graphs hold 14.0 GB, vectors "
    assert said in capsys.readouterr().err and 49 <= found.about["seconds_expected"] < 50


def test_what_is_quick_is_not_announced_nor_anything_where_bars_are_off(monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    trace(convolutional(), RAGGED, num_probes=2)
    timing.announce(30, 30.0, 1e9, 1e9)
    trace(torch.eye(3), num_probes=2)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    timing.announce(30, 1e4, 1e9, 1e9)
    assert "products" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        ((30.6, 4.2e6, 2e6), "31 s; graphs hold 4 MB, vectors 2 MB"),
        ((59.7, 1.04e9, 3e9), "1 min 0 s; graphs hold 1.0 GB, vectors 3.0 GB"),
        ((4000, 2.34e10, 0, 4), "66 min 40 s; graphs hold 23.4 GB, vectors 0 MB in each of 4 processes"),
    ],
)
def test_times_and_sizes_are_told_in_units_that_fit(switched_on, capsys, cost, said):
    timing.announce(12, *cost)
    assert capsys.readouterr().err == f"ahead: about 12 matrix-vector products, {said}\n"


def test_what_is_announced_is_what_is_built_and_multiplied():
    hessian = slow(memory=7e9)  # the first batch, 3 samples, fits in; the other 4 are built anew each time
    found = hessian.estimate(5, vectors=10)
    vectors = hessian.shape[0] * (10 + 2 + 1) * 8
    assert found == {"seconds": 7 * 5 * 2.0 + 3 + 4 * 5, "bytes": pytest.approx(6e9), "vectors": vectors}


def test_progress_bars_do_not_nest_and_come_back():
    for _ in timing.progress(range(2), "outer"):
        assert timing._showing
        assert list(timing.progress(range(3), "inner")) == [0, 1, 2]
        assert timing._showing
        break
    assert not timing._showing
