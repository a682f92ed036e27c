"""Speeds as ratios, measured in turn within one run: ``make bench``, ``python tests/benchmarks/speed.py [section …]``.

Times are medians of interleaved repeats on one machine (on a GPU between two CUDA events); only the ratios mean
anything elsewhere. "Gradient" and "forward" are plain eager float32 PyTorch on the unmodified network in eval mode, at
the best of the batch sizes 32…512.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import pathlib
import statistics
import time
import unittest.mock
import warnings
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

import landscape
import saq_core
from landscape.model import Criterion, Replay, resolve_directions
from landscape.surfaces import evaluate_points
from saq_core import FPQ
from saq_core.mixed_precision import asga, samq
from saq_core.mixed_precision.space import Space
from saq_core.training.steps import Run, _compiled

ROWS = (32, 64, 128, 256, 512)


class HostEvent:
    """What torch.cuda.Event is on a GPU."""

    clock = time.perf_counter

    def record(self):
        self.at = self.clock()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


def events(device):
    """Return two events to be recorded, with nothing left to do on the device."""
    if device.type != "cuda":
        return HostEvent(), HostEvent()
    torch.cuda.synchronize(device)
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def timed(function, device):
    """Return the seconds that a call takes until the device has done it, and its result."""
    start, end = events(device)
    start.record()
    result = function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, result


def measured(functions, repeats, device):
    """Run the functions in turn, and return the median seconds of each; the first round is not counted."""
    seconds = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            seconds[name].append(timed(function, device)[0] / getattr(function, "steps", 1))
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


TABLE = []  # what was measured: rows for the JSON file


def show(title, seconds, reference):
    print(f"\n{title}")
    for name, value in seconds.items():
        TABLE.append({"title": title, "name": name, "seconds": value, "ratio": value / seconds[reference]})
        print(f"  {name:58} {value * 1e3:10.1f} ms   {value / seconds[reference]:7.2f} ×", flush=True)


def judge(title, name, value, unit, reach):
    """Print a number beside what it is to reach at most."""
    TABLE.append({"title": title, "name": name, "value": value, "unit": unit, "reach": reach})
    print(f"  {name:58} {value:10.2f} {unit}, to reach {reach:g}{', falls short' * (value > reach)}", flush=True)


def best(seconds, name):
    """Take the fastest of the batch sizes as the one that counts."""
    found = {key: value for key, value in seconds.items() if key.startswith(f"{name}, batches of")}
    fastest = min(found, key=found.__getitem__)
    return {key: value for key, value in seconds.items() if key not in found or key == fastest}, fastest


WITHOUT_CUDA_GRAPHS = unittest.mock.patch.dict(os.environ, LANDSCAPE_CUDA_GRAPHS="0")
MOST = []  # images at most, in a dry run; a batch is 128


def images(n, device, seed=0, size=32):
    n = min([n, *MOST])
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, size, size, generator=generator)
    return x.to(device), torch.randint(0, 10, (n,), generator=generator).to(device)


def gradients(model, x, y):
    """Name → a plain gradient over all data, for each batch size."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def run(rows):
        for a, b in zip(x.split(rows), y.split(rows), strict=True):
            torch.autograd.grad(cross_entropy(model(a), b), parameters)

    return {f"gradient, batches of {rows}": lambda rows=rows: run(rows) for rows in ROWS if rows <= len(x)}


def forwards(model, x):
    def run(rows):
        with torch.no_grad():
            for a in x.split(rows):
                model(a)

    return {f"forward, batches of {rows}": lambda rows=rows: run(rows) for rows in ROWS if rows <= len(x)}


class Unfolded(nn.Module):
    """BatchNorm in front of each convolution cannot be folded into it."""

    def __init__(self, width=32, depth=8):
        super().__init__()
        block = [part for _ in range(depth) for part in (nn.BatchNorm2d(width), nn.ReLU(), convolution(width, width))]
        self.body = nn.Sequential(convolution(3, width), *block, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.body(x))


def convolution(a, b):
    return nn.Conv2d(a, b, 3, padding=1, bias=False)


@contextlib.contextmanager
def silence():
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def pyhessian_product(model, x, y, device):
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    with silence():  # backward(create_graph=True), which PyHessian cannot do without
        theirs = hessian(model, cross_entropy, data=(x, y), cuda=device.type == "cuda")
    parts = [torch.randn_like(p) for p in theirs.params]
    return lambda: hessian_vector_product(theirs.gradsH, theirs.params, parts)


def product(given, device):
    """Hessian-vector products, kept and rebuilt, against one gradient and against other people's."""
    from curvlinops import HessianLinearOperator

    x, y = images(512, device)
    for title, model in (("", given.model()), (", BatchNorm before the convolutions", Unfolded().to(device))):
        model = model.eval()
        cold, kept = timed(lambda model=model: landscape.Hessian(model, (x, y)), device)
        vector, block = torch.randn(kept.shape[0], device=device), torch.randn(kept.shape[0], 8, device=device)
        cold += timed(lambda: kept @ vector, device)[0]  # noqa: B023
        rebuilt = landscape.Hessian(model, (x, y), memory=0)
        functions = gradients(model, x, y) | {
            "Hessian, graphs kept": lambda: kept @ vector,  # noqa: B023
            "Gauss-Newton, graphs kept": (g := landscape.GGN(model, (x, y))) and (lambda: g @ vector),  # noqa: B023
            "Hessian, rebuilt": lambda: rebuilt @ vector,  # noqa: B023
            "Hessian, rebuilt, each of a block of 8": lambda: rebuilt @ block,  # noqa: B023
        }
        if device.type == "cuda":
            with WITHOUT_CUDA_GRAPHS:
                plain = landscape.Hessian(model, (x, y))
            functions["Hessian, graphs kept, no CUDA graph"] = lambda: plain @ vector  # noqa: B023
        if not title:
            parameters = [p for p in model.parameters() if p.requires_grad]
            with silence():
                theirs = HessianLinearOperator(
                    model, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False
                )
            functions["pyhessian"] = pyhessian_product(model, x, y, device)
            functions["curvlinops, eager"] = lambda theirs=theirs, vector=vector: theirs @ vector
            functions |= eigenthings_product(model, x, y, vector)
            if given.compile:
                functions["curvlinops, compiled"] = partial(torch.compile(theirs.__matmul__), vector)
                functions["jvp of the gradient, compiled"] = compiled_product(model, x, y, device)
        seconds = measured(functions, given.repeats, device)
        seconds["Hessian, rebuilt, each of a block of 8"] /= 8
        seconds, reference = best(seconds, "gradient")
        show(f"product, 512 images{title}; first product from nothing {cold:.1f} s", seconds, reference)
        kept = rebuilt = g = plain = None


def eigenthings(model, x, y):
    """Return the package and its Hessian, None where it is not installed."""
    try:
        import hessian_eigenthings
    except ImportError:
        return None, None
    loss = hessian_eigenthings.supervised_loss(cross_entropy)
    return hessian_eigenthings, hessian_eigenthings.HessianOperator(model, [(x, y)], loss)


def eigenthings_product(model, x, y, vector):
    package, theirs = eigenthings(model, x, y)
    return {"hessian-eigenthings": lambda: theirs.matvec(vector)} if package else {}


def compiled_product(model, x, y, device):
    from torch.func import functional_call, grad, jvp

    weights = {name: p.detach() for name, p in model.named_parameters()}
    vector = {name: torch.randn_like(p) for name, p in weights.items()}

    def loss(w, a, b):
        return cross_entropy(functional_call(model, w, (a,)), b)

    @torch.compile
    def one(w, v, a, b):
        return jvp(lambda at: grad(loss)(at, a, b), (w,), (v,))[1]

    def run():
        for a, b in zip(x.split(64), y.split(64), strict=True):
            one(weights, vector, a, b)

    return run


def trained(device, epochs=4):
    """A network trained on real images of CIFAR's size for a few epochs: its spectrum is that of a trained network."""
    digits = saq_core.load_data("digits")
    x, y = (torch.nn.functional.interpolate(digits.train[0], size=32).expand(-1, 3, -1, -1), digits.train[1])
    x, y = (part[:32] if MOST else part for part in (x, y))
    data = saq_core.Data((x, y), (x, y), (x, y), num_classes=10)
    torch.manual_seed(0)
    model = saq_core.build_model("resnet8", data).to(device)
    with silence():
        saq_core.train(model, data, saq_core.Recipe(epochs=epochs, lr=0.1))
    return model.eval(), (x[:128].contiguous().to(device), y[:128].to(device))


def eigenvalues(given, device):
    """Top-5 eigenvalues to a relative residual of 1e-3, warm and cold, against pyhessian at its tol=1e-3."""
    from pyhessian import hessian

    most, repeats = (10, 1) if given.dry else (100, 2)  # iterations
    model, (x, y) = trained(device)
    operator = landscape.Hessian(model, (x, y))
    operator @ torch.zeros(operator.shape[0], device=device)
    with silence():
        theirs = hessian(model, cross_entropy, data=(x, y), cuda=device.type == "cuda")
    functions = {
        "pyhessian.eigenvalues(top_n=5, tol=1e-3)": partial(theirs.eigenvalues, most, 1e-3, 5),
        "top_eigenvalues(k=5), warm": lambda: landscape.top_eigenvalues(operator, k=5),
        "top_eigenvalues(k=5), cold": lambda: landscape.top_eigenvalues(model, (x, y), k=5),
    }
    package, other = eigenthings(copy.deepcopy(model), x, y)
    if package:
        functions["hessian-eigenthings, 50 steps"] = lambda: package.lanczos(other, k=5, max_iter=50, seed=0)
    seconds = measured(functions, repeats, device)
    show("top-5, trained ResNet-8, 128 digits of 32×32", seconds, "top_eigenvalues(k=5), warm")
    ours = landscape.top_eigenvalues(operator, k=5)
    found = sorted(theirs.eigenvalues(most, 1e-3, 5)[0], key=lambda v: -abs(v))
    floor = landscape.top_eigenvalues(operator, k=5, tol=1e-9, max_products=80).residuals.max()
    fine = copy.deepcopy(model).double(), (x.double(), y)
    exact = landscape.top_eigenvalues(*fine, k=10, tol=1e-6, max_products=3 * most)
    for name, values in (("pyhessian", torch.tensor(found).double()), ("landscape", ours.values)):
        error = ((values - exact.values[:5]) / exact.values[0]).abs().max()
        print(f"  {name}: largest error relative to λ₁ {float(error):.1e}")
    products = exact.about["products"] - 10
    print(f"  top-10 to 1e-6 in float64: {products} products, then 10 that measure; {bool(exact.converged.all())}")
    print(f"  float32: measured residuals stop at {float(floor):.1e}")


def traces(given, device):
    """Products to a standard error of 2 %, from the scatter of single probes, against plain Hutchinson and peers.

    curvlinops' Hutch++ and XTrace know no error of their own: theirs is the scatter of six estimates by 40 products.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses torch.jit.script
        from curvlinops import hutchpp_trace, xtrace

    model, (x, y) = trained(device)
    hessian = landscape.Hessian(model, (x, y))
    for units, operator in (("raw", hessian), ("filter", hessian.filter_relative())):
        top = landscape.top_eigenvalues(operator, k=10)
        plain = landscape.trace(operator, method="hutchinson", rtol=0, num_probes=60)
        needed = (float(plain.samples.std()) / (0.02 * plain.value)) ** 2
        print(f"\ntrace to 2 %, {units} units: plain Hutchinson needs {needed:.0f} products (scatter of 60 probes)")
        found = {
            "10 eigenvectors at hand": landscape.trace(operator, eigenvalues=top, num_probes=2000),
            "lanczos, alone": landscape.trace(operator, num_probes=2000),
        }
        for name, result in found.items():
            products = result.about["products"]
            print(f"  {name:30} {products:5} products, {needed / products:6.1f} × fewer   {result!r}")
        estimates = {
            "lanczos, 20 + 20": [landscape.trace(operator, rtol=0, num_probes=20, seed=i).value for i in range(6)],
            "curvlinops' Hutch++": [float(hutchpp_trace(operator, 39)) for _ in range(6)],
            "curvlinops' XTrace": [float(xtrace(operator, 40)) for _ in range(6)],
        }
        for name, values in estimates.items():
            print(f"  {name:30}    40 products, scatter {statistics.stdev(values) / abs(plain.value):.1%}")


def pictures(given, device):
    """A 25×25 surface against bare forward passes at their best batch size, and in bf16; points over time."""
    model = given.model().eval()
    x, y = images(128, device)
    seconds, reference = best(measured(forwards(model, x), given.repeats, device), "forward")
    bare = 625 * seconds[reference]
    rows = {f"625 × {reference}": bare}
    for precision in ("fp32", "bf16"):
        rows[f"surface, 25×25, {precision}"] = timed(
            lambda p=precision: landscape.surface(model, (x, y), points=25, precision=p), device
        )[0]
    if device.type == "cuda":
        with WITHOUT_CUDA_GRAPHS:
            rows["surface, 25×25, fp32, no CUDA graph"] = timed(
                lambda: landscape.surface(model, (x, y), points=25), device
            )[0]
    again = 625 * best(measured(forwards(model, x), given.repeats, device), "forward")[0][reference]
    rows[f"625 × {reference}, afterwards"] = again
    show("surface, 128 images", rows, f"625 × {reference}")


PLANE = {"fp32": 60, "bf16": 20}  # seconds to reach on an H100 or H200


def plane(given, device):
    """A 51×51 surface over 10,000 images of CIFAR's size."""
    model, data, points = given.model().eval(), images(10_000, device), 3 if given.dry else 51
    title = f"surface, {points}×{points}, {given.network}, {len(data[0])} images"
    print(f"\n{title}")
    for precision, reach in PLANE.items():
        landscape.line(model, data, points=3, precision=precision)  # kernels are chosen, memory is there
        call = partial(landscape.surface, model, data, points=points, precision=precision)
        judge(title, precision, timed(call, device)[0], "s", reach)


# as multiples of bare forward passes at their best batch size, on one thread: what a point of a surface is to reach
POINT = {
    ("MLP", 64): 1.65,
    ("MLP", 512): 1.15,
    ("ResNet-8", 32): 1.45,
    ("ResNet-8", 128): 1.15,
    ("ResNet-8", 512): 1.05,
}
POINT |= {("W4A4 ResNet-8", 128): 1.3}
TILES = 4


def points(given, device):
    """A point of a surface over digits, set up before, against bare forward passes and loops written by hand."""
    digits = saq_core.load_data("digits", device=device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for (name, rows), reach in POINT.items():
        data = digits.train[0][:rows], digits.train[1][:rows]
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
        model = (
            nn.Sequential(*layers).to(device) if name == "MLP" else saq_core.build_model("resnet8", digits).to(device)
        )
        model = saq_core.calibrate(saq_core.quantize(model, "W4A4"), data) if "W4A4" in name else model
        functions = forwards(model.eval(), data[0]) | _by_hand(model, data) | _by_tiles(model, data)
        for function in functions.values():
            function.steps = getattr(function, "steps", 1)
        functions = {key: _again(function) for key, function in functions.items()}
        with unittest.mock.patch.object(HostEvent, "clock", time.process_time):
            seconds, reference = best(measured(functions, max(7, given.repeats), device), "forward")
        short = ", falls short" * (seconds["surface"] > reach * seconds[reference])
        seconds[f"surface; to reach {reach:.2f}{short}"] = seconds.pop("surface")
        show(f"a point of a surface, {name}, {rows} digits", seconds, reference)
    torch.set_num_threads(threads)


def _again(function):
    """Repeat a pass as often as tiles have points."""
    if function.steps > 1:
        return function

    def run():
        for _ in range(16 * TILES):
            function()

    run.steps = 16 * TILES
    return run


def _by_hand(model, data):
    """The loss at a displaced point, as people write it: weights set, or (loss_landscapes) moved by one more step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    start, *steps = [
        [value(p.detach()) for p in parameters] for value in (torch.clone, torch.randn_like, torch.randn_like)
    ]

    @torch.no_grad()
    def set_anew():
        for p, w, a, b in zip(parameters, start, *steps, strict=True):
            p.copy_(w + 1e-3 * a + 1e-3 * b)
        return cross_entropy(model(data[0]), data[1])

    @torch.no_grad()
    def moved_on():
        for p, a in zip(parameters, steps[0], strict=True):
            p.add_(a, alpha=1e-9)
        return cross_entropy(model(data[0]), data[1])

    return {"weights set by hand": set_anew, "weights moved on by hand": moved_on}


def _by_tiles(model, data):
    function = landscape.Objective(copy.deepcopy(model), data)
    steps, _ = resolve_directions(function, ["random", "random"], "filter", 0, None)
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 25, dtype=torch.float64)] * 2)
    by_replay, by_objective = (Replay(function, steps, points) for points in (grid, grid[:0]))

    def run(replay):
        for tile in grid[: 16 * TILES].split(16):
            evaluate_points(replay, tile)

    functions = {"surface": partial(run, by_replay), "surface, not replayed": partial(run, by_objective)}
    for function in functions.values():
        function.steps = 16 * TILES
    return functions


def scaling(given, device):
    """Cost grows linearly in data and points."""
    model = given.model().eval()
    print("\nscaling")
    for n in (128, 256, 512):
        x, y = images(n, device)
        line = timed(lambda d=(x, y): landscape.line(model, d, points=11), device)[0]
        hessian = landscape.Hessian(model, (x, y))
        v = torch.randn(hessian.shape[0], device=device)
        product_ = measured({"": lambda h=hessian, v=v: h @ v}, 2, device)[""]
        print(f"  {n:4} images: line of 11 points {line:6.2f} s, product {product_:6.2f} s", flush=True)
    x, y = images(128, device)
    for points in (11, 21, 41):
        print(
            f"  {points:4} points: {timed(lambda p=points: landscape.line(model, (x, y), points=p), device)[0]:6.2f} s"
        )


def steps(given, device):
    """Steps on a batch of 128, W4A4: float, quantization-aware, sharpness-aware, feature-perturbed; and the loader."""
    x, y = images(128, device)
    settings = {"float": None, "QAT": None, **{f"SAQ, {p}": saq_core.SAQ(policy=p) for p in STEP_POLICIES}}
    settings |= {"FPQ, noise": FPQ(distill=False), "FPQ, distilled": FPQ(p=0), "FPQ, both": FPQ()}
    for compiled in (False, True) if given.compile else (False,):
        functions = {}
        for label, method in settings.items():
            model = given.model()
            model = model if label == "float" else saq_core.calibrate(saq_core.quantize(model, "W4A4"), (x, y))
            functions[label] = _step(model.train(), x, y, method, compiled)
        if not compiled:
            functions["a batch of CIFAR: drawn, cropped, flipped"] = _loader(device)
        seconds = measured(functions, given.repeats, device)
        kind = "compiled" if compiled else "eager"
        show(f"training step, batch 128, {kind}", seconds, "QAT")


COMPILED = {"QAT": 1.3, "SAQ, full": 2.6}  # to reach, as multiples of the compiled float step


def compiled(given, device):
    """Compiled steps on a batch of 128, W4A4, quantization-aware and sharpness-aware, against the float one."""
    x, y = images(128, device)
    twin = lambda: saq_core.calibrate(saq_core.quantize(given.model(), "W4A4"), (x, y)).train()  # noqa: E731
    functions = {"float": _step(given.model().train(), x, y, None, True), "QAT": _step(twin(), x, y, None, True)}
    functions["SAQ, full"] = _step(twin(), x, y, saq_core.SAQ(), True)
    seconds = measured(functions, given.repeats, device)
    show("compiled training step, batch 128", seconds, "float")
    for name, reach in COMPILED.items():
        judge("compiled training step, batch 128", name, seconds[name] / seconds["float"], "× float", reach)


# as multiples of a plain PyTorch float step, on one thread: what this project's own steps are to reach
REACH = {"float": 0.85, "W4A4": 1.12, "SAM": 1.75, "SAQ, case 3, W4A4": 2.3}


def training(given, device):
    """Steps of `saq_core.train` on batches of 64, one thread, against those of others; and of a small MLP."""
    x, y = images(128, device)
    twin = lambda: saq_core.calibrate(saq_core.quantize(given.model(), "W4A4"), (x, y))  # noqa: E731
    functions = {
        "plain PyTorch, float": _plain(given.model(), x, y),
        "float": _ours(given.model(), x, y),
        "W4A4": _ours(twin(), x, y),
        "SAM": _ours(given.model(), x, y, saq_core.SAQ(case=2)),
        "SAQ, case 3, W4A4": _ours(twin(), x, y, saq_core.SAQ()),
        "two-pass SAM as of davda54, float": _plain(given.model(), x, y, rho=0.05),
        "two-pass SAM on usual LSQ, W4A4": _plain(_swapped(given.model(), Usual), x, y, rho=0.05),
    }
    others = {"usual LSQ": Usual, "torch.ao FakeQuantize": _torch_ao, "brevitas": _brevitas}
    functions |= {f"{name}, W4A4": _plain(_swapped(given.model(), make), x, y) for name, make in others.items()}
    a, b = torch.randn(2560, 64, device=device), y.repeat(20)
    mlp = lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)  # noqa: E731
    small = {"plain PyTorch": _plain(mlp(), a, b, 128), "train": _ours(mlp(), a, b, None, 128)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    once = unittest.mock.patch("saq_core.sharpness.sam.diagnostics_of", lambda *_: {"left out": 0.0})  # once per epoch
    with unittest.mock.patch.object(HostEvent, "clock", time.process_time), once:
        seconds, little = measured(functions, max(7, given.repeats), device), measured(small, 15, device)
    torch.set_num_threads(threads)
    for name, reach in REACH.items():
        short = ", falls short" * (seconds[name] > reach * seconds["plain PyTorch, float"])
        seconds[f"{name}; to reach {reach:.2f}{short}"] = seconds.pop(name)
    show("training step, batch 64", seconds, "plain PyTorch, float")
    show("training step, MLP 64-128-10, batch 128", little, "plain PyTorch")


def _ours(model, x, y, sam=None, rows=64):
    recipe = saq_core.Recipe(epochs=1, lr=1e-3, batch_size=rows, sam=sam, compile=False)
    data = saq_core.Data((x, y), (x[:1], y[:1]), (x[:1], y[:1]), 10)
    made = Run(model, data, recipe, Criterion(None, None, None, None), None, None, contextlib.ExitStack())
    run = partial(made.steps, 0, 1)
    run.steps = len(x) // rows
    return run


def _plain(model, x, y, rows=64, rho=0.0):
    """A loop as people write it; with rho, SAM by two passes over the batch: up along the gradient, back, step."""
    optimizer = torch.optim.SGD(model.train().parameters(), 1e-3, 0.9, weight_decay=1e-4, nesterov=True)

    def differentiate(batch):
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()

    def run():
        for batch in torch.randperm(len(x), device=x.device).split(rows):
            differentiate(batch)
            if rho:
                moved = {p.data: p.grad for p in model.parameters() if p.grad is not None}
                scale = rho / torch.stack([g.norm() for g in moved.values()]).norm()
                epsilon = [(p.add_(e := g * scale), e) for p, g in moved.items()]
                differentiate(batch)
                [p.sub_(e) for p, e in epsilon]
            optimizer.step()

    run.steps = len(x) // rows
    return run


class UsualLSQ(nn.Module):
    """LSQ with a division, a clamp and two straight-through expressions, as most repositories have it."""

    def __init__(self, low, high):
        super().__init__()
        self.step, self.low, self.high = nn.Parameter(torch.tensor(0.1)), low, high

    def forward(self, x):
        factor = (x.numel() * self.high) ** -0.5
        s = (self.step - self.step * factor).detach() + self.step * factor
        v = (x / s).clamp(self.low, self.high)
        return ((v.round() - v).detach() + v) * s


class Usual(nn.Conv2d):
    def __init__(self, *settings, inputs=None, weights=None):
        super().__init__(*settings, bias=False)
        self.inputs, self.rounded = inputs or UsualLSQ(0, 15), weights or UsualLSQ(-8, 7)

    def forward(self, x):
        return self._conv_forward(self.inputs(x), self.rounded(self.weight), self.bias)


def _torch_ao(*settings):
    kind = torch.ao.quantization.FakeQuantize
    weights = kind(quant_min=-8, quant_max=7, dtype=torch.qint8, qscheme=torch.per_tensor_symmetric)
    return Usual(*settings, inputs=kind(quant_min=0, quant_max=15, dtype=torch.quint8), weights=weights)


def _brevitas(*settings):
    from brevitas.nn import QuantConv2d
    from brevitas.quant import Uint8ActPerTensorFloat as Kind

    return QuantConv2d(*settings, bias=False, weight_bit_width=4, input_quant=Kind, input_bit_width=4)


def _swapped(model, make):
    """Put a quantized convolution of somebody else, with weights of its own, in the place of each."""
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.Conv2d):
                new = make(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
                setattr(module, name, new.to(layer.weight.device))
    return model


def searches(given, device):
    """An epoch over 512 images of each search for bits, as a multiple of quantization-aware training's."""
    batch, model = images(512, device), given.model()
    data = saq_core.Data(batch, batch, batch, 10)
    space = Space.of(model, (3, 32, 32))
    budget = saq_core.cost(model, (3, 32, 32), bits="W3A3").bops
    twin = saq_core.calibrate(saq_core.quantize(model, "W3A3"), data)
    recipe = saq_core.Recipe(epochs=1, lr=1e-3, compile=False)
    plain = saq_core.ASGA(batch_size=128, lr=1e-3, rho=0.0, rho_range=None, beta=0.0)  # one pass
    runs = {
        name: asga.Alignment(model, data, space, settings, 0)
        for name, settings in (("ASGA's mixture, one pass", plain), ("ASGA", saq_core.ASGA(batch_size=128, lr=1e-3)))
    }
    samq_ = samq.Search(model, data, space, budget, saq_core.SAMQ(lr=1e-3), 0, "lsq")
    functions = {"QAT": lambda: saq_core.train(twin, data, recipe)}
    functions |= {name: lambda run=run: run.epoch(0) for name, run in runs.items()}
    functions["SAMQ: weights on one half, controller on the other"] = lambda: (
        samq_.weight_epoch(0),
        samq_.controller_epoch(),
    )
    show("searching for bits, an epoch over 512 images", measured(functions, given.repeats, device), "QAT")


def explorer(given, device):
    """From the call to pictures of three networks, and a redraw that computes nothing; seconds, and CPU seconds."""
    x, y = images(1024, device)
    model = given.model().eval()
    models = {"FP32": model}
    for bits in ("W4A4", "W2A2"):
        models[bits] = saq_core.calibrate(saq_core.quantize(model, bits), (x[:128], y[:128]))
    clocks = time.perf_counter(), time.process_time()

    def passed():
        return f"{time.perf_counter() - clocks[0]:6.2f} s   {time.process_time() - clocks[1]:6.2f} s of CPU"

    print("\nexplorer, three networks, 128 images (the first call imports plotly and ipywidgets)")
    with unittest.mock.patch.object(landscape.Explorer, "wait"):  # the work is done below, as an event loop does it
        view = landscape.explore(models, (x, y), points=5)
    for side in (3, 5):
        while [len(found.betas) >= side for found in view.surfaces.values()] != [True] * len(models):
            assert view.advance(), view.study.errors
        print(f"  {f'first picture, {side} × {side} points':58} {passed()}", flush=True)
    for kind in ("3-D", "contour", "both"):
        view.controls["kind"].value = kind
        clocks = time.perf_counter(), time.process_time()
        for _ in range(given.repeats):
            view.controls["quantity"].value = {"loss": "accuracy"}.get(view.controls["quantity"].value, "loss")
        print(f"  {f'{given.repeats} redraws, {kind}':58} {passed()}", flush=True)


STEP_POLICIES = ("full", "look:5", "momentum", "subset:0.15")


def _step(model, x, y, method, compiled):
    sam = method if isinstance(method, saq_core.SAQ) else None
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    optimizer = optimizer if sam is None else sam.wrap(model, optimizer)
    made = (lambda network: _compiled(network, x.device)) if compiled else (lambda network: network)
    forward, teacher = _perturbed(model, method, made) if isinstance(method, FPQ) else (made(model), None)
    period = 5 if sam is not None and sam.policy.endswith(":5") else 1

    def closure(share=1.0):
        optimizer.zero_grad()
        rows = round(share * len(x))
        output, extra = forward(x[:rows], teacher.of(x[:rows], rows)) if teacher else (forward(x[:rows]), 0.0)
        loss = cross_entropy(output, y[:rows]) + extra
        loss.backward()
        return loss

    def run():
        for _ in range(period):
            if teacher:
                teacher.next_batch()
            optimizer.step(closure)

    run.steps = period
    return run


NOISES = contextlib.ExitStack()  # kept: what nobody holds is taken off again


def _perturbed(model, fpq, made):
    """Return the forward pass with noise and, where the method distills, its loss, and the teacher."""
    if fpq.p:
        NOISES.enter_context(saq_core.fpq.feature_noise(model, fpq.p))
    if not fpq.distill:
        return made(model), None
    names = saq_core.fpq.distilled_layers(model)
    network = saq_core.fpq.teacher_of(model, None, names)
    student = saq_core.fpq.Student(fpq, saq_core.fpq.Features(model, names))
    return made(student), saq_core.fpq.Teacher(network, made(saq_core.fpq.Features(network, names)))


def _loader(device):
    x, y = images(12_800, device)
    data = saq_core.Data((x, y), (x[:1], y[:1]), (x[:1], y[:1]), 10, padding=4, flip=True, fill=(0.0,) * 3)
    generator = torch.Generator(device)

    def run():
        for _ in saq_core.data.training_batches(data, 128, generator=generator):
            pass

    run.steps = 100
    return run


def memory(given, device):
    """Peak memory of a training step, as a multiple of the quantization-aware one's."""
    print("\nmemory, peak of a step above the network and data")
    base = None
    for label, sam in (("QAT", None), ("SAQ", saq_core.SAQ()), ("SAQ, momentum", saq_core.SAQ(policy="momentum"))):
        peak = _peak(given, sam, device)
        base = base or peak
        print(f"  {label:58} {peak / 1e6:10.1f} MB   {peak / base:7.2f} ×", flush=True)


def _peak(given, sam, device):
    x, y = images(128, device)
    step = _step(saq_core.calibrate(saq_core.quantize(given.model(), "W4A4"), (x, y)).train(), x, y, sam, False)
    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    total = peak = 0
    for event in found.profiler.kineto_results.events():  # in the order in which they happened
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


SECTIONS = {
    f.__name__: f
    for f in (
        *(product, eigenvalues, traces, pictures, points, plane, scaling),
        *(compiled, steps, training, memory, searches, explorer),
    )
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; default all")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compiled rivals and steps too (a minute to compile)")
    parser.add_argument("--dry", action="store_true", help="see it run: 128 images, once, a small surface")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write what was measured there, too")
    given = parser.parse_args()
    if given.dry:
        given.repeats, MOST[:] = 1, [128]
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x, y = images(32, device)
    data = saq_core.Data((x, y), (x, y), (x, y), num_classes=10)
    given.model = lambda: saq_core.build_model(given.network, data).to(device)
    print(f"{given.network} on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in given.sections or SECTIONS:
        SECTIONS[name](given, device)
    if given.json:
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        given.json.write_text(json.dumps([row | {"device": card, "network": given.network} for row in TABLE]))


if __name__ == "__main__":
    main()
