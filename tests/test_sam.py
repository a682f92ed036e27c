import copy

import pytest
import torch
from perturbing import X, Y, build, closure_for, norm, perturbation, positions, prepared
from torch import nn
from torch.nn import functional as F

from saq_core import SAM, SAQ, calibrate, quantize


@pytest.mark.parametrize("metric", ["plain", "adaptive", "normalised"])
@pytest.mark.parametrize("case", [1, 2, 3])
@pytest.mark.parametrize("quantizer", ["lsq", "liq"])
def test_epsilon_has_norm_rho_in_the_metric(metric, case, quantizer):
    model = build("W3A32", quantizer, dtype=torch.float64)
    start = copy.deepcopy(model)
    epsilon = perturbation(model, prepared(model, 0.3, case, metric=metric))
    scaled = []
    for name, e in epsilon.items():
        layer, _, last = name.rpartition(".")
        w = e.new_ones(())
        if e.ndim >= 2 and metric != "plain":
            weight = start.get_submodule(layer).weight.detach()
            at = start.get_submodule(layer).quantized_weights()["weight"][0] if case == 3 else weight
            w = at.abs() + 0.01 if metric == "adaptive" else weight.std()
        scaled.append(e / w)
    assert float(norm(scaled)) == pytest.approx(0.3, rel=1e-6)
    moved = {name.rpartition(".")[2] for name, e in epsilon.items() if e.any() and e.ndim >= 2}
    assert moved == ({"weight"} if case == 2 else {"delta"})


def test_sam_equals_its_definition_on_a_quadratic():
    a = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    layer = nn.Linear(3, 1, bias=False).double()
    layer.weight.data = torch.tensor([[1.0, -2.0, 0.7]], dtype=torch.float64)
    w = layer.weight.detach().clone().flatten()
    optimizer = SAM(layer, torch.optim.SGD(layer.parameters(), lr=0.1), rho=0.2)

    def closure():
        optimizer.zero_grad()
        loss = (a * layer.weight.flatten() ** 2).sum() / 2
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    expected = w - 0.1 * a * (w + 0.2 * a * w / (a * w).norm())
    torch.testing.assert_close(layer.weight.detach().flatten(), expected, atol=1e-14, rtol=0)
    assert loss.item() == pytest.approx(float((a * w**2).sum() / 2))


def test_adaptive_and_normalised_epsilon_on_a_quadratic():
    g = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)
    w = torch.tensor([1.0, -2.0, 0.7], dtype=torch.float64)
    for metric, t in (("adaptive", w.abs() + 0.01), ("normalised", w.std().expand(3))):
        layer = nn.Linear(3, 1, bias=False).double()
        layer.weight.data = w[None].clone()
        optimizer = SAM(layer, torch.optim.SGD(layer.parameters(), lr=0.0), rho=0.2, metric=metric)
        seen = []

        def closure(layer=layer, optimizer=optimizer, seen=seen):
            optimizer.zero_grad()
            seen.append(layer.weight.detach().clone())
            (g * layer.weight).sum().backward()

        optimizer.step(closure)
        expected = 0.2 * t**2 * g / (t * g).norm()
        torch.testing.assert_close((seen[1] - seen[0]).flatten(), expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("case", [1, 2, 3])
@pytest.mark.parametrize("bits, quantizer", [("W4A32", "lsq"), ("W2A32", "liq"), (None, "")])
def test_rho_zero_is_the_base_optimizer_bit_for_bit_with_dropout(case, bits, quantizer):
    plain, sharp = (build(bits, quantizer, dropout=0.5, dtype=torch.float32) for _ in range(2))
    base, sam = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), prepared(sharp, 0.0, case)
    for model, optimizer in ((plain, base), (sharp, sam)):
        torch.manual_seed(5)
        losses = [optimizer.step(closure_for(model, optimizer)).item() for _ in range(4)]
        model.losses, model.next_random = losses, torch.rand(1).item()
    assert plain.losses == sharp.losses and plain.next_random == sharp.next_random
    for name, value in plain.state_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, sharp.state_dict()[name]), name


@pytest.mark.parametrize("quantizer, settings", [("lsq", "step"), ("liq", "clip")])
def test_case_3_equals_case_1_exactly_where_nothing_is_clipped(quantizer, settings):
    def epsilon(case, widen):
        model = build("W4A32", quantizer)
        for name, parameter in model.named_parameters():
            if name.endswith(settings):
                parameter.data *= widen
        return torch.cat([e.flatten() for e in perturbation(model, prepared(model, 0.1, case)).values()])

    torch.testing.assert_close(epsilon(1, 4.0), epsilon(3, 4.0), atol=1e-12, rtol=0)
    assert (epsilon(1, 0.3) - epsilon(3, 0.3)).norm() > 1e-3


@pytest.mark.parametrize("case", [1, 3])
def test_gradient_used_is_the_straight_through_one_at_the_perturbed_point(case):
    model = build("W3A32")
    twin = copy.deepcopy(model)
    seen = []
    optimizer = prepared(model, 0.3, case, lr=0.0)
    optimizer.step(closure_for(model, optimizer, seen))
    with torch.no_grad():
        for name, value in positions(twin).items():
            value.copy_(seen[1][name])
    F.cross_entropy(twin(X.double()), Y).backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


@pytest.mark.parametrize("case", [1, 2, 3])
def test_batchnorm_moves_once_and_nothing_of_epsilon_stays(case):
    model = build("W4A32")
    reference = copy.deepcopy(model)
    reference(X.double())
    optimizer = prepared(model, 0.5, case, lr=0.0)
    optimizer.step(closure_for(model, optimizer))
    for name, value in model.state_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, reference.state_dict()[name]), name
    for layer in (model.conv1, model.conv2, model.fc):
        assert not layer.delta.any() and not layer.delta.requires_grad and layer.delta.grad is None


@pytest.mark.parametrize("case", [1, 2, 3])
@pytest.mark.parametrize("quantizer", ["lsq", "liq"])
def test_the_authors_kinds_share_rho_and_an_update_starts_where_they_were_to_the_bit(case, quantizer):
    """Activation clips as well, which the authors' own search left perturbed."""
    model = calibrate(build("W4A4", quantizer), (X.double(), Y))
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    clips = [k for k, p in model.named_parameters() if "input_quantizer" in k and p.requires_grad]
    optimizer = prepared(model, 0.3, case, perturbed=SAQ.from_paper().perturbed)
    optimizer.optimizer.param_groups[0]["momentum"] = 0.0
    epsilon = perturbation(model, optimizer)
    assert clips and all(epsilon[name].any() for name in clips)
    assert float(norm(epsilon.values())) == pytest.approx(0.3, rel=1e-6)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name] if p.grad is None else before[name].add(p.grad, alpha=-0.1)), name


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("failing", [1, 2])
def test_an_exception_leaves_the_weights_as_they_were(error, failing):
    model = build("W4A32")
    before = {k: v.detach().clone() for k, v in positions(model).items()}
    optimizer = prepared(model, 0.5, 3)
    closure, calls = closure_for(model, optimizer), []

    def fails():
        calls.append(1)
        loss = closure()
        if len(calls) == failing:
            raise error
        return loss

    with pytest.raises(error):
        optimizer.step(fails)
    assert all(torch.equal(before[k], v) for k, v in positions(model).items())
    assert not model.conv1.delta.requires_grad and model.conv1.delta.grad is None


def test_steps_of_quantizers_and_frozen_weights_are_not_perturbed():
    model = build("W4A32")
    model.conv2.weight.requires_grad_(False)
    epsilon = perturbation(model, prepared(model, 0.5, 3))
    still = {name for name, e in epsilon.items() if not e.any()}
    assert {"conv2.delta", "conv2.weight", "conv1.weight_quantizer.step"} <= still
    assert {"conv1.delta", "bn1.weight", "fc.bias", "conv2.bias"}.isdisjoint(still)


def test_second_pass_sees_the_perturbed_weights_under_autocast():
    model = build(dtype=torch.float32)
    optimizer = prepared(model, rho=2.0)
    losses = []

    def closure():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(X)
        loss = F.cross_entropy(output.float(), Y)
        losses.append(loss.item())
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert losses[1] > losses[0] + 0.1 and first.item() == losses[0]


def test_an_error_at_the_perturbed_weights_leaves_none_of_them_in_the_cache_of_autocast():
    model = build(dtype=torch.float32).eval()
    optimizer = prepared(model, rho=5.0)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X).float(), Y)
        loss.backward()
        return loss

    with torch.autocast("cpu", torch.bfloat16):
        before = model(X).detach()
        with pytest.raises(KeyboardInterrupt), optimizer.at_perturbed(closure):
            assert not torch.allclose(model(X), before, atol=0.1)
            raise KeyboardInterrupt
        assert torch.equal(model(X), before)


def test_zero_gradient_gives_no_perturbation():
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    optimizer = prepared(layer)

    def closure():
        optimizer.zero_grad()
        loss = (layer(torch.zeros(1, 3)) * 0).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("case", [1, 2, 3])
def test_a_layer_of_float_weights_among_quantized_ones_is_perturbed_with_them(case):
    """The authors' code crashes on it: there is no Q to add to."""
    model = quantize(build(), {"conv2": "W2A32"}, first_last_bits=None)
    epsilon = perturbation(model, prepared(model, 0.3, case))
    moved = {name.split(".")[0] for name, value in epsilon.items() if value.ndim > 1 and value.any()}
    assert moved == {"conv1", "conv2", "fc"} and model.conv1.weight_quantizer.bits == 32
    assert float(norm(epsilon.values())) == pytest.approx(0.3, rel=1e-6)


@pytest.mark.parametrize("case", [1, 2, 3])
def test_clips_for_each_channel_with_and_without_gradient_are_perturbed_and_restored(case):
    """A zero gradient or a vector of them was taken for its truth value by the authors' code."""
    model = quantize(build(), "W4A32", quantizer="liq", per_channel=True)
    optimizer = prepared(model, 0.3, case, lr=0.0, perturbed=("weight", "weight_step"))
    with torch.no_grad():
        model.bn2.weight[0] = 0.0  # so the first filter's clip gets no gradient
    before = {k: v.detach().clone() for k, v in positions(model).items()}
    epsilon = perturbation(model, optimizer)
    clip = epsilon["conv2.weight_quantizer.clip"].flatten()
    assert clip.shape == (3,) and clip[0] == 0 and clip[1:].all()
    assert float(norm(epsilon.values())) == pytest.approx(0.3, rel=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in positions(model).items())


def test_a_weight_shared_by_two_layers_works_in_every_case():
    for case in (1, 2, 3):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        model = quantize(model, "W4A32").double()
        optimizer = prepared(model, 0.1, case)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(X.double()[:, 0]).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure, diagnose=torch.float32)
        assert optimizer.diagnostics["received_cosine"].isfinite()


def test_diagnostics_agree_with_their_definitions():
    model = build("W2A32")
    twin = copy.deepcopy(model)
    optimizer = prepared(model, 0.5, 2, lr=0.0)
    seen = []
    optimizer.step(closure_for(model, optimizer, seen), diagnose=torch.float64)
    found = optimizer.diagnostics
    e = {k: seen[1][k] - seen[0][k] for k in seen[0]}
    weights = {k: v for k, v in twin.named_parameters() if "quantizer" not in k}
    assert float(found["relative_norm"]) == pytest.approx(0.5 / float(norm(weights.values()).detach()))
    flips = total = 0
    received = []
    for layer in ("conv1", "conv2", "fc"):
        quantizer, w = twin.get_submodule(layer).weight_quantizer, weights[f"{layer}.weight"].detach()
        a, b = quantizer(w).detach(), quantizer(w + e[f"{layer}.weight"]).detach()
        flips, total = flips + int(((a - b).abs() > 1e-9).sum()), total + w.numel()
        received.append((b - a).flatten())
    assert flips > 0 and float(found["flip_rate"]) == pytest.approx(flips / total)
    sent = torch.cat([e[f"{layer}.weight"].flatten() for layer in ("conv1", "conv2", "fc")])
    expected = F.cosine_similarity(sent, torch.cat(received), dim=0)
    assert float(found["received_cosine"]) == pytest.approx(float(expected), rel=1e-9)
    ends = []
    for case in (1, 3):
        other = copy.deepcopy(twin)
        ends.append(perturbation(other, prepared(other, 0.5, case)))
    first, third = (torch.cat([v.flatten() for v in one.values()]) for one in ends)
    expected = F.cosine_similarity(first, third, dim=0)
    assert float(found["cosine_case1_case3"]) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("metric", ["adaptive", "normalised"])
@pytest.mark.parametrize("case", [2, 3])
def test_relative_norm_compares_the_plain_norms_whatever_the_metric(metric, case):
    model = build("W3A32")
    weights = [v.detach().clone() for k, v in model.named_parameters() if "quantizer" not in k]
    optimizer = prepared(model, 0.3, case, lr=0.0, metric=metric)
    seen = []
    optimizer.step(closure_for(model, optimizer, seen), diagnose=torch.float64)
    epsilon = norm([seen[1][k] - v for k, v in seen[0].items()])
    assert float(optimizer.diagnostics["relative_norm"]) == pytest.approx(float(epsilon / norm(weights)), rel=1e-9)
    assert float(epsilon) != pytest.approx(0.3, rel=0.05)


def liq_levels(quantizer, w):
    """Number of the level, 0 … n, that each weight is rounded to."""
    mean, std = (w.mean(), w.std()) if quantizer.normalise else (0.0, 1.0)
    n = 2**quantizer.bits - 1
    return (((((w - mean) / std) / quantizer.clip.detach()).clamp(-1, 1) + 1) / 2 * n).round()


def test_flip_rate_counts_changed_levels_and_not_the_drift_of_normalised_ones():
    model = quantize(build(), "W2A32", quantizer="liq", first_last_bits=2)
    twin = copy.deepcopy(model)
    optimizer = prepared(model, 0.05, 2, lr=0.0)
    seen = []
    optimizer.step(closure_for(model, optimizer, seen), diagnose=torch.float64)
    flips = moved = total = 0
    for layer in ("conv1", "conv2", "fc"):
        quantizer = twin.get_submodule(layer).weight_quantizer
        before, after = (one[f"{layer}.weight"] for one in seen)
        flips += int((liq_levels(quantizer, before) != liq_levels(quantizer, after)).sum())
        moved += int((quantizer(before) != quantizer(after)).sum())
        total += before.numel()
    assert 0 < flips < moved / 4
    assert float(optimizer.diagnostics["flip_rate"]) == pytest.approx(flips / total)


def test_torch_schedulers_work_on_the_wrapped_optimizer():
    model = build()
    optimizer = prepared(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer.optimizer, 1, gamma=0.5)
    optimizer.step(closure_for(model, optimizer))
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_diagnostics_of_a_float_network_are_nan_where_undefined():
    model = build(dtype=torch.float32)
    optimizer = prepared(model, 1e-4)
    optimizer.step(closure_for(model, optimizer), diagnose=torch.bfloat16)
    found = optimizer.diagnostics
    assert found["flip_rate"].isnan() and found["cosine_case1_case3"].isnan()
    assert 0 < found["received_cosine"] < 0.9  # bfloat16 swallows a small perturbation
    optimizer.step(closure_for(model, optimizer), diagnose=torch.float32)
    assert optimizer.diagnostics["received_cosine"] > 0.999


def test_it_delegates_to_the_optimizer_and_trains():
    model = build("W4A32")
    optimizer = prepared(model, 0.05, 3)
    losses = [optimizer.step(closure_for(model, optimizer)).item() for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    assert optimizer.param_groups is optimizer.optimizer.param_groups
    optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf"), "0.1", True])
def test_bad_rho_is_refused(rho):
    with pytest.raises(ValueError, match="rho must be (>= 0 and finite|a number or a function of 3 arguments), got"):
        prepared(build(), rho)
    with pytest.raises(ValueError, match="rho must be (>= 0 and finite|a number), got"):
        SAQ(rho)


@pytest.mark.parametrize("model", [nn.Flatten(), nn.Linear(2, 2).requires_grad_(False)])
def test_a_model_without_trainable_weights_is_refused(model):
    base = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(ValueError, match="model must have trainable parameters of the kinds .* to perturb, got none"):
        SAM(model, base, rho=0.05)


def test_what_the_optimizer_does_not_train_is_not_perturbed():
    model = build()
    optimizer = SAM(model, torch.optim.SGD(model.fc.parameters(), lr=0.0), rho=0.1)
    assert {parameter.tensor for parameter in optimizer.parameters} == set(model.fc.parameters())
    found = []
    for _ in range(3):
        optimizer.step(closure_for(model, optimizer))
        found.append(model.fc.weight.grad.clone())
    assert torch.equal(found[0], found[2])  # whatever has piled up elsewhere


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match='applied_to must be "quantized"'):
        prepared(build(), measured_at="quantized", applied_to="latent")
    with pytest.raises(ValueError, match=r"measured_at must be one of 'latent', 'quantized', got 'latnt'"):
        prepared(build(), measured_at="latnt")
    with pytest.raises(ValueError, match="metric must be one of"):
        prepared(build(), metric="euclid")
    with pytest.raises(ValueError, match=r"case must be one of 1, 2, 3, got 4"):
        SAQ(case=4)
