"""A network is as it was after every call, whatever it is made of and whatever happens: errors, interrupts, threads."""

import contextlib
import random
import signal
import threading
import time
import weakref

import pytest
import torch
from networks import convolutional, quantized
from strangers import SERIES, TOKENS, Merging, Recurrent, Tied, Twice, Watching, X, Y, perceptron, seeded
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import landscape
import saq_core
from landscape import Objective
from landscape.model.measuring import measurement_mode

IMAGES = torch.randn(24, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TILE = {
    "twice": (lambda: seeded(Twice), X),
    "tied": (lambda: seeded(Tied), TOKENS),
    "merging": (lambda: seeded(Merging).train(), X),
    "watching": (lambda: seeded(Watching), X),
    "max_norm": (lambda: seeded(lambda: nn.Sequential(nn.Embedding(7, 3, max_norm=0.5), Last())), TOKENS),
    "LSTM": (lambda: seeded(lambda: Recurrent(batch_first=True)), SERIES),
    "pruned": (lambda: pruned(perceptron()), X),
    "spectral_norm": (lambda: seeded(normed).train(), X),
    "BatchNorm": (lambda: convolutional().train(), IMAGES),
    "W4A4": (lambda: quantized("W4A4"), IMAGES),
}
CALLS = {
    "trace": lambda m, d: landscape.trace(m, d, num_probes=3, method="hutchinson"),
    "surface": lambda m, d: landscape.surface(m, d, points=3),
    "worst": lambda m, d: landscape.worst_case_sharpness(m, d, radii=(0.05,), steps=2),
    "average": lambda m, d: landscape.average_sharpness(m, d, radii=(0.05,), num_samples=2),
    "density": lambda m, d: landscape.density(m, d, num_probes=2, steps=4),
}


@pytest.fixture(autouse=True)
def interrupts():
    """Ctrl-C as in a terminal: what a shell starts in the background ignores it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def normed():
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 3)))


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, h):
        return self.head(h.sum(1))


def pruned(model):
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def record(model):
    """Return all that could be changed: objects, their order, flags, bits."""
    state = []
    for name, module in model.named_modules(remove_duplicate=False):
        state.append((name, module.training, sorted(module.__dict__)))
        for entries in (module._parameters, module._buffers, module._forward_hooks, module._forward_pre_hooks):
            state.append([(key, id(value)) for key, value in entries.items()])
        tensors = [*module._parameters.items(), *module._buffers.items()]
        state += [(k, t.requires_grad, id(t.grad), t.detach().numpy().tobytes()) for k, t in tensors if t is not None]
    return state


def switches():
    backends = torch.backends
    flags = [backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv, backends.cudnn.conv]
    others = [backends.cuda.flash_sdp_enabled(), backends.cuda.mem_efficient_sdp_enabled(), torch.is_grad_enabled()]
    return [flag.fp32_precision for flag in flags] + others + [torch.is_autocast_enabled("cpu")]


@pytest.mark.parametrize("name", TILE)
def test_every_call_leaves_the_very_same_objects_with_the_very_same_bits(name):
    make, x = TILE[name]
    model = make()
    before, flags, random_state = record(model), switches(), torch.get_rng_state()
    for call in CALLS.values():
        try:
            call(model, (x, Y))
        except ValueError as error:  # renormalised rows are a rounding of a kind: its backward is no derivative
            assert name == "max_norm" and "not its derivative" in str(error)
        assert record(model) == before and switches() == flags
    assert torch.equal(random_state, torch.get_rng_state())


def test_adapters_that_eval_merges_are_measured_as_they_are():
    model = seeded(Merging).train()
    expected = F.cross_entropy(F.linear(X, model.weight + model.b @ model.a, model.bias), Y).item()
    assert Objective(model, (X, Y)).centre.loss.item() == pytest.approx(expected, rel=1e-10)
    assert not model.merged and model.training


@pytest.mark.parametrize("name", TILE)
def test_evaluation_and_calibration_leave_the_same_as_well(name):
    make, x = TILE[name]
    model = make()
    before, flags = record(model), switches()
    found = saq_core.evaluate(model, (x, Y))
    assert found.loss == pytest.approx(float(Objective(model, (x, Y)).centre.loss), rel=1e-10)
    assert record(model) == before and switches() == flags
    if name != "W4A4":  # whose ranges it sets
        saq_core.calibrate(model, x)
        assert record(model) == before and switches() == flags


def test_calibration_sets_its_ranges_and_undoes_what_eval_does():
    layers = nn.Linear(6, 6).double(), nn.ReLU(), seeded(Merging), nn.Linear(3, 6).double(), seeded(Watching)
    with pytest.warns(match=r"full precision:\n  2 \("):
        model = saq_core.quantize(nn.Sequential(*layers).train(), "W4A4", skip=["4.body"], first_last_bits=None)
    before = [record(model[k]) for k in (2, 4)]
    saq_core.calibrate(model, X)
    assert [record(model[k]) for k in (2, 4)] == before and model.training and not model[2].merged
    assert model[0].input_quantizer.signed and model[3].input_quantizer.step_size(X) > 0


class Alarm(Exception):
    pass


def ring(number, frame):
    raise Alarm


def interrupted(call, delay):
    """Run a call and interrupt it after a while; return whether it was."""
    handler = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, delay)
    try:
        try:
            call()
        finally:  # where it may still ring
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Alarm:
        return True
    finally:
        signal.signal(signal.SIGALRM, handler)
    return False


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # inside a weak reference's callback
@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_an_interrupt_at_any_moment_leaves_everything_whole(count):
    draws, hits, seconds = random.Random(0), 0, {}
    models = [(make(), x) for make, x in (TILE[name] for name in ("twice", "merging", "BatchNorm", "watching"))]
    before, flags = [record(model) for model, _ in models], switches()
    for trial in range(count):
        model, x = models[trial % len(models)]
        call = list(CALLS.values())[trial % len(CALLS)]
        key = trial % (len(models) * len(CALLS))
        if key not in seconds:
            start = time.perf_counter()
            call(model, (x, Y))
            seconds[key] = time.perf_counter() - start
        delay = draws.uniform(1e-4, seconds[key])
        hits += interrupted(lambda call=call, model=model, x=x: call(model, (x, Y)), delay)
        assert record(model) == before[trial % len(models)] and switches() == flags, trial
    assert hits > count / 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("points", [9, 11])  # of each axis: called at each point, and replayed
def test_an_interrupt_that_is_caught_on_the_way_is_delivered_all_the_same(points):
    model = seeded(Twice)
    before, calls, at = record(model), [], 0

    def loss(output, target):
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGALRM)
        return F.cross_entropy(output, target)

    handler = signal.signal(signal.SIGALRM, ring)
    try:
        landscape.surface(model, (X, Y), points=points, loss=loss)
        for at in range(1, len(calls) + 1, 1 if points == 11 else 9):
            calls.clear()
            with pytest.raises(Alarm):
                landscape.surface(model, (X, Y), points=points, loss=loss)
            assert len(calls) == at and record(model) == before
    finally:
        signal.signal(signal.SIGALRM, handler)


class Ringing(dict):
    """Tensors that raise an alarm when they are read, where Python drops what is raised."""

    def keys(self):
        gone = nn.Identity()
        reference = weakref.ref(gone, lambda _: signal.raise_signal(signal.SIGALRM))  # noqa: F841 - it has to be alive
        del gone
        return super().keys()

    def __iter__(self):  # without one of its own, dict() asks for no keys
        return super().__iter__()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nothing_runs_after_an_interrupt_that_python_dropped():
    model, x = TILE["BatchNorm"][0](), TILE["BatchNorm"][1]
    objective, before = Objective(model, (x, Y)), record(model)
    handler = signal.signal(signal.SIGALRM, ring)
    try:
        with pytest.raises(Alarm), objective.measurement_mode():
            objective.loss(Ringing(objective.tensors()), next(objective.batches()))
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert record(model) == before
    assert all(torch.equal(objective.network.frozen[name], buffer) for name, buffer in model.named_buffers())


def test_an_interrupt_in_the_middle_of_putting_back_waits_until_all_is_whole():
    model = seeded(Twice)
    before = record(model)
    mode = measurement_mode(model)

    with pytest.raises(KeyboardInterrupt), mode:
        model.first._parameters["weight"] = torch.zeros(5, 6)
        put_back = mode._record.put_back

        def ringing():
            signal.raise_signal(signal.SIGINT)
            put_back()

        mode._record.put_back = ringing
    assert record(model) == before


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("name", ["twice", "merging", "LSTM"])
def test_an_error_inside_a_loss_leaves_everything_whole(name, error):
    make, x = TILE[name]
    for at in (1, 3, 5, 8):
        model, calls = make(), []
        before = record(model)

        def loss(output, target, at=at, calls=calls):
            calls.append(1)
            if len(calls) >= at:
                raise error("on purpose")
            return F.cross_entropy(output, target)

        with pytest.raises(error, match="on purpose"):
            landscape.worst_case_sharpness(model, (x, Y), loss=loss, radii=(0.05,), steps=2)
        assert record(model) == before


def test_threads_take_turns():
    models = [seeded(Twice), seeded(Twice)]
    expected, before, flags = [], [record(model) for model in models], switches()
    for call in CALLS.values():
        expected.append(call(models[0], (X, Y)))
    found, errors = {}, []

    def work(index):
        try:
            model = models[index % 2]
            found[index] = list(CALLS.values())[index % len(CALLS)](model, (X, Y))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and [record(model) for model in models] == before and switches() == flags
    for index, result in found.items():
        assert repr(result) == repr(expected[index % len(CALLS)])


def test_a_thread_that_waits_can_be_interrupted():
    model, done = seeded(Twice), threading.Event()

    def hold():
        with measurement_mode(model):
            done.wait(5)

    thread = threading.Thread(target=hold)
    thread.start()
    while not landscape.model.measuring._active:
        time.sleep(0.001)
    assert interrupted(lambda: landscape.line(model, (X, Y), points=3), 0.2)
    done.set()
    thread.join()


def test_buffers_of_any_kind_move_once_in_a_step_of_sam():
    def trained(steps):
        torch.manual_seed(0)
        model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 5)), Counting(), nn.Linear(5, 3)).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        sam = saq_core.SAM(model, optimizer, rho=0.5) if steps == "sam" else optimizer

        def closure():
            sam.zero_grad()
            loss = F.cross_entropy(model(X), Y)
            loss.backward()
            return loss

        sam.step(closure)
        return model.state_dict()

    plain, perturbed = trained("plain"), trained("sam")
    torch.testing.assert_close(perturbed, plain, rtol=0, atol=0)


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.calls += x.detach().mean()
        return x


class Clipped(nn.Linear):
    """Clips its weight from some pass on, by ``.data``."""

    passes = 0

    def forward(self, x):
        Clipped.passes -= 1
        if Clipped.passes < 0:
            self.weight.data.clamp_(-0.01, 0.01)
        return super().forward(x)


@pytest.mark.parametrize("passes", [8, 16, 17])
def test_what_a_late_pass_writes_to_the_tensors_put_in_does_not_reach_the_model(passes, monkeypatch):
    model = Clipped(4, 3)
    before = model.weight.detach().clone()
    monkeypatch.setattr(Clipped, "passes", passes)
    with contextlib.suppress(ValueError):
        landscape.trace(model, (torch.randn(8, 4), torch.arange(8) % 3), num_probes=2)
    assert Clipped.passes < 0 and torch.equal(model.weight, before)
