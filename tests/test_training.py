import copy
import json
import warnings
from contextlib import ExitStack, nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from networks import X, Y, quantized
from torch import nn
from torch.nn import functional as F

from landscape.model.criterion import Criterion
from saq_core import FPQ, SAQ, Data, Recipe, WinQ, build_model, calibrate, evaluate, load_data, quantize, train
from saq_core.data.batches import training_batches
from saq_core.training import weights
from saq_core.training.steps import Run


def toy(n=40, classes=3):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    x = torch.randn(n, 4, generator=generator) + 2 * F.one_hot(y, 4)
    return Data((x, y), (x[:9], y[:9]), (x[:12], y[:12]), classes)


def network(dropout=0.3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def same(one, two):
    return all(torch.equal(v, two[k]) for k, v in one.items() if isinstance(v, torch.Tensor))


RECIPE = Recipe(epochs=3, lr=0.1, batch_size=8)


def test_training_learns_and_leaves_what_it_promises():
    model, data = network(), toy()
    history = train(model, data, RECIPE)
    assert list(history.frame.columns) == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds"]
    assert len(history.frame) == 3 and history.steps.shape == (15,)
    assert history.steps[-5:].mean() < history.steps[:5].mean()
    assert history.epochs[0]["loss"] == pytest.approx(float(history.steps[:5].mean()))
    assert model.probe is data.probe and model.recipe == RECIPE and model.history is history and not model.training
    assert "3 epochs" in repr(history)


def test_training_equals_a_loop_written_by_hand():
    model, twin, data = network(0.0), network(0.0), toy()
    train(model, data, Recipe(epochs=1, lr=0.1, batch_size=8, schedule="constant", seed=2))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    for x, y in training_batches(data, 8, generator=torch.Generator().manual_seed(2 * 1_000_003)):
        optimizer.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        optimizer.step()
    assert same(model.state_dict(), twin.state_dict())


def test_learning_rate_follows_the_schedule():
    rates = []
    data = toy()
    recipe = Recipe(epochs=4, lr=0.2, batch_size=8)
    train(network(), data, recipe, on_epoch=lambda state: rates.append(state.history.epochs[-1]["lr"]))
    steps = torch.tensor([4, 9, 14, 19]) / 20
    torch.testing.assert_close(torch.tensor(rates), (0.1 * (1 + (torch.pi * steps).cos())))
    history = train(network(), data, Recipe(epochs=2, lr=0.2, schedule="constant"))
    assert [row["lr"] for row in history.epochs] == [0.2, 0.2]


@pytest.mark.parametrize("sam", [None, SAQ(0.05), SAQ(0.05, case=1, metric="normalised"), SAQ(0.05, case=2)])
def test_same_seed_same_numbers_and_the_global_state_is_left_alone(sam):
    def run(seed):
        model = quantize(network(), "W4A32")
        before = torch.get_rng_state()
        history = train(model, toy(), Recipe(epochs=2, lr=0.1, batch_size=8, sam=sam, seed=seed))
        assert torch.equal(before, torch.get_rng_state())
        return history, model

    (one, a), (two, b), (other, _) = run(0), run(0), run(1)
    assert torch.equal(one.steps, two.steps) and same(a.state_dict(), b.state_dict())
    assert not torch.equal(one.steps, other.steps)
    names = {"epsilon_norm", "flip_rate", "cosine_case1_case3", "relative_norm", "received_cosine"}
    assert (names & set(one.epochs[0])) == (names if sam else set())


def test_rho_zero_trains_the_quantized_network_as_plain_sgd():
    plain, sharp = quantize(network(), "W4A32"), quantize(network(), "W4A32")
    one = train(plain, toy(), RECIPE)
    two = train(sharp, toy(), Recipe(epochs=3, lr=0.1, batch_size=8, sam=SAQ(0.0)))
    assert torch.equal(one.steps, two.steps) and same(plain.state_dict(), sharp.state_dict())


def test_weight_decay_leaves_quantizer_steps_alone():
    def steps(decay):
        model = quantize(network(0.0), "W4A32", first_last_bits=4)
        before = model[0].weight_quantizer.step.detach().clone()
        recipe = Recipe(epochs=1, lr=1e-3, batch_size=40, momentum=0.0, weight_decay=decay)
        train(model, toy(), recipe)
        return before, model[0].weight_quantizer.step.detach(), model[0].weight.detach()

    (_, plain, w), (start, decayed, shrunk) = steps(0.0), steps(100.0)
    assert torch.equal(plain, decayed) and not torch.equal(start, decayed) and shrunk.norm() < w.norm()


@pytest.mark.parametrize("sam", [None, SAQ(0.1)])
def test_steps_of_eight_bits_keep_their_calibration_and_those_of_four_are_trained(sam):
    model = calibrate(quantize(network(0.0), {"0": "W8A8", "4": "W4A4"}), toy())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    train(model, toy(), Recipe(epochs=2, lr=0.1, batch_size=8, sam=sam))
    moved = {name for name, value in model.named_parameters() if not torch.equal(before[name], value)}
    assert {name for name in moved if name.endswith("step")} == {
        "4.weight_quantizer.step",
        "4.input_quantizer.step",
    }
    assert {"0.weight", "4.weight"} <= moved


def test_an_eight_bit_first_layer_keeps_its_levels_under_sharpness_aware_training():
    data = load_data("digits", limit=900, device="cpu")
    model = build_model("resnet8", data, seed=0)
    train(model, data, Recipe(epochs=3, lr=0.1, batch_size=64))
    twin = calibrate(quantize(model, "W4A4"), data)
    train(twin, data, Recipe(epochs=2, lr=0.05, batch_size=64, sam=SAQ(0.1)))
    assert len(twin.conv1.used_weight().unique()) > 64


def test_on_epoch_fills_columns():
    calls = []

    def watch(state):
        calls.append(state.model.training)
        return {"norm": len(state.history.epochs)} if len(state.history.epochs) < 3 else 7

    history = train(network(), toy(), RECIPE, on_epoch=watch)
    assert history.frame["norm"].tolist()[:2] == [1, 2] and history.frame["on_epoch"].tolist()[2] == 7
    assert len(calls) == 3


def test_snapshots_can_be_loaded_back():
    model = network()
    history = train(model, toy(), RECIPE, snapshots="epoch")
    assert len(history.snapshots) == 3 and same(history.snapshots[-1], model.state_dict())
    assert not same(history.snapshots[0], history.snapshots[1])
    twin = network()
    twin.load_state_dict(history.snapshots[-1])
    assert same(twin.state_dict(), model.state_dict())
    with pytest.raises(ValueError, match="snapshots must be"):
        train(model, toy(), RECIPE, snapshots="step")


@pytest.mark.parametrize("sam", [None, SAQ(0.05)])
def test_interrupted_training_resumes_to_the_same_numbers(tmp_path, sam):
    recipe = Recipe(epochs=5, lr=0.1, batch_size=8, sam=sam)

    def prepared():
        return calibrate(quantize(network(), "W4A4"), toy())

    whole = prepared()
    expected = train(whole, toy(), recipe, snapshots="epoch")

    def interrupt(state):
        if len(state.history.epochs) == 3:
            raise KeyboardInterrupt

    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train(prepared(), toy(), recipe, on_epoch=interrupt, snapshots="epoch", checkpoint=path)
    resumed = prepared()
    history = train(resumed, toy(), recipe, snapshots="epoch", checkpoint=path)
    assert same(whole.state_dict(), resumed.state_dict()) and torch.equal(history.steps, expected.steps)
    assert len(history.epochs) == 5 and len(history.snapshots) == 5
    for a, b in zip(expected.epochs, history.epochs, strict=True):
        assert {**a, "seconds": 0} == pytest.approx({**b, "seconds": 0}, abs=0, nan_ok=True)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    finished = train(prepared(), toy(), recipe, checkpoint=path)
    assert torch.equal(finished.steps, expected.steps)


def test_a_checkpoint_without_snapshots_is_refused_where_they_are_asked_for(tmp_path):
    recipe, path = Recipe(epochs=3, lr=0.1, batch_size=8), tmp_path / "run.pt"

    def interrupt(state):
        if len(state.history.epochs) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(network(), toy(), recipe, on_epoch=interrupt, checkpoint=path)
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError, match=r"a snapshot of each of its 1 epochs when snapshots='epoch', got 0: go on with"
    ):
        train(model, toy(), recipe, snapshots="epoch", checkpoint=path)
    assert same(before, model.state_dict())
    assert len(train(model, toy(), recipe, checkpoint=path).epochs) == 3


def test_checkpoint_of_another_training_is_refused_and_the_model_unchanged(tmp_path):
    path = tmp_path / "run.pt"
    train(network(), toy(), RECIPE, checkpoint=path)
    with pytest.raises(ValueError, match=r"same recipe and loss, got other {'lr': 0.1}"):
        train(network(), toy(), Recipe(epochs=3, lr=0.2, batch_size=8), checkpoint=path)
    model = nn.Sequential(nn.Linear(4, 3))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="holds another network"):
        train(model, toy(), RECIPE, checkpoint=path)
    assert same(before, model.state_dict())
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="cut short"):
        train(network(), toy(), RECIPE, checkpoint=path)


def test_a_checkpoint_with_other_trained_weights_leaves_the_model_unchanged(tmp_path):
    train(network(), toy(), RECIPE, checkpoint=tmp_path / "run.pt")
    model = network()
    model[0].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="size of optimizer's group"):
        train(model, toy(), RECIPE, checkpoint=tmp_path / "run.pt")
    assert same(before, model.state_dict())


def test_results_of_on_epoch_that_are_no_numbers_are_kept_as_text(tmp_path):
    train(network(), toy(), RECIPE, on_epoch=lambda state: {"shape": (1, 2), "odd": {3}}, checkpoint=tmp_path / "a")
    history = train(network(), toy(), RECIPE, checkpoint=tmp_path / "a")
    assert history.epochs[-1]["shape"] == [1, 2] and history.epochs[-1]["odd"] == "{3}"


def test_diverging_loss_stops_with_a_clear_error():
    with pytest.raises(FloatingPointError, match=r"training loss is (nan|inf) at step \d+ of epoch 1: try an lr below"):
        data = toy()
        x, y = data.train
        x = x.clone()
        x[0] = torch.inf
        train(network(), Data((x, y), data.val, data.test, 3), RECIPE)


def test_uncalibrated_network_is_refused_and_keeps_its_weights():
    model = quantize(network(), "W4A4")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with pytest.raises(RuntimeError, match=r"not calibrated: call saq_core.calibrate\(model, data\)"):
        train(model, toy(), RECIPE)
    assert same(before, dict(model.named_parameters())) and not model.training


def test_a_layer_that_no_forward_pass_uses_does_not_stop_the_training():
    model = network()
    model[0].spare = nn.Linear(4, 4)
    with pytest.warns(UserWarning, match="0.spare.input_quantizer"):
        model = calibrate(quantize(model, "W4A4"), toy())
    assert train(model, toy(), Recipe(epochs=1, lr=0.1, batch_size=8, sam=SAQ(0.05))).steps.isfinite().all()


def test_other_data_than_expected_are_refused():
    data = toy()
    for wrong in (data.test[0], iter([data.test]), list(data.test), data.test[0].numpy(), 7):
        with pytest.raises(
            TypeError, match="split must be a pair of tensors .inputs, targets., a Dataset, a DataLoader"
        ):
            evaluate(network(), wrong)
        with pytest.raises(
            TypeError, match="train must be a pair of tensors .inputs, targets., a Dataset, a DataLoader"
        ):
            train(network(), wrong, RECIPE)


def test_network_without_trainable_weights_is_refused():
    with pytest.raises(ValueError, match="trainable"):
        train(network().requires_grad_(False), toy(), RECIPE)
    with pytest.raises(ValueError, match="trainable"):
        train(nn.Flatten(), toy(), RECIPE)


def test_adamw_and_amp_train():
    model = calibrate(quantize(network(), "W4A4"), toy())
    recipe = Recipe(epochs=2, lr=0.01, batch_size=8, optimizer="adamw", amp=True, sam=SAQ(0.05))
    history = train(model, toy(), recipe)
    assert history.steps.isfinite().all() and 0 < history.epochs[0]["received_cosine"] <= 1.001


def test_without_a_compiler_training_runs_eager(monkeypatch):
    def broken(*_):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="training runs eager: no compiler here"):
        history = train(network(), toy(), Recipe(epochs=1, lr=0.1, compile=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(history.steps, train(network(), toy(), Recipe(epochs=1, lr=0.1, compile=False)).steps)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_data_on_another_device_are_moved():
    model = network().cuda()
    train(model, toy(), Recipe(epochs=1, lr=0.1, batch_size=8, sam=SAQ(0.05), compile=False))
    assert model.probe[0].device.type == "cpu" and evaluate(model, toy().test).loss > 0


def test_evaluation_agrees_with_its_definition_and_restores_the_mode():
    model, (x, y) = network().train(), toy().test
    statistics = model[1].running_mean.clone()
    found = evaluate(model, (x, y), batch_size=5)
    assert model.training and torch.equal(statistics, model[1].running_mean)
    model.eval()
    losses = F.cross_entropy(model(x), y, reduction="none").detach()
    hits = (model(x).argmax(1) == y).float()
    assert found.loss == pytest.approx(float(losses.mean())) and found.accuracy == pytest.approx(float(hits.mean()))
    assert found.loss_stderr == pytest.approx(float(losses.std()) / 12**0.5)
    assert found.accuracy_stderr == pytest.approx((found.accuracy * (1 - found.accuracy) / 11) ** 0.5)


@pytest.mark.parametrize("fails", [False, True])
def test_evaluation_restores_the_mode_of_every_module(fails):
    model, (x, y) = network().train(), toy().test
    model[1].eval()
    if fails:
        with pytest.raises(ValueError, match="on this split failed in 0 .Linear."):
            evaluate(model, (x[:, :2], y))
    else:
        evaluate(model, (x, y))
    assert [m.training for m in model] == [True, False, True, True, True] and model.training


def test_bad_evaluation_data_are_refused():
    x, y = toy().test
    with pytest.raises(ValueError, match="one target per input and at least one"):
        evaluate(network(), (x[:0], y[:0]))
    with pytest.raises(ValueError, match="labels must lie in 0…2 for 3 outputs, got 1…3"):
        evaluate(network(), (x, y + 1))


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be a whole number"),
        ({"lr": float("nan")}, "lr must be >= 0 and finite, got nan"),
        ({"lr": -1}, "lr must be >= 0"),
        ({"weight_decay": -1e-4}, "weight_decay must be >= 0"),
        (
            {"schedule": "step"},
            r"schedule must be one of 'cosine', 'steps', 'constant' or a function of 2 arguments, got 'step'",
        ),
        ({"optimizer": "lion"}, "optimizer must be one of"),
        ({"mix": "blend"}, r"mix must be one of None, 'mixup', 'cutmix', 'both', got 'blend'"),
        ({"micro_batch": 0}, "micro_batch must be a whole number >= 1 or None, got 0"),
        ({"clip_norm": 0.0}, "clip_norm must be > 0 and finite or None, got 0.0"),
        ({"fpq": True}, "fpq must be a saq_core.FPQ or None, got True"),
        ({"sam": 0.05}, "sam must be a saq_core.SAQ or None, got 0.05"),
        ({"label_smoothing": 1.0}, "label_smoothing must be from 0 to below 1, got 1.0"),
    ],
)
def test_bad_recipes_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"epochs": 1, "lr": 0.1, **setting})


def test_quantized_residual_network_learns_the_digits(trained):
    data = load_data("digits", device="cpu")
    twin = calibrate(quantize(trained, "W2A2"), data)
    train(twin, data, Recipe(epochs=4, lr=0.05, batch_size=64, sam=SAQ(0.05)))
    assert evaluate(trained, data.test).accuracy > 0.93 and evaluate(twin, data.test).accuracy > 0.9


def test_every_epoch_has_its_own_shuffle():
    steps = train(network(0.0), toy(), Recipe(epochs=2, lr=0.0, batch_size=8)).steps
    assert len(steps.unique()) == 10


def test_label_smoothing_and_warm_up_follow_their_definitions():
    one, two, data = network(0.0), network(0.0), toy()
    history = train(
        one, data, Recipe(epochs=2, lr=0.2, batch_size=40, label_smoothing=0.2, schedule="constant", warmup=2)
    )
    x, y = next(training_batches(data, 40, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        loss = F.cross_entropy(two(x), y, label_smoothing=0.2)
    assert [row["lr"] for row in history.epochs] == pytest.approx([0.1, 0.2])
    assert float(history.steps[0]) == pytest.approx(float(loss), rel=1e-5)


def test_learning_rate_falls_in_steps():
    recipe = Recipe(epochs=10, lr=1.0, schedule="steps")
    assert [recipe.lr_at(k, 1) for k in range(10)] == [1.0] * 4 + [0.1] * 2 + [0.01] * 4


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    def run(micro, sam, clip_norm):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
        x, y = toy().train
        data = Data((x.double(), y), (x.double(), y), (x.double(), y), 3)
        settings = {"micro_batch": micro, "sam": sam, "clip_norm": clip_norm}
        history = train(model, data, Recipe(epochs=2, lr=0.1, batch_size=20, **settings))
        return torch.cat([p.flatten() for p in model.parameters()]), history.epochs[-1]["accuracy"]

    # a bound of the whole gradient, not of a part's, and never before epsilon is taken from it
    for sam, clip_norm in ((None, None), (None, 1e-2), (SAQ(0.3, case=2), None), (SAQ(0.3, case=2), 1e-2)):
        (whole, right), (parts, same_right) = run(None, sam, clip_norm), run(7, sam, clip_norm)
        torch.testing.assert_close(parts, whole, atol=1e-12, rtol=1e-10)
        assert right == pytest.approx(same_right)


@pytest.mark.parametrize("sam", [None, SAQ(0.3)])
def test_clipped_gradients_bound_the_update(sam):
    model = quantize(network(0.0), "W4A32")
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    recipe = Recipe(epochs=1, lr=1.0, batch_size=40, momentum=0.0, weight_decay=0.0, clip_norm=1e-2, sam=sam)
    train(model, toy(), recipe)
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    assert 0.99e-2 < float(moved.norm()) < 1.01e-2


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "both"])
def test_mixed_images_train_and_repeat(kind):
    data = load_data("digits", limit=200, device="cpu")
    recipe = Recipe(epochs=1, lr=0.05, batch_size=50, mix=kind, sam=SAQ(0.05))
    runs = [train(build_model("resnet8", data), data, recipe) for _ in range(2)]
    assert torch.equal(runs[0].steps, runs[1].steps) and 0 < runs[0].epochs[0]["accuracy"] <= 1
    plain = train(build_model("resnet8", data), data, Recipe(epochs=1, lr=0.05, batch_size=50, sam=SAQ(0.05)))
    assert not torch.equal(plain.steps, runs[0].steps)


@pytest.mark.parametrize("policy", ["full", "look:2", "momentum", "subset:0.5"])
def test_every_policy_trains_and_resumes(policy, tmp_path):
    recipe = Recipe(epochs=3, lr=0.1, batch_size=8, sam=SAQ(0.05, policy=policy))
    whole = quantize(network(), "W4A32")
    expected = train(whole, toy(), recipe)
    assert expected.steps[-5:].mean() < expected.steps[:5].mean()

    def interrupt(state):
        if len(state.history.epochs) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(quantize(network(), "W4A32"), toy(), recipe, on_epoch=interrupt, checkpoint=tmp_path / "run.pt")
    resumed = quantize(network(), "W4A32")
    found = train(resumed, toy(), recipe, checkpoint=tmp_path / "run.pt")
    assert torch.equal(found.steps, expected.steps) and same(whole.state_dict(), resumed.state_dict())
    tables = [history.frame.drop(columns="seconds") for history in (found, expected)]
    assert tables[0].equals(tables[1]) and tables[1]["cosine_case1_case3"].nunique() == 3  # each epoch's own


def test_the_log_is_the_table(tmp_path):
    history = train(network(), toy(), RECIPE, log=tmp_path / "deep" / "run.jsonl")
    lines = (tmp_path / "deep" / "run.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history.epochs


def test_numbers_of_numpy_come_back_from_files(tmp_path):
    sam = SAQ(np.float64(0.05), rho_range=np.array([0.01, 0.1]))
    numbers = {"lr": np.logspace(-2, -1, 2)[1], "label_smoothing": np.float64(0.1), "clip_norm": np.float32(1)}
    recipe = Recipe(epochs=2, batch_size=8, sam=sam, **numbers)

    def watch(state):
        return {"a": np.float64(0.5), "b": np.float32(0.5), "c": np.int64(3)}

    train(network(), toy(), recipe, on_epoch=watch, checkpoint=tmp_path / "run.pt", log=tmp_path / "run.jsonl")
    again = train(network(), toy(), recipe, checkpoint=tmp_path / "run.pt")
    assert [again.epochs[-1][k] for k in "abc"] == [0.5, 0.5, 3]


IN_PARTS = {"sam": SAQ(0.05, case=2, rho_range=(0.01, 0.1)), "clip_norm": 1.0, "micro_batch": 4}


@pytest.mark.parametrize(
    ("quantizer", "settings"),
    [
        ("lsq", {}),
        ("lsq+", {"sam": SAQ(0.05)}),
        ("pact", {"sam": SAQ(0.05, case=1, metric="adaptive")}),
        ("dorefa", IN_PARTS),
        ("liq", {"sam": SAQ(0.05, policy="look:2")}),
        ("minmax", {"sam": SAQ(0.05, policy="momentum")}),
        ("lsq", {"sam": SAQ(0.05, policy="subset:0.5")}),
        ("lsq", {"sam": SAQ(0.05), "fpq": FPQ()}),
        ("lsq", {"sam": SAQ(0.05, relative=True, freeze_steps=0.2), "ema": 0.9}),
        ("lsq", {"winq": WinQ(every=2)}),
    ],
    ids=["sgd", "case 3", "adaptive case 1", "case 2 in parts", "look", "momentum", "subset", "fpq", "frozen", "winq"],
)
def test_a_step_waits_for_no_number_and_stays_on_its_device(quantizer, settings, monkeypatch):
    """On the meta device tensors hold no numbers: a step that asks for one, or that mixes devices, raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know this device
    monkeypatch.setattr(weights, "device_of", lambda _: torch.device("cpu"))  # no generator knows it either
    device, data = torch.device("meta"), Data(*[(X, Y)] * 3, 3)
    model, (x, y) = quantized("W4A4", quantizer=quantizer).to(device), (X.to(device), Y.to(device))
    with ExitStack() as stack:
        run = Run(model, data, Recipe(epochs=1, lr=0.1, compile=False, **settings), Criterion(), None, None, stack)
        model.train()
        for k in range(3):
            if run.teacher is not None:
                run.teacher.next_batch()
            assert run.step(partial(run.closure, (x, y), []), k).device == device
