"""Curvature along a training: against closed forms, without a trace in the training, within its budget, resumed."""

import copy
import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import RAGGED, convolutional
from torch import nn
from torch.nn import functional as F

import landscape
import saq_core
from landscape import auditing, monitoring
from landscape.linalg import top_pair
from landscape.model import Objective, recentred
from landscape.stability import critical_sharpness, preconditioner, stability_threshold

X, Y = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)).double()


DATA = X.double(), Y


def train(model, optimizer, after=lambda: None, steps=6):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(DATA[0]), DATA[1]).backward()
        optimizer.step()
        after()


def unlimited(model, data=DATA, **settings):
    """Return a monitor that measures everything at every call."""
    monitor = landscape.Monitor(model, data, **settings)
    monitor.budget = math.inf
    return monitor


def sgd(model, **settings):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **settings})


def quadratic(values, point):
    """Return the objective ½ Σ values·w² of a network with the weights w at a point."""
    model = nn.Linear(len(values), 1, bias=False).double()
    model.weight.data[0] = torch.as_tensor(point)
    values = torch.as_tensor(values, dtype=torch.float64)
    rows = torch.zeros(1, len(values), dtype=torch.float64)

    def loss(network, batch):
        return (values * network.weight[0] ** 2).sum() / 2 + 0 * network(batch[0]).sum(), 1.0

    return Objective(model, [(rows, rows)], objective=loss)


@pytest.mark.parametrize("top", [(10.0, 7, 5), (10, 9.8, 9.5, 9), (10, 9.99, 3)])
def test_the_top_eigenvalue_of_a_drifting_matrix_takes_three_products(top):
    generator = torch.Generator().manual_seed(0)

    def symmetric():
        matrix = torch.randn(120, 120, generator=generator, dtype=torch.float64)
        return (matrix + matrix.T) / torch.linalg.matrix_norm(matrix + matrix.T, 2)

    values = 0.3 * torch.randn(120, generator=generator, dtype=torch.float64)
    values[: len(top)] = torch.tensor(top, dtype=torch.float64)
    basis = torch.linalg.qr(symmetric())[0]
    matrix = basis @ torch.diag(values) @ basis.T
    pair = top_pair(matrix)
    for _ in range(25):
        matrix = matrix + 0.01 * torch.linalg.matrix_norm(matrix, 2) * symmetric()
        pair = top_pair(matrix, pair.vectors)
        found = torch.linalg.eigvalsh(matrix)
        assert pair.products <= 3 and abs(pair.value / found[-1] - 1) < 1e-3
        assert (found - pair.value).abs().min() <= pair.residual * pair.value + 1e-12


def test_one_eigenvalue_overtakes_another_and_a_third_that_the_gradient_leans_to():
    class Leaning:
        shape, dtype, device = (50, 50), torch.float64, torch.device("cpu")

        def __init__(self, values):
            self.values = values

        def __matmul__(self, vectors):
            return self.values * vectors if vectors.ndim == 1 else self.values[:, None] * vectors

        def start(self):
            return self.values

    values = torch.linspace(1, 2, 50, dtype=torch.float64)
    values[:3] = torch.tensor([9.0, 8.0, 3.0])
    pair = top_pair(Leaning(values))
    for step in range(30):
        values = values.clone()
        values[1] += 0.1
        values[2] += 0.3 * (step < 25)
        pair = top_pair(Leaning(values), pair.vectors)
        assert pair.value > 0.999 * values[:2].max()
    values[2] = 20
    for _ in range(3):
        pair = top_pair(Leaning(values), pair.vectors)
    assert pair.value == pytest.approx(20, rel=1e-3)
    assert top_pair(torch.zeros(4, 4), ()).value == 0
    twice = top_pair(torch.diag(torch.arange(4.0)), [torch.ones(4), torch.ones(4)])
    assert twice.value == pytest.approx(3, rel=1e-3)


def quantized():
    return saq_core.calibrate(saq_core.quantize(net(), "W4A4", first_last_bits=4), DATA)


@pytest.mark.parametrize("make", [net, quantized, convolutional], ids=["float", "quantized", "batchnorm"])
def test_an_objective_about_new_weights_is_a_new_objective(make):
    model = make()
    data = RAGGED if make is convolutional else DATA
    first = Objective(model, data)
    hessian = landscape.Hessian(first)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and tensor.ndim:
                tensor.mul_(1.1)
    before = [tensor.clone() for tensor in model.state_dict().values() if isinstance(tensor, torch.Tensor)]
    here, anew = recentred(first), Objective(model, data)
    assert float(here.centre.loss) == pytest.approx(float(anew.centre.loss), rel=1e-6)
    assert float(here.centre.loss) != float(first.centre.loss)
    v = torch.ones(hessian.shape[0], dtype=hessian.dtype)
    torch.testing.assert_close(hessian.recentred(here) @ v, landscape.Hessian(anew) @ v, rtol=1e-4, atol=1e-6)
    after = [tensor for tensor in model.state_dict().values() if isinstance(tensor, torch.Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def grows(optimizer_of, curvature, steps=400):
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = optimizer_of([weight])
    for _ in range(steps):
        weight.grad = curvature * weight.detach()
        optimizer.step()
    return abs(float(weight.detach())) > 1


@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": 0.9}, {"momentum": 0.8, "nesterov": True}, {"momentum": 0.5, "dampening": 0.5}],
)
def test_steps_grow_beyond_the_threshold_and_shrink_below_it(settings):
    def make(weights):
        return torch.optim.SGD(weights, lr=0.1, **settings)

    limit = stability_threshold(make([nn.Parameter(torch.ones(1))]))["threshold"]
    assert grows(make, 1.02 * limit) and not grows(make, 0.98 * limit)


def test_thresholds_of_groups_of_adam_and_of_what_has_no_formula():
    model = net()
    weights = list(model.parameters())
    groups = torch.optim.SGD([{"params": weights[:1], "lr": 0.5}, {"params": weights[1:]}], lr=0.1)
    assert stability_threshold(groups) == {"learning_rate": 0.5, "threshold": 4.0}
    adam = torch.optim.AdamW(model.parameters(), lr=0.01)
    assert math.isnan(stability_threshold(adam)["threshold"]) and preconditioner(adam, Objective(model, DATA)) is None
    train(model, adam, steps=3)
    assert stability_threshold(adam)["threshold"] == pytest.approx(3800)
    for kind in (torch.optim.RMSprop, torch.optim.NAdam):
        other = kind(model.parameters())
        train(model, other, steps=1)
        assert math.isnan(stability_threshold(other)["threshold"])
    assert stability_threshold(sgd(model, lr=0.0))["threshold"] == math.inf
    wrapped = saq_core.SAQ(0.1).wrap(model, sgd(model, lr=0.2))
    assert stability_threshold(wrapped)["threshold"] == pytest.approx(10)


def test_adams_preconditioner_divides_its_steps():
    """The step is lr·P⁻¹·m, m the mean gradient; the eigenvalue is that of the dense P^(−½)HP^(−½)."""
    model = net().eval()
    adam = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.8, 0.9))
    train(model, adam, steps=4)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, adam, steps=1)
    function = Objective(model, DATA)
    root = preconditioner(adam, function)
    for p, old, part in zip(model.parameters(), before, root.values(), strict=True):
        torch.testing.assert_close(old - 0.01 * part**2 * adam.state[p]["exp_avg"], p.detach())
    monitor = unlimited(model, optimizer=adam)
    found = monitor.step()
    hessian = landscape.Hessian(function)
    dense = hessian.scaled(root) @ torch.eye(hessian.shape[0], dtype=torch.float64)
    assert found["preconditioned_lambda1"] == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-3)
    assert found["lambda1"] == pytest.approx(float(landscape.top_eigenvalues(function, k=1).values), rel=1e-3)


def test_critical_sharpness_is_twice_the_inverse_of_the_step_that_no_longer_descends():
    values, point = [1.0, 4.0, 9.0], [1.0, -2.0, 0.5]
    function = quadratic(values, point)
    g = torch.tensor(values) * torch.tensor(point)
    expected = float((g * torch.tensor(values) * g).sum() / (g * g).sum())
    gradient = function.loss_and_gradient()[1]
    for first in (math.nan, 1e-4, 1.0, 1e4):
        found, passes = critical_sharpness(function, gradient, gradient, first)
        assert found == pytest.approx(expected, rel=0.01) and passes <= 10
    assert critical_sharpness(function, gradient, gradient)[1] <= 4
    against = {name: -part for name, part in gradient.items()}
    assert math.isnan(critical_sharpness(function, gradient, against)[0])
    downwards = quadratic([-1.0, -1.0], [1.0, 1.0])  # which never rises again
    slope = downwards.loss_and_gradient()[1]
    found, passes = critical_sharpness(downwards, slope, slope)
    assert math.isnan(found) and passes == 10


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(3 * x)


def test_critical_sharpness_is_seen_from_both_sides_on_wild_losses():
    """Where it is found the loss falls just below that step and rises just above, also from a stale beginning."""
    torch.manual_seed(14)
    model = nn.Sequential(nn.Linear(6, 6), Sine(), nn.Linear(6, 4)).double()
    optimizer, known, found = sgd(model, lr=2.0, momentum=0.9), math.nan, 0
    for _ in range(12):
        train(model, optimizer, steps=1)
        function = Objective(model, DATA)
        gradient = function.gradient()
        known, passes = critical_sharpness(function, gradient, gradient, known)
        assert passes <= 10
        if not math.isnan(known):
            found += 1
            before, after = (
                function.evaluate({name: -share * 2 / known * part for name, part in gradient.items()}).loss
                for share in (0.98, 1.02)
            )
            assert before < function.centre.loss <= after
    assert found > 3


def test_a_start_that_says_little_of_the_matrix_is_not_relied_on():
    """The top pair of one network is no beginning for another: the second eigenvalue was taken for the first."""
    for seed in range(8):
        function = Objective(net(seed), DATA)
        stale = top_pair(landscape.Hessian(Objective(net(seed + 1), DATA))).vectors
        dense = landscape.Hessian(function) @ torch.eye(function.coordinates.numel, dtype=torch.float64)
        found = top_pair(landscape.Hessian(function), stale)
        assert found.value == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=2e-3)


def test_the_optimizer_of_the_training_that_runs_counts():
    model = net()
    monitor = unlimited(model)
    for lr in (0.1, 0.001):
        saq_core.train(model, saq_core.Data(DATA, DATA, DATA), recipe_of(lr), on_epoch=monitor)
    assert monitor.frame["threshold"].tolist() == pytest.approx([20.0, 20.0, 2000.0, 2000.0])
    own = sgd(model, lr=0.5)
    kept = unlimited(model, optimizer=own)
    kept(SimpleNamespace(optimizer=sgd(model, lr=0.1), step=1))
    assert kept.optimizer is own


def recipe_of(lr):
    return saq_core.Recipe(epochs=2, lr=lr, momentum=0.0, schedule="constant")


def test_groups_of_other_networks_do_not_count_and_a_part_is_measured_as_one():
    model, other = net(), nn.Linear(2, 2)
    groups = [{"params": model.parameters(), "lr": 0.1}, {"params": other.parameters(), "lr": 10.0}]
    monitor = unlimited(model, optimizer=torch.optim.SGD(groups))
    monitor.step()
    assert monitor.rows[0]["threshold"] == pytest.approx(20.0)
    head = unlimited(model, optimizer=sgd(model[3]))
    part = landscape.top_eigenvalues(landscape.Hessian(model, DATA, layers=["3"]), k=1, which="LA").values
    assert head.step()["preconditioned_lambda1"] == pytest.approx(float(part), rel=2e-3)
    assert "preconditioned_lambda1" not in unlimited(model, optimizer=sgd(model)).step()


class Nadam(torch.optim.NAdam):
    pass


class Factored(torch.optim.SGD):
    """Keeps second moments in another form than Adam."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["exp_avg_sq"] = torch.ones(3)


def test_optimizers_that_are_like_adam_by_half_are_measured_without_it():
    model = net()
    for optimizer in (Nadam(model.parameters()), Factored(model.parameters(), lr=0.1), sgd(model, maximize=True)):
        monitor = unlimited(model, optimizer=optimizer)
        train(model, optimizer, monitor.step, steps=1)
        assert math.isfinite(monitor.rows[0]["lambda1"]) and "preconditioned_lambda1" not in monitor.rows[0]
        if not isinstance(optimizer, Factored):
            assert math.isnan(monitor.rows[0]["threshold"])


def test_the_threshold_is_unknown_where_what_it_concerns_is():
    """Adam's stands for λ₁ of P^(−½)HP^(−½), which float16 does not hold."""
    model = net().half()
    data, optimizer = (DATA[0].half(), DATA[1]), torch.optim.Adam(model.parameters(), eps=1e-4)
    monitor = unlimited(model, data, optimizer=optimizer)
    F.cross_entropy(model(data[0]).float(), data[1]).backward()
    optimizer.step()
    monitor.step()
    assert math.isnan(monitor.rows[0]["threshold"]) and "preconditioned_lambda1" not in monitor.rows[0]


def test_weights_that_are_frozen_later_are_measured_on():
    model = net()
    monitor = unlimited(model)
    before = monitor.step()
    model.requires_grad_(False)
    assert monitor.step()["lambda1"] == pytest.approx(before["lambda1"], rel=1e-3)


def test_a_step_of_several_batches_is_measured_once():
    monitor = unlimited(net())
    for step in (0, 0, 1, 1, 1, 2):
        monitor.on_train_batch_end(SimpleNamespace(global_step=step, optimizers=[]))
    assert monitor.frame["step"].tolist() == [0, 1, 2]


def test_it_measures_what_the_measuring_functions_do():
    model = net()
    monitor = unlimited(model, optimizer=sgd(model, momentum=0.9))
    train(model, monitor.optimizer, monitor.step)
    row, function = monitor.rows[-1], Objective(model, DATA)
    rounded = landscape.rounding_sharpness(function, bits=(4,), num_samples=2)
    assert row["probe_loss"] == pytest.approx(float(function.centre.loss))
    assert row["rounding_gap"] == pytest.approx(float(rounded.rounded))
    assert row["rounding_gap_stderr"] == pytest.approx(float(rounded.rounded_stderr_data))
    assert row["lambda1"] == pytest.approx(float(landscape.top_eigenvalues(function, k=1, which="LA").values), rel=1e-3)
    assert abs(row["trace"] - landscape.trace(function, rtol=1e-3).value) < 4 * row["trace_stderr"]
    assert row["threshold"] == pytest.approx(38) and 0.5 < row["gradient_cosine"] <= 1
    frame = monitor.frame
    assert len(frame) == 6 and math.isnan(frame["gradient_cosine"][0]) and monitor.result.table.shape[0] == 6
    assert "lambda1" in repr(monitor) and "<table" in monitor._repr_html_()
    (title,) = {trace.name for trace in monitor.plot().data} & {"critical sharpness"}
    assert title and monitor.draw().axes[0].get_ylabel() == "Sharpness"


@pytest.mark.parametrize("kind", [sgd, lambda m: torch.optim.AdamW(m.parameters())], ids=["sgd", "adamw"])
def test_the_training_is_bit_by_bit_that_without_it(kind):
    ends = []
    for watched in (False, True):
        model = net()
        optimizer = kind(model)
        monitor = unlimited(model, optimizer=optimizer) if watched else None
        torch.manual_seed(1)  # of the dropout
        train(model, optimizer, monitor.step if monitor else lambda: None)
        state = [*model.state_dict().values(), *(p.grad for p in model.parameters()), torch.get_rng_state()]
        assert model.training and (not monitor or len(monitor.rows) == 6)
        ends.append(state)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_state_goes_on_to_the_rows_of_an_uninterrupted_training(tmp_path):
    model = net().eval()
    optimizer = sgd(model)
    whole = unlimited(model, optimizer=optimizer)
    train(model, optimizer, whole.step, steps=3)
    torch.save(whole.state_dict(), tmp_path / "monitor.pt")
    other = copy.deepcopy(model)
    again = unlimited(other, optimizer=sgd(other))
    again.load_state_dict(torch.load(tmp_path / "monitor.pt", weights_only=True))
    plain = {name: value for name, value in whole.state_dict().items() if name != "vectors"}
    assert json.dumps(json.loads(json.dumps(plain))) == json.dumps(plain)
    for monitor, network in ((whole, model), (again, other)):
        train(network, monitor.optimizer, monitor.step, steps=3)
    assert again.frame.drop(columns="seconds").equals(whole.frame.drop(columns="seconds")) and again.calls == 6
    assert again.trained >= whole.rows[2]["seconds"]
    state = whole.state_dict()
    for bad, message in (
        ({}, "state must be what state_dict"),
        (state | {"vectors": {"lambda1": torch.zeros(1, 5)}}, "got the lambda1 of another"),
        (state | {"vectors": {"gradient": {"a": torch.zeros(5)}}}, "got the gradient of another"),
    ):
        with pytest.raises(ValueError, match=message):
            again.load_state_dict(bad)
        assert len(again.rows) == 6


def test_it_keeps_to_its_budget_and_leaves_no_quantity_out(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    seconds = {"loss": 0.5, "rounding": 1.0, "gradient": 5.0, "lambda1": 24.0, "trace": 19.0}
    monkeypatch.setattr(monitoring.time, "perf_counter", lambda: clock.now)

    def taking(quantity):
        def measure(present):
            clock.now += seconds[quantity]
            present.pair = present.pair or quantity == "lambda1"
            return {"probe_loss" if quantity == "loss" else quantity: 1.0}

        return measure

    monitor = landscape.Monitor(net(), DATA)
    assert "no rows yet" in repr(monitor)
    for quantity in seconds:
        monkeypatch.setattr(monitoring._Present, f"_{quantity}", taking(quantity))
    monitor.used["setup"], monitor.costs["loss"] = 4.0, seconds["loss"]  # which is measured when it is made
    for _ in range(4_000):
        clock.now += 1.0  # a step of the training
        monitor.step()
        assert sum(monitor.used.values()) <= max(0.1 * monitor.trained, 4) + 1e-6
    assert monitor.trained == 3_999 and sum(monitor.used.values()) > 0.09 * monitor.trained
    counts = monitor.frame.count()
    assert counts["probe_loss"] > counts["gradient"] > counts["lambda1"] >= 3
    assert counts["trace"] >= 2


def test_every_so_many_calls_and_a_log():
    seen = []
    monitor = unlimited(net(), every=3, log=SimpleNamespace(log=seen.append))
    returned = [monitor.step() for _ in range(7)]
    assert [bool(row) for row in returned] == [False, False, True, False, False, True, False]
    assert [row["step"] for row in seen] == [3, 6] and seen == monitor.rows and returned[2]["lambda1"] > 0
    assert math.isnan(seen[0]["threshold"])


def test_a_training_that_diverges_goes_on():
    model = net()
    monitor = unlimited(model)
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    assert math.isnan(monitor.step()["probe_loss"]) and "lambda1" not in monitor.rows[0]
    assert "rows" in repr(monitor) and monitor.draw() and monitor.plot()


def test_bad_input_is_refused():
    model, other = net(), net(1)
    for settings, kind, message in (
        ({"every": 0}, ValueError, "every must be a whole number >= 1, got 0"),
        ({"budget": 0}, ValueError, "budget must be .*got 0"),
        ({"budget": 1.5}, ValueError, "budget must be .*got 1.5"),
        ({"log": 3}, TypeError, r"log must have a method log\(row\), got int"),
        ({"log": logging.getLogger()}, TypeError, r"log must have a method log\(row\), got RootLogger"),
        ({"optimizer": 3}, TypeError, "optimizer must have param_groups"),
        ({"optimizer": sgd(other)}, ValueError, "optimizer must train weights of the monitored model"),
    ):
        with pytest.raises(kind, match=message):
            landscape.Monitor(model, DATA, **settings)
    with pytest.raises(ValueError, match="data"):
        landscape.Monitor(model)
    with pytest.raises(ValueError, match="an objective has its own"):
        landscape.Monitor(Objective(model, DATA), DATA)
    monitor = unlimited(model)
    with pytest.raises(ValueError, match="optimizer must train weights"):
        monitor(SimpleNamespace(optimizer=sgd(other)))
    with pytest.raises(ValueError, match="state must be what state_dict"):
        monitor.load_state_dict(None)
    assert monitor.rows == [] and not hasattr(monitor, "nothing")


@pytest.mark.parametrize("hook", ["on_epoch", "on_step"])
def test_saq_core_takes_it(hook):
    model = nn.Linear(6, 3)
    monitor = unlimited(model, (X, Y))
    recipe = saq_core.Recipe(epochs=2, lr=0.1, batch_size=32)
    history = saq_core.train(model, (X, Y), recipe, **{hook: monitor})
    assert [row["step"] for row in monitor.rows] == ([2, 4] if hook == "on_epoch" else [1, 2, 3, 4])
    assert monitor.rows[0]["threshold"] > 0 and monitor.rows[0]["learning_rate"] > 0
    assert ("lambda1" in history.frame) == (hook == "on_epoch")
    assert history.epochs[-1]["loss"] != monitor.rows[-1]["probe_loss"]  # the training's own stays


def folder_of(path, count=4):
    path.mkdir()
    for k in range(count):
        state = net(k).state_dict()
        torch.save(
            [state, {"model": state}, {"state_dict": {f"module.{n}": v for n, v in state.items()}}][k % 3],
            path / f"epoch_{5 * (k + 1)}.pt",
        )
    return path


def test_an_audit_goes_on_where_it_was_killed_to_the_same_table(tmp_path, monkeypatch):
    folder, model = folder_of(tmp_path / "run"), net(9)
    before = copy.deepcopy(model.state_dict())
    whole = landscape.audit(folder, model, DATA, keep=tmp_path / "whole")
    assert [row["step"] for row in whole.rows] == [5, 10, 15, 20]  # not as texts are sorted
    assert whole.frame["checkpoint"].tolist() == [f"epoch_{k}.pt" for k in (5, 10, 15, 20)]
    assert whole.rows[2]["lambda1"] == pytest.approx(
        float(landscape.top_eigenvalues(net(2), DATA, k=1, which="LA").values), rel=1e-3
    )
    loaded, killed = auditing._loaded, []

    def dying(network, source):
        killed.append(source)
        if len(killed) == 3:
            raise KeyboardInterrupt
        return loaded(network, source)

    monkeypatch.setattr(auditing, "_loaded", dying)
    with pytest.raises(KeyboardInterrupt):
        landscape.audit(folder, model, DATA)
    monkeypatch.setattr(auditing, "_loaded", loaded)
    again = landscape.audit(folder, model, DATA)
    assert again.frame.equals(whole.frame) and landscape.audit(folder, model, DATA).frame.equals(whole.frame)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    landscape.load(again.save(tmp_path / "audit.nc")).plot()
    with pytest.raises(ValueError, match="must hold rows of these checkpoints on these data, got a loss of"):
        landscape.audit(folder, model, (DATA[0] * 2, DATA[1]))
    torch.save(net(7).state_dict(), folder / "epoch_5.pt")
    with pytest.raises(ValueError, match="got other files: delete it, or pass another keep="):
        landscape.audit(folder, model, DATA)


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, pattern in ((tmp_path / "empty", "*.pt"), (tmp_path / "nowhere", "*.pt"), ([], "*.pt")):
        with pytest.raises(ValueError, match="folder must hold checkpoints, got none in"):
            landscape.audit(folder, net(), DATA, pattern=pattern)
    folder = folder_of(tmp_path / "run", 1)
    (folder / "epoch_6.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"checkpoints that fit the model, and .*epoch_6.pt is none"):
        landscape.audit(folder, net(), DATA)
    with pytest.raises(ValueError, match="checkpoints that fit the model, and a snapshot is none: .*size mismatch"):
        landscape.audit([{n: v[:2] for n, v in net().state_dict().items()}], net(), DATA)


def test_an_audit_takes_wrapped_networks_and_goes_on_over_odd_rows(tmp_path):
    wrapped = nn.Module()
    wrapped.module = net()
    wrapped.forward = wrapped.module.forward
    for model in (wrapped, torch.compile(net()), nn.DataParallel(net())):
        assert len(landscape.audit([model.state_dict(), model.state_dict()], model, DATA).rows) == 2
    for index in (10, 20):
        torch.save({"model": {"width": 8}, "state_dict": net(index).state_dict()}, tmp_path / f"epoch_{index}.pt")
    assert landscape.audit(tmp_path, net(), DATA, pattern="*").frame["step"].tolist() == [10, 20]
    torch.save({name: part * math.nan for name, part in net().state_dict().items()}, tmp_path / "last².pt")
    for _ in range(2):
        assert landscape.audit(tmp_path, net(), DATA, pattern="*").frame["step"].tolist() == [1, 2, 3]
    (tmp_path / "landscape.audit").write_bytes(b"abc")
    with pytest.raises(ValueError, match="damaged: delete it"):
        landscape.audit(tmp_path, net(), DATA)


def test_a_checkpoint_is_measured_alike_whatever_came_before():
    states = [net(seed).state_dict() for seed in (1, 2)]
    alone, after = (landscape.audit(part, net(), DATA).rows[-1] for part in (states[1:], states))
    assert after["lambda1"] == alone["lambda1"]


def test_an_audit_of_a_training_here_knows_its_learning_rate(tmp_path):
    model, recipe = nn.Linear(6, 3), saq_core.Recipe(epochs=2, lr=0.1, momentum=0.0, schedule="constant")
    history = saq_core.train(model, (X, Y), recipe, checkpoint=tmp_path / "last.pt", snapshots="epoch")
    (row,) = landscape.audit(tmp_path, model).rows
    assert row["threshold"] == pytest.approx(20) and row["step"] == 1
    rows = landscape.audit(history.snapshots, model).rows
    assert rows[1]["probe_loss"] == pytest.approx(row["probe_loss"], rel=1e-5) and len(rows) == 2
    assert np.isnan(rows[0]["threshold"])
