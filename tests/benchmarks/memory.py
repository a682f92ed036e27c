"""Memory of a large network's measurements in its parameters: ``python tests/benchmarks/memory.py [row …]``.

A decoder of GPT's form with 20 M parameters reads 64 tokens. Each row runs in a process of its own, where every larger
tensor has pages of its own (``MALLOC_MMAP_THRESHOLD_``): the peak of the resident memory above what it was when the
measurement began is then exact to some MB. What a plain pass needs for its activations (of a gradient, for curvature:
its gradient is counted with it) is taken off; graphs that are kept are given beside it.
"""

import json
import os
import subprocess
import sys
import time

import torch
from torch import nn

import landscape

VOCABULARY, WIDTH, LAYERS, TOKENS = 4096, 512, 5, 64
M = 8  # Krylov vectors


class Decoder(nn.Module):
    """A decoder of GPT's form."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)


class Block(nn.Module):
    """Attention and a perceptron, each beside a residual."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.inwards, self.outwards = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        parts = self.inwards(self.first(x)).view(*x.shape[:2], 3, 8, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.outwards(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.second(x))


def built():
    """Return the network and 64 tokens, with the next ones as targets."""
    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (1, TOKENS + 1))
    return Decoder().eval(), (tokens[:, :-1], tokens[:, 1:])


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak(run):
    """Return the peak of the resident memory while something runs, above what it was, in bytes; and its result."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, result = resident(), run()
    with open("/proc/self/status") as file:
        highest = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    return 1024 * highest - before, result


def plain(model, data, with_gradient=False):
    with torch.set_grad_enabled(with_gradient):
        loss = nn.functional.cross_entropy(model(data[0]), data[1])
        return torch.autograd.grad(loss, list(model.parameters())) if with_gradient else loss


def surface(model, data):
    return landscape.surface(model, data, points=3)


def trace(model, data):
    return landscape.trace(model, data, method="hutchinson", num_probes=3)


def eigenvalue(model, data):
    return landscape.top_eigenvalues(model, data, k=1, tol=1e-5, max_products=M)


REACH = {"surface": 3, "trace": 5, "eigenvalue": 4 + M}


def measured(name):
    """Return the peak in parameters, that of the activations, and what graphs that are kept hold."""
    model, data = built()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    plain(model, data, True)
    landscape.trace(nn.Linear(2, 2), (torch.zeros(3, 2), torch.arange(3) % 2), num_probes=2)  # imports
    activations, _ = peak(lambda: plain(model, data))
    graphs = 0.0
    if name != "surface":
        kept = landscape.Hessian(model, data)
        graphs = kept.estimate(1)["bytes"] / weights
        del kept
    above, _ = peak(lambda: globals()[name](model, data))
    return above / weights, activations / weights, graphs


def points(side):
    """Return the CPU seconds of a point, and of a bare forward pass beside it; and of the whole of the surface."""
    model, data = built()
    spent, forwards = [], []

    def watch(_):
        spent.append(time.process_time())
        start = time.process_time()
        for _ in range(4):
            plain(model, data)
        forwards.append((time.process_time() - start) / 4)
        spent[-1] = spent[-1], time.process_time()

    begin = time.process_time()
    landscape.surface(model, data, points=side, watch=watch)
    whole = time.process_time() - begin - 4 * sum(forwards)
    between = [(here[0] - last[1]) / 16 for last, here in zip(spent[:-1], spent[1:], strict=False)][:-1]
    return sorted(between)[len(between) // 2], sorted(forwards)[len(forwards) // 2], whole / side**2


def main(names):
    if names[:1] == ["--one"]:
        torch.set_num_threads(1)
        print(json.dumps(measured(names[1])))
        return
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for name in names or [*REACH, "points"]:
        if name == "points":
            torch.set_num_threads(1)
            point, forward, whole = points(9)
            print(f"a point of a surface, in bare forwards: {point / forward:.2f}, with all else {whole / forward:.2f}")
            continue
        command = [sys.executable, __file__, "--one", name]
        output = subprocess.run(command, env=settings, capture_output=True, text=True, check=True).stdout
        above, activations, graphs = json.loads(output)
        value = above - activations - graphs
        verdict = "" if value <= REACH[name] else ", FALLS SHORT"
        print(
            f"{name}: {value:.2f} × the parameters (reach {REACH[name]}{verdict}), beside activations {activations:.2f}"
            f" and graphs {graphs:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
