"""Networks that other people's layers quantize: measured at the weights as the forward pass uses them, or refused."""

import copy

import pytest
import torch
import torch.ao.quantization as ao
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import landscape
from landscape import Hessian, Objective
from landscape.explorer.study import Study

pytestmark = [  # torch.ao is being moved to torchao
    pytest.mark.filterwarnings("ignore:.*torch.ao:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]
X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, slope):
        return slope


class LSQ(nn.Module):
    def __init__(self, step=0.2):
        super().__init__()
        self.step = nn.Parameter(torch.tensor(step))

    def forward(self, w):
        return Round.apply((w / self.step).clamp(-3, 3)) * self.step


class Proxy(nn.Module):
    """As brevitas does: handed a view, scale and zero point beside what is rounded, in a tuple inside an object."""

    def __init__(self):
        super().__init__()
        self.tensor_quant = Scaled()

    def forward(self, w):
        return {"value": self.tensor_quant(w.view(w.shape))[0]}


class Scaled(nn.Module):
    def forward(self, w):
        scale = w.detach().abs().amax() / 3
        return w + ((w / scale).round() * scale - w).detach(), scale, torch.zeros(())


class Grouped(nn.Module):
    """As torchao does: one step of each group, kept as a plain attribute."""

    def forward(self, w):
        groups = w.unflatten(1, (-1, 3))
        self.scale = groups.detach().abs().amax(2) / 3
        return (Round.apply(groups / self.scale[..., None]) * self.scale[..., None]).flatten(1)


class Layer(nn.Linear):
    def __init__(self, inputs, outputs, quantizer):
        super().__init__(inputs, outputs)
        self.weight_quantizer = quantizer

    def forward(self, x):
        weight = self.weight_quantizer(self.weight)
        return F.linear(x, weight["value"] if isinstance(weight, dict) else weight, self.bias)


def two(layer):
    torch.manual_seed(0)
    return nn.Sequential(layer(6, 6), nn.SiLU(), layer(6, 3))


def parametrized():
    model = two(nn.Linear)
    for layer in (model[0], model[2]):
        parametrize.register_parametrization(layer, "weight", LSQ())
    return model


def by_torch_ao():
    model = two(nn.Linear).train()
    model.qconfig = ao.QConfig(activation=nn.Identity, weight=ao.get_default_qat_qconfig("x86").weight)
    model = ao.prepare_qat(model)
    model(X)
    return model


FOREIGN = {
    "LSQ": lambda: two(lambda *sizes: Layer(*sizes, LSQ())),
    "tuple": lambda: two(lambda *sizes: Layer(*sizes, Proxy())),
    "groups": lambda: two(lambda *sizes: Layer(*sizes, Grouped())),
    "parametrization": parametrized,
    "torch.ao": by_torch_ao,
}


def float_copy(objective):
    """Build the float network whose weights are those that the quantized one uses."""
    model = two(nn.Linear)
    weights = [w for w in objective.coordinates.centre.values() if w.ndim == 2]
    with torch.no_grad():
        for layer, weight in zip((model[0], model[2]), weights, strict=True):
            layer.weight.copy_(weight)
        biases = [p for n, p in objective.model.named_parameters() if n.endswith("bias")]
        for layer, bias in zip((model[0], model[2]), biases, strict=True):
            layer.bias.copy_(bias)
    return model


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_module_rounds_varies_as_it_is_used(name):
    model = FOREIGN[name]()
    before = [(n, t, t.detach().clone()) for n, t in (*model.named_parameters(), *model.named_buffers())]
    objective = Objective(model, (X, Y))
    assert objective.coordinates.space == "quantized" and objective.coordinates.varies == [63, 63]
    assert all(not weight.step.isnan().any() for weight in objective.rounded.values())
    expected = float_copy(objective)
    with torch.no_grad():  # a copy: torch.ao's observers go on watching
        assert objective.centre.loss.item() == pytest.approx(F.cross_entropy(copy.deepcopy(model).eval()(X), Y).item())
    truth = Hessian(expected, (X, Y))
    hessian = Hessian(objective)
    order = [
        truth.coordinates.names.index(n.replace("parametrizations.weight.original", "weight"))
        for n in hessian.coordinates.names
    ]
    vector = torch.randn(63, generator=torch.Generator().manual_seed(1))
    parts = list(truth.coordinates.unflatten(vector).values())
    product = list(truth.coordinates.unflatten(truth @ vector).values())
    moved = hessian @ torch.cat([parts[index].flatten() for index in order])
    torch.testing.assert_close(moved, torch.cat([product[index].flatten() for index in order]), rtol=1e-3, atol=1e-6)
    assert objective.about()["derivatives"] == "exact"
    surface = landscape.line(objective, points=5)
    assert surface.loss.unique().numel() == 5
    for n, tensor, bits in before:
        now = dict(model.named_parameters()) | dict(model.named_buffers())
        assert now[n] is tensor and torch.equal(tensor, bits), n
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_module_rounds_is_a_staircase_in_latent_space(name):
    objective = Objective(FOREIGN[name](), (X, Y), space="latent")
    landscape.trace(objective, num_probes=2, method="hutchinson")
    assert objective.coordinates.space == "latent" and objective.derivatives == "straight-through"
    assert objective.coordinates.varies == [63, 63]
    step = {n: 1e-6 * torch.ones_like(objective.coordinates.centre[n]) for n in objective.rounded}
    there, here = objective.rounded_at(step), objective.rounded_at(None)
    assert set(there) == set(here) == set(objective.rounded)
    moved = [(there[n].quantized - here[n].quantized).abs() / here[n].step for n in here]
    assert all(((part < 1e-3) | (part > 0.9)).all() for part in moved)  # on the staircase: nothing, or a step


class Shared(nn.Module):
    """One quantizer for two weights and the activations: no module's output is one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.rounder = nn.Linear(6, 6), nn.Linear(6, 3), LSQ(0.1)

    def forward(self, x):
        h = self.rounder(torch.tanh(F.linear(x, self.rounder(self.first.weight), self.first.bias)))
        return F.linear(h, self.rounder(self.second.weight), self.second.bias)


class Inline(nn.Linear):
    def forward(self, x):
        return F.linear(x, Round.apply(self.weight / 0.2) * 0.2, self.bias)


@pytest.mark.parametrize("make", [Shared, lambda: two(Inline)], ids=["shared", "inline"])
def test_what_no_module_rounds_alone_is_called_straight_through(make):
    torch.manual_seed(0)
    objective = Objective(make(), (X, Y))
    trace = landscape.trace(objective, num_probes=2, method="hutchinson")
    assert not objective.rounded and trace.about["space"] == "float"
    assert trace.about["derivatives"] == "straight-through" and "round" in trace.about["derivatives_note"]


def test_lines_between_networks_end_at_both():
    first, second = FOREIGN["LSQ"](), FOREIGN["LSQ"]()
    with torch.no_grad():
        for p in second.parameters():
            p.mul_(0.8)
    line = landscape.line(first, (X, Y), directions=second, span=(0, 1), points=3)
    ends = [Objective(model, (X, Y)).centre.loss for model in (first, second)]
    torch.testing.assert_close(line.loss[[0, -1]], torch.stack(ends).cpu().to(line.loss), rtol=1e-6, atol=0)
    assert Study({"LSQ": first, "float": two(nn.Linear)}, (X, Y)).rounded == {"LSQ": True, "float": False}


def test_rounding_at_its_own_steps():
    model = FOREIGN["LSQ"]()
    rounding = landscape.rounding_sharpness(model, (X, Y), num_samples=2)
    plain = float_copy(Objective(model, (X, Y)))
    with torch.no_grad():
        rounded = F.cross_entropy(plain(X), Y)
        for layer, original in zip((plain[0], plain[2]), (model[0], model[2]), strict=True):
            layer.weight.copy_(original.weight)
        latent = F.cross_entropy(plain(X), Y)
    assert rounding.bits == [0]
    assert rounding.rounded.item() == pytest.approx((rounded - latent).item(), abs=1e-6)


class Stored(torch.Tensor):
    """A weight that is kept as integers, as torchao's: what is computed with it takes its dequantized value."""

    @staticmethod
    def __new__(cls, integers, scale, dynamic):
        return torch.Tensor._make_wrapper_subclass(cls, integers.shape, dtype=torch.float32)

    def __init__(self, integers, scale, dynamic):
        self.integers, self.scale, self.dynamic = integers, scale, dynamic

    def dequantize(self):
        return self.integers.float() * self.scale

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, w, *rest = args
            x = (x * 4).round() / 4 if w.dynamic else x
            return F.linear(x, w.dequantize(), *rest)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            w = args[0]
            return Stored(w.integers, w.scale, w.dynamic)
        return NotImplemented


def stored(dynamic=False):
    model = two(nn.Linear)
    for layer in (model[0], model[2]):
        step = layer.weight.detach().abs().amax() / 127
        integers = (layer.weight.detach() / step).round().to(torch.int8)
        layer.weight = nn.Parameter(Stored(integers, step, dynamic), requires_grad=False)
    return model


def test_integer_weights_are_measured_at_their_dequantized_values_or_refused():
    model = stored()
    weights = [model[0].weight, model[2].weight]
    objective = Objective(model, (X, Y))
    assert objective.coordinates.varies == [63, 63] and objective.coordinates.space == "quantized"
    expected = landscape.trace(float_copy(objective), (X, Y), num_probes=63, method="hutchinson")
    measured = landscape.trace(objective, num_probes=63, method="hutchinson")
    assert measured.value == pytest.approx(expected.value, rel=1e-4) and measured.about["derivatives"] == "exact"
    assert model[0].weight is weights[0] and model[2].weight is weights[1]
    with pytest.raises(ValueError, match="latent space"):
        Objective(model, (X, Y), space="latent")
    with pytest.raises(ValueError, match="inputs are quantized while it runs"):
        Objective(stored(dynamic=True), (X, Y))


class Packed(nn.Module):
    """Integers in a buffer, as in converted networks of several libraries."""

    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.randint(-8, 8, (6, 6), dtype=torch.int8))

    def forward(self, x):
        return x @ self.qweight.float() / 8


def test_networks_whose_integers_would_be_left_out_are_refused():
    model = nn.Sequential(Packed(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="0.qweight holds integer weights"):
        Objective(model, (X, Y))
    assert Objective(model, (X, Y), layers=["1"]).coordinates.varies[0] == 21
    converted = ao.convert(by_torch_ao_with_activations().eval())
    with pytest.raises(ValueError, match=r"0\.\w+ holds integer weights|0 holds integer weights"):
        Objective(nn.Sequential(converted, nn.Linear(3, 3)), (X, Y))


def by_torch_ao_with_activations():
    model = nn.Sequential(ao.QuantStub(), nn.Linear(6, 3), ao.DeQuantStub()).train()
    model.qconfig = ao.get_default_qat_qconfig("x86")
    model = ao.prepare_qat(model)
    model(X)
    return model
