"""A network with SAM around its optimizer, and what a step shows of its perturbation."""

import torch
from torch import nn
from torch.nn import functional as F

from saq_core import SAM, quantize
from saq_core.sharpness.sam import CASES

GENERATOR = torch.Generator().manual_seed(3)
X, Y = torch.randn(7, 2, 4, 4, generator=GENERATOR), torch.randint(0, 5, (7,), generator=GENERATOR)


class Net(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)
        self.dropout, self.fc = nn.Dropout(dropout), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.dropout(F.relu(self.bn2(self.conv2(x)))).flatten(1))


def build(bits=None, quantizer="lsq", dropout=0.0, dtype=torch.float64):
    torch.manual_seed(0)
    model = Net(dropout).to(dtype)
    return model if bits is None else quantize(model, bits, quantizer=quantizer)


def prepared(model, rho=0.05, case=None, lr=0.1, **options):
    base = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    if case:
        options["measured_at"], options["applied_to"] = CASES[case]
    return SAM(model, base, rho=rho, **options)


def closure_for(model, optimizer, seen=None):
    x = X.to(next(model.parameters()).dtype)

    def closure():
        optimizer.zero_grad()
        if seen is not None:
            seen.append({k: v.detach().clone() for k, v in positions(model).items()})
        loss = F.cross_entropy(model(x), Y)
        loss.backward()
        return loss

    return closure


def positions(model):
    """Everything a perturbation can move, by name; the deltas among them."""
    deltas = {k: b for k, b in model.named_buffers() if k.endswith("delta")}
    return dict(model.named_parameters()) | deltas


def perturbation(model, optimizer):
    """ε of one step, as the closure sees it."""
    seen = []
    optimizer.step(closure_for(model, optimizer, seen))
    return {k: seen[1][k] - v for k, v in seen[0].items()}


def norm(tensors):
    return torch.cat([t.flatten() for t in tensors]).norm()
