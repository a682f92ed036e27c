"""Every network family with every quantizer and every method: twenty steps on real images, and what holds after them.

The whole product takes long: by default a part of it in which every pair of (network, quantizer, method) occurs;
``pytest -m "slow or not slow" tests/test_family.py`` runs it all.
"""

import pytest
import torch
from torch.nn import functional as F

from saq_core import SAQ, build_model, calibrate, load_data, quantize
from saq_core.data import training_batches

NETWORKS = {"resnet8": 0.05, "preresnet20": 0.05, "resnet18": 0.02, "mobilenet_v2": 0.02, "vit": 1e-3}  # lr
QUANTIZERS = ("lsq", "lsq+", "pact", "dorefa", "liq", "minmax")
METHODS = {
    "sgd": None,
    "sam": SAQ(0.05, case=2),
    "asam": SAQ(0.5, case=2, metric="adaptive"),
    "saq1": SAQ(0.05, case=1),
    "saq2": SAQ(0.05, case=2, metric="normalised"),
    "saq3": SAQ(0.05, case=3),
}
LIGHT = ("resnet8", "vit")  # pairs of quantizer and method are covered on these


def combinations():
    for a, network in enumerate(NETWORKS):
        for b, quantizer in enumerate(QUANTIZERS):
            for c, method in enumerate(METHODS):
                chosen = (a + b + c) % len(METHODS) == 0 or (network in LIGHT and (b + c) % 2 == a % 2 == 0)
                yield pytest.param(network, quantizer, method, marks=() if chosen else pytest.mark.slow)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", device="cpu")


@pytest.mark.parametrize("network, quantizer, method", list(combinations()))
def test_twenty_steps_learn_and_leave_everything_in_order(network, quantizer, method, digits):
    model = calibrate(quantize(build_model(network, digits), "W4A4", quantizer=quantizer), digits)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    kind = torch.optim.AdamW if network == "vit" else torch.optim.SGD
    base = kind(parameters, lr=NETWORKS[network], **({} if network == "vit" else {"momentum": 0.9}))
    optimizer = base if METHODS[method] is None else METHODS[method].wrap(model, base)
    x, y = next(training_batches(digits, 32, generator=torch.Generator().manual_seed(0)))

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {} if optimizer is base else {"diagnose": torch.float32}
        losses = [float(optimizer.step(closure, **options).detach()) for _ in range(20)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3]), losses
    assert all(p.isfinite().all() for p in model.parameters())
    for layer in [m for m in model.modules() if hasattr(m, "quantized_weights")]:
        for q, delta, step in layer.quantized_weights().values():
            assert not delta.any() and not delta.requires_grad and (step > 0).all() and q.isfinite().all()
    moved = [b for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert all(int(count) == 20 for count in moved) and bool(moved) == (network != "vit")
    if optimizer is not base:
        found = {name: float(value) for name, value in optimizer.diagnostics.items()}
        assert 0 <= found["flip_rate"] <= 1 and -1.001 <= found["cosine_case1_case3"] <= 1.001
        if METHODS[method].metric == "plain":
            assert found["epsilon_norm"] == pytest.approx(0.05, rel=1e-4)
