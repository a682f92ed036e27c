import copy
import warnings
from functools import partial

import pytest
import torch
from networks import (
    CASES,
    RAGGED,
    X,
    Y,
    case,
    classification,
    convolutional,
    dense_hessian,
    filter_scale,
    perceptron,
    quantized,
    varied,
)
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

import landscape
from landscape import Hessian
from saq_core import dequantize

all_cases = pytest.mark.parametrize("name", CASES)


def columns(n, k=3):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def close(found, expected, tolerance=1e-6):
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


@all_cases
def test_products_are_those_of_the_dense_hessian(name):
    model, space, dense = case(name)
    hessian = Hessian(model, RAGGED, space=space)
    vectors = columns(len(dense))
    assert hessian.shape == tuple(dense.shape) and hessian.dtype == torch.float64
    close(hessian @ vectors, dense @ vectors)
    assert hessian.products == 3


@all_cases
def test_blocks_are_their_columns_and_rebuilt_graphs_are_the_kept_ones(name):
    model, space, dense = case(name)
    vectors = columns(len(dense))
    kept, rebuilt = Hessian(model, RAGGED, space=space), Hessian(model, RAGGED, space=space, memory=0)
    block = kept @ vectors
    for i in range(3):
        assert torch.equal(kept @ vectors[:, i], block[:, i])
    for _ in range(2):
        close(rebuilt @ vectors, block, 1e-13)


@all_cases
def test_scaled_products_are_those_of_the_scaled_dense_hessian(name):
    model, space, dense = case(name)
    d = filter_scale(model, space)
    scaled = Hessian(model, RAGGED, space=space).filter_relative()
    vectors = columns(len(dense))
    close(scaled @ vectors, d[:, None] * (dense @ (d[:, None] * vectors)))
    close(scaled @ vectors[:, 0], d * (dense @ (d * vectors[:, 0])))


def test_the_hessian_of_a_weight_only_quantized_network_is_that_of_its_float_copy():
    model = quantized("W4A32")
    vectors = columns(case("float")[2].shape[0])
    close(Hessian(model, RAGGED) @ vectors, Hessian(dequantize(model), RAGGED) @ vectors)
    close(
        Hessian(model, RAGGED) @ vectors,
        dense_hessian(dequantize(model), classification, varied(convolutional())) @ vectors,
    )


def test_a_network_that_stands_beside_its_quantized_weights_is_measured_there():
    model = quantized("W4A32")
    model[3].delta.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    dense = dense_hessian(dequantize(model), classification, varied(convolutional()))
    close(Hessian(model, RAGGED) @ torch.eye(len(dense), dtype=torch.float64), dense)


@pytest.mark.parametrize("name", ["float", "W4A4 latent"])
def test_products_are_those_of_curvlinops(name):
    from curvlinops import HessianLinearOperator

    model, space, dense = case(name)
    weights = [model.get_parameter(n) for n in varied(model, space)]
    reference = HessianLinearOperator(model, nn.CrossEntropyLoss(), weights, RAGGED, check_deterministic=False)
    vectors = columns(len(dense))
    close(Hessian(model, RAGGED, space=space) @ vectors, reference @ vectors)


def test_the_quadratic_forms_are_those_of_pyhessian():
    from pyhessian import hessian

    model = convolutional().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = hessian(copy.deepcopy(model), cross_entropy, data=(X, Y), cuda=False)
    torch.manual_seed(3)
    samples = reference.trace(maxIter=4, tol=float("-inf"))
    torch.manual_seed(3)
    signs = [
        torch.cat([torch.randint_like(p, 2).mul(2).sub(1).flatten() for p in model.parameters()]) for _ in range(4)
    ]
    ours = [float(z @ (Hessian(model, RAGGED) @ z)) for z in signs]
    assert ours == pytest.approx(samples, rel=1e-6)


def test_two_hessians_of_one_model_agree():
    model = convolutional()
    first, second = Hessian(model, RAGGED), Hessian(model, RAGGED)
    vectors = columns(first.shape[0])
    assert torch.equal(first @ vectors, second @ vectors)


def test_the_hessian_is_linear_and_symmetric():
    hessian = Hessian(convolutional(), RAGGED)
    u, v, _ = columns(hessian.shape[0]).unbind(1)
    close(hessian @ (2 * u - v), 2 * (hessian @ u) - hessian @ v, 1e-12)
    assert float(u @ (hessian @ v)) == pytest.approx(float(v @ (hessian @ u)), rel=1e-10)


@pytest.mark.parametrize("fails_at", [1, 2])
def test_an_interrupted_product_leaves_no_half_of_the_batches(fails_at):
    calls = [-100]

    def loss(output, target):
        calls[0] += 1
        if calls[0] == fails_at:
            raise KeyboardInterrupt
        return cross_entropy(output, target)

    model = convolutional()
    batches = [RAGGED[0], tuple(part[:1] for part in RAGGED[1]), tuple(part[1:] for part in RAGGED[1])]
    hessian = Hessian(model, batches, loss=loss, memory=1e12)  # the first batch's graph is kept from here on
    v = columns(hessian.shape[0])[:, 0]
    calls[0] = 0
    with pytest.raises(KeyboardInterrupt):
        hessian @ v
    close(hessian @ v, case("float")[2] @ v)


@pytest.mark.parametrize("vector", [torch.ones(3), torch.ones(()), torch.ones(39, 1, 1), torch.ones(3, 39)])
def test_vectors_of_another_shape_are_refused(vector):
    with pytest.raises(ValueError, match=r"vectors must have shape \(39,\) or \(39, k\), got"):
        Hessian(perceptron(), (X[:, 0, 0, 0].new_ones(3, 5), Y[:3])) @ vector


def test_a_diagonal_of_another_shape_is_refused():
    hessian = Hessian(convolutional(), RAGGED)
    with pytest.raises(ValueError, match="d must have shape"):
        hessian.scaled(torch.ones(3))


# --- any model, loss and data ---------------------------------------------------------------------------------------

FLAT, TARGETS = X.flatten(1)[:, :5], X.flatten(1)[:, 5:8]
TOKENS = torch.arange(7 * 4).remainder(6).view(7, 4)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.attend(x, x, x, need_weights=False)[0].mean(1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.1, batch_first=True, activation="gelu")
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 3), nn.Linear(3, 6, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))  # an integer buffer

    def forward(self, tokens):
        return self.head(self.embedding(tokens[:, self.order]).mean(1))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = perceptron()

    def forward(self, inputs):
        return self.inner(inputs["features"])


def frozen():
    model = perceptron()
    model[0].weight.requires_grad_(False)
    return model


def partly_unused():
    model = Named()
    model.spare = nn.Linear(2, 2).double()
    return model


def ragged(*tensors):
    return [tuple(t[:3] for t in tensors), tuple(t[3:] for t in tensors)]


def dict_objective(model, batch):
    return cross_entropy(model(batch["x"]), batch["y"]), len(batch["x"])


IMAGES = X.flatten(2)[..., :12].reshape(7, 6, 4)
DICTS = [{"x": x, "y": y} for x, y in ragged(FLAT, Y)]
LOADER = DataLoader(TensorDataset(FLAT, Y), batch_size=3)
GENERIC = {
    "regression": (perceptron, ragged(FLAT, TARGETS), {"loss": mse_loss}, lambda m: mse_loss(m(FLAT), TARGETS)),
    "loss per sample": (
        perceptron,
        ragged(FLAT, Y),
        {"loss": nn.CrossEntropyLoss(reduction="none")},
        lambda m: cross_entropy(m(FLAT), Y),
    ),
    "dict batches": (perceptron, DICTS, {"objective": dict_objective}, lambda m: cross_entropy(m(FLAT), Y)),
    "inputs in a dict": (
        Named,
        [({"features": x, "ids": x}, y) for x, y in ragged(FLAT, Y)],
        {},
        lambda m: cross_entropy(m({"features": FLAT}), Y),
    ),
    "DataLoader": (perceptron, LOADER, {}, lambda m: cross_entropy(m(FLAT), Y)),
    "one tensor pair": (perceptron, (FLAT, Y), {}, lambda m: cross_entropy(m(FLAT), Y)),
    "attention": (Attention, ragged(IMAGES, Y), {}, lambda m: cross_entropy(m(IMAGES), Y)),
    "transformer": (Encoder, ragged(IMAGES, Y), {}, lambda m: cross_entropy(m(IMAGES), Y)),
    "tied weights": (Tied, ragged(TOKENS, Y), {}, lambda m: cross_entropy(m(TOKENS), Y)),
    "frozen weights": (frozen, ragged(FLAT, Y), {}, lambda m: cross_entropy(m(FLAT), Y)),
    "unused weights": (
        partly_unused,
        [({"features": x}, y) for x, y in ragged(FLAT, Y)],
        {},
        lambda m: cross_entropy(m({"features": FLAT}), Y),
    ),
    "loss linear in a weight": (
        perceptron,
        ragged(FLAT, Y),
        {"objective": lambda m, b: (m(b[0]).mean(), len(b[0]))},
        lambda m: m(FLAT).mean(),
    ),
}


@pytest.mark.parametrize("name", GENERIC)
def test_any_model_loss_and_data(name):
    make, data, settings, mean_loss = GENERIC[name]
    torch.manual_seed(0)
    model = make().double()
    expected = dense_hessian(model, mean_loss, varied(model))
    hessian = Hessian(model, data, **settings)
    close(hessian @ torch.eye(len(expected), dtype=torch.float64), expected)


def test_a_float32_network_is_measured_in_float32():
    model = convolutional().float()
    hessian = Hessian(model, RAGGED)
    vectors = columns(hessian.shape[0])
    product = hessian @ vectors
    assert product.dtype == torch.float32
    close(product.double(), case("float")[2] @ vectors, 1e-3)


def test_gradients_off_around_the_call_do_not_matter():
    with torch.no_grad():
        hessian = Hessian(convolutional(), RAGGED)
        v = columns(hessian.shape[0])
        product = hessian @ v
    close(product, case("float")[2] @ v)


def test_graphs_are_kept_only_where_they_fit_in_memory():
    roomy, tight = (Hessian(convolutional(), RAGGED, memory=memory) for memory in (1e9, 0))
    for operator in (roomy, tight):
        operator @ torch.ones(operator.shape[0], dtype=operator.dtype)
    assert len(roomy._kept) == len(RAGGED) and not tight._kept
    assert "graphs kept" in roomy.about()["products_by"] and "graphs rebuilt" in tight.about()["products_by"]


@pytest.mark.parametrize("units", ["raw", "filter"])
@pytest.mark.parametrize(("memory", "once"), [(1e9, True), (0, False)])
def test_the_network_is_held_once_for_all_products_of_kept_graphs(memory, once, units, monkeypatch):
    """Where graphs are rebuilt each product must find the random numbers, and a loader's, as the first did."""
    hessian = Hessian(convolutional(), RAGGED, memory=memory)
    records, make = [], landscape.model.measuring._Record
    monkeypatch.setattr(landscape.model.measuring, "_Record", lambda *a: records.append(a) or make(*a))
    for measure in (landscape.trace, landscape.top_eigenvalues, partial(landscape.density, steps=5)):
        records.clear()
        found = measure(hessian, units=units)
        assert found.about["products"] > 15
        assert len(records) <= 2 if once else len(records) >= found.about["products"]


def test_where_memory_holds_some_graphs_the_rest_is_rebuilt():
    model = convolutional()
    first = Hessian(model, RAGGED).probe.graph_bytes * len(RAGGED[0][0])
    partly = Hessian(model, RAGGED, memory=1.5 * first)
    vectors = columns(partly.shape[0])
    for _ in range(2):
        close(partly @ vectors, case("float")[2] @ vectors)
    assert len(partly._kept) == 1 and "43% of the graphs kept" in partly.about()["products_by"]


def test_a_shuffled_loader_keeps_all_graphs_or_none(monkeypatch):
    monkeypatch.setattr(landscape.model.objective, "KEPT", 0)  # else its batches would be read once
    model = convolutional()
    loader = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)
    some = Hessian(model, loader, memory=1.5 * 3 * Hessian(model, RAGGED).probe.graph_bytes)
    vectors = columns(some.shape[0])
    for _ in range(2):
        close(some @ vectors, case("float")[2] @ vectors)
    assert not some._kept


@pytest.mark.parametrize("units", ["raw", "filter"])
def test_scipy_finds_the_same_eigenvalues(units):
    from scipy.sparse.linalg import eigsh

    hessian = Hessian(convolutional(), RAGGED)
    operator = hessian if units == "raw" else hessian.filter_relative()
    dense = operator @ torch.eye(operator.shape[0], dtype=torch.float64)
    found = eigsh(operator.to_scipy(), k=3, which="LM", return_eigenvectors=False)
    expected = torch.linalg.eigvalsh((dense + dense.T) / 2)
    largest = expected[expected.abs().argsort(descending=True)[:3]].sort().values
    torch.testing.assert_close(torch.from_numpy(found).sort().values, largest, rtol=1e-8, atol=1e-10)
    assert "\n" not in repr(operator) and f"{units} units" in repr(operator)


def test_batches_of_a_network_in_half_precision_are_summed_in_single():
    x, y = torch.randn(512, 5, generator=torch.Generator().manual_seed(0)), torch.arange(512) % 3
    batches = [(a.bfloat16(), b) for a, b in zip(x.split(2), y.split(2), strict=True)]
    hessian = Hessian(perceptron().bfloat16(), batches)
    v = torch.randn(hessian.shape[0], generator=torch.Generator().manual_seed(1)).bfloat16()
    found = torch.einsum("f,fn->n", hessian.fold_weights, hessian.by_fold(v).double())
    products = [graph.product(hessian._parts(v)) for graph in hessian._kept.values()]
    expected = sum(torch.cat([part.reshape(-1) for part in parts]).double() for parts in products) / 512
    assert float((found - expected).norm() / expected.norm()) < 1e-5  # in bfloat16 it is 2e-3


def test_centre_witness_and_leaves_are_one_copy_of_the_weights():
    hessian = Hessian(convolutional(), RAGGED)
    objective = hessian.objective
    with objective.measurement_mode() as mode:
        witnesses = dict(mode._record.copies)
        for name, parameter in objective.model.named_parameters():
            places = {objective.coordinates.base[name].data_ptr(), hessian._leaves[name].data_ptr()}
            assert places == {objective.network.frozen[name].data_ptr()} == {witnesses[id(parameter)].data_ptr()}
            assert parameter.data_ptr() not in places
