"""A second opinion that shares neither the folding nor the derivatives of our own engine."""

import pytest
import torch
from networks import RAGGED, classification, convolutional, dense_hessian, quantized, varied

from landscape import Hessian, top_eigenvalues, trace
from landscape.model import folding


@pytest.mark.parametrize("make", [convolutional, lambda: quantized("W4A4")])
def test_pyhessian_sees_what_is_wrong_with_our_derivatives(monkeypatch, make):
    model = make()
    dense = dense_hessian(model.eval(), classification, varied(model))
    whole = torch.eye(len(dense), dtype=torch.float64)
    backward = folding._Slopes.backward

    def wrong(ctx, by_x, by_weight):
        return backward(ctx, 0 * by_x if by_x is not None else None, by_weight)

    monkeypatch.setattr(folding._Slopes, "backward", wrong)
    monkeypatch.setattr(
        "landscape.curvature.products._check_symmetric", lambda *_: None
    )  # which would have found it too
    ours, settings = Hessian(model, RAGGED), {"engine": "pyhessian", "seed": 1}
    assert ours.about()["batchnorm_folded"] and not torch.allclose(ours @ whole, dense, rtol=0.01)
    top = top_eigenvalues(model, RAGGED, k=1, tol=1e-10, max_products=1000, **settings)
    assert float(top.values[0]) == pytest.approx(largest(dense), rel=1e-4)
    found = trace(model, RAGGED, num_probes=200, **settings)
    assert abs(found.value - float(dense.trace())) < 4 * found.stderr
    assert found.about["batchnorm_folded"] is top.about["batchnorm_folded"] is False


def largest(dense):
    values = torch.linalg.eigvalsh(dense)
    return float(values[values.abs().argmax()])


@pytest.mark.parametrize("bits", [None, "W4A4"])
def test_both_engines_agree_on_a_folded_network(bits):
    model = quantized(bits) if bits else convolutional()
    ours, theirs = (
        top_eigenvalues(model, RAGGED, k=1, tol=1e-9, max_products=1000, engine=e) for e in ("landscape", "pyhessian")
    )
    assert ours.about["batchnorm_folded"] and not theirs.about["batchnorm_folded"]
    assert float(ours.values[0]) == pytest.approx(float(theirs.values[0]), rel=1e-5)  # its 1e-6 in ‖v‖ + 1e-6
    assert ours.about["centre_loss"] == theirs.about["centre_loss"]
