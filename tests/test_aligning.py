"""ASGA: the mixture of bits, its cost, the gradient at the shrunken radius, the rule for rho, and what is derived."""

import copy
import itertools
import json
import math

import networks
import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from torch.nn import functional as F

from saq_core import SAM, Data, Policy, build_model, calibrate, cost, quantize
from saq_core.mixed_precision.asga import (
    ASGA,
    Alignment,
    Mixture,
    RecordingPolicy,
    complexity,
    derive,
    multiplications,
    relax,
)
from saq_core.mixed_precision.resuming import Checkpoint
from saq_core.mixed_precision.space import Space
from saq_core.models import make
from saq_core.sharpness.radius import AdaptiveRho

QUICK = {"epochs": 2, "batch_size": 3, "lr": 0.05, "lr_alpha": 0.1, "case": 2}
# What the ablation compares with the whole.
ARMS = {
    "sgd": {"rho": 0.0, "rho_range": None, "beta": 0.0},
    "sam": {"rho_range": None, "beta": 0.0, "combine": "perturbed"},
    "mean": {"rho_range": None, "beta": 0.0},  # ½(SGD + SAM)
    "fixed": {"rho_range": None},
    "full": {},
}
CANDIDATES = ("W2A2", "W2A4", "W4A3", "W6A6")


class Net(nn.Module):
    """Two layers that decide, one with a shortcut that follows it; 4x4 images, float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.bn1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.a, self.bn2 = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.b, self.bn3 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.short, self.last = nn.Conv2d(4, 6, 1), nn.Linear(6, 3)
        self.double()

    def forward(self, x):
        x = F.relu(self.bn1(self.first(x)))
        y = self.bn3(self.b(F.relu(self.bn2(self.a(x)))))
        return self.last(F.relu(y + self.short(x)).mean((2, 3)))


LIMIT = 60  # of the digits
pytestmark = pytest.mark.usefixtures("coarse")


def small():
    split = networks.X, networks.Y
    data, model = Data(split, split, split, num_classes=3), Net()
    return model, data, Space.of(model, data.input_shape, candidates=CANDIDATES)


def aligned(**settings):
    model, data, space = small()
    return Alignment(model, data, space, ASGA(**{**QUICK, **settings}), 0)


def asga(model, data, space, budget, settings, seed):
    run = Alignment(model, data, space, settings, seed)
    return run.found(budget, Checkpoint(None, {"seed": seed}, torch.device("cpu")))


def tensors(model):
    return {k: v.detach().clone() for k, v in itertools.chain(model.named_parameters(), model.named_buffers())}


# the mixture


@pytest.mark.parametrize("name", ["resnet8", "vit"])
@pytest.mark.parametrize("quantizer", ["lsq", "liq"])
def test_a_mixture_is_the_mean_of_the_quantizers_of_all_candidates_over_the_softmax(digits, name, quantizer):
    model = build_model(name, digits)
    if name == "vit":
        model.encoder.layers = model.encoder.layers[:1]  # four alike
    space = Space.of(model, digits.input_shape, candidates=CANDIDATES)
    network, logits = relax(model, space, digits, quantizer=quantizer)
    everywhere = [space.bits(space.everywhere(k)) for k in range(4)]
    twins = [calibrate(quantize(model, bits, quantizer=quantizer), digits) for bits in everywhere]
    with torch.no_grad():
        logits.copy_(torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)))
    mixtures = {n: m for n, m in network.named_modules() if isinstance(m, Mixture)}
    groups = list(space.groups.values())
    assert len({m.row for m in mixtures.values()}) == len(groups) and len(mixtures) > 2 * len(groups) - 1
    for key, mixture in mixtures.items():
        owner = max((n for n in itertools.chain(*groups) if key.startswith(f"{n}.")), key=len)
        row = next(k for k, group in enumerate(groups) if owner in group)
        x = model.get_submodule(owner).weight if key.endswith(".weight_quantizer") else digits.train[0][:5].abs() / 3
        chances = logits[row].exp() / logits[row].exp().sum()
        wanted = sum(c * twin.get_submodule(key)(x) for c, twin in zip(chances, twins, strict=True))
        torch.testing.assert_close(mixture(x), wanted, rtol=1e-5, atol=1e-6)
        steps = sum(c * twin.get_submodule(key).step_size(x) for c, twin in zip(chances, twins, strict=True))
        torch.testing.assert_close(mixture.step_size(x), steps.detach(), rtol=1e-5, atol=1e-7)


def test_constant_logits_are_even_chances_and_equal_bits_are_one_quantizer():
    model, data, space = small()
    network, logits = relax(model, space, data)
    assert logits.shape == (2, 4) and (logits == 0.01).all() and logits.dtype == torch.float64
    assert space.groups == {"a": ("a",), "b": ("b", "short")}
    weight, inputs = network.b.weight_quantizer, network.b.input_quantizer
    assert [q.bits for q in weight.options] == [2, 4, 6] and [q.bits for q in inputs.options] == [2, 4, 3, 6]
    torch.testing.assert_close(
        torch.stack(weight.probabilities()), torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    )
    torch.testing.assert_close(torch.stack(inputs.probabilities()), torch.full((4,), 0.25, dtype=torch.float64))
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 3 and not any(p is logits for p in network.parameters())
    assert network.first.weight_quantizer.bits == network.last.weight_quantizer.bits == 8


def test_inputs_of_the_same_bits_in_all_candidates_are_not_mixed():
    model, data, _ = small()
    space = Space.of(model, data.input_shape, candidates=("W2A4", "W4A4"))
    network, logits = relax(model, space, data)
    x = torch.rand(3, 6, dtype=torch.float64)
    assert torch.equal(network.b.input_quantizer(x), network.b.input_quantizer.options[0](x))
    torch.autograd.grad(network.eval()(data.train[0]).square().sum(), logits)


@pytest.mark.parametrize("candidate", range(4))
def test_where_one_chance_is_one_the_mixture_is_the_quantized_network(candidate):
    model, data, space = small()
    network, logits = relax(model, space, data)
    with torch.no_grad():
        logits[:, candidate] = 1e4
    twin = calibrate(quantize(model, space.bits(space.everywhere(candidate))), data)
    twin.last.input_quantizer.load_state_dict(network.last.input_quantizer.state_dict())  # the first candidate's
    torch.testing.assert_close(network.eval()(data.train[0]), twin.eval()(data.train[0]))


def test_the_gradient_of_the_logits_is_exact():
    model, data, space = small()
    network, logits = relax(model, space, data)
    x = torch.rand(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for mixture, value in ((network.b.weight_quantizer, model.b.weight.detach()), (network.b.input_quantizer, x)):
        options = [mixture.options[int(k)] for k in mixture.member.argmax(1)]
        at = torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits).requires_grad_()
        assert torch.autograd.gradcheck(lambda a, options=options, x=value: Mixture(options, a, 1)(x), at)


# complexity


def one_hot(choice, candidates):
    return 1e4 * F.one_hot(choice, candidates).double()


def pieces(model, space, shape):
    macs, first = multiplications(space, model, shape)
    bits = torch.tensor([[int(w), int(a)] for w, a in (label[1:].split("A") for label in space.candidates)])
    return bits.double(), macs.double() / first, first


def test_complexity_by_hand():
    model, data, space = small()
    bits, macs, first = pieces(model, space, data.input_shape)
    assert first == 4 * 6 * 9 * 16
    b = (6 * 6 * 9 + 4 * 6) * 16  # with the shortcut's
    for one, other in ((0, 3), (1, 2)):
        by_hand = math.prod(bits[one].tolist()) + b / first * math.prod(bits[other].tolist())
        assert complexity(one_hot(torch.tensor([one, other]), 4), bits, macs).item() == pytest.approx(by_hand)
    even = (3.5 * 3.75) * (1 + b / first)  # means of (2, 2, 4, 6) and of (2, 4, 3, 6)
    assert complexity(torch.full((2, 4), 0.01, dtype=torch.float64), bits, macs).item() == pytest.approx(even)


@pytest.mark.parametrize("name", ["resnet8", "vit", "mobilenet_v2"])
def test_complexity_of_a_policy_is_its_bit_operations_over_those_of_the_first_layer(name):
    model = make({"name": name, "num_classes": 10, "input_shape": [3, 8, 8]})
    space = Space.of(model, candidates=CANDIDATES, first_input_bits=32)
    bits, macs, first = pieces(model, space, (3, 8, 8))
    choice = torch.randint(4, (len(space.groups),), generator=torch.Generator().manual_seed(0))
    rows = cost(model, bits=space.bits(choice), first_input_bits=32).layers
    free = set(space.bits(choice))
    wanted = sum(row.bops for row in rows if row.name in free) / first
    assert first == next(row.macs for row in rows if row.name == next(iter(space.groups)))
    assert complexity(one_hot(choice, 4), bits, macs).item() == pytest.approx(wanted, rel=1e-12)


def test_the_gradient_of_complexity_agrees_with_finite_differences():
    model = make({"name": "vit", "num_classes": 10, "input_shape": [3, 8, 8]})
    space = Space.of(model, candidates=CANDIDATES)
    bits, macs, _ = pieces(model, space, (3, 8, 8))
    assert (macs[:, 1] > 0).any()
    logits = torch.randn(len(space.groups), 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: complexity(a, bits, macs), logits.requires_grad_())


# one step


def plain_sgd(run):
    """Return ε, both gradients of weights and steps, and both of the logits, by autograd on copies."""
    s, model = run.settings, copy.deepcopy(run.model).train()
    logits = next(m for m in model.modules() if isinstance(m, Mixture))._logits[0]
    assert logits is not run.logits and logits.equal(run.logits)
    x, y = networks.X, networks.Y
    points = dict(model.named_parameters())
    points = {n: p for n, p in points.items() if p.requires_grad}
    layers = {f"{n}.weight": m for n, m in model.named_modules() if hasattr(m, "delta")}
    weights = [n for n in points if n in layers]
    for layer in layers.values():
        layer.delta.requires_grad_(True)

    def gradients():
        loss = F.cross_entropy(model(x), y)
        deltas = [layers[n].delta for n in weights]
        found = torch.autograd.grad(loss, [*points.values(), logits, *deltas])
        return loss.item(), dict(zip(points, found, strict=False)), found[len(points)], found[len(points) + 1 :]

    loss, g, g_alpha, at_deltas = gradients()
    buffers = {n: b.clone() for n, b in model.named_buffers() if "running" in n or "num_batches" in n}
    measured = [g[n] for n in weights] if s.case == 2 else list(at_deltas)
    size = torch.stack([v.square().sum() for v in measured]).sum().sqrt()
    with torch.no_grad():
        for n, v in zip(weights, measured, strict=True):
            target = points[n] if s.case == 2 else layers[n].delta
            target += (s.rho / size - s.beta) * v
    perturbed, g_p, g_alpha_p, _ = gradients()
    return loss, perturbed, g, g_p, g_alpha, g_alpha_p, buffers, weights


@pytest.mark.parametrize("case", [2, 3])
@pytest.mark.parametrize("combine", ["mean", "perturbed"])
def test_a_step_is_its_definition(case, combine):
    run = aligned(rho=0.2, rho_range=None, beta=0.05, case=case, combine=combine, lam=0.03, weight_decay=0.0)
    with torch.no_grad():
        run.logits += torch.randn(run.logits.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    loss, perturbed, g, g_p, g_alpha, g_alpha_p, buffers, weights = plain_sgd(run)
    before, logits = tensors(run.model), run.logits.detach().clone()
    (slope,) = torch.autograd.grad(run.complexity(), run.logits)
    run.model.train()
    assert run.step((networks.X, networks.Y)).item() == pytest.approx(loss, rel=1e-12)
    share = 0.5 if combine == "mean" else 0.0
    after = tensors(run.model)
    for name, value in g.items():
        update = share * value + (1 - share) * g_p[name]
        torch.testing.assert_close(after[name], before[name] - 0.05 * update, rtol=1e-9, atol=1e-11)
    update = share * g_alpha + (1 - share) * g_alpha_p + 0.03 * slope
    torch.testing.assert_close(run.logits.detach(), logits - 0.1 * update, rtol=1e-9, atol=1e-11)
    assert (g_alpha - g_alpha_p).abs().max() > 1e-4 * g_alpha.abs().max()
    for name, value in buffers.items():
        torch.testing.assert_close(after[name], value)
    seen = run.step_means()
    flat, sharp = (torch.cat([part[n].flatten() for n in weights]) for part in (g, g_p))
    assert seen["gap"] == pytest.approx(perturbed - loss, abs=1e-12) and seen["rho"] == 0.2
    assert seen["gradient_norm"] == pytest.approx(flat.norm().item())
    assert seen["cosine"] == pytest.approx(F.cosine_similarity(flat, sharp, 0).item()) and seen["cosine"] < 0.9999


def positions(run):
    """Note everything that a perturbation could move, and the statistics, at every forward pass."""
    found = []
    run.model.register_forward_pre_hook(lambda *_: found.append(tensors(run.model) | {"α": run.logits.clone()}))
    return found


@pytest.mark.parametrize("case", [2, 3])
def test_weights_alone_are_perturbed_and_restored_to_the_bit_and_statistics_move_once(case):
    run = aligned(rho=0.3, rho_range=None, beta=0.0, case=case, lr=0.0, lr_alpha=0.0)
    once = copy.deepcopy(run.model).train()
    once(networks.X)
    passes, before = positions(run), tensors(run.model)
    run.model.train()
    run.step((networks.X, networks.Y))
    first, second = passes
    moved = {n for n in first if not torch.equal(first[n], second[n])}
    statistics = {n for n in first if "running" in n or "num_batches" in n}
    layers = ("first", "a", "b", "short", "last")
    assert moved - statistics == {f"{n}.{'weight' if case == 2 else 'delta'}" for n in layers}
    after, single = tensors(run.model), tensors(once)
    for name, value in after.items():
        assert torch.equal(value, single[name] if name in statistics else before[name]), name
    assert any(not torch.equal(single[n], before[n]) for n in statistics)


def test_without_radius_and_beta_it_is_sgd_bit_for_bit_in_one_pass_and_in_two():
    runs = [aligned(**ARMS["sgd"]) for _ in range(2)]
    assert runs[0].sam is None
    runs[1].sam = SAM(
        runs[1].model, runs[1].optimizer, rho=0.0, combine="mean", policy=RecordingPolicy(), perturbed=("weight",)
    )
    passes = [positions(run) for run in runs]
    rows = [[run.epoch(epoch) for epoch in range(2)] for run in runs]
    assert [len(found) for found in passes] == [4, 8]
    for a, b in zip(tensors(runs[0].model).items(), tensors(runs[1].model).items(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])
    assert torch.equal(runs[0].logits, runs[1].logits) and (runs[0].logits != 0.01).all()
    for one, two in zip(*rows, strict=True):
        assert one == {k: two[k] for k in one} and two["gap"] == 0 and two["cosine"] == pytest.approx(1)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_makes_two_steps(arm):
    run = aligned(**ARMS[arm])
    run.model.eval()
    passes = positions(run)
    row = run.epoch(0)
    assert run.model.bn2.num_batches_tracked == 2
    assert len(passes) == 2 * run.settings.passes == (2 if arm == "sgd" else 4)
    assert math.isfinite(row["loss"]) and (run.logits != 0.01).all()
    adaptive = {"rho", "gap", "gradient_norm", "cosine", "at_floor", "at_cap"}
    wanted = {"sgd": set(), "full": adaptive}.get(arm, adaptive - {"at_floor", "at_cap"})
    assert set(row) - {"epoch", "loss", "entropy", "complexity"} == wanted


def test_the_arms_differ_in_what_they_do():
    ends = []
    for arm in ARMS:
        run = aligned(**ARMS[arm])
        run.epoch(0)
        ends.append(run.logits.detach().clone())
    for a, b in itertools.combinations(ends, 2):
        assert not torch.equal(a, b)


# the shortened radius


class Quadratic(nn.Module):
    """½ wᵀHw, whatever the input."""

    def __init__(self, hessian, w):
        super().__init__()
        self.hessian, self.weight = hessian, nn.Parameter(w.clone())

    def forward(self):
        return 0.5 * self.weight @ self.hessian @ self.weight


def on_quadratic(hessian, w, **settings):
    model = Quadratic(hessian, w)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sam = SAM(model, optimizer, **{"combine": "mean", "policy": RecordingPolicy(), **settings})
    seen = []

    def closure():
        optimizer.zero_grad()
        seen.append(model.weight.detach().clone())
        loss = model()
        loss.backward()
        return loss

    sam.step(closure)
    return model, sam, seen, closure


HESSIAN = networks.symmetric([40.0, 5.0, 1.0, 0.1])
W = torch.tensor([0.3, -0.2, 0.7, 1.1], dtype=torch.float64)


@pytest.mark.parametrize("shrink", [1e-3, 0.01, 0.5])
def test_epsilon_is_rho_less_beta_times_the_gradients_norm_along_the_gradient(shrink):
    g = HESSIAN @ W
    seen = on_quadratic(HESSIAN, W, rho=0.05, shrink=shrink)[2]
    epsilon, wanted = seen[1] - seen[0], (0.05 - shrink * g.norm()) * g / g.norm()
    torch.testing.assert_close(epsilon, wanted, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(wanted, (0.05 / g.norm() - shrink) * g)
    assert (epsilon @ g < 0) == (shrink * g.norm() > 0.05)  # literal: a longer gradient turns it round


@pytest.mark.parametrize("case", [1, 2, 3])
@pytest.mark.parametrize("metric", ["plain", "adaptive", "normalised"])
def test_without_shrinking_nothing_changes_to_the_bit(case, metric):
    """The reference is the formula as it stood without `shrink`."""
    from saq_core import SAQ

    model = quantize(Net().float(), "W3A32")
    x, y, seen = networks.X.float(), networks.Y, []
    sam = SAQ(0.2, case=case, metric=metric).wrap(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert sam.shrink == 0.0
    measure = sam.epsilon

    def scale(place):
        tensor = place.parameter.tensor.detach()
        if metric == "plain" or tensor.ndim < 2:
            return torch.ones(())
        return tensor.std() if metric == "normalised" else place.weight().abs() + 0.01

    def noted(gradient, at=None):
        epsilon, places = measure(gradient, at), at or sam._targets
        scales = [scale(places[n]) for n in gradient]
        scaled = [g * t for g, t in zip(gradient.values(), scales, strict=True)]
        factor = 0.2 / torch.linalg.vector_norm(torch.stack(torch._foreach_norm(scaled, 2, torch.float64)))
        for name, t, g in zip(gradient, scales, scaled, strict=True):
            seen.append(torch.equal(epsilon[name], t * g * factor))
        return epsilon

    sam.epsilon = noted

    def closure():
        sam.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    sam.step(closure)
    assert len(seen) > 5 and all(seen)


@pytest.mark.parametrize("shrink", [-1e-3, math.nan, math.inf])
def test_a_bad_shrink_is_refused(shrink):
    with pytest.raises(ValueError, match="shrink must be >= 0 and finite, got"):
        on_quadratic(HESSIAN, W, rho=0.05, shrink=shrink)


# the gap and rho


def test_the_gap_on_a_quadratic_is_its_closed_form():
    g = HESSIAN @ W
    for rho in (0.01, 0.3):
        sam = on_quadratic(HESSIAN, W, rho=rho)[1]
        wanted = rho * g.norm() + 0.5 * rho**2 * (g @ HESSIAN @ g) / g.square().sum()
        assert sam.policy.rows[0]["gap"].item() == pytest.approx(wanted.item(), rel=1e-12)


def test_at_the_minimum_along_the_top_eigenvector_the_gap_tells_the_curvature():
    top = torch.linalg.eigh(HESSIAN).eigenvectors[:, -1]
    model, sam, _, _ = on_quadratic(HESSIAN, 0 * W, rho=0.05)
    with torch.no_grad(), sam.displaced({"weight": 0.05 * top}):
        assert 2 * model().item() / 0.05**2 == pytest.approx(40)
    nearly = on_quadratic(HESSIAN, 1e-9 * top, rho=0.05)[1]  # there its own gradient shows the way
    assert 2 * nearly.policy.rows[0]["gap"].item() / 0.05**2 == pytest.approx(40, rel=1e-6)


def test_the_rule_for_rho():
    lowest, highest = ASGA().rho_range
    rule = AdaptiveRho(ASGA().rho, lowest, highest)
    zero = torch.tensor(0.0, dtype=torch.float64)
    assert rule(None, None, 0) == 0.05
    for gap, rho in ((0.0, 0.005), (-1.0, 0.005), (1e-3, 0.005), (7.0, 0.1), (0.05, math.log(1.05))):
        assert rule(zero, zero + gap, 1).item() == pytest.approx(rho, rel=1e-12)


def iterated(gradient, curvature, start, lowest, steps=400):
    """Let the lagged rule run at a point of this slope and curvature that stays where it is (lr = 0)."""
    hessian, w = torch.full((1, 1), curvature).double(), torch.full((1,), gradient / curvature).double()
    settings = {"rho": AdaptiveRho(start, lowest, 0.1), "perturbed": ("weight",)}
    _, sam, _, closure = on_quadratic(hessian, w, **settings)
    for _ in range(steps):
        sam.step(closure)
    assert sam.policy.rows[0]["rho"].item() == start
    return sam.policy.rows[-1]["rho"].item()


@pytest.mark.parametrize(("gradient", "curvature"), [(0.5, 50.0), (0.2, 100.0), (0.9, 20.0)])
def test_the_lagged_rule_is_bistable_with_the_threshold_of_the_note(gradient, curvature):
    threshold = brentq(
        lambda r: math.log1p(r * gradient + 0.5 * curvature * r * r) - r, 1e-6, 0.08, xtol=1e-14
    )  # exact fixed point of the map
    assert threshold == pytest.approx(2 * (1 - gradient) / (curvature - gradient**2), rel=0.05)
    assert iterated(gradient, curvature, 0.99 * threshold, 1e-6) == 1e-6
    assert iterated(gradient, curvature, 1.01 * threshold, 1e-6) == 0.1


def test_the_notes_example_and_a_slope_above_one_and_zero_for_ever():
    assert iterated(0.5, 50.0, 0.0195, 1e-6) == 1e-6 and iterated(0.5, 50.0, 0.0205, 1e-6) == 0.1
    assert iterated(1.5, 50.0, 0.005, 0.005, 20) == 0.1  # leaves the floor at once
    assert iterated(0.5, 50.0, 0.0, 0.0) == 0.0  # absorbing: why there is a floor
    assert iterated(0.5, 50.0, 0.0051, 0.005) == 0.005


# what is derived


@pytest.mark.parametrize("seed", range(6))
def test_no_choice_that_costs_as_much_and_fits_is_more_probable(seed):
    random = torch.Generator().manual_seed(seed)
    model = make({"name": "resnet8", "num_classes": 10, "input_shape": [1, 8, 8]})
    space = Space.of(model, (1, 8, 8))
    logits = torch.randn(6, 4, generator=random) + seed * torch.tensor([1.0, 0.0, 0.0, -0.5])  # some lean to few bits
    choices = torch.tensor(list(itertools.product(range(4), repeat=6)))
    costs = space.bops(choices)
    logs = logits.double().log_softmax(1).expand(len(choices), -1, -1).gather(2, choices[..., None]).sum((1, 2))
    for share in ((0.0, 0.4, 1.0), (0.1, 0.8, 1.3))[seed % 2]:
        budget = int(costs.min() + share * (costs.max() - costs.min()))
        found = derive(logits, space, budget, 0.02)
        own, fits = int(space.bops(found)), costs <= budget
        assert own <= budget and own >= min(0.98 * budget, int(costs[fits].max()))
        chance = logs[(choices == found).all(1)]
        assert chance.item() == pytest.approx(logs[fits & (costs >= own)].max().item(), abs=1e-6)
        best = choices[logs.where(fits, -math.inf).argmax()]
        least = min(0.98 * budget, int(costs[fits].max()))
        if space.bops(best) >= least:
            assert torch.equal(found, best)
        else:  # every choice in the window has a price from which on it beats all cheaper ones; ours has the least
            window, cheaper = fits & (costs >= least), costs < least
            gain = (costs[window, None] - costs[cheaper]).double()
            prices = ((logs[cheaper] - logs[window, None]) / gain).amax(1)
            ours = prices[(choices[window] == found).all(1)]
            assert ours.item() == pytest.approx(prices.min().item(), rel=1e-4)
        if int(space.bops(logits.argmax(1))) in range(math.ceil(0.98 * budget), budget + 1):
            assert torch.equal(found, logits.argmax(1))


def test_the_derived_policys_costs_are_those_counted_by_hand(digits):
    model = build_model("resnet8", digits)
    space = Space.of(model, digits.input_shape)
    budget = cost(model, digits.input_shape, bits=3).bops
    settings = ASGA(epochs=1, batch_size=30, lr=0.02)
    with torch.random.fork_rng(devices=[]):
        choice, details = asga(model, digits, space, budget, settings, 0)
    bits = space.bits(choice)
    assert set(bits.values()) <= {"W2A2", "W3A3", "W4A4", "W5A5"}
    macs, sizes = {}, {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(
                lambda m, _, out, n=name: macs.update({n: out[0].numel() * m.weight[0].numel()})
            )
            sizes[name] = layer.weight.numel()
    model(digits.test[0][:1])
    names = list(macs)
    width = {n: int(bits[n][1]) if n in bits else 8 for n in names}
    bops = sum(macs[n] * width[n] ** 2 for n in names)
    found = cost(model, digits.input_shape, bits=bits)
    assert int(space.bops(choice)) == found.bops == bops <= budget and bops >= 0.98 * budget
    rest = sum(p.numel() for p in model.parameters()) - sum(sizes.values())
    assert found.size_bytes == (sum(sizes[n] * width[n] for n in names) + 32 * rest) / 8
    assert found.bops_ratio == pytest.approx(sum(macs.values()) * 1024 / bops)
    assert details["argmax"]["bops"] == int(space.bops(logits_of(details).argmax(1)))


def logits_of(details):
    return torch.tensor(list(details["chances"].values())).log()


# the whole


def test_it_learns_logs_and_repeats_itself_and_leaves_model_and_data_alone(digits):
    model = build_model("resnet8", digits)
    before = tensors(model)
    images = [part.clone() for split in (digits.train, digits.val, digits.test) for part in split]
    space = Space.of(model, digits.input_shape, candidates=(2, 4))
    budget = cost(model, digits.input_shape, bits=4).bops
    settings = ASGA(epochs=3, batch_size=20, lr=0.05, lr_alpha=0.5, lam=0.01)
    found = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.append(asga(model, digits, space, budget, settings, seed))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1] != found[2][1]
    rows = found[0][1]["epochs"]
    assert [row["epoch"] for row in rows] == [1, 2, 3] and rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["entropy"] < rows[0]["entropy"] < math.log(2)
    assert rows[-1]["complexity"] < rows[0]["complexity"]
    for row in rows:
        assert 0.005 <= row["rho"] <= 0.1 and 0 <= row["at_floor"] + row["at_cap"] <= 1 and -1 <= row["cosine"] <= 1
    choice, details = found[0]
    policy = Policy(space.bits(choice), int(space.bops(choice)), 0.0, "asga", budget, details=details)
    assert Policy(**json.loads(json.dumps(vars(policy)))) == policy
    assert ASGA(**details["settings"]) == settings
    for name, value in tensors(model).items():
        assert torch.equal(value, before[name])
    after = [part for split in (digits.train, digits.val, digits.test) for part in split]
    assert all(torch.equal(a, b) for a, b in zip(after, images, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_steps_at_the_floor_and_at_the_cap_are_counted():
    run = aligned()
    run.sam.policy.rows = [{"rho": torch.tensor(rho)} for rho in (0.005, 0.03, 0.1, 0.1, 0.1, 0.0999, 0.0051, 0.005)]
    seen = run.step_means()
    assert seen["at_floor"] == 0.25 and seen["at_cap"] == 0.375 and run.sam.policy.rows == []


def test_every_epoch_sees_all_images_in_an_order_of_its_own():
    run = aligned(epochs=3, batch_size=1)
    seen = []
    run.step = lambda batch: seen.append(batch[0]) or batch[0].new_zeros(())
    run.sam = None
    for epoch in (0, 1, 0):
        run.epoch(epoch)
    first, second, again = (torch.cat(seen[k : k + 7]) for k in (0, 7, 14))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert torch.equal(first.flatten(1)[:, 0].sort().values, networks.X.flatten(1)[:, 0].sort().values)


def test_more_lambda_leans_to_fewer_bits():
    ends = []
    for lam in (0.0, 0.05):
        run = aligned(lam=lam, lr=0.0)
        run.epoch(0)
        ends.append(run.complexity().item())
    assert ends[1] < ends[0]


def test_both_learning_rates_fall_to_a_tenth_at_ten_and_twenty_of_25_epochs():
    factors = [ASGA().lr_factor(step, 25 * 7) for step in range(25 * 7)]
    assert factors == [1.0] * 70 + [0.1] * 70 + [0.1**2] * 35
    run = aligned(epochs=5, lr=0.2, lr_alpha=0.4, batch_size=7)
    rates = []
    for epoch in range(5):
        run.epoch(epoch)
        rates.append([group["lr"] for group in run.optimizer.param_groups])
    assert [row[-1] for row in rates] == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004])
    assert [row[0] for row in rates] == pytest.approx([0.2, 0.2, 0.02, 0.02, 0.002])
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [1e-4, 0.0, 0.0]


def test_a_loss_that_is_not_finite_says_so():
    run = aligned(lr=1e200)
    with pytest.raises(FloatingPointError, match="training loss is nan in epoch 1: try an lr below"):
        run.epoch(0), run.epoch(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"beta": -1e-3}, "beta must be >= 0 and finite, got -0.001"),
        ({"lam": math.nan}, "lam must be >= 0 and finite, got nan"),
        ({"combine": "gsam"}, r"combine must be one of 'mean', 'perturbed', got 'gsam'"),
        ({"case": 4}, r"case must be one of 1, 2, 3, got 4"),
        ({"slack": 1.0}, "slack must be from 0 to below 1, got 1.0"),
        ({"rho_range": (0.01,)}, r"rho_range must be a tuple \(a number, a number\) or None, got \(0.01,\)"),
        ({"rho_range": 0.1}, r"rho_range must be a tuple \(a number, a number\) or None, got 0.1"),
        ({"rho": 0.2}, "rho must be within rho_range, got 0.2 for 0.005 … 0.1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ASGA(**settings)
