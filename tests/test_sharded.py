"""Networks in shards over processes (fully_shard, DTensors) give the numbers of one process."""

import functools
import gc
import os
import signal
import time
import warnings
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from networks import convolutional, quantized
from ranks import launched
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import landscape
from landscape import parallel
from landscape.model import gaussian
from landscape.model.sharding import Shards, shard


class Tied(nn.Module):
    """Embedding and output share a weight, which the network reads itself; a gain of one number."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm, self.gain = nn.Embedding(11, 6), nn.LayerNorm(6), nn.Parameter(torch.ones(1))
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        hidden = torch.tanh(self.gain * self.norm(F.embedding(tokens, self.embedding.weight)))
        return self.head(hidden).mean(1)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def perceptron():
    return nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3))


def by_layers(model, mesh):
    for layer in model.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(model, mesh):
    return fully_shard(model, mesh=mesh)


def by_hand(model, mesh):
    """DTensors without FSDP: rows, columns, or all of a weight in each process; the first stays a plain tensor."""
    for index, (name, weight) in enumerate(list(model.named_parameters())[1:]):
        owner, _, leaf = name.rpartition(".")
        place = Shard(1) if weight.ndim > 1 else (Replicate(), Shard(0))[index % 2]
        setattr(model.get_submodule(owner), leaf, nn.Parameter(distribute_tensor(weight.detach(), mesh, [place])))
    return model


def over_tensor_parallel(model, mesh):
    """FSDP over tensor parallelism, whose hooks split the features of what goes in and out."""
    both = init_device_mesh("cpu", (mesh.size() // 2, 2), mesh_dim_names=("rows", "features"))
    parallelize_module(model, both["features"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return fully_shard(model, mesh=both["rows"])


class Blocks(nn.Module):
    """Blocks in lists, one of them called twice, one that shares its weight with the head; a gain of no dimensions."""

    def __init__(self):
        super().__init__()
        again = nn.Linear(7, 7)
        self.inner = nn.Sequential(nn.Sequential(nn.Linear(7, 7), nn.Tanh()), again, nn.Tanh(), again)
        self.outer = nn.ModuleList([nn.ModuleList([nn.Linear(7, 7), nn.BatchNorm1d(7)]), nn.Linear(7, 3)])
        self.head, self.gain = nn.Linear(7, 3), nn.Parameter(torch.tensor(0.7))
        self.head.weight = self.outer[1].weight

    def forward(self, x):
        (first, norm), last = self.outer
        hidden = torch.tanh(norm(first(self.inner(x))))
        return self.head(hidden) + self.gain * last(hidden)


class Recomputed(nn.Sequential):
    """Every layer is computed again in the backward pass instead of kept."""

    def forward(self, x):
        for layer in self:
            x = checkpoint(layer, x, use_reentrant=False)
        return x


X, Y = draw(9, 7), torch.arange(9) % 3
TOKENS = torch.arange(20).reshape(5, 4) * 7 % 11, torch.arange(5)
NETWORKS = {  # what makes one, what shards it, its data, its loss
    "odd sizes": (perceptron, by_layers, (X, Y), None),
    "mean squared error, 3 rows": (perceptron, whole, (X[:3], draw(3, 3)), F.mse_loss),
    "tied": (Tied, whole, TOKENS, None),
    "convolutions, by hand": (convolutional, by_hand, (draw(7, 2, 4, 4), torch.arange(7) % 3), None),
    "checkpointed": (lambda: Recomputed(*perceptron()), by_layers, (X, Y), None),
    "by its blocks": (Blocks, lambda model, mesh: shard(model, torch.device("cpu")), (X, Y), None),
    "over tensor parallelism": (
        lambda: nn.Sequential(nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, 3)),
        over_tensor_parallel,
        (X, Y),
        None,
    ),
    "statistics of the batch": (
        lambda: nn.Sequential(
            nn.Linear(7, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Tanh(), nn.Linear(4, 3)
        ),
        whole,
        (X, Y),
        None,
    ),
}


def made(name, mesh=None):
    make, shard, data, loss = NETWORKS[name]
    torch.manual_seed(0)
    model = make().double()
    return model if mesh is None else shard(model, mesh), data, {"loss": loss} if loss else {}


def product(model, data=None, **settings):
    """Return H @ v, whole."""
    hessian = model if isinstance(model, landscape.Hessian) else landscape.Hessian(model, data, **settings)
    centre = hessian.coordinates
    v = {name: centre.cut(name, draw(*centre.shape(name), seed=1)).to(hessian.dtype) for name in centre.names}
    image = centre.results(centre.unflatten(hessian @ centre.flatten(v)))
    return torch.cat([parallel.whole(part).flatten() for part in image.values()])


def measured(model, data):
    """Every measurement, name → numbers."""
    hessian, numbers = landscape.Hessian(model, data), {}
    objective = hessian.objective

    def keep(name, result, *fields):
        numbers.update({f"{name}.{field}": torch.as_tensor(getattr(result, field)) for field in fields})

    top = landscape.top_eigenvalues(hessian, k=2, tol=1e-6)
    keep("top", top, "values", "residuals", "fold_values")
    keep("along the first", landscape.line(objective, points=3, directions=top, span=0.01), "loss", "stderr")
    deflated = landscape.trace(hessian, eigenvalues=top, num_probes=2, per_layer=True)
    keep("deflated", deflated, "value", "samples", "fold_values")
    numbers |= {f"deflated in {name}": part for name, part in deflated.layer_samples.items()}
    filters = landscape.trace(hessian.filter_relative(), num_probes=2, method="hutchinson", per_layer=True)
    numbers |= {f"in filters in {name}": part for name, part in filters.layer_samples.items()}
    keep("GGN", landscape.trace(landscape.GGN(objective), method="hutchinson", num_probes=2), "samples")
    keep("density", landscape.density(hessian, k=1, num_probes=2, steps=4), "nodes", "density", "atoms")
    keep("surface", landscape.surface(objective, points=3), "loss", "accuracy", "stderr")
    keep("layers", landscape.line(objective, points=3, normalize="layer"), "loss")
    keep("gradient", landscape.line(objective, points=3, directions="gradient"), "loss")
    few = {"num_samples": 2}
    measures = {"average, filter": few, "average, Gaussian": few, "rounding noise": few | {"bits": (4,)}}
    measures |= {f"worst case, {metric}": {"steps": 5} for metric in ("filter", "plain", "adaptive")}
    table = landscape.sharpness(objective, measures=measures).frame
    numbers["sharpness"] = torch.tensor(table[["value", "stderr", "stderr_data"]].values)
    scale = landscape.curvature_at_scale(objective, num_samples=2, radius=0.02, radii=False)
    keep("scale", scale, "curvature", "stderr_data", "derivatives")
    return numbers


def together(function):
    """What the processes of a group do: they meet, and part."""

    def run(*arguments):
        warnings.simplefilter("ignore")
        parallel.start()
        function(init_device_mesh("cpu", (parallel.size(),)), *arguments)
        parallel.stop()

    return run


def same(found, expected, rtol=1e-10):
    torch.testing.assert_close(
        found, expected, rtol=rtol, atol=rtol * float(expected.nan_to_num().abs().max()), equal_nan=True
    )


@pytest.mark.parametrize(
    ("count", "names"), [(2, list(NETWORKS)), (4, ["mean squared error, 3 rows", "over tensor parallelism"])]
)
def test_products_are_those_of_one_process(count, names):
    expected = {name: product_of(name) for name in names}

    @together
    def check(mesh):
        for name in names:
            same(product_of(name, mesh), expected[name])

    launched(check, count=count, patience=120)


def product_of(name, mesh=None):
    model, data, settings = made(name, mesh)
    return product(model, data, **settings)


def test_differences_of_gradients_are_those_of_one_process():
    def found(dtype, mesh=None):
        torch.manual_seed(0)
        model = perceptron().to(dtype)
        hessian = landscape.Hessian(
            model if mesh is None else by_layers(model, mesh), (X.to(dtype), Y), products="difference"
        )
        centre = hessian.coordinates
        vector = centre.flatten(dict(gaussian(centre.centre, 1, centre.layouts)))
        return hessian.radius, product(hessian), hessian.product_error(vector)

    slack = {torch.float64: 1e-7, torch.float32: 1e-3}
    expected = {dtype: found(dtype) for dtype in slack}
    assert all(expected[dtype][2] < slack[dtype] for dtype in slack)

    @together
    def check(mesh):
        for dtype, (radius, image, _) in expected.items():
            same_radius, same_image, error = found(dtype, mesh)
            assert same_radius == radius and error < slack[dtype]
            same(same_image, image, slack[dtype])

    launched(check, count=2, patience=60)


def test_every_measurement_is_that_of_one_process():
    expected = measured(*made("odd sizes")[:2])
    assert not any(part.isnan().all() for part in expected.values())

    @together
    def check(mesh):
        for name, found in measured(*made("odd sizes", mesh)[:2]).items():
            same(found, expected[name], 1e-8)

    launched(check, count=2, patience=120)


def test_blocks_are_sharded_unless_they_share_a_weight_with_the_rest():
    @together
    def check(mesh):
        model = made("by its blocks", mesh)[0]
        blocks = {name for name, module in model.named_modules() if hasattr(module, "unshard")}
        assert blocks == {"", "inner.0", "inner.0.0", "outer.0.0", "outer.0.1"}
        assert {n for n, weight in model.named_parameters() if not parallel.is_sharded(weight)} == {"gain"}

        def refused(model, message):
            with pytest.raises(ValueError, match=message):
                shard(model, torch.device("cpu"))

        refused(model, "in shards already, and is measured as it is: leave --shard out")
        refused(quantized("W4A4"), "quantized layers are not measured in shards: pass the network with whole weights")
        torch.manual_seed(parallel.rank())
        refused(perceptron(), "all processes must be given the same model.0.weight")

    launched(check, count=2, patience=60)


@pytest.mark.parametrize("sizes", [(3,), (5, 3, 2), (15, 1, 16), (100, 33, 7), (70_001, 64, 1, 15), (1000, 999, 17)])
def test_draws_tensor_by_tensor_are_those_of_one_draw(sizes):
    layouts = [SimpleNamespace(shape=(size,), copies=1, cut=lambda whole: whole) for size in sizes]
    for sample in (torch.randn, lambda count, **settings: torch.randint(0, 2, (count,), **settings)):
        for dtype in (torch.float64, torch.float32):
            generators = [torch.Generator().manual_seed(3) for _ in range(2)]
            one, other = (functools.partial(sample, generator=g, dtype=dtype) for g in generators)
            assert torch.equal(Shards(layouts, list(sizes)).drawn(one), other(sum(sizes)).double())


def test_a_process_holds_its_share_and_graphs_no_weights():
    @together
    def check(mesh):
        model = by_layers(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)), mesh)
        hessian = landscape.Hessian(
            model, (torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), torch.arange(4))
        )
        n, weights = hessian.shape[0], 4 * hessian.shape[0]
        assert hessian.estimate(1, vectors=5)["vectors"] == pytest.approx((5 * 4 + 20) * n / 2 + weights, rel=0.05)
        top = landscape.top_eigenvalues(hessian, k=1, tol=0.1)
        vectors = [hessian.objective.coordinates.centre, hessian.objective.network.frozen, top.vector(0)]
        assert all(sum(parallel.local(part).numel() for part in point.values()) <= 0.6 * n for point in vectors)
        assert hessian.estimate(1)["bytes"] == 4 * hessian.probe.graph_bytes < 0.2 * weights
        [graph] = hessian._kept.values()
        held = [StorageWeakRef(part.untyped_storage()) for part in graph.gradient]
        del graph
        hessian._kept.clear()
        gc.collect()
        assert all(reference.expired() for reference in held)

    launched(check, count=2, patience=60)


def test_the_network_trains_on_as_if_nothing_had_been_measured(tmp_path):
    @together
    def check(mesh):
        data, hooks, losses = (X, Y), [], []
        for is_measured in (False, True):
            model = made("odd sizes", mesh)[0].train()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for step in range(3):
                hooks.append([list(hooks.items()) for m in model.modules() for hooks in kept(m)])
                if is_measured and step:  # before and after a first forward pass, which leaves weights gathered
                    top = landscape.top_eigenvalues(model, data, k=1, tol=0.1)
                    assert [list(hooks.items()) for m in model.modules() for hooks in kept(m)] == hooks[-1]
                    assert model.training
                optimizer.zero_grad()
                loss = F.cross_entropy(model(X), Y)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        assert torch.equal(torch.stack(losses[:3]), torch.stack(losses[3:]))
        path = top.save(tmp_path / "top.nc")  # by all of them: what lies in shards is gathered
        expected = {name: parallel.whole(part) for name, part in top.vector(0).items()}
        distributed.barrier()
        for name, part in landscape.load(path).vector(0).items():
            assert torch.equal(part, expected[name])

    launched(check, count=2, patience=60)


def kept(module):
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks


def test_the_death_of_one_process_ends_the_others_within_seconds():
    calls = []

    def dying(output, target):
        calls.append(1)
        if len(calls) == 40 and parallel.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return F.mse_loss(output, target)

    @together
    def check(mesh):
        landscape.line(made("odd sizes", mesh)[0], (X, draw(9, 3)), loss=dying, points=100_001)

    start = time.monotonic()
    with pytest.raises((multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException)):
        launched(check, count=2, patience=60)
    assert time.monotonic() - start < 30


def test_what_cannot_be_measured_is_refused_with_the_way_out():
    @together
    def check(mesh):
        def refused(model, message, **settings):
            with pytest.raises(ValueError, match=message):
                landscape.trace(model, (X, Y), **settings)

        refused(FullyShardedDataParallel(perceptron(), device_id=torch.device("cpu")), "use fully_shard")
        with torch.device("meta"):
            refused(whole(perceptron(), mesh), r"meta\): call to_empty\(\)")
        offloaded = whole(perceptron(), mesh)
        with mock.patch.object(DeviceMesh, "device_type", "cuda"):
            refused(offloaded, "lies on cpu, its mesh on cuda: shard without an offload policy")
        alone = init_device_mesh("cpu", (2, 1), mesh_dim_names=("pipeline", "shards"))["shards"]
        refused(whole(perceptron(), alone), "a mesh of 1 processes, of 2")
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X.float(), Y), shuffle=True, batch_size=3)
        with pytest.raises(ValueError, match="needs data in one order"):
            landscape.Objective(whole(perceptron(), mesh), loader)
        model, data, _ = made("odd sizes", mesh)
        with pytest.raises(ValueError, match="needs whole weights"):
            landscape.Hessian(model, data, at="0.input")
        with pytest.raises(ValueError, match="pass whole networks"):
            landscape.trajectory(model, [model.state_dict()], data)

    launched(check, count=2, patience=60)


def language_model(kind, dtype):
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "GPT-2":
        config = transformers.GPT2Config(n_positions=16, n_embd=16, n_layer=2, n_head=2, **sizes)
        return transformers.GPT2LMHeadModel(config).to(dtype)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(hidden_size=16, intermediate_size=24, **heads, **sizes)
    return transformers.LlamaForCausalLM(config).to(dtype)


def few(model, data):
    """A product, λ₁, trace, density and surface; and how much of weights and of a vector this process holds."""
    hessian = landscape.Hessian(model, data)
    points = hessian.objective.network.frozen, hessian.coordinates.centre
    held = max(sum(parallel.local(part).numel() for part in point.values()) for point in points) / hessian.shape[0]
    return held, [
        product(hessian),
        landscape.top_eigenvalues(hessian, k=1, tol=1e-2).values,
        landscape.trace(hessian, method="hutchinson", num_probes=2).samples,
        landscape.density(hessian, k=0, num_probes=1, steps=4).nodes,
        landscape.surface(hessian.objective, points=3).loss,
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["Llama", "GPT-2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [2, 4])
def test_language_models_by_blocks(count, kind, dtype):
    pytest.importorskip("transformers")
    tokens = torch.arange(54).reshape(6, 9) * 7 % 50
    data = [{"input_ids": tokens, "labels": tokens}]
    _, expected = few(language_model(kind, dtype), data)

    @together
    def check(mesh):
        model = language_model(kind, dtype)
        for block in model.model.layers if kind == "Llama" else model.transformer.h:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        held, found = few(model, data)
        assert held < {2: 0.6, 4: 0.35}[count]
        for one, other in zip(found, expected, strict=True):
            same(one, other, 1e-10 if dtype == torch.float64 else 1e-5)

    launched(check, count=count, patience=300)
