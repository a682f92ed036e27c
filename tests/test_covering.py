import pytest
import torch
from covering import COLUMNS, Row, Rows, Size, measure, networks, over_draws, population, text


def row_of(claimed, runs=4000, bias=0.0):
    """Return a row of normal errors of size 1 that claims another, with the interval of what it claims."""
    row = Row()
    for value in (torch.randn(runs, generator=torch.Generator().manual_seed(0)) + bias).tolist():
        row.add(7 + value, claimed, 7.0, (7 + value - 1.96 * claimed, 7 + value + 1.96 * claimed))
    return row.summary()


def test_an_honest_error_is_found_honest_and_others_are_not():
    honest, small, shifted = row_of(1.0), row_of(0.5), row_of(1.0, bias=2.0)
    assert list(honest) == list(COLUMNS) and honest["runs"] == 4000
    assert honest["scatter"] == pytest.approx(1, abs=0.05) and small["scatter"] == pytest.approx(2, abs=0.1)
    assert [honest[c] for c in COLUMNS[3:]] == pytest.approx([0.683, 0.954, 0.95], abs=0.02)
    assert [small[c] for c in COLUMNS[3:]] == pytest.approx([0.383, 0.683, 0.673], abs=0.03)
    assert shifted["bias"] == pytest.approx(2, abs=0.05) and shifted["95 %"] < 0.55


def test_what_a_finite_population_takes_off_the_scatter_is_given_back():
    whole, half = Row(), Row()
    for value in torch.randn(400, generator=torch.Generator().manual_seed(1)).tolist():
        whole.add(value, 1.0, 0.0)
        half.add(value * 0.5**0.5, 1.0, 0.0, shrink=0.5**0.5)
    assert half.summary() == pytest.approx(whole.summary(), nan_ok=True)


def test_the_probes_and_vectors_of_a_network_are_measured_against_its_dense_hessian():
    _, training = population(Size(population=0))
    model, rows = networks(training, 10)["FP32"], Rows()
    over_draws(rows, "net", model, tuple(part[:64] for part in training), runs=12)
    table = {name: row.summary() for name, row in rows.items()}
    assert list(table) == ["net trace (probes)", "net density band", "net implied trace", "net negative mass"]
    for name, numbers in table.items():
        assert numbers["runs"] == 12 and 0.75 <= numbers["95 %"] <= 1, name
        assert "band" in name or (0.5 < numbers["scatter"] < 1.6 and abs(numbers["bias"]) < 1.2), name


@pytest.mark.slow
def test_the_table_has_every_error_bar_of_a_real_measurement():
    """Two runs say nothing about coverage, but every row must come with an error, and with an interval it stated."""
    table = measure(Size(runs=2, population=256, rows=128, draws=2, steps=5))
    names = ["trace (probes)", "density band", "implied trace", "negative mass", "trace (data)", "λ₁ (data)", "line"]
    names += ["average sharpness", "rounding noise", "curvature at scale", "worst case"]
    quantities = ["loss", "accuracy", "trace", "λ₁", "average", "worst case"]
    expected = [f"{bits} {name}" for bits in ("FP32", "W4A4") for name in names]
    assert set(table) == {*expected, *(f"W4A4 − FP32: {quantity}" for quantity in quantities)}
    for name, numbers in table.items():
        assert numbers["runs"] == 2 and (numbers["scatter"] > 0) == ("band" not in name), name
        stated = not name.endswith(("line", "sharpness", "noise", "at scale")) and name[4:] != " worst case"
        assert (0 <= numbers["95 %"] <= 1) == stated, name
    assert text(table).count("\n") == len(table)
