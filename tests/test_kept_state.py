"""What networks keep beside parameters and buffers: it moves with the weights, and is left as it was."""

import copy

import pytest
import strangers
import torch
from networks import X, Y
from torch import nn
from torch.nn.functional import cross_entropy

import landscape
from landscape.model.walking import Late, MadeOnReading

FLAT = X.flatten(1)[:, :6]
TOKENS = torch.randint(10, (len(Y), 3), generator=torch.Generator().manual_seed(0))


class Merged(nn.Module):
    """Keeps a product of its weights in eval mode."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.kept = None

    def forward(self, x):
        if self.kept is None or self.training:
            self.kept = self.b.weight @ self.b.weight.T
        return self.c(torch.tanh(self.a(x)) @ self.kept)


class Cached(Merged):
    """Keeps it in a dict, by the inputs."""

    def __init__(self):
        super().__init__()
        self.kept = {}

    def forward(self, x):
        key = float(x.detach().sum())
        if key not in self.kept:
            self.kept[key] = torch.tanh(self.a(x)) @ self.b.weight
        return self.c(self.kept[key])


class Tied(nn.Module):
    """A head that is tied by hand: in a list the weight is registered once."""

    def __init__(self):
        super().__init__()
        self.b, self.h = nn.Embedding(10, 6), nn.Linear(6, 6)
        self.tied = [self.b.weight]

    def forward(self, x):
        return torch.tanh(self.h(self.b(x).mean(1))) @ self.tied[0].T


class Routed(nn.Module):
    """Reads a choice into a tensor made anew."""

    def __init__(self):
        super().__init__()
        self.b, self.experts = nn.Linear(6, 2), nn.Parameter(torch.randn(2, 6, 3) / 2)

    def forward(self, x):
        return torch.tanh(x) @ self.experts[torch.tensor([self.b(x).mean(0).argmax()])][0]


def made(kind):
    torch.manual_seed(0)
    return kind().double().eval()


@pytest.mark.parametrize("kind", [Merged, Cached, Tied, Routed])
def test_losses_and_gradients_are_those_of_a_network_with_these_weights(kind):
    model, inputs = made(kind), TOKENS if kind is Tied else FLAT.double()
    kept = copy.copy(vars(model))
    step = {"b.weight": torch.linspace(-1, 1, model.b.weight.numel(), dtype=torch.float64).view_as(model.b.weight)}
    line = landscape.line(model, (inputs, Y), directions=step, points=3)
    across = {"b.weight": step["b.weight"].flip(0)}
    surface = landscape.surface(model, (inputs, Y), directions=[step, across], points=11)
    for alpha, loss, plane in zip((-1.0, 0.0, 1.0), line.loss, surface.loss[[0, 5, 10], 5], strict=True):
        other = made(kind)
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            other.b.weight += alpha * step["b.weight"]
        assert (
            float(loss) == pytest.approx(float(plane)) == pytest.approx(float(cross_entropy(other(inputs), Y).detach()))
        )
    other = made(kind)
    expected = torch.autograd.grad(cross_entropy(other(inputs), Y), other.b.weight, allow_unused=True)[0]
    found = landscape.Objective(model, (inputs, Y)).gradient()["b.weight"]
    torch.testing.assert_close(found, torch.zeros_like(found) if expected is None else expected)
    assert all(vars(model)[name] is value for name, value in kept.items())


@pytest.mark.parametrize("absent", ["embed.weight", "head.weight"])
def test_a_checkpoint_may_leave_out_one_name_of_a_tied_weight(absent):
    """As files of safetensors do."""

    torch.manual_seed(0)
    model, data, states = strangers.Tied(), (strangers.TOKENS, strangers.Y), []
    for _ in range(4):
        states.append({name: part + 0.1 * torch.randn_like(part) for name, part in model.state_dict().items()})
        states[-1]["head.weight"] = states[-1]["embed.weight"]
    parts = [{name: part for name, part in state.items() if name != absent} for state in states]
    for measure in (
        lambda given: landscape.trajectory(model, given, data).loss.tolist(),
        lambda given: landscape.audit(given, model, data).frame["probe_loss"].tolist(),
    ):
        assert measure(parts) == measure(states)


def test_torchscript_stays_in_training():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))).train()
    landscape.line(scripted, (FLAT.float(), Y), points=3)
    assert all(module.training for module in scripted.modules())


def test_a_sparse_buffer_is_no_matter():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)
            self.register_buffer("adjacency", torch.eye(len(Y)).to_sparse())

        def forward(self, x):
            return self.layer(self.adjacency @ x)

    torch.manual_seed(0)
    graph = Graph()
    found = landscape.trace(graph, (FLAT.float(), Y), num_probes=3)
    assert found.value == pytest.approx(landscape.trace(graph.layer, (FLAT.float(), Y), num_probes=3).value, rel=1e-4)


def test_tiles_of_another_metric_are_refused(tmp_path):
    model, data = nn.Linear(6, 3), (FLAT.float(), Y)
    landscape.line(model, data, points=3, path=tmp_path / "tiles", metrics={"m": lambda output, _: output.mean()})
    with pytest.raises(ValueError, match="one with centre_metrics"):
        landscape.line(model, data, points=3, path=tmp_path / "tiles", metrics={"m": lambda output, _: output.max()})


def test_what_is_made_on_reading_is_made_in_copies_too():
    def given(**entries):
        return entries

    entries = MadeOnReading({"late": Late(torch.ones(2), [(1.0, torch.ones(2))]), "none": None})
    for read in (dict(entries), given(**entries), {**entries}, entries.copy(), entries | {}, dict(entries.items())):
        assert read["late"].tolist() == [2.0, 2.0] and read["none"] is None
