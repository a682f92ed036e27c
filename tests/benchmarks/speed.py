"""Speeds as ratios, measured in turn within one run: ``make bench`` or ``python tests/benchmarks/speed.py``.

Times are medians of interleaved repeats on one machine; only the ratios mean anything elsewhere.
"""

import argparse
import statistics
import time
import warnings

import torch
from torch.nn.functional import cross_entropy

import landscape
import saq_core
from landscape.objective import Objective


def measured(functions, repeats, device):
    """Run the functions in turn, and return the median seconds of each; the first round is not counted."""
    seconds = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def show(title, seconds, reference):
    print(f"\n{title}")
    for name, value in seconds.items():
        print(f"  {name:44} {value * 1e3:9.1f} ms   {value / seconds[reference]:6.2f} ×", flush=True)


def images(n, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 32, 32, generator=generator)
    return x.to(device), torch.randint(0, 10, (n,), generator=generator).to(device)


def product(network, device, repeats):
    """A Hessian-vector product against one gradient, and against PyHessian's product with its graph kept."""
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    model, (x, y) = network.eval(), images(512, device)
    ours = landscape.Hessian(model, (x, y))
    vector = torch.randn(ours.shape[0], device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # backward(create_graph=True), which PyHessian cannot do without
        theirs = hessian(model, cross_entropy, data=(x, y), cuda=device.type == "cuda")
    parts = [torch.randn_like(p) for p in theirs.params]
    parameters = list(model.parameters())
    functions = {
        "plain gradient, one batch of 512": lambda: torch.autograd.grad(cross_entropy(model(x), y), parameters),
        "our gradient": Objective(model, (x, y)).gradient,
        "our product": lambda: ours @ vector,
        "pyhessian's product": lambda: hessian_vector_product(theirs.gradsH, theirs.params, parts),
    }
    show("Hessian-vector product, 512 images", measured(functions, repeats, device), "our gradient")


def pictures(network, device):
    """A 25×25 surface against as many forward passes over the same batches and nothing else."""
    model, data = network.eval(), images(128, device)
    batches = list(Objective(model, data).batches())

    def forwards():
        with torch.no_grad():
            for _ in range(625):
                for x, _y in batches:
                    model(x)

    functions = {"625 bare forward passes": forwards, "surface": lambda: landscape.surface(model, data, points=25)}
    show("25×25 surface, 128 images", measured(functions, 1, device), "625 bare forward passes")


def steps(name, data, device, repeats, compiled):
    """A quantization-aware and a sharpness-aware step against a float one, batch of 128."""
    x, y = images(128, device)
    functions = {}
    for label, bits, sam in (("float", None, None), ("QAT W4A4", "W4A4", None), ("SAQ W4A4", "W4A4", saq_core.SAQ())):
        model = saq_core.build_model(name, data).to(device)
        model = model if bits is None else saq_core.calibrate(saq_core.quantize(model, bits), (x, y))
        functions[label] = _step(model.train(), x, y, sam, compiled)
    show(
        f"training step, batch 128, {'compiled' if compiled else 'eager'}",
        measured(functions, repeats, device),
        "float",
    )


def _step(model, x, y, sam, compiled):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    optimizer = optimizer if sam is None else sam.wrap(model, optimizer)
    forward = torch.compile(model) if compiled else model

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(forward(x), y)
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--compile", action="store_true", help="compiled training steps too (takes a minute to compile)"
    )
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x, y = images(32, device)
    data = saq_core.Data((x, y), (x, y), (x, y), num_classes=10)
    print(f"{given.network} on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    product(saq_core.build_model(given.network, data), device, given.repeats)
    pictures(saq_core.build_model(given.network, data), device)
    for compiled in (False, True) if given.compile else (False,):
        steps(given.network, data, device, given.repeats, compiled)


if __name__ == "__main__":
    main()
