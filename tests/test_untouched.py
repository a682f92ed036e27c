"""Every public function leaves weights, buffers, gradients, modes, RNG and precision flags bit for bit as they were."""

import pytest
import torch
from networks import RAGGED, X, Y, convolutional
from states import FLAGS, assert_same, network, state
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import landscape
import saq_core

pytestmark = pytest.mark.usefixtures("coarse")
OTHER, THIRD = convolutional(1), convolutional(2)


def product(model, data, loss):
    hessian = landscape.Hessian(model, data, loss=loss)
    return hessian @ torch.ones(hessian.shape[0])


FUNCTIONS = {
    "Hessian": product,
    "trace": lambda m, d, f: landscape.trace(m, d, loss=f, num_probes=2),
    "latent trace": lambda m, d, f: landscape.trace(m, d, loss=f, num_probes=2, space="latent", units="filter"),
    "trace by layer": lambda m, d, f: landscape.trace(m, d, loss=f, num_probes=2, per_layer=True),
    "trace at an input": lambda m, d, f: landscape.trace(landscape.Hessian(m, d, loss=f, at="0.input"), num_probes=2),
    "Gauss-Newton": lambda m, d, f: landscape.top_eigenvalues(landscape.GGN(m, d, loss=f), k=1),
    "density": lambda m, d, f: landscape.density(m, d, loss=f, k=1, num_probes=1, steps=3),
    "trace by pyhessian": lambda m, d, f: landscape.trace(m, d, loss=f, num_probes=2, engine="pyhessian"),
    "eigenvalues": lambda m, d, f: landscape.top_eigenvalues(m, d, loss=f, k=2),
    "eigenvalues by pyhessian": lambda m, d, f: landscape.top_eigenvalues(m, d, loss=f, k=1, engine="pyhessian"),
    "line": lambda m, d, f: landscape.line(m, d, loss=f, points=3),
    "latent line": lambda m, d, f: landscape.line(m, d, loss=f, points=3, space="latent"),
    "recomputed line": lambda m, d, f: landscape.line(m, d, loss=f, points=3, batchnorm="recomputed"),
    "line to a network": lambda m, d, f: landscape.line(m, d, loss=f, points=3, directions=OTHER),
    "surface": lambda m, d, f: landscape.surface(m, d, loss=f, points=3),
    "average sharpness": lambda m, d, f: landscape.average_sharpness(m, d, loss=f, num_samples=2),
    "worst-case sharpness": lambda m, d, f: landscape.worst_case_sharpness(m, d, loss=f, steps=2),
    "worst case of groups": lambda m, d, f: landscape.worst_case_sharpness(m, d, loss=f, steps=2, m=4),
    "adaptive surface": lambda m, d, f: landscape.surface(m, d, loss=f, points=5, adaptive=True),
    "trajectory": lambda m, d, f: landscape.trajectory(m, [m, OTHER, THIRD], d, loss=f),
    "BatchNorm check": lambda m, d, f: landscape.batchnorm_check(m, d, loss=f),
    "curvature at a scale": lambda m, d, f: landscape.curvature_at_scale(m, d, loss=f, num_samples=2, radii=[1e-2]),
    "rounding sharpness": lambda m, d, f: landscape.rounding_sharpness(m, d, loss=f, num_samples=2),
    "sharpness": lambda m, d, f: landscape.sharpness(m, d, loss=f, measures=["average, filter"]),
    "compare": lambda m, d, f: landscape.compare({"a": m, "b": m}, d, loss=f, points=3, radii=(0.1,)),
}


@pytest.fixture(autouse=True)
def precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("bits", [None, "W4A4"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_changes(name, bits):
    model = network(bits)
    before = state(model)
    FUNCTIONS[name](model, RAGGED, cross_entropy)
    assert_same(before, state(model))


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"trace at an input"}))  # which needs data in one order
def test_reading_a_loader_leaves_the_random_numbers_alone(name):
    model = network(None)
    before = state(model)
    FUNCTIONS[name](model, DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True), cross_entropy)
    assert_same(before, state(model))


@pytest.mark.parametrize(
    ("error", "call"), [(RuntimeError, 1), (RuntimeError, 4), (KeyboardInterrupt, 5), (RuntimeError, 6)]
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_changes_when_the_loss_fails(name, error, call):
    calls = []

    def loss(output, target):
        calls.append(FLAGS[0].fp32_precision)
        torch.rand(1)
        if len(calls) >= call:
            raise error("on purpose")
        return cross_entropy(output, target)

    model = network("W4A4")
    before = state(model)
    with pytest.raises(error, match="on purpose"):
        FUNCTIONS[name](model, RAGGED, loss)
    assert_same(before, state(model))
    assert set(calls) == {"ieee"}


def test_a_precision_that_was_inherited_still_is():
    backends = torch.backends
    flags = [backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv]
    before = backends.fp32_precision
    try:
        backends.fp32_precision = "tf32"
        landscape.line(network(None), RAGGED, points=3)
        assert [flag.fp32_precision for flag in flags] == ["tf32"] * 3
        backends.fp32_precision = "ieee"
        assert [flag.fp32_precision for flag in flags] == ["ieee"] * 3
    finally:
        backends.fp32_precision = before


def test_the_numbers_do_not_depend_on_the_callers_state():
    model = convolutional()
    first = landscape.trace(model, RAGGED, num_probes=5).value
    torch.manual_seed(123)
    model.train()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert landscape.trace(model, RAGGED, num_probes=5).value == first
        assert (
            landscape.line(model, RAGGED, points=3).loss[1] == landscape.line(convolutional(), RAGGED, points=3).loss[1]
        )


class Counting(nn.Module):
    """A network that changes a buffer of its own in every forward pass."""

    def __init__(self):
        super().__init__()
        self.inner = convolutional()
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, x):
        self.calls.add_(1)
        self.calls[0] = 7
        return self.inner(x)


@pytest.mark.parametrize("name", ["trace", "line", "recomputed line", "worst-case sharpness"])
def test_buffers_that_the_network_itself_changes_stay(name):
    model = Counting()
    before = state(model)
    FUNCTIONS[name](model, RAGGED, cross_entropy)
    assert_same(before, state(model))


@pytest.mark.parametrize("inside", ["sampler", "batch_sampler"])
def test_the_order_of_a_samplers_own_generator_is_put_back(inside):
    orders = []
    for measured in (False, True):
        sampler = RandomSampler(X, generator=torch.Generator().manual_seed(3))
        settings = {"sampler": sampler} if inside == "sampler" else {"batch_sampler": BatchSampler(sampler, 4, False)}
        loader = DataLoader(TensorDataset(X, Y), **settings)
        if measured:
            landscape.Objective(convolutional(), loader)
        orders.append([labels.tolist() for _, labels in loader])
    assert orders[0] == orders[1]


def test_a_loader_that_is_read_goes_on_where_it_was(monkeypatch):
    """Workers that persist serve one iterator, which another pass over the same loader would begin anew."""
    monkeypatch.setattr("landscape.model.objective.KEPT", 0)  # as where the data are too large to be kept
    loader = DataLoader(TensorDataset(X, Y), batch_size=1, num_workers=1, persistent_workers=True)
    function, seen = landscape.Objective(convolutional(), loader), 0
    for _ in loader:
        seen += 1
        if seen == 2:
            function.gradient()
            saq_core.evaluate(convolutional(), loader)
    assert seen == len(X)
