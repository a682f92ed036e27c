"""A seed that is taken is used: the same draws again, others for another, in every public function that has one."""

import tempfile
from dataclasses import replace
from inspect import signature

import pytest
import torch
from torch import nn

import landscape
import saq_core
from landscape.curvature import estimates

TINY = {"num_probes": 2, "rtol": 0.0}
RADII = {"radii": (0.1,), "num_samples": 3}
DATA = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4
BUDGET = "W3A3"


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))


def noised(model, formats):
    with torch.no_grad():
        for name in formats:
            model.get_submodule(name).weight.add_(0.1 * torch.rand(()))
    return model


def searched(seed):
    model = network()
    budget = saq_core.cost(model, DATA, bits=BUDGET).bops
    found = saq_core.search(model, DATA, budget=budget, method="hessian", seed=seed)
    return list(dict(found.details["mean_traces"]).values())


def trained(seed):
    model = network()
    saq_core.train(model, DATA, saq_core.Recipe(epochs=1, lr=0.1, batch_size=8, seed=seed))
    return model[0].weight.detach()


def compared(seed):
    found = landscape.compare({"a": network()}, DATA, points=3, seed=seed, radii=(0.1,), rtol=0.5)
    own = found.seeds["a"][0]
    return found.lines["a"].loss, own["trace_raw"]["parts"], own["average_0.1"]["value"]


def normed(seed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 4))
    return landscape.batchnorm_check(model, DATA, seed=seed).fixed


def reproduced(seed):
    """Two names that differ in the seed alone: the files of one are not read by the other."""
    with tempfile.TemporaryDirectory() as folder:
        few = replace(saq_core.EXPERIMENTS["digits-resnet8"], limit=64)
        return saq_core.reproduce(few, seed=seed, out=folder, epochs=1).conv1.weight.detach()


# public function → what it draws, by seed; the same of a picture is that of its result
DRAWS = {
    "trace": lambda s: landscape.trace(network(), DATA, method="hutchinson", **TINY, seed=s).samples,
    "top_eigenvalues": lambda s: landscape.top_eigenvalues(network(), DATA, k=1, max_products=2, seed=s).values,
    "density": lambda s: landscape.density(network(), DATA, k=0, num_probes=2, steps=3, seed=s).nodes,
    "curvature_at_scale": lambda s: landscape.curvature_at_scale(network(), DATA, num_samples=2, seed=s).samples,
    "sharpness": lambda s: landscape.sharpness(network(), DATA, measures=("average, filter",), seed=s).frame["value"],
    "rounding_sharpness": lambda s: landscape.rounding_sharpness(network(), DATA, num_samples=2, seed=s).delta_loss,
    "average_sharpness": lambda s: landscape.average_sharpness(network(), DATA, **RADII, seed=s).samples,
    "sensitivity": lambda s: landscape.sensitivity(network(), DATA, formats=("W2",), seed=s).array("trace"),
    "line": lambda s: landscape.line(network(), DATA, points=3, seed=s).loss,
    "surface": lambda s: landscape.surface(network(), DATA, points=3, seed=s).loss,
    "batchnorm_check": normed,
    "compare": compared,
    "explore": lambda s: landscape.explore(network(), DATA, points=5, seed=s, path="picture").surfaces["model"].loss,
    "load_data": lambda s: saq_core.load_data("digits", limit=64, seed=s).train[1][:32],
    "build_model": lambda s: saq_core.build_model("resnet8", num_classes=4, input_shape=(1, 8, 8), seed=s).conv1.weight,
    "search": searched,
    "Recipe": trained,
    "reproduce": reproduced,
    "feature_noise_penalty": lambda s: (
        saq_core.feature_noise_penalty(network(), DATA, steps={"2": 0.1}, **TINY, seed=s).predicted
    ),
}
# and what some hand on to others
INSIDE = {
    "a trace's deflation": lambda s: landscape.trace(network(), DATA, **TINY, seed=s).samples,
    "plain averages": lambda s: landscape.average_sharpness(network(), DATA, metric="plain", **RADII, seed=s).samples,
    "adaptive": lambda s: landscape.average_sharpness(network(), DATA, metric="adaptive", **RADII, seed=s).samples,
    "quantize=": lambda s: landscape.sensitivity(network(), DATA, formats=("W2",), quantize=noised, seed=s).array(
        "increase"
    ),
    "the noise of a penalty": lambda s: (
        saq_core.feature_noise_penalty(
            network(), DATA, p=1.0, steps={"2": 0.1}, num_samples=4, num_probes=2, seed=s
        ).measured
    ),
}


@pytest.mark.parametrize("name", DRAWS | INSIDE)
def test_a_seed_reaches_what_it_is_said_to_draw(name):
    found = [(DRAWS | INSIDE)[name](seed) for seed in (0, 0, 1)]
    for one, same, other in zip(*found, strict=True) if isinstance(found[0], tuple) else [found]:
        one, same, other = map(torch.as_tensor, (one, same, other))
        assert torch.equal(one, same) and one.shape == other.shape and not torch.equal(one, other)


def test_no_public_function_with_a_seed_is_missing():
    public = {name: getattr(package, name) for package in (landscape, saq_core) for name in package.__all__}
    del public["StopTraining"]  # an exception has no signature
    found = {name for name, thing in public.items() if callable(thing) and "seed" in signature(thing).parameters}
    assert {name for name in found if not name.startswith("plot_")} == DRAWS.keys() | {"Policy"}  # which only notes it


@pytest.mark.parametrize("metric", ["filter", "plain", "adaptive"])
def test_two_seeds_of_an_average_share_no_draw(metric):
    one, other = (
        landscape.average_sharpness(network(), DATA, metric=metric, **RADII, seed=seed).samples[0] for seed in (0, 1)
    )
    assert not (one[:, None] == other).any()


def test_a_trace_hands_its_seed_to_the_deflation(monkeypatch):
    seen, plain = [], estimates.linalg.lanczos
    monkeypatch.setattr(estimates.linalg, "lanczos", lambda *a, **k: seen.append(k["seed"]) or plain(*a, **k))
    landscape.trace(torch.diag(torch.arange(40.0)), seed=7)
    assert seen == [7]
