"""WinQ, the average of weights, frozen steps and relative radii: each against its formula, and what they share."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from saq_core import SAM, SAQ, Data, Recipe, WinQ, calibrate, evaluate, quantize, train
from saq_core.data.batches import training_batches
from saq_core.sharpness.diagnostics import WINDOW

GENERATOR = torch.Generator().manual_seed(0)
Y = torch.arange(32) % 3
X = torch.randn(32, 4, generator=GENERATOR, dtype=torch.float64) + 2 * F.one_hot(Y, 4)
DATA = Data((X, Y), (X[:9], Y[:9]), (X[:12], Y[:12]), 3)
BASE = {"epochs": 3, "lr": 0.1, "batch_size": 8, "seed": 2}  # four steps an epoch


def network(bits="W2A2", **settings):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    return calibrate(quantize(model.double(), bits, first_last_bits=None, **settings), DATA)


def same(one, two):
    return all(torch.equal(v, two[k]) for k, v in one.items() if isinstance(v, torch.Tensor))


def batches(epoch):
    return training_batches(DATA, 8, generator=torch.Generator().manual_seed(2 * 1_000_003 + epoch), epoch=epoch)


def of_two_bits(w, s):
    """LSQ's formula."""
    return torch.clamp(torch.round(w / s), -2, 1) * s


@pytest.mark.parametrize("noise_at", ["latent", "quantized"])
def test_winq_equals_its_formula(noise_at):
    winq = WinQ(every=3, alpha=0.2, noise=0.05, noise_at=noise_at)
    model, twin = network(), network()
    train(model, DATA, Recipe(**BASE, schedule="constant", weight_decay=0.0, winq=winq))
    layers = [layer for layer in twin if hasattr(layer, "weight_quantizer")]
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    twin.train()
    step = 0
    for epoch in range(3):
        for x, y in batches(epoch):
            generator = torch.Generator().manual_seed(2 * 1_000_003 + 500_009 + step)
            z = [torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64) for layer in layers]
            kept = [layer.weight.detach().clone() for layer in layers]
            for layer, draw in zip(layers, z, strict=True):
                (layer.weight if noise_at == "latent" else layer.delta).data += 0.05 * draw
            optimizer.zero_grad()
            F.cross_entropy(twin(x), y).backward()
            for layer, weight in zip(layers, kept, strict=True):
                layer.weight.data.copy_(weight)
                layer.delta.zero_()
            optimizer.step()
            step += 1
            for layer in layers if step % 3 == 0 else ():
                w = layer.weight.data
                w.copy_(0.2 * w + 0.8 * of_two_bits(w, layer.weight_quantizer.step.detach()))
    for name, value in twin.state_dict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-12, atol=1e-12)


def test_a_reset_leaves_the_levels_where_they_were_and_what_is_off_changes_nothing():
    model = network()
    before = model[3].used_weight().detach().clone(), model[3].weight.detach().clone()
    train(model, DATA, Recipe(epochs=1, lr=0.0, batch_size=8, winq=WinQ(every=1, alpha=0.5)))
    assert torch.equal(model[3].used_weight(), before[0])
    distance = (before[1] - before[0]) / 2**4  # halved four times, and not a trace of the noise
    torch.testing.assert_close(model[3].weight - before[0], distance, rtol=1e-9, atol=1e-15)
    plain, idle = network(), network()
    train(plain, DATA, Recipe(**BASE))
    train(idle, DATA, Recipe(**BASE, winq=WinQ(every=1, alpha=1.0, noise=0.0)))
    assert same(plain.state_dict(), idle.state_dict())


@pytest.mark.parametrize("case", [1, 2, 3])
def test_epsilon_is_added_to_noisy_weights_and_both_passes_have_the_same_noise(case):
    model, seen = network(), []
    layer = model[3]
    layer.register_forward_pre_hook(lambda m, _: seen.append((m.weight.detach().clone(), m.delta.detach().clone())))
    start = layer.weight.detach().clone()
    recipe = Recipe(
        epochs=1, lr=0.0, batch_size=32, sam=SAQ(0.3, case, perturbed=("weight",)), winq=WinQ(100, noise=0.1)
    )
    train(model, Data(DATA.train), recipe, loss=nn.CrossEntropyLoss(reduction="mean"))
    (noisy, none), (second, delta) = seen[-2:]
    assert not none.any() and (noisy - start).std() == pytest.approx(0.1, rel=0.4)
    assert torch.equal(second, noisy) == (case != 2) and bool(delta.any()) == (case != 2)
    assert torch.equal(layer.weight, start) and not layer.delta.any()


def test_the_average_equals_its_formula_and_training_does_not_know_of_it():
    model, plain, states, shown = network(), network(), [], []
    averaged = {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf], dtype=torch.float64))
    recipe = Recipe(**BASE, ema=0.8)
    settings = {
        "on_step": lambda s: states.append({k: v.clone() for k, v in s.model.state_dict().items() if k in averaged})
    }
    on_epoch = lambda state: shown.append((state.model, evaluate(state.model, DATA.val).loss))  # noqa: E731
    history = train(model, DATA, recipe, snapshots="epoch", on_epoch=on_epoch, **settings)
    for state in states:
        for name, value in averaged.items():
            value.copy_(state[name] if name.endswith("tracked") else 0.8 * value + 0.2 * state[name])
    for name, value in averaged.items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    assert {"3.weight_quantizer.step", "3.input_quantizer.step", "1.running_var"} <= averaged.keys()
    assert same(history.snapshots[-1], model.state_dict()) and all(m is not model for m, _ in shown)
    assert [row["val_loss"] for row in history.epochs] == [loss for _, loss in shown]
    assert history.epochs[-1]["val_loss"] == evaluate(model, DATA.val).loss
    assert torch.equal(train(plain, DATA, Recipe(**BASE)).steps, history.steps) and model.mask.tolist() == [
        0,
        -torch.inf,
    ]
    assert not same(plain.state_dict(), model.state_dict())


def disorder_by_hand(freeze_steps, steps=8):
    """Steps of SAM on W2A2, and the disorder of each quantizer's step by its formula from gradients of autograd."""
    model = network().train()
    params = dict(model.named_parameters())
    names = [name for name in params if name.endswith("step")]
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.3), rho=1.0, freeze_steps=freeze_steps)
    disorder, found, moved = dict.fromkeys(names, 0.0), [], []
    for k in range(steps):
        x, y = X[k * 4 :][:8], Y[k * 4 :][:8]
        gradients = []

        def closure(x=x, y=y, gradients=gradients):
            loss = F.cross_entropy(model(x), y)
            found = torch.autograd.grad(loss, [params[n] for n in names], retain_graph=True)
            gradients.append(dict(zip(names, found, strict=True)))
            loss.backward()
            return loss

        before = {name: params[name].detach().clone() for name in names}
        sam.step(closure, diagnose=torch.float64)
        task, sharp = gradients
        for name in names:
            opposed = float(float(task[name]) * float(sharp[name]) < 0)
            disorder[name] += (opposed - disorder[name]) / WINDOW
        found.append((sam.diagnostics, task, sharp))
        moved.append({name for name in names if not torch.equal(before[name], params[name])})
    return names, disorder, found, moved, sam


def test_steps_are_compared_and_frozen_by_the_formula():
    names, disorder, found, moved, sam = disorder_by_hand(0.06)
    torch.testing.assert_close(sam.freezing.disorder.tolist(), [disorder[n] for n in names], rtol=1e-12, atol=0)
    for diagnostics, task, sharp in found:
        a, b = (torch.stack([g[n] for n in names]).flatten() for g in (task, sharp))
        assert float(diagnostics["step_cosine"]) == pytest.approx(float(F.cosine_similarity(a, b, dim=0)), rel=1e-9)
        assert float(diagnostics["steps_opposed"]) == pytest.approx(float((a * b < 0).double().mean()))
    frozen = {name for name in names if disorder[name] > 0.06}
    assert 0 < len(frozen) < len(names) and moved[-1] == set(names) - frozen
    assert all(step == set(names) for step in disorder_by_hand(None)[3])  # compared alone, nothing is frozen


@pytest.mark.parametrize("case", [1, 2, 3])
@pytest.mark.parametrize("metric", ["plain", "adaptive", "normalised"])
def test_a_relative_radius_is_a_share_of_the_norm_of_what_is_perturbed(metric, case):
    model = network()
    row = train(
        model, DATA, Recipe(epochs=1, lr=0.0, batch_size=32, sam=SAQ(0.02, case, metric, relative=True))
    ).epochs[0]
    perturbed = [p for name, p in model.named_parameters() if not name.endswith("step")]
    norm = float(torch.cat([p.detach().flatten() for p in perturbed]).norm())
    assert row["epsilon_norm"] == pytest.approx(0.02 * norm, rel=1e-9)
    assert row["relative_norm"] == pytest.approx(0.02, rel=1e-9)


def test_a_relative_epsilon_equals_its_formula():
    layer = nn.Linear(3, 2).double()
    w, b = layer.weight.detach().clone(), layer.bias.detach().clone()
    sam = SAM(layer, torch.optim.SGD(layer.parameters(), lr=0.1), rho=0.1, metric="adaptive", relative=True, shrink=0.2)
    seen = []

    def closure():
        seen.append(layer.weight.detach().clone())
        loss = (layer.weight**3).sum() + layer.bias.square().sum()
        loss.backward()
        return loss

    sam.step(closure)
    g, t = (3 * w**2, 2 * b), (w.abs() + 0.01, torch.ones(2, dtype=torch.float64))
    scaled = [s**2 * h for s, h in zip(t, g, strict=True)]
    length = 0.1 * torch.cat([w.flatten(), b]).norm() / torch.cat([v.flatten() for v in scaled]).norm()
    torch.testing.assert_close(seen[1] - w, (length - 0.2) * scaled[0], rtol=1e-12, atol=1e-14)
    assert "rho=0.1·‖w‖" in repr(sam)


SETTINGS = {
    "winq and saq": {"winq": WinQ(every=5, noise=0.05, noise_at="quantized"), "sam": SAQ(0.3)},
    "ema and winq": {"ema": 0.9, "winq": WinQ(every=2)},
    "frozen": {"sam": SAQ(2.0, freeze_steps=0.03)},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_interrupted_training_resumes_to_the_same_numbers(name, tmp_path):
    recipe = Recipe(**{**BASE, "epochs": 2}, **SETTINGS[name])
    whole, broken, resumed, again = (network(per_channel=name == "frozen") for _ in range(4))
    expected = train(whole, DATA, recipe)

    def fail(state):
        if state.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(broken, DATA, recipe, checkpoint=tmp_path / "run.pt", on_step=fail)
    history = train(resumed, DATA, recipe, checkpoint=tmp_path / "run.pt")
    assert torch.equal(history.steps, expected.steps) and same(whole.state_dict(), resumed.state_dict())
    train(again, DATA, recipe, checkpoint=tmp_path / "run.pt")  # which is complete
    assert same(whole.state_dict(), again.state_dict())
    assert Recipe.from_dict(recipe.stored()) == recipe


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WinQ(every=0), "every must be a whole number >= 1, got 0"),
        (lambda: WinQ(every=9, alpha=1.5), "alpha must be"),
        (lambda: WinQ(every=9, noise=-1.0), "noise must be"),
        (lambda: WinQ(every=9, noise_at="after"), "noise_at must be one of"),
        (lambda: Recipe(epochs=1, lr=0.1, ema=1.0), "ema must be"),
        (lambda: SAQ(freeze_steps=1.0), "freeze_steps must be"),
        (lambda: SAQ(freeze_steps=0.3, policy="momentum"), "policy must see a whole batch at w and at w + ε"),
        (lambda: SAQ(freeze_steps=0.3, policy="subset"), "freeze_steps, got 'subset'"),
        (
            lambda: SAM(m := nn.Linear(2, 2), torch.optim.SGD(m.parameters()), rho=1, freeze_steps=-1),
            "freeze_steps must",
        ),
        (
            lambda: train(nn.Linear(4, 3).double(), DATA, Recipe(**BASE, winq=WinQ(9))),
            "winq needs .*, got none: quantize()",
        ),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message if ".*" in message else re.escape(message)):
        make()
