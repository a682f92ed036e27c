"""One network that holds several numbers of bits: what it computes, and that SAQ reaches all of it."""

import itertools

import pytest
import torch
from networks import thin_networks
from torch import nn
from torch.nn import functional as F

from saq_core import SAQ, calibrate, cost, load_data, quantize
from saq_core.mixed_precision.samq import SAMQ, Search
from saq_core.mixed_precision.space import Space
from saq_core.mixed_precision.switchable import Switch, Switchable
from saq_core.models import build_model, make
from saq_core.quantization.base import Quantizer

pytestmark = pytest.mark.usefixtures("coarse")


@pytest.fixture(scope="module")
def data():
    return load_data("digits", limit=60, device="cpu")


def switchable(data, name="resnet8", candidates=(2, 4), **settings):
    model = build_model(name, data)
    space = Space.of(model, data.input_shape, candidates=candidates)
    return model, space, Switchable(model, space, data, **settings)


def searching(data, **settings):
    model = build_model("resnet8", data)
    space = Space.of(model, data.input_shape, candidates=(2, 4))
    budget = cost(model, bits=4).bops
    return Search(model, data, space, budget, SAMQ(**{"epochs": 2, "warmup": 1, "batch_size": 7, **settings}), 0, "lsq")


def alternating(space, start=0):
    return torch.tensor([(k + start) % len(space.candidates) for k in range(len(space.groups))])


def state(model):
    return {k: v.clone() for k, v in itertools.chain(model.named_parameters(), model.named_buffers())}


def same(model, before):
    return all(torch.equal(value, before[name]) for name, value in state(model).items())


@pytest.mark.parametrize("name", ["resnet8", "preresnet20", "mobilenet_v2", "vit"])
@pytest.mark.parametrize("quantizer", ["lsq", "liq"])
def test_at_fixed_bits_it_computes_what_quantize_computes(data, name, quantizer):
    with thin_networks():
        model, space, network = switchable(data, name, quantizer=quantizer)
    generator = torch.Generator().manual_seed(0)
    tensors = dict(network.model.named_parameters()) | dict(network.model.named_buffers())
    with torch.no_grad():  # as after some training: every copy has values of its own
        for key, p in sorted(state(network.model).items()):
            if p.is_floating_point() and "delta" not in key:
                noise = 1 + 0.1 * torch.rand(p.shape, generator=generator)
                tensors[key].mul_(noise).add_(
                    noise.sin() if p.ndim == 2 and not p.any() else 0
                )  # a ViT's last layer is 0
    outputs = []
    for start in (0, 1):
        choice = alternating(space, start)
        network.choose_(choice)
        twin = calibrate(quantize(model, space.bits(choice), quantizer=quantizer), data)
        for key, module in twin.named_modules():
            ours = network.model.get_submodule(key) if key in dict(network.model.named_modules()) else None
            source = ours.current if isinstance(ours, Switch) else ours
            if source is not None:
                own = dict(source.named_parameters(recurse=False)) | dict(source.named_buffers(recurse=False))
                for part, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                    value.data.copy_(own[part])
            if isinstance(module, Quantizer):
                assert source.bits == module.bits and source.signed == module.signed
        for net in (twin, network.model):
            net.eval()
        with torch.no_grad():
            outputs.append(network.model(data.test[0][:5]))
            assert torch.equal(outputs[-1], twin(data.test[0][:5]))
    assert not torch.equal(*outputs)


def test_one_latent_weight_and_a_quantizer_and_norm_for_each(data):
    model, space, network = switchable(data, candidates=("W2A4", "W4A4", "W4A8"))
    names = dict(network.model.named_parameters())
    for layer in space.groups:
        assert names[f"{layer}.weight"].shape == model.get_submodule(layer).weight.shape
        weight, inputs = (network.model.get_submodule(f"{layer}.{kind}_quantizer") for kind in ("weight", "input"))
        assert [q.bits for q in weight.options] == [2, 4, 4] and weight.options[1] is weight.options[2]
        assert [q.bits for q in inputs.options] == [4, 4, 8] and inputs.options[0] is inputs.options[1]
    norms = [m for m in network.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 1 + 3 * len(space.norms) == 1 + 3 * 6  # the first layer's is not copied
    network.choose_(alternating(space))
    assert len({m.chosen for m in network.model.modules() if isinstance(m, Switch)}) == 3


def test_its_bit_operations_are_counted_as_those_of_any_network(data):
    _, space, network = switchable(data)
    for start in (0, 1):
        choice = alternating(space, start)
        network.choose_(choice)
        assert cost(network.model, data.input_shape).bops == int(space.bops(choice))


def test_the_float_network_is_left_as_it_is(data):
    model = build_model("resnet8", data)
    before, modules = state(model), [type(m) for m in model.modules()]
    Switchable(model, Space.of(model), data)
    assert same(model, before) and modules == [type(m) for m in model.modules()]


def watched(model):
    """Note what every layer with a delta computes with, and the bits, in each forward pass."""
    passes = []

    def note(layer, inputs):
        passes.append((layer, layer.delta.detach().clone(), layer.weight_quantizer.bits, layer.input_quantizer.bits))

    for module in model.modules():
        if hasattr(module, "delta"):
            module.register_forward_pre_hook(note)
    return passes


@pytest.mark.parametrize("lr", [0.0, 0.05])
def test_saq_reaches_every_switchable_layer_with_the_same_bits_and_leaves_nothing_behind(data, lr):
    _, space, network = switchable(data)
    model = network.model.double().train()
    network.choose_(alternating(space))
    rho = 0.3
    sam = SAQ(rho, perturbed=("weight",)).wrap(model, torch.optim.SGD(model.parameters(), lr=lr))
    x, y = data.train[0][:7].double(), data.train[1][:7]
    passes = watched(model)
    before = state(model)

    def closure():
        sam.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    sam.step(closure)
    layers = len(space.groups) + 2
    first, second = passes[:layers], passes[layers:]
    assert len(second) == layers and [row[0] for row in first] == [row[0] for row in second]
    assert [row[2:] for row in first] == [row[2:] for row in second]
    assert {row[2] for row in second} == {2, 4, 8}
    assert not any(delta.any() for _, delta, _, _ in first)
    epsilon = [delta for _, delta, _, _ in second]
    assert all(e.any() for e in epsilon)
    assert float(torch.stack([e.square().sum() for e in epsilon]).sum().sqrt()) == pytest.approx(rho, rel=1e-9)
    for module, *_ in first:
        assert not module.delta.any() and not module.delta.requires_grad and module.delta.grad is None
    if lr == 0:
        moved = [k for k, v in state(model).items() if not torch.equal(v, before[k])]
        assert moved and all("running" in k or "num_batches" in k for k in moved)
        model.load_state_dict({**model.state_dict(), **{k: before[k] for k in moved}})
        deltas = [module.delta.requires_grad_() for module, *_ in first]
        gradient = torch.autograd.grad(F.cross_entropy(model(x), y), deltas)
        size = torch.stack([g.square().sum() for g in gradient]).sum().sqrt()
        for g, e in zip(gradient, epsilon, strict=True):
            torch.testing.assert_close(e, rho * g / size, rtol=1e-9, atol=1e-12)


def test_what_a_step_did_not_use_stays_as_it_is_weight_decay_or_not(data):
    run = searching(data, weight_decay=0.1, lr=0.1)
    run.draw = lambda uniform: alternating(run.space)
    before = state(run.network.model)
    run.weight_epoch(0)
    used = {
        id(p)
        for switches, k in zip(run.network.switches.values(), alternating(run.space).tolist(), strict=True)
        for s in switches
        for p in (*s.options[k].parameters(), *s.options[k].buffers())
    }
    options = [m for m in run.network.model.modules() if isinstance(m, Switch)]
    inside = {id(p) for m in options for p in (*m.parameters(), *m.buffers())}
    after = dict(run.network.model.named_parameters()) | dict(run.network.model.named_buffers())
    unused = [name for name, value in after.items() if id(value) in inside - used]
    assert unused and all(torch.equal(after[name], before[name]) for name in unused)
    moved = [name for name, value in after.items() if id(value) in used and not torch.equal(value, before[name])]
    assert len(moved) > len(unused) / 2


@pytest.mark.parametrize("what", ["perturbed loss", "sharpness", "generator's epoch"])
def test_measuring_leaves_no_perturbation_and_no_gradient(data, what):
    run = searching(data)
    run.network.choose_(alternating(run.space))
    model = run.network.model.train(what != "perturbed loss")  # the others see to the mode
    modes = [m.training for m in model.modules()]
    before = state(model)
    passes = watched(model)
    if what == "perturbed loss":
        loss = run.perturbed_loss(tuple(part[:7] for part in run.held_out))
        assert not loss.requires_grad
    elif what == "sharpness":
        run.sharpness(alternating(run.space))
    else:
        run.controller_epoch()
    assert any(delta.any() for _, delta, _, _ in passes)
    assert same(model, before) and all(p.grad is None for p in model.parameters())
    assert modes == [m.training for m in model.modules()]
    assert not any(m.delta.requires_grad or m.delta.grad is not None for m in model.modules() if hasattr(m, "delta"))


def test_an_error_in_the_perturbed_pass_leaves_nothing_behind(data):
    run = searching(data)
    before = state(run.network.model.eval())
    x, y = (part[:4] for part in run.held_out)
    with (
        pytest.raises(KeyboardInterrupt),
        run.sam.at_perturbed(lambda: run.backward([(x, y)], 4)),
    ):
        assert not same(run.network.model, before)
        raise KeyboardInterrupt
    assert same(run.network.model, before)


def test_both_passes_of_every_training_step_use_the_bits_drawn_for_it(data):
    run = searching(data)
    passes = watched(run.network.model)
    drawn = []
    draw = run.draw
    run.draw = lambda uniform: drawn.append(draw(uniform=uniform)) or drawn[-1]
    run.weight_epoch(0)
    layers = len(run.space.groups) + 2
    bits = [tuple(row[2] for row in passes[k : k + layers]) for k in range(0, len(passes), layers)]
    assert len(bits) == 2 * len(drawn) and bits[::2] == bits[1::2] and len(set(bits)) > 1
    expected = [(8, *(2 + 2 * k for k in choice.tolist()), 8) for choice in drawn]
    assert bits[::2] == expected


def test_the_whole_sets_sharpness_is_one_epsilon_of_clean_gradients(data):
    run = searching(data)
    choice = alternating(run.space, 1)
    run.network.model.double()
    run.held_out = run.held_out[0].double(), run.held_out[1]
    F.cross_entropy(run.network.model(run.held_out[0][:5]), run.held_out[1][:5]).backward()  # to be ignored
    found, flat = run.sharpness(choice)
    model = run.network.model.eval()
    run.network.choose_(choice)
    x, y = run.held_out
    assert len(y) % 7  # batches of unequal size
    points = {n: p for n, p in model.named_parameters() if "quantizer" not in n}
    layers = {f"{n}.weight": m for n, m in model.named_modules() if hasattr(m, "delta")}
    targets = {n: layers[n].delta.requires_grad_() if n in layers else p for n, p in points.items()}
    loss = F.cross_entropy(model(x), y)
    gradient = torch.autograd.grad(loss, list(targets.values()), allow_unused=True)
    size = torch.stack([g.square().sum() for g in gradient if g is not None]).sum().sqrt()
    with torch.no_grad():
        for target, g in zip(targets.values(), gradient, strict=True):
            if g is not None:
                target.add_(run.settings.rho * g / size)
        rise = F.cross_entropy(model(x), y) - loss
    assert flat.loss == pytest.approx(loss.item(), abs=1e-10)
    assert found == pytest.approx(rise.item(), abs=1e-7) and found > 1e-4


def test_a_norm_belongs_to_the_layer_that_feeds_it_after_additions_too():
    model = make({"name": "preresnet20", "num_classes": 10, "input_shape": [3, 8, 8]})
    norms = Space.of(model).norms
    assert norms["layer1.1.bn1"] == "layer1.0.conv2" and norms["layer2.0.bn1"] == "layer1.2.conv2"
    assert norms["layer2.1.bn1"] == "layer2.0.conv2" and norms["bn2"] == "layer3.2.conv2"
    assert "layer1.0.bn1" not in norms  # fed by the first layer, which has no decision
    mobile = Space.of(make({"name": "mobilenet_v2", "num_classes": 10, "input_shape": [3, 8, 8]}))
    assert mobile.norms["blocks.0.shortcut.1"] == "blocks.0.body.6" == mobile.norms["blocks.0.body.7"]
