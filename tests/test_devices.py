"""A device that is not the CPU, without one: what a GPU would refuse is refused, and numbers are those of the CPU.

Tensors of the stand-in say that they are on "meta" and keep their numbers on the CPU. As on a GPU, an operation on
tensors of both raises, but for numbers and indices.
"""

import contextlib

import pytest
import torch
from networks import RAGGED, X, Y, convolutional, quantized
from torch.utils import _mode_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import landscape
from saq_core import FPQ, SAQ, Data, Recipe, calibrate, evaluate, feature_noise_penalty, quantize, train


class Elsewhere(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here):
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, here.size(), **layout, device="meta")

    def __init__(self, here):
        self.here = here

    def tolist(self):
        WAITS.append("tolist")
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), settings=None):
        return run(operation, arguments, settings or {})


class Device(TorchDispatchMode):
    """Inside it, what is made on "meta" has numbers."""

    def __torch_dispatch__(self, operation, types, arguments=(), settings=None):
        return run(operation, arguments, settings or {})


WAITS = []  # what had the host wait for the device, or the device for memory of the host


def run(operation, arguments, settings):
    tensors = [part for part in tree_leaves((arguments, settings)) if isinstance(part, torch.Tensor)]
    there = [part for part in tensors if isinstance(part, Elsewhere)]
    name, device, result_there = operation.overloadpacket.__name__, settings.get("device"), bool(there)
    if device is not None:
        result_there = torch.device(device).type == "meta"
        settings = settings | {"device": "cpu"}
    elif name == "copy_":
        result_there = isinstance(arguments[0], Elsewhere)
    elif there and "index" not in name and any(part.ndim for part in tensors if not isinstance(part, Elsewhere)):
        raise RuntimeError(f"{operation} got tensors of two devices")
    if torch.Tag.inplace_view in operation.tags and there:
        with _mode_utils.no_dispatch():  # sizes and strides
            operation(*arguments, **settings)
    is_read = name in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero") and bool(there)
    crosses = name in ("_to_copy", "copy_") and any(
        isinstance(part, Elsewhere) != result_there for part in tensors[-1:]
    )
    if is_read or crosses:
        WAITS.append(name)
    own = {id(part.here): part for part in there}
    result = operation(*tree_map(here, arguments), **tree_map(here, settings))

    def wrapped(part):
        if not isinstance(part, torch.Tensor) or not result_there:
            return part
        return own[id(part)] if id(part) in own else Elsewhere(part)

    return tree_map(wrapped, result)


def here(part):
    return part.here if isinstance(part, Elsewhere) else part


def moved(model):
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                there = Elsewhere(parameter.detach().clone())
                module._parameters[name] = torch.nn.Parameter(there, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else Elsewhere(buffer.clone())
    return model


@pytest.fixture
def device(monkeypatch):
    class Generator(plain := torch.Generator):
        def __new__(cls, device="cpu"):
            return plain.__new__(cls, "cpu")

    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    with Device():
        yield


def test_the_stand_in_refuses_what_a_gpu_refuses(device):
    there, on_cpu = Elsewhere(torch.ones(3)), torch.ones(3)
    assert there.device.type == "meta" and (there * 2 + torch.tensor(1.0)).tolist() == [3, 3, 3]
    assert there.cpu().device.type == "cpu" and there.new_zeros(2).device.type == "meta"
    with pytest.raises(RuntimeError, match="two devices"):
        there + on_cpu


def product(model):
    return product_of(landscape.Hessian(model, RAGGED))


def product_of(operator):
    return operator @ torch.ones(operator.shape[0], 3, dtype=operator.dtype, device=operator.device)


def offloaded(model):
    """What a Hessian whose vectors lie on the host gives; the stand-in refuses what is of two devices."""
    exact = landscape.Hessian(model, RAGGED, offload=True)
    assert exact.device.type == product_of(exact).device.type == exact.start().device.type == "cpu"
    scaled = landscape.GGN(model, RAGGED, offload=True).filter_relative()
    top = landscape.top_eigenvalues(exact, k=2, tol=1e-6)
    return torch.cat(
        [
            product_of(exact)[:, 0],
            top.values,
            landscape.top_eigenvalues(scaled, k=1).values,
            landscape.trace(exact, eigenvalues=top, num_probes=3, per_layer=True).samples,
            landscape.trace(scaled, num_probes=3).samples,
            landscape.density(exact, num_probes=2, k=1, steps=4).density,
        ]
    )


CALLS = {
    "offloaded": offloaded,
    "product": product,
    "trace": lambda m: landscape.trace(m, RAGGED, num_probes=12).samples,
    "hutchinson": lambda m: landscape.trace(m, RAGGED, method="hutchinson", num_probes=12).samples,
    "eigenvalues": lambda m: landscape.top_eigenvalues(m, RAGGED, k=2).values,
    "filter": lambda m: landscape.top_eigenvalues(landscape.GGN(m, RAGGED).filter_relative(), k=2).values,
    "density": lambda m: landscape.density(m, RAGGED, num_probes=2, k=2, steps=8).density,
    "line": lambda m: landscape.line(m, RAGGED, points=5, directions="gradient").loss,
    "surface": lambda m: landscape.surface(m, RAGGED, points=5, directions="eigenvectors").loss,
    "recomputed": lambda m: landscape.surface(m, RAGGED, points=3, batchnorm="recomputed").loss,
    "worst case": lambda m: landscape.worst_case_sharpness(m, RAGGED, radii=[0.01]).delta_loss,
    "average": lambda m: landscape.average_sharpness(m, RAGGED, radii=[0.01]).delta_loss,
    "rounding": lambda m: landscape.rounding_sharpness(m, RAGGED, num_samples=3).delta_loss,
    "at scale": lambda m: landscape.curvature_at_scale(m, RAGGED, radii=False, num_samples=3).curvature,
}


@pytest.mark.parametrize("make", [convolutional, lambda: quantized("W4A4")], ids=["float", "W4A4"])
@pytest.mark.parametrize("name", CALLS)
def test_landscape_finds_the_same_on_another_device(name, make, request):
    expected, model = CALLS[name](make().eval()), make().eval()
    request.getfixturevalue("device")
    found = here(CALLS[name](moved(model)).cpu())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, check_device=False)


@pytest.mark.parametrize(
    "settings", [{}, {"sam": SAQ(0.05)}, {"sam": SAQ(0.05, policy="momentum")}, {"fpq": FPQ(distill=False)}]
)
def test_training_ends_at_the_same_weights_on_another_device(settings, request, coarse):
    recipe, data = Recipe(epochs=2, lr=0.01, batch_size=3, compile=False, **settings), Data(*[(X, Y)] * 3, 3)
    expected, found = quantized("W4A4"), quantized("W4A4")
    train(expected, data, recipe)
    request.getfixturevalue("device")
    found = moved(found)
    train(found, Data(*[(Elsewhere(X), Elsewhere(Y))] * 3, 3), recipe)
    for name, value in found.state_dict().items():
        torch.testing.assert_close(here(value), expected.state_dict()[name], rtol=1e-6, atol=1e-9)
    assert evaluate(found, (X, Y)).loss == pytest.approx(evaluate(expected, (X, Y)).loss)
    rises = [feature_noise_penalty(m, (X, Y), num_samples=2, num_probes=2).predicted for m in (found, expected)]
    assert rises[0] == pytest.approx(rises[1])


def test_quantizing_and_calibrating_stay_on_the_device(device):
    model = calibrate(quantize(moved(convolutional()), "W4A4", first_last_bits=None), [(Elsewhere(X), Elsewhere(Y))])
    assert {p.device.type for p in model.parameters()} == {b.device.type for b in model.buffers()} == {"meta"}


def objective_of(batches):
    layers = torch.nn.Flatten(), torch.nn.Linear(32, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)
    model = moved(torch.nn.Sequential(*layers).double().eval())
    return landscape.Objective(model, [(Elsewhere(X[:3]), Elsewhere(Y[:3]))] * batches, validate=False)


def product_on(batches, make=landscape.Hessian, **settings):
    operator = make(objective_of(batches), **settings)
    vector = torch.ones(operator.shape[0], dtype=operator.dtype, device=operator.device)
    return lambda: operator @ vector


def line_of(points):
    objective = objective_of(2)
    return lambda: landscape.line(objective, points=points)


def lanczos_on(products):
    operator = landscape.Hessian(objective_of(4))
    return lambda: landscape.top_eigenvalues(operator, k=1, tol=0.0, max_products=products)


def training_on(count, **settings):
    data = Elsewhere(torch.cat([X] * count)), Elsewhere(torch.cat([Y] * count))
    recipe = Recipe(epochs=1, lr=0.01, batch_size=len(X), compile=False, **settings)
    return lambda: train(moved(quantized("W4A4")), Data(data, *[(Elsewhere(X), Elsewhere(Y))] * 2, 3), recipe)


WORK = {  # what may wait no more often where there is more of it, but for so many times
    "batches, graphs kept": (product_on, (2, 3), {}, 0),
    "batches, graphs built anew": (product_on, (2, 3), {"memory": 0}, 0),
    "batches, GGN": (product_on, (2, 3), {"memory": 0, "make": landscape.GGN}, 0),
    "batches of a gradient": (lambda batches: objective_of(batches).gradient, (2, 3), {}, 0),
    "batches of a point": (lambda batches: objective_of(batches).evaluate, (2, 3), {}, 0),
    "points": (line_of, (7, 11), {}, 0),
    "Lanczos steps": (lanczos_on, (3, 7), {}, 8),  # two in each: its coefficients, and where much cancels a norm
    "training steps, SAQ": (training_on, (1, 2), {"sam": SAQ(0.05)}, 0),
}


@pytest.mark.parametrize("name", WORK)
def test_nothing_waits_for_the_device_inside_a_loop(name, device, coarse):
    make, sizes, settings, more = WORK[name]
    counts = []
    for size in sizes:
        work = make(size, **settings)
        WAITS.clear()
        work()
        counts.append(len(WAITS))
    assert counts[1] - counts[0] <= more, WAITS
