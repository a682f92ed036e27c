"""Curvature in CPU seconds of one thread, beside what it is to reach: ``python tests/benchmarks/engine.py [row …]``.

Every row is a ratio measured in one run, functions in turn: to a plain gradient at its best batch size, to pyhessian,
or to the products that an algorithm asks for. A row that falls short is printed as such.
"""

import functools
import importlib.util
import resource
import sys
import time
import unittest.mock
from functools import partial

import torch
from speed import HostEvent, best, gradients, images, measured, pyhessian_product, silence, trained
from torch import nn

import landscape
import saq_core

CPU = torch.device("cpu")


def perceptron(rows, epochs=20):
    """Return an MLP of 85,000 weights trained on digits, and so many of them."""
    x, y = saq_core.load_data("digits").train
    torch.manual_seed(0)
    layers = nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    model = nn.Sequential(nn.Flatten(), *layers)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    for _ in range(epochs):
        for a, b in zip(x[:1024].split(64), y[:1024].split(64), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(a), b).backward()
            optimizer.step()
    return model.eval(), (x[:rows].contiguous(), y[:rows].contiguous())


def built(name, rows):
    data = saq_core.Data(*[images(32, CPU)] * 3, num_classes=10)
    return saq_core.build_model(name, data).eval(), images(rows, CPU)


def w4a4(name, rows):
    model, data = built(name, rows)
    return saq_core.calibrate(saq_core.quantize(model, "W4A4"), data).eval(), data


def against_gradient(operator, model, data, repeats):
    """Return a product's time as a multiple of a plain gradient's."""
    kept = operator(model, data)
    vector = torch.randn(kept.shape[0])
    functions = gradients(model, *data) | {"product": lambda: kept @ vector}
    seconds, reference = best(measured(functions, repeats, CPU), "gradient")
    return seconds["product"] / seconds[reference]


def against_pyhessian(repeats):
    model, data = perceptron(1024)
    kept = landscape.Hessian(model, data)
    vector = torch.randn(kept.shape[0])
    functions = {"ours": lambda: kept @ vector, "theirs": pyhessian_product(model, *data, CPU)}
    seconds = measured(functions, 3 * repeats, CPU)
    return seconds["ours"] / seconds["theirs"]


def sooner(model, data, tol, repeats):
    """Return how many times sooner the top 5 are found than by pyhessian, graphs at hand in both."""
    from pyhessian import hessian

    operator = landscape.Hessian(model, data)
    operator @ torch.zeros(operator.shape[0])
    with silence():
        theirs = hessian(model, nn.functional.cross_entropy, data=data[0] if len(data) == 1 else data, cuda=False)
    functions = {
        "theirs": lambda: theirs.eigenvalues(top_n=5, tol=tol, maxIter=300),
        "ours": lambda: landscape.top_eigenvalues(operator, k=5),
    }
    seconds = measured(functions, repeats, CPU)
    return seconds["theirs"] / seconds["ours"]


def eigenthings(model, data):
    """Return hessian-eigenthings' operator on the data as one batch."""
    from hessian_eigenthings import HessianOperator, supervised_loss

    return HessianOperator(model, [data], supervised_loss(nn.functional.cross_entropy))


def sooner_than_eigenthings(model, data, repeats):
    """Return how many times sooner the top 5 are found than by its Lanczos, of as many steps as it needs."""
    from hessian_eigenthings import lanczos

    operator, theirs = landscape.Hessian(model, data), eigenthings(model, data)
    needed = next(m for m in range(10, 200, 2) if bool(lanczos(theirs, k=5, max_iter=m, seed=0).converged.all()))
    functions = {
        "theirs": lambda: lanczos(theirs, k=5, max_iter=needed, seed=0),
        "ours": lambda: landscape.top_eigenvalues(operator, k=5),
    }
    seconds = measured(functions, repeats, CPU)
    return seconds["theirs"] / seconds["ours"]


def trace_sooner(model, data, seeds=8):
    """Return how many times sooner a trace to 2 % is found than by hessian-eigenthings' Hutch++ of no larger error.

    Errors are the root mean squares, over the seeds, of differences to a trace to 0.2 %.
    """
    from hessian_eigenthings import trace

    operator, theirs = landscape.Hessian(model, data), eigenthings(model, data)
    truth = landscape.trace(operator, rtol=0.002, num_probes=5000, seed=99).value

    def tried(estimate):
        start = time.process_time()
        errors = torch.tensor([estimate(seed) - truth for seed in range(seeds)])
        return float(errors.norm()), time.process_time() - start

    error, ours = tried(lambda seed: landscape.trace(operator, rtol=0.02, num_probes=2000, seed=seed).value)
    for products in (15, 21, 30, 42, 60, 84, 120, 168, 240, 336, 480):
        other, seconds = tried(lambda seed, m=products: trace(theirs, num_matvecs=m, seed=seed).estimate)
        if other <= error:
            return seconds / ours
    print(f"  of its Hutch++ even {products} products have a larger error: the next row is a lower bound")
    return seconds / ours


@functools.cache
def many(k=50):
    """Return the time of 50 eigenvalues of 10⁶ weights in products, and their memory in what is kept."""
    x, y = saq_core.load_data("digits").train
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1000), nn.Tanh(), nn.Linear(1000, 1000), nn.Tanh())
    hessian = landscape.Hessian(model.append(nn.Linear(1000, 10)).eval(), (x[:64], y[:64]))
    vector = torch.randn(hessian.shape[0])
    hessian @ vector
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one = measured({"": lambda: hessian @ vector}, 5, CPU)[""]
    start = time.process_time()
    found = landscape.top_eigenvalues(hessian, k=k, max_products=400)
    whole = time.process_time() - start
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    kept = min(found.about["products"], 2 * k + 20) + k
    return whole / one / found.about["products"], peak / (4 * kept * hessian.shape[0])


def watched(steps=400, rows=64):
    """Return what a training of ResNet-20 on random images takes under a monitor with a tenth of its time, to itself.

    Raises:
        AssertionError: it ends at other weights.
    """
    x, y = torch.randn(1024, 3, 32, 32), torch.randint(10, (1024,))

    def train(is_watched):
        model = saq_core.build_model("resnet20", num_classes=10, input_shape=(3, 32, 32))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        start = time.process_time()
        monitor = landscape.Monitor(model, (x[:rows], y[:rows]), optimizer=optimizer) if is_watched else None
        for first in (rows * k % 1024 for k in range(steps)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.train()(x[first : first + rows]), y[first : first + rows]).backward()
            optimizer.step()
            _ = monitor and monitor.step()
        return time.process_time() - start, list(model.state_dict().values())

    (alone, ends), (with_it, other) = train(False), train(True)
    assert all(map(torch.equal, ends, other))
    return with_it / alone


@functools.cache
def small():
    """Return a ResNet-8 trained a little on the digits, and 512 of these."""
    digits = saq_core.load_data("digits").train
    data = saq_core.Data(*[digits] * 3, num_classes=10)
    model = saq_core.build_model("resnet8", data)
    with silence():
        saq_core.train(model, data, saq_core.Recipe(epochs=4, lr=0.1))
    return model.eval(), tuple(part[:512].contiguous() for part in digits)


def as_one_batch(made):
    """Return the same network, and its data in a list: batches as they come, which are not cut."""
    model, data = made()
    return model, [data]


def rows(repeats):
    """Return name, what measures it, what it is to reach, and whether more is better."""
    hessian, ggn, watching = landscape.Hessian, landscape.GGN, "a training under landscape.Monitor, budget 0.1"
    networks = {"MLP": partial(perceptron, 512), "ResNet-8": small, "ResNet-20": partial(built, "resnet20", 64)}
    found = [
        ("product, ResNet-20, in gradients", lambda: against_gradient(hessian, *built("resnet20", 128), repeats), 1.6),
        (
            "product, W4A4 ResNet-20, in gradients",
            lambda: against_gradient(hessian, *w4a4("resnet20", 128), repeats),
            1.5,
        ),
        ("product, ViT, in gradients", lambda: against_gradient(hessian, *built("vit", 32), repeats), 2.0),
        ("product, MLP, 1,024 rows, in pyhessian's", lambda: against_pyhessian(repeats), 1.0),
        ("Gauss-Newton product, ResNet-8, in gradients", lambda: against_gradient(ggn, *trained(CPU), repeats), 1.15),
        ("top 50 of 10⁶ weights, in its products", lambda: many()[0], 3.3),
        ("the same, peak memory in the vectors kept", lambda: many()[1], 1.1),
        (f"{watching}, in its own time", watched, 1.12),
    ]
    lower = [(*row, False) for row in found]
    networks |= {f"{name}, one batch": partial(as_one_batch, networks[name]) for name in ("MLP", "ResNet-8")}
    reach = {"MLP": (3, 5), "ResNet-8": (5, 8), "ResNet-20": (6.4, 10)}
    for name, made in networks.items():  # of one batch, as pyhessian's, values have no error over the data
        for tol, least in zip((1e-3, 1e-4), reach[name.split(",")[0]], strict=True):
            text = f"top 5, {name}, times sooner than pyhessian to {tol:g}"
            lower.append((text, lambda made=made, tol=tol: sooner(*made(), tol, 3), least, True))
    if importlib.util.find_spec("hessian_eigenthings"):  # pip install hessian-eigenthings
        for name in reach:
            text = f"top 5, {name}, times sooner than hessian-eigenthings"
            lower.append((text, lambda made=networks[name]: sooner_than_eigenthings(*made(), 3), 1, True))
        for name in ("MLP", "ResNet-8"):
            text = f"trace to 2 %, {name}, times sooner than its Hutch++"
            lower.append((text, lambda made=networks[name]: trace_sooner(*made()), 1.5, True))
    return lower


def main():
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    print(f"one thread, torch {torch.__version__}")
    with unittest.mock.patch.object(HostEvent, "clock", time.process_time):
        for name, measure, reach, more in rows(7):
            if not wanted or any(part in name for part in wanted):
                value = measure()
                short = value < reach if more else value > reach
                print(f"  {name:66} {value:6.2f}, {'≥' if more else '≤'} {reach}{', falls short' * short}", flush=True)


if __name__ == "__main__":
    main()
