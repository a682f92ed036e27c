"""Surfaces by replay: the numbers of the objective itself, or the objective itself."""

import contextlib

import pytest
import torch
from networks import RAGGED, X, Y, convolutional, perceptron, quantized
from states import assert_same, state
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes
from zoo import ZOO
from zoo_odd import ODD

import landscape
from landscape import Objective, line, surface
from landscape.explorer.study import Study
from landscape.explorer.views import View
from landscape.model import Replay, replay
from landscape.model.directions import resolve_directions
from landscape.surfaces import evaluate_points

POINTS = torch.cartesian_prod(*[torch.linspace(-0.6, 0.6, 11, dtype=torch.float64)] * 2)
FEW = POINTS[[0, 17, 60, 87, 120]]


def replays(objective):
    """Return the same points by replay and by the objective itself, and whether anything was replayed."""
    steps, _ = resolve_directions(objective, ["random", "random"], "filter", 0, None)
    fast, plain = (Replay(objective, steps, points) for points in (POINTS, POINTS[:0]))
    found, expected = evaluate_points(fast, FEW), evaluate_points(plain, FEW)
    assert found[1] == expected[1] and fast.is_confirmed()
    return found[0], expected[0], fast(FEW.tolist()) is not None


REPLAYED = ["perceptron", "registered twice", "tied", "frozen half", "time-first GRU", "masked attention", "LayerNorm"]
REPLAYED += ["masked language model", "mappings by an objective", "BatchNorm in batches", "residual block", "pruned"]
REPLAYED += ["frozen BatchNorm", "EmbeddingBag", "DataParallel", "watches in eval mode", "float32", "LSQ by hand"]
REPLAYED += ["W4A4", "W4A4, latent", "W2A32", "ignored in batches", "class weights in batches", "smoothed labels"]
REPLAYED += ["a sum in batches", "one value per sample", "weight decay in the objective", "complex layers", "in place"]
REPLAYED += ["overwrites its input", "normalises its input in place", "positions cached", "remembers", "scripted"]
REPLAYED += ["adaptive softmax"]
REPLAYED += ["frozen base of bfloat16", "loader that shuffles", "segmentation, some ignored", "slopes by torch.func"]
NOT_REPLAYED = ["packed LSTM", "CTC", "graphs", "torch.ao, activations", "physics-informed", "Gaussian likelihood"]
NOT_REPLAYED += ["one layer compiled", "texts beside the tensors", "meta-learning"]


@pytest.mark.parametrize("name", REPLAYED + NOT_REPLAYED)
def test_a_replay_is_the_objective_whatever_the_network(name):
    case = (ZOO | ODD)[name]
    found, expected, replayed = replays(Objective(case.make(), case.data, **case.settings))
    assert replayed == (name in REPLAYED)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14, equal_nan=True)
    assert expected[:, 0].unique().numel() == len(FEW)  # the points differ


def metrics(output, target):
    return (output - F.one_hot(target, 3)).abs()


@pytest.mark.parametrize("settings", [{}, {"metrics": {"m": metrics}}, {"precision": "bf16"}, {"layers": ["2"]}])
def test_with_every_setting(settings):
    settings = settings | ({"layers": ["7"]} if "layers" in settings else {})
    found, expected, replayed = replays(Objective(convolutional().float(), (X.float(), Y), **settings))
    assert replayed and torch.equal(found, expected)


def test_other_statistics_at_every_point_are_not_replayed():
    assert not replays(Objective(convolutional(), RAGGED, batchnorm="recomputed"))[2]


class Odd(nn.Module):
    """Multiplies what a small network gives by what Python makes of it."""

    def __init__(self, read):
        super().__init__()
        self.inner, self.read = perceptron(), read

    def forward(self, x):
        h = self.inner(x)
        return h * self.read(h, self.inner)


def hidden(h, _):
    """Read a number behind the recording's back."""
    with _disable_current_modes():
        return 1.0 + h.sum().item()


def counted(h, _):
    with _disable_current_modes():
        return 2.0 if h.sum().item() > 0 else 1.0


READING = {
    "item": lambda h, _: h.sum().item(),
    "float": lambda h, _: float(h.mean()),
    "if": lambda h, _: 2.0 if h.sum() > 0 else 1.0,
    "tolist": lambda h, _: sum(h[0].tolist()),
    "tolist of a weight": lambda _, inner: inner[0].weight.tolist()[0][0],
    "numpy": lambda h, _: float(h.detach().numpy().sum()),
    "array of the data": lambda h, inner: float(len(inner[0].weight.detach().__array__())) + h.detach().numpy()[0, 0],
    "length": lambda h, _: float(len(h[h > 0])),
    "equal": lambda h, _: 1.0 + torch.equal(h, h.abs()),
    "random, seeded": lambda h, _: 1 + torch.rand(3, generator=torch.Generator().manual_seed(0), dtype=h.dtype),
    "hidden": hidden,
    "hidden, a branch": counted,
}


@pytest.mark.parametrize("read", READING)
def test_what_reads_numbers_is_measured_by_itself(read):
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, expected, replayed = replays(Objective(Odd(READING[read]), (x, torch.arange(20) % 3)))
    assert not replayed and torch.equal(found, expected)


def test_constants_may_be_read_and_data_are_no_constants():
    """A buffer that nothing moves is a constant; what is made of the data alone differs from batch to batch."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = perceptron()
            self.register_buffer("scale", torch.tensor(2.0))

        def forward(self, x):
            shift = x[int(x[:, 0].argmax())] + x.mean(0)  # read, of the data alone
            mask = torch.zeros(len(x), 3, dtype=x.dtype)
            mask[:, 0].add_(x[:, 0])
            mask.mul_(self.scale.item())
            h = self.inner.forward(x - shift) + mask
            rows = h.new_zeros(len(x), 3)
            rows[:, 1:] = h[:, 1:]
            rows.relu_().add_(shift[:3])
            return rows + h.data

    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(6, 5, generator=generator, dtype=torch.float64), torch.arange(6) % 3) for _ in range(3)]
    found, expected, replayed = replays(Objective(Scaled(), batches))
    assert replayed and torch.equal(found, expected)


def test_a_value_in_the_wrong_order_is_not_replayed():
    """A constant that is read before it is written to, and then again."""

    class Ordered(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = perceptron()

        def forward(self, x):
            ones = torch.ones(3, dtype=x.dtype)
            before = self.inner(x) * ones
            return before + ones.mul_(3.0) * self.inner(x + 1)

    found, expected, replayed = replays(Objective(Ordered(), [(X[:, 0, 0, :1].expand(7, 5), Y)]))
    assert not replayed and torch.equal(found, expected)


def test_a_replay_that_goes_wrong_on_the_way_is_undone(monkeypatch, tmp_path):
    """Right at three points, wrong at the last one: all is measured again, also what lies on disk."""
    made, model = [], convolutional()
    plain = [surface(model, RAGGED, points=9, adaptive=adaptive) for adaptive in (False, True)]
    monkeypatch.setattr(replay, "_PAYS", 9)
    recorded = replay._Recorded.__call__

    def wrong(self, coefficients):
        made.append(len(coefficients))
        return recorded(self, coefficients) * (1 + (len(coefficients) != 2))

    monkeypatch.setattr(replay._Recorded, "__call__", wrong)
    for adaptive, expected in zip((False, True), plain, strict=True):
        made.clear()
        path = tmp_path / str(adaptive)
        found = surface(model, RAGGED, points=9, adaptive=adaptive, path=path)
        assert made[0] == 2 and len(made) > 4  # compared, then replayed
        again = surface(model, RAGGED, points=9, adaptive=adaptive, path=path)
        for result in (found, again):
            assert torch.equal(result.loss, expected.loss) and torch.equal(result.status, expected.status)
        assert found.about["evaluated"] == expected.about["evaluated"]
        assert found.about.get("interpolation_error") == expected.about.get("interpolation_error")


def test_lines_and_surfaces_are_the_same_and_the_model_is_left_alone(monkeypatch, tmp_path):
    model, before = quantized("W4A4"), None
    before = state(model)
    arguments = {"points": (11, 13), "metrics": {"m": metrics}}
    replayed = surface(model, RAGGED, **arguments, path=tmp_path), line(model, RAGGED, points=101)
    calls = []
    monkeypatch.setattr(replay._Recorded, "__init__", lambda *_: calls.append(1) or 1 / 0)
    plain = surface(model, RAGGED, **arguments), line(model, RAGGED, points=101)
    assert len(calls) == 2
    for found, expected in zip(replayed, plain, strict=True):
        for name in ("loss", "accuracy", "stderr", "status"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-14)
    assert replayed[0].loss[replayed[0].centre] == Objective(model, RAGGED).centre.loss
    torch.testing.assert_close(replayed[0].metrics["m"], plain[0].metrics["m"], rtol=1e-12, atol=0)
    next(tmp_path.glob("tile_00003*")).unlink()
    resumed = surface(model, RAGGED, **arguments, path=tmp_path)  # a folder of replayed tiles goes on without
    torch.testing.assert_close(resumed.loss, plain[0].loss, rtol=1e-12, atol=0)
    assert_same(before, state(model))


@pytest.mark.parametrize("goes_wrong", [False, True])
def test_the_explorer_replays_and_confirms(goes_wrong, monkeypatch):
    expected = surface(convolutional(), RAGGED, points=5)
    monkeypatch.setattr(replay, "_PAYS", 25)
    made, recorded = [], replay._Recorded.__call__

    def counted(self, coefficients):
        made.append(len(coefficients))
        return recorded(self, coefficients) * (1 + goes_wrong * (len(coefficients) == 1))

    monkeypatch.setattr(replay._Recorded, "__call__", counted)
    study, view = Study({"a": convolutional()}, RAGGED), View(("a",), points=5, numbers=False)
    assert sum(study.steps(view)) == 24 * (1 + goes_wrong) and made == [2] + 24 * [1]
    found = study.shown(view)["a"]
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    assert not study.errors and sum(study.steps(view)) == 0 and len(made) == 25


def test_few_points_are_not_worth_a_recording(monkeypatch):
    monkeypatch.setattr(replay._Recorded, "__init__", lambda *_: pytest.fail("recorded"))
    surface(perceptron(), (X[:, 0, :, 0].repeat(1, 2)[:, :5], Y), points=9)


def test_a_point_that_raises_is_named():
    """What raises in a kernel at some points fails there alone, as without a replay."""

    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = perceptron()
            self.register_buffer("norm", self.inner[0].weight.detach().norm())

        def forward(self, x):
            room = 1.6 - self.inner[0].weight.norm() / self.norm
            return self.inner(x) + torch.linalg.cholesky(room * torch.eye(3, dtype=x.dtype)).sum(1)

    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = surface(Fragile(), (x, torch.arange(20) % 3), points=11, span=1.2)
    failed = found.status == 3
    assert 0 < failed.sum() < 60 and "positive-definite" in found.about["first_failure"]
    assert torch.equal(found.loss.isnan(), failed)


def test_an_interrupt_while_recording_leaves_no_trace():
    class Interrupted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls, self.left = perceptron(), 0, None

        def forward(self, x):
            from torch.utils._python_dispatch import _get_current_dispatch_mode

            if _get_current_dispatch_mode() is not None:
                raise KeyboardInterrupt
            return self.inner(x)

    model, data = Interrupted(), (torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 3)
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        surface(model, data, points=11)
    assert_same(before, state(model))
    assert torch._C._len_torch_dispatch_stack() == 0 == torch.overrides._len_torch_function_stack()
    with contextlib.suppress(KeyboardInterrupt):
        landscape.line(model, data, points=5)
