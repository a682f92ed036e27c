"""Feature-perturbed quantization: the noise, the distillation, the quantizer of the paper, and its theory."""

import copy
import functools
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from saq_core import (
    EXPERIMENTS,
    FPQ,
    SAQ,
    AsymmetricLSQ,
    Recipe,
    calibrate,
    distillation_loss,
    evaluate,
    feature_noise,
    feature_noise_penalty,
    load,
    quantize,
    save,
    train,
)
from saq_core.fpq import noise as noise_module
from saq_core.fpq.distillation import Features, Student, Teacher, teacher_of
from saq_core.fpq.noise import attach, noisy_inputs
from saq_core.training import steps

LIMIT = 128  # of the digits


@pytest.fixture(scope="module")
def floating(trained):
    return trained


@functools.cache
def calibrated(floating, digits, bits, **settings):
    """Return a quantized network, not to be changed, once."""
    return calibrate(quantize(floating, bits, **settings), digits)


def twin(floating, digits, bits="W4A4", **settings):
    return copy.deepcopy(calibrated(floating, digits, bits, **settings))


def recipe(**settings):
    return Recipe(**{"epochs": 2, "lr": 0.02, "batch_size": 32, **settings})


def outputs_of(model, x, seed=0, passes=1):
    """What every convolution with a quantized input computes on, in training mode: name -> (passes, …)."""
    seen = {name: [] for name in noisy_inputs(model)}
    layers = [(name, model.get_submodule(name)) for name in seen]
    handles = [m.register_forward_pre_hook(lambda m, i, n=n: seen[n].append(None)) for n, m in layers]
    for _, m in layers:  # whoever has a hook gets values, not levels
        handles.append(m.input_quantizer.register_forward_hook(lambda *_: None))
    original = nn.Conv2d._conv_forward

    def watched(self, features, *rest):
        for name, layer in layers:
            if layer is self:
                seen[name][-1] = features.detach().clone()
        return original(self, features, *rest)

    nn.Conv2d._conv_forward = watched
    try:
        torch.manual_seed(seed)
        model.train()
        for _ in range(passes):
            model(x)
    finally:
        nn.Conv2d._conv_forward = original
        for handle in handles:
            handle.remove()
        model.eval()
    return {name: torch.stack(values) for name, values in seen.items()}


# --- noise ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantizer", ["lsq", "lsq+", "lsq-asymmetric", "pact", "dorefa", "liq", "minmax"])
def test_noise_is_uniform_within_half_a_step_of_every_quantizer(quantizer, floating, digits):
    model = twin(floating, digits, quantizer=quantizer)
    first = next(iter(noisy_inputs(model)))  # nothing before it is perturbed
    x = digits.train[0][:64]
    clean = outputs_of(model, x)[first]
    with feature_noise(model, p=1.0):
        noise = outputs_of(model, x)[first] - clean
    step = model.get_submodule(first).input_quantizer.step_size(clean).item()
    unit = (noise / step).flatten().double()
    count = len(unit)
    assert 0.49 < float(unit.abs().max()) <= 0.5 + 1e-4
    assert abs(float(unit.mean())) < 4 * (1 / 12 / count) ** 0.5
    assert float(unit.var()) == pytest.approx(1 / 12, abs=4 * (1 / 180 / count) ** 0.5)


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_gates_open_with_probability_p_independently_in_all_layers(p, floating, digits):
    model = twin(floating, digits)
    x, passes = digits.train[0][:2], 400
    quantizers = noisy_inputs(model)
    seen = []
    for quantizer in quantizers.values():
        quantizer.register_forward_hook(lambda m, i, o: seen.append(o))
    with feature_noise(model, p=p):
        for quantizer in quantizers.values():
            quantizer.register_forward_hook(lambda m, i, o: seen.append(o))
        torch.manual_seed(1)
        model.train()
        with torch.no_grad():
            for _ in range(passes):
                model(x)
    model.eval()
    opened = torch.tensor([float(not torch.equal(a, b)) for a, b in zip(seen[::2], seen[1::2], strict=True)])
    opened = opened.view(passes, len(quantizers))
    assert (opened.mean(0) - p).abs().max() <= 4 * (p * (1 - p) / passes) ** 0.5
    if p < 1:
        together = torch.corrcoef(opened.T).fill_diagonal_(0)
        assert float(together.abs().max()) < 4 / passes**0.5
    quantizers = list(noisy_inputs(model).values())
    assert all(len(q._forward_hooks) == 2 for q in quantizers)  # those of this test: the noise took its own off


def test_p_zero_and_evaluation_are_the_plain_network_to_the_bit(floating, digits):
    plain, still = (twin(floating, digits) for _ in range(2))
    rows = [train(m, digits, recipe(fpq=f)).epochs for m, f in ((plain, None), (still, FPQ(p=0, distill=False)))]
    assert [r["loss"] for r in rows[0]] == [r["loss"] for r in rows[1]]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), still.parameters(), strict=True))
    x = digits.test[0]
    expected = plain(x)
    with feature_noise(plain, p=1.0):
        assert torch.equal(plain(x), expected)


def test_the_compiled_network_has_noise_as_well(floating, digits):
    model = twin(floating, digits)
    x = digits.train[0][:4]
    clean = model.train()(x).detach()
    with feature_noise(model, p=0.5):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.manual_seed(0)
        found = [compiled(x).detach() for _ in range(12)]
    model.eval()
    assert len({tuple(o.flatten().tolist()) for o in found}) > 8
    assert 0 < float((torch.stack(found) - clean).abs().mean()) < float(clean.abs().mean())


def test_compiled_gates_open_with_probability_p(floating, digits):
    model, passes, p = twin(floating, digits), 400, 0.3
    quantizer = next(iter(noisy_inputs(model).values()))
    with feature_noise(model, p=p):
        compiled = torch.compile(quantizer.train(), backend="eager", fullgraph=True)
        features = torch.rand(1, 4, 4, 4)
        clean = quantizer.eval()(features)
        quantizer.train()
        torch.manual_seed(2)
        with torch.no_grad():
            opened = [not torch.equal(compiled(features), clean) for _ in range(passes)]
    assert abs(sum(opened) / passes - p) < 4 * (p * (1 - p) / passes) ** 0.5


@pytest.mark.parametrize("version", ["isolated", "2.11"])
def test_noise_reaches_a_network_that_was_compiled_without_it_before(floating, digits, version, monkeypatch):
    compile_, x = torch.compile, digits.train[0][:4]
    if version == "2.11":
        monkeypatch.setattr(torch, "compile", lambda f, dynamic=None: compile_(f, dynamic=dynamic, backend="eager"))
    else:
        monkeypatch.setattr(torch, "compile", partial(compile_, backend="eager"))
    outputs = []
    for p in (0.0, 0.0, 0.5, 1.0):
        model = twin(floating, digits).train()
        with feature_noise(model, p=p), torch._dynamo.config.patch(skip_nnmodule_hook_guards=True):
            compiled = steps._compiled(model, x.device)
            torch.manual_seed(0)
            outputs.append([compiled(x).detach() for _ in range(8)])
    different = [sum(not torch.equal(a, b) for a, b in zip(o, outputs[0], strict=True)) for o in outputs]
    assert different[:2] == [0, 0] and different[2] >= 4 and different[3] == 8
    assert not torch.equal(outputs[2][0], outputs[3][0])


def test_compiled_noise_keeps_type_gradient_and_layout(floating, digits):
    quantizer = next(iter(noisy_inputs(twin(floating, digits)).values())).train()
    x = torch.rand(2, 4, 5, 5).to(memory_format=torch.channels_last).requires_grad_()
    (clean,) = torch.autograd.grad(quantizer(x).sum(), x)
    handle = attach(quantizer, "output", partial(noise_module._gated, p=1.0))
    output = torch.compile(nn.Sequential(quantizer), backend="aot_eager", fullgraph=True)(x)
    (noisy,) = torch.autograd.grad(output.sum(), x)
    handle.remove()
    noise = (output - quantizer(x)).detach()
    assert torch.equal(clean, noisy) and output.is_contiguous(memory_format=torch.channels_last)
    assert 0 < float(noise.abs().max()) <= 0.5001 * float(quantizer.step_size(x)) and len(noise.unique()) > 90
    found = noise_module._noise_or_zeros(x.detach().bfloat16(), torch.ones(1, 4, 1, 1), 1.0)
    assert found.dtype == torch.bfloat16
    torch.library.opcheck(noise_module._noise_or_zeros, (x.detach(), torch.tensor(0.3), 0.0))


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_second_pass_of_sam_sees_the_same_noise(floating, digits, compiled):
    """With ρ and lr of 0 nothing but the noise can make one output differ from another."""
    model = twin(floating, digits).train()
    x, y = (t[:16] for t in digits.train)
    sam = SAQ(0.0).wrap(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0))
    seen = []
    with feature_noise(model, p=0.7):
        forward = torch.compile(model, backend="aot_eager") if compiled else model

        def closure():
            sam.zero_grad()
            seen.append(forward(x))
            loss = F.cross_entropy(seen[-1], y)
            loss.backward()
            return loss

        torch.manual_seed(3)
        for _ in range(6):
            sam.step(closure)
    assert len(seen) == 12 and all(torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert not torch.equal(seen[0], seen[2])


# --- distillation ---------------------------------------------------------------------------------------------------


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, c, 4, 4, generator=generator, dtype=torch.float64) for c in (3, 6)]


def test_distillation_ignores_scale_and_shift_of_each_channel():
    teacher = features()
    assert float(distillation_loss(teacher, teacher)) == 0
    moved = [z * torch.arange(1, z.shape[1] + 1)[:, None, None] + 7 for z in teacher]
    assert float(distillation_loss(moved, teacher)) < 1e-8
    flipped = [-z for z in teacher]
    assert float(distillation_loss(flipped, teacher)) == pytest.approx(4 * 2, rel=1e-3)


def test_distillation_is_twice_one_minus_the_correlation():
    student, teacher = features(1), features(2)
    expected = 0.0
    for z, t in zip(student, teacher, strict=True):
        rows = [torch.corrcoef(torch.stack([z[:, c].flatten(), t[:, c].flatten()]))[0, 1] for c in range(z.shape[1])]
        expected += float(2 * (1 - torch.stack(rows)).mean())
    assert float(distillation_loss(student, teacher)) == pytest.approx(expected, rel=1e-4)


def test_the_teacher_is_asked_once_per_batch_and_learns_nothing(floating, digits):
    model = twin(floating, digits)
    before = copy.deepcopy(floating.state_dict())
    floating.zero_grad()
    count = []
    handle = floating.conv1.register_forward_hook(lambda *_: count.append(1))  # hooks go along into the copy
    settings = {"epochs": 1, "batch_size": 32, "sam": SAQ(0.05)}
    train(model, digits, recipe(fpq=FPQ(), **settings), teacher=floating)
    handle.remove()
    assert len(count) == len(model.history.steps)
    assert all(torch.equal(v, before[k]) for k, v in floating.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in floating.parameters())


def test_without_a_teacher_the_network_as_it_comes_teaches(floating, digits):
    given, own = (twin(floating, digits) for _ in range(2))
    train(given, digits, recipe(fpq=FPQ()), teacher=floating)
    train(own, digits, recipe(fpq=FPQ()))
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), own.parameters(), strict=True))
    plain = twin(floating, digits)
    train(plain, digits, recipe())
    assert not torch.equal(plain.conv1.weight, own.conv1.weight)


def test_the_objective_is_the_recipes_plus_the_weighted_distillation(floating, digits):
    model = twin(floating, digits)
    names = ["conv1", "layer2.0.conv1"]
    x, y = (t[:16] for t in digits.train)
    student, teacher = Features(model, names), Features(teacher_of(model, floating, names), names)
    expected, found = student(x)
    assert torch.equal(expected, model(x)) and len(found) == 2
    both, taught = Student(FPQ(weight=2.5), student), Teacher(floating, teacher).of(x, "all")
    output, loss = torch.compile(both, backend="eager", fullgraph=True)(x, taught)
    assert torch.equal(output, expected) and torch.equal(loss, both(x, taught)[1])
    student.close()
    assert float(loss.detach()) == pytest.approx(
        2.5 * float(distillation_loss(found, teacher(x)[1]).detach()), rel=1e-6
    )
    loss.backward()
    assert model.conv1.weight.grad is not None and all(p.grad is None for p in teacher.parameters())
    assert not model.conv1._forward_hooks


@pytest.mark.parametrize(
    "settings", [{}, {"sam": SAQ(0.05)}, {"sam": SAQ(0.05, policy="subset:0.5")}, {"micro_batch": 16}], ids=str
)
def test_training_with_both_learns_and_leaves_no_hooks(settings, floating, digits):
    model = twin(floating, digits, "W2A2")
    history = train(model, digits, recipe(fpq=FPQ(p=0.5), epochs=4, **settings))
    assert history.epochs[-1]["loss"] < history.epochs[0]["loss"]
    assert evaluate(model, digits.test).accuracy > 0.5
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_resumed_training_goes_on_to_the_same_bits(floating, digits, tmp_path):
    def start():
        return twin(floating, digits)

    class Killed(Exception):
        pass

    def kill(state):
        if len(state.history.epochs) == 1:
            raise Killed

    whole, killed = start(), start()
    train(whole, digits, recipe(fpq=FPQ(p=0.5)))
    with pytest.raises(Killed):
        train(killed, digits, recipe(fpq=FPQ(p=0.5)), checkpoint=tmp_path / "c", on_epoch=kill)
    assert not any(m._forward_hooks for m in killed.modules())
    first = start()
    train(first, digits, recipe(fpq=FPQ(p=0.5), epochs=2), checkpoint=tmp_path / "c")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), first.parameters(), strict=True))
    save(first, tmp_path / "net")
    assert load(tmp_path / "net").recipe == first.recipe


def test_a_training_resumed_on_the_half_trained_network_keeps_its_teacher(floating, digits, tmp_path):
    class Killed(Exception):
        pass

    def kill(state):
        if len(state.history.epochs) == 2:
            raise Killed

    settings = {"fpq": FPQ(p=0.5, weight=5.0), "epochs": 3}
    whole, killed, other = (twin(floating, digits) for _ in range(3))
    train(whole, digits, recipe(**settings))
    with pytest.raises(Killed):
        train(killed, digits, recipe(**settings), checkpoint=tmp_path / "c", on_epoch=kill)
    train(killed, digits, recipe(**settings), checkpoint=tmp_path / "c")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), killed.parameters(), strict=True))
    train(other, digits, recipe(**settings), checkpoint=tmp_path / "c", teacher=floating)  # finished: as it was left
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("fpq", [None, FPQ(distill=False)])
def test_a_teacher_of_nothing_is_refused(floating, digits, fpq):
    with pytest.raises(ValueError, match="recipe must have fpq=FPQ.distill=True. for a teacher"):
        train(twin(floating, digits), digits, recipe(fpq=fpq), teacher=floating)


# --- the paper's quantizer ------------------------------------------------------------------------------------------


def test_the_asymmetric_quantizer_is_the_papers_by_hand():
    """Eq. 3-5 for values from -1 to 2 at 2 bits: s = 1, z = round(3 - 2) = 1, levels -1, 0, 1, 2."""
    x = torch.tensor([-1.0, -0.4, 0.3, 0.6, 1.4, 2.0])
    quantizer = AsymmetricLSQ(2, activation=True)
    quantizer.calibrate_(x)
    assert (quantizer.step.item(), quantizer.zero.item()) == (1.0, 1.0)
    assert quantizer(torch.tensor([-9.0, -1.0, -0.4, 0.3, 0.6, 1.4, 9.0])).tolist() == [-1, -1, 0, 0, 1, 1, 2]


def test_each_channel_has_the_papers_step_and_zero_point():
    """Eq. 3-5 written out for 3 bits and two channels of different ranges."""
    w = torch.stack([torch.linspace(-0.37, 1.9, 9), torch.linspace(-2.1, 0.4, 9)]).view(2, 9, 1, 1)
    quantizer = AsymmetricLSQ(3, shape=(2, 1, 1, 1))
    quantizer.calibrate_(w)
    low, high = w.amin((1, 2, 3), keepdim=True), w.amax((1, 2, 3), keepdim=True)
    s = (high - low) / 7
    z = (7 - high / s).round()
    assert z.flatten().tolist() == [1.0, 6.0]
    torch.testing.assert_close(quantizer.step, s, check_dtype=False)
    assert torch.equal(quantizer.zero, z)
    torch.testing.assert_close(quantizer(w), (((w / s).round() + z).clamp(0, 7) - z) * s)


def test_its_step_has_the_gradient_of_lsq_at_every_place():
    quantizer = AsymmetricLSQ(2, activation=True)
    quantizer.calibrate_(torch.tensor([-1.0, 2.0]))
    for value, expected in ((0.3, 0 - 0.3), (1.4, 1 - 1.4), (-9.0, -1.0), (9.0, 2.0)):
        quantizer.zero_grad()
        x = torch.tensor([[value]], requires_grad=True)
        quantizer(x).sum().backward()
        assert float(quantizer.step.grad) == pytest.approx(expected / 3**0.5, rel=1e-5)
        assert float(x.grad) == float(abs(value) < 9)


def test_its_zero_point_stays_and_first_and_last_layers_have_8_bits(floating, digits):
    model = twin(floating, digits, "W2A4", quantizer="lsq-asymmetric", per_channel=True)
    before = {n: b.clone() for n, b in model.named_buffers() if n.endswith("zero")}
    steps = {n: p.clone() for n, p in model.named_parameters() if n.endswith("step")}
    train(model, digits, recipe(fpq=FPQ()))
    assert before and all(torch.equal(b, before[n]) for n, b in model.named_buffers() if n.endswith("zero"))
    moved = [n for n, p in model.named_parameters() if n in steps and not torch.equal(p, steps[n])]
    assert any("layer1" in n for n in moved) and not any(n.startswith(("conv1", "fc")) for n in moved)
    assert (model.conv1.weight_quantizer.bits, model.fc.input_quantizer.bits) == (8, 8)
    levels = model.layer1[0].conv1.used_weight().detach().flatten(1)
    assert max(len(row.unique()) for row in levels) <= 4 and model.layer1[0].conv1.weight_quantizer.step.numel() == 16


def test_the_papers_setting_comes_by_name():
    chosen = EXPERIMENTS["fpq-resnet18-w2a4-fpq"]
    assert (chosen.quantizer, chosen.per_channel, chosen.bits) == ("lsq-asymmetric", True, "W2A4")
    assert (chosen.recipe.epochs, chosen.recipe.batch_size, chosen.recipe.weight_decay) == (200, 256, 5e-4)
    assert chosen.recipe.fpq == FPQ(p=0.1) and chosen.start == "fpq-resnet18"


# --- theory ---------------------------------------------------------------------------------------------------------


def test_the_rise_is_that_of_the_feature_hessian_for_small_steps():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.8)
    x, y = torch.randn(7, 5, dtype=torch.float64), torch.randint(0, 3, (7,))

    def trace(index):
        def tail(flat):
            return F.cross_entropy(net[index:](flat.view(7, 6)), y)

        return float(torch.trace(torch.autograd.functional.hessian(tail, net[:index](x).detach().flatten())))

    exact = sum(trace(index) for index in (2, 4))

    def ratio(step, pairs=5000, p=0.3):
        """Measured over predicted: all four states of the gates, noise in opposite pairs, the same draws for all."""
        generator = torch.Generator().manual_seed(0)
        noise = {k: torch.rand(pairs, 7, 6, generator=generator, dtype=torch.float64) - 0.5 for k in (2, 4)}
        rise = torch.zeros((), dtype=torch.float64)
        for open2, open4 in ((1, 0), (0, 1), (1, 1)):
            for sign in (step, -step):
                z = net[2:4](net[:2](x) + sign * open2 * noise[2]) + sign * open4 * noise[4]
                loss = F.cross_entropy(net[4](z).flatten(0, 1), y.repeat(pairs))
                rise += p ** (open2 + open4) * (1 - p) ** (2 - open2 - open4) * loss / 2
        plain = F.cross_entropy(net(x), y) * (1 - (1 - p) ** 2)
        return float((rise - plain).detach()) / (p * step**2 / 24 * exact)

    ratios = [ratio(step) for step in (0.8, 0.4, 0.2)]
    gaps = [a - b for a, b in zip(ratios, ratios[1:], strict=False)]
    assert gaps[0] > gaps[1] > 0 and abs(ratios[-1] - 1) < 0.03  # four errors of the draws
    for step in (0.4, 0.1):
        rise = feature_noise_penalty(
            net, (x, y), p=0.3, steps={"2": step, "4": step}, num_samples=1500, rtol=0.01, num_probes=200
        )
        assert abs(rise.predicted - 0.3 * step**2 / 24 * exact) < 4 * rise.predicted_stderr + 1e-12
        assert abs(rise.measured - rise.predicted) < 4 * (rise.measured_stderr + rise.predicted_stderr)
        assert rise.measured_stderr < 0.1 * rise.measured
    assert list(rise.layers) == ["2", "4"] and "predicted" in repr(rise)


def test_a_quantized_network_is_measured_at_its_own_steps_and_left_alone(floating, digits, coarse):
    model = twin(floating, digits)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    rise = feature_noise_penalty(model, tuple(t[:32] for t in model.probe), p=0.5, num_samples=4, num_probes=2)
    assert torch.equal(torch.get_rng_state(), state)
    after = model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items() if isinstance(v, torch.Tensor))
    assert list(rise.layers) == list(noisy_inputs(model))
    for name, layer in rise.layers.items():
        assert layer.step == float(model.get_submodule(name).input_quantizer.step.detach())
        assert layer.delta_loss == pytest.approx(0.5 * layer.step**2 / 24 * layer.trace)
    assert rise.predicted == pytest.approx(sum(layer.delta_loss for layer in rise.layers.values()))
    assert rise.predicted == pytest.approx(0.5 / 24 * rise.trace)
    alone = feature_noise_penalty(model, tuple(t[:32] for t in model.probe), p=0.5, num_samples=0, num_probes=2)
    assert alone.layers == rise.layers and alone.measured != alone.measured and "not measured" in repr(alone)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_settings_out_of_range_are_refused(floating, digits):
    for settings, message in (
        ({"p": 1.5}, "p must be from 0 to 1, got 1.5"),
        ({"weight": -1}, "weight must be >= 0 and finite, got -1"),
        ({"p": "a"}, "p must be a number, got 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            FPQ(**settings)
    with pytest.raises(ValueError, match="convolutions with quantized inputs"):
        train(copy.deepcopy(floating), digits, recipe(fpq=FPQ()))
    with pytest.raises(ValueError, match="quantized convolutions to distill"):
        train(copy.deepcopy(floating), digits, recipe(fpq=FPQ(p=0)))
    with pytest.raises(ValueError, match="teacher must have the layer conv1 with weights of shape"):
        train(twin(floating, digits), digits, recipe(fpq=FPQ()), teacher=nn.Sequential(nn.Conv2d(1, 3, 3)))
    pixel = [torch.randn(5, 3, 1, 1)]
    assert float(distillation_loss(pixel, pixel)) == 0
    with pytest.raises(ValueError, match=r"one value per channel, got shape \(1, 3, 1, 1\)"):
        distillation_loss([pixel[0][:1]], [pixel[0][:1]])
    idle = twin(floating, digits)
    idle.layer2[0].add_module("idle", copy.deepcopy(idle.conv1))
    with pytest.raises(ValueError, match=r"in its forward pass, got none of \['layer2.0.idle'\]"):
        train(idle, digits, recipe(fpq=FPQ()))
    with pytest.raises(ValueError, match="pass steps="):
        feature_noise_penalty(floating)
    with pytest.raises(ValueError, match="num_samples must be a whole number >= 2, or 0 to measure nothing, got 1"):
        feature_noise_penalty(floating, num_samples=1)


def test_a_teacher_of_another_dtype_is_cast_and_one_of_other_strides_refused(floating, digits):
    own = recipe(epochs=1, fpq=FPQ(p=0))
    teachers = floating, copy.deepcopy(floating).double()
    single, double = (train(twin(floating, digits), digits, own, teacher=one).epochs[0]["loss"] for one in teachers)
    assert single == double
    with pytest.raises(ValueError, match=r"features of shape \(2, 3, 4, 4\), got \(2, 3, 1, 1\)"):
        distillation_loss([torch.zeros(2, 3, 4, 4)], [torch.zeros(2, 3, 1, 1)])


def test_steps_of_unknown_modules_are_refused(floating, digits):
    with pytest.raises(ValueError, match="steps must name modules of the model, got .'nope'"):
        feature_noise_penalty(floating, digits.probe, steps={"nope": 1.0})
