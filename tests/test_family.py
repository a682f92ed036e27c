"""Every network family with every quantizer and every method: twenty steps on real images, and what holds after them.

The whole product takes long: by default a part of it in which every pair of (network, quantizer, method) occurs, and
networks of the wide ones' modules with fewer channels;
``pytest -m "slow or not slow" tests/test_family.py`` runs it all.
"""

import contextlib
import functools

import pytest
import torch
from networks import ThinResNet, thin_networks
from torch.nn import functional as F

from saq_core import SAQ, build_model, calibrate, quantize
from saq_core.data.batches import training_batches

NETWORKS = {  # learning rates
    "resnet8": 0.05,
    "thin preresnet20": 0.05,
    "thin resnet18": 0.02,
    "thin mobilenet_v2": 0.02,
    "thin vit": 3e-3,
}
WIDE = {"resnet18": 0.02, "mobilenet_v2": 0.02, "preresnet20": 0.05, "vit": 3e-3}
START = {"mobilenet_v2": 60, "thin mobilenet_v2": 30}  # float steps before quantizing, else 5
QUANTIZERS = ("lsq", "lsq+", "pact", "dorefa", "liq", "minmax")
METHODS = {
    "sgd": None,
    "sam": SAQ(0.05, case=2),
    "asam": SAQ(0.1, case=2, metric="adaptive"),
    "saq1": SAQ(0.05, case=1),
    "saq2": SAQ(0.05, case=2, metric="normalised"),
    "saq3": SAQ(0.05, case=3),
}

pytestmark = pytest.mark.usefixtures("coarse")


def combinations():
    for a, network in enumerate([*NETWORKS, *WIDE]):
        for b, quantizer in enumerate(QUANTIZERS):
            for c, method in enumerate(METHODS):
                chosen = (a + b + c) % len(METHODS) == 0 or (network == "resnet8" and (b + c) % len(METHODS) == 1)
                marks = () if chosen and network not in WIDE else pytest.mark.slow
                yield pytest.param(network, quantizer, method, marks=marks)


def build(name, digits):
    """Build a network, or one of the same modules that is thinner: ResNet-18 with an eighth of the channels."""
    name, thin = name.removeprefix("thin "), name.startswith("thin ")
    if thin and name == "resnet18":
        torch.manual_seed(0)
        model = ThinResNet(num_classes=10)
        model.conv1, model.maxpool = torch.nn.Conv2d(1, 64, 3, 1, padding=1, bias=False), torch.nn.Identity()
        return model
    with thin_networks() if thin else contextlib.nullcontext():
        return build_model(name, digits)


@pytest.fixture(scope="module")
def batch(digits):
    return next(training_batches(digits, 32, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def started(digits, batch):
    """Float networks after a few steps: the statistics that activations are calibrated on must have seen data."""

    @functools.cache
    def start(name):
        return _trained(build(name, digits), name, *batch, steps=START.get(name, 5))[0]

    return start


def _trained(model, network, x, y, *, steps, sam=None):
    parameters, rate = [p for p in model.train().parameters() if p.requires_grad], (NETWORKS | WIDE)[network]
    if network.endswith("vit"):
        optimizer = torch.optim.AdamW(parameters, lr=rate)
    else:
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9)
    optimizer = optimizer if sam is None else sam.wrap(model, optimizer)
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for k in range(steps):
            options = {} if sam is None else {"diagnose": torch.float32 if k == steps - 1 else None}
            losses.append(float(optimizer.step(closure, **options).detach()))
    return model, losses, {} if sam is None else {k: float(v) for k, v in optimizer.diagnostics.items()}


@pytest.mark.parametrize("network, quantizer, method", list(combinations()))
def test_twenty_steps_learn_and_leave_everything_in_order(network, quantizer, method, started, batch):
    model = calibrate(quantize(started(network), "W4A4", quantizer=quantizer), batch[0])
    model, losses, found = _trained(model, network, *batch, steps=20, sam=METHODS[method])
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3]), losses
    assert all(p.isfinite().all() for p in model.parameters())
    for layer in [m for m in model.modules() if hasattr(m, "quantized_weights")]:
        for q, delta, step in layer.quantized_weights().values():
            assert not delta.any() and not delta.requires_grad and (step > 0).all() and q.isfinite().all()
    moved = [b for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert all(int(count) == 20 + START.get(network, 5) for count in moved) and bool(moved) != network.endswith("vit")
    if found:
        assert 0 <= found["flip_rate"] <= 1 and -1.001 <= found["cosine_case1_case3"] <= 1.001
        if METHODS[method].metric == "plain":
            assert found["epsilon_norm"] == pytest.approx(0.05, rel=1e-4)
