"""CUDA graphs; without a GPU a stand-in, which runs again what was called, on the same memory, and no Python."""

import pytest
import torch
from networks import RAGGED, X, Y, convolutional, quantized
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import landscape
from landscape.curvature import products
from landscape.model import cuda_graphs, replay
from landscape.model.measuring import UNINTERRUPTIBLE


class Kernels(TorchDispatchMode):
    """Writes down what is called, with the very tensors: their memory is all that it knows of another call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [part for part in tree_leaves((args, kwargs)) if isinstance(part, torch.Tensor)]
        output = func(*args, **(kwargs or {}))
        made = [part for part in tree_leaves(output) if isinstance(part, torch.Tensor)]
        own = [not any(torch._C._is_alias_of(part, other) for other in given) for part in made]
        if torch.Tag.inplace_view not in func.tags:  # shapes are known on the host
            self.calls.append((func, args, kwargs or {}, made, own))
        return output


class Again:
    """What `Captured` does, on a CPU."""

    def __init__(self, function, device):
        function()
        with Kernels() as kernels:
            self.result = function()
        self.calls = kernels.calls
        for *_, made, own in self.calls:  # a capture computes nothing
            for part, is_own in zip(made, own, strict=True):
                if is_own and part.is_floating_point():
                    part.detach().fill_(torch.nan)

    @torch.no_grad()
    def __call__(self):
        for func, args, kwargs, made, own in self.calls:
            found = [part for part in tree_leaves(func(*args, **kwargs)) if isinstance(part, torch.Tensor)]
            for part, other, is_own in zip(made, found, own, strict=True):
                if is_own:
                    part.view(other.shape).copy_(other)
        return self.result


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def where(request, monkeypatch):
    """The device to measure on, where graphs are captured."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if request.param == "stand-in":
        monkeypatch.setattr(cuda_graphs, "should_capture", lambda device, weights: True)
        monkeypatch.setattr(cuda_graphs, "Captured", Again)
    return torch.device("cpu" if request.param == "stand-in" else "cuda")


@pytest.fixture
def asked(monkeypatch):
    """Which graphs were asked for a product, one by one."""
    calls = []
    for kind in (products.HessianGraph, products.GaussNewtonGraph):
        whole = kind.product
        monkeypatch.setattr(kind, "product", lambda self, v, whole=whole: calls.append(self) or whole(self, v))
    return calls


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 5), nn.GELU(), nn.LayerNorm(5), nn.Linear(5, 3)).double()


NETWORKS = {
    "convolutional": (convolutional, landscape.Hessian, {}),
    "W4A4": (lambda: quantized(4), landscape.Hessian, {}),
    "perceptron": (perceptron, landscape.Hessian, {}),
    "Gauss-Newton": (convolutional, landscape.GGN, {}),
    "float32": (lambda: convolutional().float(), landscape.Hessian, {}),
    "offloaded": (convolutional, landscape.Hessian, {"offload": True}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_captured_products_are_those_of_each_graph(name, where, asked):
    make, operator, settings = NETWORKS[name]
    plain, found = operator(make(), RAGGED, memory=0), operator(make().to(where), RAGGED, **settings)
    vectors = torch.randn(plain.shape[0], 3, dtype=plain.dtype, generator=torch.Generator().manual_seed(1))
    there, rtol = vectors.to(found.device), 1e-4 if name == "float32" else 1e-9
    found @ there[:, 0]  # graphs are built
    found @ torch.cat([there, there], dim=1)  # and captured
    assert found._captured is not None
    asked.clear()
    results = [found @ there, found @ there[:, 1], found.by_fold(there), found.scaled(there[:, 2]) @ there[:, 0]]
    assert not [graph for graph in asked if graph in found._kept.values()]
    others = [
        plain @ vectors,
        plain @ vectors[:, 1],
        plain.by_fold(vectors),
        plain.scaled(vectors[:, 2]) @ vectors[:, 0],
    ]
    for ours, theirs in zip(results, others, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=rtol, atol=rtol)


def test_whole_measurements_are_the_same(where, monkeypatch):
    model, data = convolutional(), (torch.cat([X] * 40), torch.cat([Y] * 40))  # folds tell errors over the data
    hessian = landscape.Hessian(model.to(where), data)
    top, trace = landscape.top_eigenvalues(hessian, k=3), landscape.trace(hessian, num_probes=20, per_layer=True)
    assert hessian._captured is not None and len(hessian.fold_weights) > 3
    monkeypatch.setattr(cuda_graphs, "should_capture", lambda device, weights: False)
    other = landscape.Hessian(convolutional(), data)
    torch.testing.assert_close(landscape.top_eigenvalues(other, k=3).values, top.values)
    again = landscape.trace(other, num_probes=20, per_layer=True)
    assert trace.value == pytest.approx(again.value) and trace.stderr_data == pytest.approx(again.stderr_data)
    assert other._captured is None


def test_what_another_centre_asks_is_not_answered_by_the_capture_of_the_first(where):
    model = convolutional().to(where)
    hessian, vector = landscape.Hessian(model, RAGGED), torch.ones(138, dtype=torch.float64, device=where)
    hessian @ vector, hessian @ vector[:, None].expand(-1, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    moved = hessian.recentred(landscape.model.recentred(hessian.objective))
    for _ in range(6):
        found = moved @ vector
    assert hessian._captured is not None and moved._captured not in (None, hessian._captured)
    torch.testing.assert_close(found, landscape.Hessian(model, RAGGED, memory=0) @ vector)


class Broken(Again):
    def __call__(self):
        return super().__call__() * 1.01


class Refused(Again):
    def __init__(self, function, device):
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("kind", [Broken, Refused])
def test_without_a_capture_that_gives_the_same_each_graph_is_asked(kind, where, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "Captured", kind)
    hessian, vector = landscape.Hessian(convolutional().to(where), RAGGED), torch.ones(138).double().to(where)
    plain = landscape.Hessian(convolutional().to(where), RAGGED, memory=0)
    for _ in range(6):
        torch.testing.assert_close(hessian @ vector, plain @ vector)
    assert hessian._captured is None and len(hessian._kept) == len(RAGGED)


@pytest.mark.parametrize("network", [convolutional, lambda: quantized(4), lambda: convolutional().float()])
def test_points_of_a_surface_are_captured(network, where, monkeypatch):
    launches, made = [], cuda_graphs.Captured
    whole = made.__call__
    monkeypatch.setattr(made, "__call__", lambda self: launches.append(self) or whole(self))
    found = landscape.surface(network().to(where), RAGGED, points=11, metrics={"size": lambda z, y: z.square().mean()})
    assert len(launches) > 121 and len({id(launch) for launch in launches}) == 1
    monkeypatch.setattr(replay, "_PAYS", 10_000)
    other = landscape.surface(network(), RAGGED, points=11, metrics={"size": lambda z, y: z.square().mean()})
    for field in ("loss", "accuracy", "stderr"):
        torch.testing.assert_close(getattr(found, field), getattr(other, field), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.metrics["size"], other.metrics["size"], rtol=1e-4, atol=1e-6)


def test_points_in_half_precision_are_not_captured(where):
    """There a step's length would be rounded to its dtype first."""
    model = convolutional().bfloat16().to(where)
    objective = landscape.Objective(model, [(x.bfloat16(), y) for x, y in RAGGED])
    assert replay._Recorded(objective, [objective.coordinates.centre])._captured is None


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x * float(x.sum()),
        lambda x: x[x > 0],
        lambda x: x.clone().index_put_((x > 0,), x[:1].expand(int((x > 0).sum()))),
        lambda x: x if (x > 0).any() else -x,
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
    ],
)
def test_what_waits_for_the_device_is_found_before_a_capture(waits):
    x = torch.tensor([1.0, -2.0, 3.0])
    with pytest.raises(RuntimeError, match="waits for the device: it cannot be captured"), NO_WAITING:
        waits(x)
    with NO_WAITING:
        x.clone().add_(1).relu().sum()
        torch.nn.functional.embedding(torch.tensor(1), x[:, None])  # one index, which is no list of them


NO_WAITING = cuda_graphs._NoWaiting(torch.device("cpu"))


def test_an_interrupt_waits_until_a_capture_is_whole():
    assert cuda_graphs.Captured.__init__.__code__ in UNINTERRUPTIBLE


def test_it_can_be_switched_off(monkeypatch):
    gpu = torch.device("cuda")
    assert cuda_graphs.should_capture(gpu, 1000) and not cuda_graphs.should_capture(gpu, 2**25)
    assert not cuda_graphs.should_capture(torch.device("cpu"), 1000)
    monkeypatch.setenv("LANDSCAPE_CUDA_GRAPHS", "0")
    assert not cuda_graphs.should_capture(gpu, 1000)
