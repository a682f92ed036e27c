"""What all tests share: devices, the digits, a trained network, and how the tests are dealt out to workers."""

import functools
import gc
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from saq_core import Recipe, build_model, load_data, train


@pytest.fixture(autouse=True, scope="module")
def forget_what_was_compiled():
    """Compilations of one class count towards one limit: those of other files are none of a file's business."""
    yield
    if (compiler := sys.modules.get("torch._dynamo")) is not None:
        compiler.reset()


gc.set_threshold(50_000, 20, 20)  # a seventh of the time went into looking for garbage: there is memory enough
# files of few tests, and long ones
EARLY = [f"test_{name}" for name in ("processes", "parallel", "fpq", "family", "widgets", "switchable")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Every device there is."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def no_group_is_left():
    """A network of DistributedDataParallel may join a group of one process: it is left afterwards."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@functools.cache
def load_digits(limit):
    """Return the digits with so many training images, once."""
    return load_data("digits", limit=limit, device="cpu")


@pytest.fixture(scope="module")
def digits(request):
    """The digits, not to be changed; as many training images as the module's LIMIT says, or all."""
    return load_digits(getattr(request.module, "LIMIT", None))


@pytest.fixture
def coarse(monkeypatch):
    """Comparisons by few products, draws and steps of ascent, others' traces likewise; calibration by ten candidates.

    Hardly trained networks have no eigenvalue that stands out, and to a thousandth they take four times as many.
    """
    import landscape
    from landscape import comparison
    from landscape.curvature import estimates
    from saq_core.mixed_precision import baselines
    from saq_core.quantization import base

    monkeypatch.setattr(base, "FRACTIONS", 10)
    monkeypatch.setattr(estimates, "_DEFLATED", 3)
    monkeypatch.setattr(baselines, "TRACE_RTOL", 1.0)
    for name, settings in (("lanczos", {"tol": 0.5}), ("hutchinson", {"num_probes": 2})):
        steps = functools.partial(getattr(comparison, name).steps, **settings)
        monkeypatch.setattr(comparison, name, SimpleNamespace(steps=steps))
    for name, settings in (("worst_case_sharpness", {"steps": 5}), ("average_sharpness", {"num_samples": 2})):
        fewer = functools.partial(getattr(comparison, name), **settings)
        for place in (comparison, landscape):
            monkeypatch.setattr(place, name, fewer)


@pytest.fixture(scope="session")
def trained():
    """A ResNet-8 trained on all digits for four epochs, not to be changed."""
    data = load_digits(None)
    model = build_model("resnet8", data)
    train(model, data, Recipe(epochs=4, lr=0.1, batch_size=64))
    return model


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # what was imported is there to the end: no collection of garbage looks at it again


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist keeps the order of the tests, which is this file's


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Deal the tests marked `alone` out first, one by one, then whole files, so that their fixtures are made once.

    The longest files come first: short ones fill up what is left at the end.
    """
    counts = Counter(item.path for item in items)
    alone = {item for item in items if item.get_closest_marker("alone")}
    items.sort(key=lambda item: (item not in alone, item.path.stem not in EARLY, -counts[item.path], item.path))
    for item in items:
        if item not in alone:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
