"""Every public measuring call, and what it has to give: by plain PyTorch on all data at once, in float64 where it can.

Nothing of `landscape` decides what is right, but for the seeded Gaussians that it draws.
"""

import functools
import itertools
import tempfile
from pathlib import Path

import pytest
import torch
from networks import varied
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from zoo import shaken

import landscape
from landscape.explorer.study import Study
from landscape.explorer.views import View
from landscape.model import gaussian


class Truth:
    """The loss of all data as a function of the weights, of a network of its own."""

    def __init__(self, case, change=lambda model: model):
        model = (case.plain or case.make)()
        self.case, self.model = case, change(model.train(case.mode == "train"))
        names = [name for name, p in self.model.named_parameters() if p.requires_grad and "quantizer" not in name]
        held = varied(self.model, case.space) if case.space else names
        tensors = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        self.leaves = {name: tensors[other].requires_grad_() for name, other in zip(names, held, strict=True)}
        layers = {n: self.model.get_submodule(n.rpartition(".")[0]) for n, o in zip(names, held, strict=True) if n != o}
        self.values = {n: layers[n].used_weight() if n in layers else leaf for n, leaf in self.leaves.items()}
        self.values = {name: value.detach().clone() for name, value in self.values.items()}
        self.masks = dict(self._masks())
        self.values |= {n: self.values[n] * mask for n, mask in self.masks.items() if n.endswith("_orig")}

    def _masks(self):
        for name in self.leaves:
            owner, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(owner)
            if getattr(module, "padding_idx", None) is not None and leaf == "weight":
                yield name, (torch.arange(len(module.weight)) != module.padding_idx).double()[:, None]
            if leaf.endswith("_orig") and hasattr(module, leaf.replace("_orig", "_mask")):
                yield name, getattr(module, leaf.replace("_orig", "_mask"))

    @property
    def size(self):
        return sum(leaf.numel() for leaf in self.leaves.values())

    def flat(self, point):
        return torch.cat([point[name].detach().reshape(-1).double() for name in self.leaves])

    def point(self, vector):
        parts = vector.split([leaf.numel() for leaf in self.leaves.values()])
        return {name: part.view_as(leaf) for (name, leaf), part in zip(self.leaves.items(), parts, strict=True)}

    def _run(self, function):
        fast = torch.backends.mha.get_fastpath_enabled()
        kept = [(buffer, buffer.detach().clone()) for buffer in self.model.buffers()]  # observers watch in eval mode
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with sdpa_kernel(SDPBackend.MATH), torch.random.fork_rng(), torch.enable_grad():
                return function()
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for buffer, value in kept:
                buffer.data.copy_(value)

    def at(self, displacement, function):
        """Call a function while the weights are displaced."""
        kept = {name: leaf.detach().clone() for name, leaf in self.leaves.items()}
        try:
            for name, step in displacement.items():
                self.leaves[name].data.add_(step.to(kept[name]))
            return self._run(function)
        finally:
            for name, value in kept.items():
                self.leaves[name].data.copy_(value)

    def loss(self, displacement=None):
        return self.at(displacement or {}, lambda: self.case.whole(self.model).item())

    def _slope(self, graph=False):
        loss = self.case.whole(self.model)
        parts = torch.autograd.grad(loss, list(self.leaves.values()), create_graph=graph, materialize_grads=True)
        return torch.cat([part.to_dense().reshape(-1) for part in parts])

    def gradient(self, displacement=None):
        return self.at(displacement or {}, lambda: self._slope().detach().double())

    @functools.cached_property
    def hessian(self):
        """The dense Hessian: by differences of gradients where PyTorch has no second derivative."""
        if self.case.underived:
            rows = []
            for unit in torch.eye(self.size, dtype=torch.float64):
                ends = [self.gradient(self.point(sign * 1e-5 * unit)) for sign in (1, -1)]
                rows.append((ends[0] - ends[1]) / 2e-5)
            return torch.stack(rows)
        return self._run(self._dense)

    def _dense(self):
        slope, leaves = self._slope(graph=True), list(self.leaves.values())
        rows = []
        for part in slope:
            images = (
                torch.autograd.grad(part, leaves, retain_graph=True, materialize_grads=True) if slope.grad_fn else ()
            )
            rows.append(torch.cat([image.reshape(-1) for image in images]).double())
        return torch.stack(rows)

    @functools.cached_property
    def scale(self):
        """‖w_f‖/√(size of filter f), zero on biases and norm parameters, as one vector."""
        parts = {
            name: (w.flatten(1).norm(dim=1) / w[0].numel() ** 0.5).view(-1, *[1] * (w.ndim - 1)).expand_as(w)
            if w.ndim > 1
            else torch.zeros_like(w)
            for name, w in self.values.items()
        }
        return self.flat({name: part * self.masks.get(name, 1) for name, part in parts.items()})

    @property
    def norm(self):
        return sum(w.double().square().sum().item() for w in self.values.values() if w.ndim > 1) ** 0.5

    def draw(self, seed, every=False):
        """A Gaussian for every weight, or for those of two or more dimensions, zero where it cannot vary."""
        chosen = {name: w for name, w in self.values.items() if w.ndim > 1 or every}
        return {name: z * self.masks.get(name, 1) for name, z in gaussian(chosen, seed)}

    def direction(self, seed):
        """A random direction, each filter as long as the weight's."""
        whole = {}
        for name, z in self.draw(seed).items():
            rows = zip(z, self.values[name], strict=True)
            whole[name] = torch.stack([p * (w.norm() / p.norm() if p.any() else 0) for p, w in rows]) if len(z) else z
        return whole

    def worst(self, radius, steps, by_filter=True, rtol=0.02):
        """The largest loss increase along projected gradient ascent in a ball for each filter, or in one of all.

        Rounds of 5, 10, 20 … steps, each from the highest point and of half the length, with APGD's momentum.
        """
        names = [name for name, w in self.values.items() if w.ndim > 1 or not by_filter]

        def lengths(point):
            if not by_filter:
                return dict.fromkeys(names, sum(point[name].square().sum() for name in names).sqrt())
            return {n: point[n].flatten(1).norm(dim=1).view(-1, *[1] * (point[n].ndim - 1)) for n in names}

        def inside(point):
            now = lengths(point)
            return {n: point[n] * (radius / now[n]).clamp_max(1).nan_to_num(nan=1.0) for n in names}

        size = lengths(self.values) if by_filter else dict.fromkeys(names, torch.ones(()))
        highest = {name: torch.zeros_like(self.values[name]) for name in names}
        best = start = self.loss()
        count, length = min(5, steps), radius
        while True:
            before, v, last = best, highest, highest
            for step in range(count + 1):
                here = self.loss({n: size[n] * v[n] for n in names}) if step else best
                if here > best:
                    best, highest = here, v
                if step == count:
                    break
                slope = self.point(self.gradient({n: size[n] * v[n] for n in names}))
                slope = {n: size[n] * slope[n] for n in names}
                unit = lengths(slope)
                ahead = inside({n: v[n] + length * (slope[n] / unit[n]).nan_to_num() for n in names})
                v, last = inside({n: v[n] + 0.75 * (ahead[n] - v[n]) + 0.25 * (v[n] - last[n]) for n in names}), v
            steps -= count
            count, length = 2 * count, length / 2
            if steps < count or (best > start and best - before <= rtol * (best - start)):
                return best - start

    def both_signs(self, step):
        """The mean loss at a step and at its opposite."""
        return (self.loss(step) + self.loss({n: -s for n, s in step.items()})) / 2

    def step_of_least_error(self, w, bits):
        top = 2 ** (bits - 1) - 1
        steps = [w.abs().max() / top * i / 50 for i in range(1, 51)]
        return min(steps, key=lambda s: ((w / s).round().clamp(-top, top) * s - w).square().sum().item())

    # how results are compared

    def close(self, found, expected, factor=1.0, floor=0.0):
        found, expected = (torch.as_tensor(v, dtype=torch.float64) for v in (found, expected))
        rtol = self.case.rtol * factor
        scale = max(float(expected.abs().max()), floor)
        assert found.shape == expected.shape and found.isfinite().all()
        assert float((found - expected).abs().max()) <= rtol * scale + 1e-13, (found, expected)

    def losses(self, found, displacements):
        self.close(found, [self.loss(step) for step in displacements])

    def increases(self, found, expected):
        self.close(found, expected, 10, floor=abs(self.loss()))

    def curvatures(self, found, expected):
        # differences of gradients, and eigenvalues to their own tolerance, are right to a few digits
        factor = 1e4 if self.case.underived and self.case.rtol < 1e-6 else 300
        self.close(found, expected, factor, floor=float(self.hessian.norm()) * 1e-2)

    def label(self, about):
        assert about["derivatives"] == self.case.derivatives or self.case.rtol > 1e-6, about
        assert about["varies"][0] == self.size - sum(
            int((m.expand_as(self.values[n]) == 0).sum()) for n, m in self.masks.items()
        )

    def estimate(self, found, stderr, expected, errors=6):
        """An estimate with an error bar: within so many of them, and the bar no excuse."""
        slack = 1e-4 * float(self.hessian.norm()) + 1e-12
        assert stderr <= 0.5 * float(self.hessian.norm()) * self.size**0.5 + slack, (found, stderr, expected)
        assert abs(found - expected) <= errors * stderr + slack, (found, stderr, expected)


CALLS = {}


def call(*kinds):
    """Register a call, and what it needs: gradients, products or the Gauss-Newton matrix."""

    def register(function):
        name = function.__name__.replace("__", ", ").replace("_", " ")
        CALLS[name] = function, {"everything", name, *kinds}
        return function

    return register


class Asked:
    """How a user hands a network over: with its data and settings, or as an objective where a call knows less."""

    def __init__(self, case, model):
        self.case, self.model = case, model
        self.plain = set(case.settings) <= {"loss", "objective"}

    def __call__(self, function, *more, **settings):
        if self.plain:
            return function(self.model, *more, self.case.data, **self.case.settings, **settings)
        return function(self.objective(self.model), *more, **settings)

    def objective(self, model):
        return landscape.Objective(model, self.case.data, **self.case.settings)

    @functools.cached_property
    def another(self):
        return self.visited(1)

    def visited(self, seed):
        """The same network, elsewhere."""
        with torch.random.fork_rng():
            return shaken(self.case.make(), seed)


# each call gives what was found, and then asserts that it is right: what it raises before it yields is its refusal


@call()
def objective(ask, truth):
    found = ask.objective(ask.model)
    yield
    truth.losses(found.centre.loss[None], [{}])
    assert found.coordinates.names == list(truth.leaves) and found.coordinates.norm() == pytest.approx(truth.norm)
    step = truth.direction(3)
    truth.losses([found.evaluate(step).loss.item()], [step])


@call("gradients")
def gradient(ask, truth):
    function = ask.objective(ask.model)
    step = {name: 0.1 * part for name, part in truth.direction(4).items()}
    found = [function.gradient(), function.gradient(step)]
    yield
    for point, displacement in zip(found, ({}, step), strict=True):
        expected = truth.gradient(displacement)
        truth.close(truth.flat(point), expected, 100)


@call("products")
def Hessian(ask, truth):  # noqa: N802
    hessian = ask(landscape.Hessian)
    vectors = torch.randn(hessian.shape[0], 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = hessian @ vectors.to(hessian.dtype)
    yield
    truth.label(hessian.about())
    truth.curvatures(found, truth.hessian @ vectors)


@call("products", "Gauss-Newton")
def GGN(ask, truth):  # noqa: N802
    known = {name: value for name, value in ask.case.settings.items() if name == "loss"}
    plain = set(ask.case.settings) <= {"loss"}
    matrix = landscape.GGN(ask.model, ask.case.data, **known) if plain else landscape.GGN(ask.objective(ask.model))
    vector = torch.randn(matrix.shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = matrix @ vector.to(matrix.dtype)
    yield
    leaves = list(truth.leaves.values())
    expected = truth._run(lambda: jacobian_form(truth, leaves, vector))
    truth.close(found, expected, 300)


def jacobian_form(truth, leaves, vector):
    """Jᵀ·∇²loss·J·v, the Jacobian built row by row and the loss's Hessian dense."""
    values = truth.case.output(truth.model)
    rows = [
        torch.cat(
            [
                p.to_dense().reshape(-1)
                for p in torch.autograd.grad(v, leaves, retain_graph=True, materialize_grads=True)
            ]
        )
        for v in values.flatten()
    ]
    jacobian = torch.stack(rows).double()
    bent = torch.autograd.functional.hessian(truth.case.of, values.detach()).reshape(len(rows), -1).double()
    return jacobian.T @ (bent @ (jacobian @ vector))


@call("products")
def trace(ask, truth):
    found = ask(landscape.trace, num_probes=12, per_layer=True)
    yield
    truth.label(found.about)
    truth.estimate(found.value, found.stderr, truth.hessian.trace().item())
    diagonal = truth.point(truth.hessian.diagonal())
    for name, (value, stderr) in found.layers.items():
        truth.estimate(value, stderr, diagonal[name].sum().item())


@call("products")
def trace__filter_units(ask, truth):
    found = ask(landscape.trace, num_probes=16, method="hutchinson", units="filter")
    yield
    matrix = truth.scale[:, None] * truth.hessian * truth.scale
    slack = 1e-4 * float(matrix.norm()) + 1e-12
    assert abs(found.value - matrix.trace().item()) <= 6 * found.stderr + slack
    assert found.stderr <= float(matrix.norm()) + slack


@call("products")
def top_eigenvalues(ask, truth):
    found = ask(landscape.top_eigenvalues, k=2, tol=1e-4)
    yield
    truth.label(found.about)
    expected = torch.linalg.eigvalsh((truth.hessian + truth.hessian.T) / 2)
    largest = expected[expected.abs().argsort(descending=True)[:2]]
    error = (found.values.abs() - largest.abs()).abs().max()
    assert found.converged.all() and error <= 2e-3 * largest.abs().max() + 1e-12, (found.values, largest)


@call("products")
def density(ask, truth):
    found = ask(landscape.density, k=1, num_probes=5, steps=6)
    yield
    expected = torch.linalg.eigvalsh((truth.hessian + truth.hessian.T) / 2)
    assert abs(found.atoms.abs().max() - expected.abs().max()) <= 1e-2 * expected.abs().max() + 1e-12
    truth.estimate(*found.implied_trace(), truth.hessian.trace().item(), errors=10)


@call("directions")
def line(ask, truth):
    found = ask(landscape.line, points=5, span=0.5)
    yield
    moved = found.direction()
    assert all(moved[name].any() for name, w in truth.values.items() if w.ndim > 1)
    truth.losses(found.loss, [{n: a * d for n, d in moved.items()} for a in found.alphas.tolist()])


@call()
def line__to_another_network(ask, truth):
    found = (
        ask(landscape.line, points=2, span=(0, 1), directions=ask.another, batchnorm="fixed")
        if ask.plain
        else (landscape.line(ask.objective(ask.model), points=2, span=(0, 1), directions=ask.another))
    )
    yield
    there = Truth(ask.case, shaken)
    truth.close(found.loss, [truth.loss(), there.loss()], 10)
    truth.close(found.about["end_losses"], [there.loss()], 10)


@call("gradients")
def line__along_the_gradient(ask, truth):
    found = ask(landscape.line, points=3, span=0.1, directions="gradient")
    yield
    step = truth.point(truth.gradient())
    truth.close(found.loss, [truth.loss({n: a * d for n, d in step.items()}) for a in (-0.1, 0, 0.1)], 10)


@call("directions")
def surface(ask, truth):
    found = ask(landscape.surface, points=3, span=0.3)
    yield
    one, two = found.direction(0), found.direction(1)
    steps = itertools.product(found.alphas.tolist(), found.betas.tolist())
    truth.losses(found.loss.flatten(), [{n: a * one[n] + b * two[n] for n in one} for a, b in steps])


@call("directions")
def surface__adaptive(ask, truth):
    found = ask(landscape.surface, points=5, span=0.2, adaptive=True, tolerance=0.3)
    yield
    one, two = found.direction(0), found.direction(1)
    measured = (found.status == 1).nonzero()[::6].tolist()
    assert len(measured) > 1
    steps = [(found.alphas[i].item(), found.betas[j].item()) for i, j in measured]
    expected = [{n: a * one[n] + b * two[n] for n in one} for a, b in steps]
    truth.losses([found.loss[i, j].item() for i, j in measured], expected)


@call("directions")
def plot_line(ask, truth):
    figure = ask(landscape.plot_line, points=3, span=0.5)
    yield
    curve = next(part for part in figure.data if part.fill is None)
    step = truth.direction(0)
    truth.losses(list(map(float, curve.y)), [{n: float(a) * d for n, d in step.items()} for a in curve.x])


@call()
def trajectory(ask, truth):
    seeds = (2, 3, 4)
    visited = [ask.visited(seed) for seed in seeds]
    more = {"batchnorm": "fixed"} if ask.plain else {}
    found = ask(landscape.trajectory, visited, **more)
    yield
    networks = [Truth(ask.case, functools.partial(shaken, seed=seed)) for seed in seeds]
    truth.close(found.loss, [network.loss() for network in networks], 10)
    whole = [{n: network.values[n] - w for n, w in truth.values.items()} for network in networks]
    plane = torch.stack([truth.flat(found_step(found, truth, axis)) for axis in (0, 1)], 1)
    for index, difference in enumerate(whole):
        target = truth.flat(difference)
        row = torch.linalg.lstsq(plane, target[:, None]).solution[:, 0]
        assert (found.coordinates[index] - row).norm() <= 1e-4 * row.norm() + 1e-9
        truth.close(found.plane_loss[index, None], [truth.loss(truth.point(plane @ row))], 100)
        assert found.distance[index] == pytest.approx(target.norm().item(), rel=1e-4)


def found_step(found, truth, axis):
    return {name: torch.zeros_like(w) for name, w in truth.values.items()} | found.direction(axis)


@call("directions")
def batchnorm_check(ask, truth):
    found = ask(landscape.batchnorm_check, span=0.2)
    yield
    step = truth.direction(0)
    steps = [{n: a * d for n, d in step.items()} for a in found.alphas.tolist()]
    truth.losses(found.fixed, steps)
    norms = [
        m for m in truth.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    truth.close(found.recomputed, [truth.at(s, lambda: recomputed_loss(truth, norms)) for s in steps], 10)


def recomputed_loss(truth, norms):
    """The loss with statistics of all data: a mean over batches, weighted by their sizes, layer after layer."""
    if not norms:
        return truth.case.whole(truth.model).item()
    data = truth.case.data if isinstance(truth.case.data, list) else [truth.case.data]
    kept = [(norm, norm.momentum, {k: b.clone() for k, b in norm.named_buffers()}) for norm in norms]
    sums = {id(norm): [0, 0] for norm in norms}
    total = sum(len(x) for x, _ in data)
    handles = [norm.register_forward_pre_hook(functools.partial(add_up, sums[id(norm)], total)) for norm in norms]
    with torch.no_grad():
        for norm in norms:
            norm.training = True
        for x, _ in data:
            truth.model(x)
        for handle in handles:
            handle.remove()
        for norm in norms:
            norm.training = False
            norm.running_mean.copy_(sums[id(norm)][0])
            norm.running_var.copy_(sums[id(norm)][1])
        value = truth.case.whole(truth.model).item()
        for norm, momentum, buffers in kept:
            norm.momentum = momentum
            for name, buffer in buffers.items():
                getattr(norm, name).copy_(buffer)
    return value


def add_up(sums, total, _module, inputs):
    x = inputs[0].detach()
    values = x.transpose(0, 1).flatten(1)
    sums[0], sums[1] = (
        s + len(x) / total * part for s, part in zip(sums, (values.mean(1), values.var(1)), strict=True)
    )


@call("gradients", "directions")
def worst_case_sharpness(ask, truth):
    found = ask(landscape.worst_case_sharpness, radii=(0.05,), steps=2)
    yield
    truth.increases(found.delta_loss, [truth.worst(0.05, 2)])


@call("directions")
def average_sharpness(ask, truth):
    found = ask(landscape.average_sharpness, radii=(0.1,), num_samples=2)
    yield
    here = truth.loss()
    steps = [{n: 0.1 * d for n, d in truth.direction(draw).items()} for draw in range(2)]
    truth.increases(found.samples[0], [truth.both_signs(step) - here for step in steps])


@call()
def rounding_sharpness(ask, truth):
    found = ask(landscape.rounding_sharpness, bits=(4,), num_samples=2)
    yield
    here = truth.loss()
    steps = {n: truth.step_of_least_error(w, 4) for n, w in truth.values.items() if w.ndim > 1}
    rounded = {n: (truth.values[n] / s).round().clamp(-7, 7) * s - truth.values[n] for n, s in steps.items()}
    truth.increases(found.rounded, [truth.loss(rounded) - here])
    noises = [{n: steps[n] / 2 * torch.erf(z / 2**0.5) for n, z in truth.draw(draw).items()} for draw in range(2)]
    truth.increases(found.samples[0], [truth.both_signs(noise) - here for noise in noises])


@call("gradients", "directions")
def sharpness(ask, truth):
    measures = {"worst case, plain": {"steps": 2}, "average, filter": {"num_samples": 2}}
    found = ask(landscape.sharpness, measures=measures)
    yield
    here = truth.loss()
    steps = [{n: 0.05 * d for n, d in truth.direction(draw).items()} for draw in range(2)]
    average = sum(truth.both_signs(step) - here for step in steps) / 2
    truth.increases([row["value"] for row in found.rows], [truth.worst(0.05, 2, by_filter=False), average])


@call("products", "directions")
def curvature_at_scale(ask, truth):
    found = ask(landscape.curvature_at_scale, num_samples=2, radius=0.05, radii=False)
    yield
    here, length = truth.loss(), 0.05 * truth.norm
    for draw in range(2):
        vector = truth.flat(truth.draw(draw, every=True))
        unit = vector / vector.norm()
        ends = [truth.loss(truth.point(sign * length * unit)) for sign in (1, -1)]
        second = (sum(ends) - 2 * here) / length**2
        floor = abs(here) / length**2
        truth.close(found.samples[0, draw, None], [second], 10, floor=floor)
        truth.curvatures(found.derivatives[draw, None], [(unit @ truth.hessian @ unit).item()])


@call("products")
def compare(ask, truth):
    models = {"a": ask.model, "b": ask.another}
    models = models if ask.plain else {name: ask.objective(model) for name, model in models.items()}
    more = {"data": ask.case.data, **ask.case.settings} if ask.plain else {}
    # of seed 0 all ten probes of "codebook" miss the one direction that its basis leaves: one in 4,000 does
    found = landscape.compare(models, points=0, radii=(0.1,), rtol=0.5, seed=1, **more)
    yield
    there = Truth(ask.case, shaken)
    truth.close([found.value(n, "loss")[0] for n in "ab"], [truth.loss(), there.loss()], 10)
    assert found.value("a", "weight_norm")[0] == pytest.approx(truth.norm, rel=1e-5)
    truth.estimate(*found.value("a", "trace_raw"), truth.hessian.trace().item())
    top = torch.linalg.eigvalsh((truth.hessian + truth.hessian.T) / 2).max().item()
    assert abs(found.value("a", "lambda1_raw")[0] - top) <= 3e-3 * float(truth.hessian.norm()) + 1e-12
    worst = found.value("a", "worst_0.1")[0]
    if truth.norm:
        truth.increases([worst], [truth.worst(0.1, 75)])
    else:  # no filters: no unit, and no number
        assert worst != worst


@call("directions")
def explore(ask, truth):
    known = {name: value for name, value in ask.case.settings.items() if name != "space"}
    if "output" in known:
        landscape.explore(ask.objective(ask.model))
    study = Study({"a": ask.model}, ask.case.data, **known)
    study._guarded = lambda _name, steps: steps  # an error ends the work here, and does not only land in a list
    more = {name: value for name, value in ask.case.settings.items() if name == "space"}
    view = View(("a",), points=5, span=0.4, numbers=False, **more)
    assert sum(study.steps(view)) > 0
    found = study.shown(view)["a"]
    yield
    one, two = truth.direction(0), truth.direction(1)
    steps = list(itertools.product(found.alphas.tolist(), found.betas.tolist()))[::4]
    truth.losses(found.loss.flatten()[::4], [{n: a * one[n] + b * two[n] for n in one} for a, b in steps])


@call("directions")
def save_and_load(ask, truth):
    found = ask(landscape.line, points=3, span=0.2, seed=5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "line.nc"
        found.save(path)
        loaded = landscape.load(path)
    yield
    assert torch.equal(loaded.loss, found.loss) and loaded.about["varies"] == found.about["varies"]
    (moved,) = loaded.directions(ask.objective(ask.model))
    truth.losses(loaded.loss, [{n: a * d for n, d in moved.items()} for a in loaded.alphas.tolist()])
