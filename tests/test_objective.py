import collections
import copy

import pytest
import torch
from networks import RAGGED, X, Y, as_function, classification, convolutional, perceptron, quantized, varied
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

from landscape import trace
from landscape.model.objective import Objective

FLAT = X.flatten(1)[:, :5]
PAIRS = [(FLAT[:3], Y[:3]), (FLAT[3:], Y[3:])]


class Reiterable:
    """Batches without a length."""

    def __iter__(self):
        return iter(PAIRS)


Batch = collections.namedtuple("Batch", ["x", "y"])
FORMS = {
    "tensors": (FLAT, Y),
    "list of tensors": [FLAT, Y],
    "ragged list": PAIRS,
    "named tuples": [Batch(*pair) for pair in PAIRS],
    "re-iterable": Reiterable(),
    "loader": DataLoader(TensorDataset(FLAT, Y), batch_size=3),
    "shuffling loader": DataLoader(TensorDataset(FLAT, Y), batch_size=4, shuffle=True),
    "float32": (FLAT.float(), Y),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_the_mean_over_all_samples_however_they_are_batched(form):
    model = perceptron()
    function = Objective(model, FORMS[form])
    loss, accuracy = function.centre()
    output = model(FLAT)
    assert loss == pytest.approx(cross_entropy(output, Y).item(), rel=1e-6 if form == "float32" else 1e-12)
    assert accuracy == pytest.approx(float((output.argmax(1) == Y).double().mean()))
    assert function.samples == 7


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 100])
def test_tensors_are_cut_into_batches_of_nearly_equal_size(size):
    sizes = [len(x) for x, _ in Objective(perceptron(), (FLAT, Y), batch_size=size).batches()]
    assert sum(sizes) == 7 and max(sizes) <= size and max(sizes) - min(sizes) <= 1


def test_the_probe_is_the_default():
    model = perceptron()
    model.probe = (FLAT, Y)
    assert Objective(model).centre() == Objective(model, (FLAT, Y)).centre()


def test_a_training_network_is_measured_in_eval_mode():
    model = nn.Sequential(convolutional(), nn.Dropout(0.5)).train()
    assert Objective(model, RAGGED).centre()[0] == pytest.approx(classification(model.eval()).item())


@pytest.mark.parametrize("space", ["quantized", "latent"])
@pytest.mark.parametrize("bits", [None, "W4A32", "W4A4"])
def test_gradients_are_those_of_the_mean_loss(bits, space):
    model = (quantized(bits) if bits else convolutional()).eval()
    function = Objective(model, RAGGED, space=space)
    f, start = as_function(model, classification, varied(model, space))
    step = 0.05 * torch.randn(len(start), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for move in (0 * step, step):
        at = (start + move).requires_grad_()
        (expected,) = torch.autograd.grad(f(at), at)
        displacement = function.coordinates.unflatten(move)
        found = function.coordinates.flatten(function.gradient(displacement))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert float(function.evaluate(displacement)[0]) == pytest.approx(f(at).item(), rel=1e-12)


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))


def test_weights_that_share_one_gradient_tensor_are_not_added_twice():
    batches = [torch.zeros(2, 2), torch.ones(2, 2), torch.zeros(2, 2)]

    def shared(model, batch):
        return (model.a + model.b - batch).square().sum(), 1

    def expanded(model, _):
        return model.a.sum(), 1

    gradient = Objective(Sum(), batches, objective=shared).gradient()
    for part in gradient.values():
        torch.testing.assert_close(part, torch.full((2, 2), 2 * (2 + 1 + 2) / 3))
    gradient = Objective(Sum(), batches, objective=expanded).gradient()
    assert torch.equal(gradient["a"], torch.ones(2, 2)) and not gradient["b"].any()


def test_an_objective_weighs_its_batches_itself():
    def objective(model, batch):
        return mse_loss(model(batch["x"]), batch["t"]), batch["weight"]

    batches = [
        {"x": FLAT[:3], "t": FLAT[:3, :3], "weight": torch.tensor(0.5)},
        {"x": FLAT[3:], "t": FLAT[3:, :3], "weight": torch.tensor(2.0)},
    ]
    model = perceptron()
    parts = [mse_loss(model(b["x"]), b["t"]) for b in batches]
    loss, accuracy = Objective(model, batches, objective=objective).centre()
    assert loss == pytest.approx((0.5 * parts[0] + 2 * parts[1]).item() / 2.5) and accuracy != accuracy


def recomputed_by_hand(model):
    """Set BatchNorm statistics to the mean of the batches' own, weighted by their sizes, layer after layer."""
    model = copy.deepcopy(model).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    sums = {id(m): [torch.zeros(m.num_features, dtype=torch.float64) for _ in range(2)] for m in norms}

    def watch(module, inputs):
        x = inputs[0].detach()
        values = x.transpose(0, 1).flatten(1)
        sums[id(module)][0] += len(x) / 7 * values.mean(1)
        sums[id(module)][1] += len(x) / 7 * values.var(1)

    for norm in norms:
        norm.register_forward_pre_hook(watch)
    for x, _ in RAGGED:
        model(x)
    for norm in norms:
        norm.running_mean.copy_(sums[id(norm)][0])
        norm.running_var.copy_(sums[id(norm)][1])
    return model.eval()


def test_recomputed_statistics_are_those_of_one_pass_over_the_data():
    for model in (convolutional(), quantized("W4A4")):
        twin = recomputed_by_hand(model)
        expected = sum(len(x) / 7 * cross_entropy(twin(x), y).item() for x, y in RAGGED)
        assert Objective(model, RAGGED, batchnorm="recomputed").centre()[0] == pytest.approx(expected, rel=1e-9)
        assert Objective(model, RAGGED).centre()[0] != pytest.approx(expected, rel=1e-3)


def test_a_last_batch_of_one_does_not_stop_the_recomputation():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    assert Objective(model, (FLAT, Y), batchnorm="recomputed", batch_size=6).centre()[0] > 0


def moody(model, batch):
    return model(batch[0]).mean() * torch.rand(()), 1


BAD = [
    (None, {}, ValueError, r"the model carries no probe .*: pass data=\(x, y\), or set model.probe"),
    ((FLAT[:0], Y[:0]), {}, ValueError, "at least one, got 0 and 0"),
    ((FLAT, Y[:3]), {}, ValueError, "as many targets as inputs and at least one, got 7 and 3"),
    ([], {}, ValueError, "data is empty"),
    ([*PAIRS, (FLAT[:0], Y[:0])], {}, ValueError, r"or one of its batches is: .*got \[3, 4, 0\]"),
    ((pair for pair in PAIRS), {}, TypeError, "can be read only once"),
    (iter(PAIRS), {}, TypeError, "can be read only once"),
    (zip(FLAT.split(3), Y.split(3), strict=True), {}, TypeError, "can be read only once"),
    (5, {}, TypeError, r"data must be \(x, y\), a list of batches or a DataLoader, got int"),
    ({"x": FLAT}, {}, TypeError, "data must be .* got dict"),
    ((FLAT, Y + 5), {}, ValueError, r"labels must lie in 0…2 for 3 outputs, got 5…7"),
    ((FLAT, Y - 1), {}, ValueError, r"labels must lie in 0…2 for 3 outputs, got -1…1"),
    ((FLAT * float("nan"), Y), {}, ValueError, "the loss of the model itself is nan"),
    ((FLAT, Y), {"loss": lambda o, y: o.mean() / 0}, ValueError, "the loss of the model itself is -?inf"),
    ((FLAT, Y), {"objective": moody}, ValueError, "the loss changed when repeated"),
    ((FLAT, Y), {"loss": mse_loss, "objective": moody}, ValueError, "give loss and metrics, or objective"),
    ((FLAT, Y), {"space": "weights"}, ValueError, "space must be one of quantized, latent, got 'weights'"),
]


@pytest.mark.parametrize(("data", "settings", "error", "message"), BAD)
def test_bad_input_is_refused_in_words(data, settings, error, message):
    with pytest.raises(error, match=message):
        trace(perceptron(), data, **settings)


def test_unknown_batchnorm_policies_are_refused():
    with pytest.raises(ValueError, match="batchnorm must be one of fixed, recomputed, got 'train'"):
        Objective(perceptron(), PAIRS, batchnorm="train")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_data_are_moved_to_the_model():
    found = Objective(perceptron().cuda(), PAIRS)
    assert (
        found.centre()[0] == pytest.approx(Objective(perceptron(), PAIRS).centre()[0]) and found.device.type == "cuda"
    )


def test_data_that_change_from_pass_to_pass_are_refused():
    class Augmented:
        def __init__(self):
            self.pass_ = 0

        def __iter__(self):
            self.pass_ += 1
            yield FLAT + 0.1 * self.pass_, Y

    with pytest.raises(ValueError, match="the data change from pass to pass"):
        Objective(perceptron(), Augmented()).centre()


def test_numpy_arrays_and_short_integer_labels_are_taken():
    expected = Objective(perceptron(), (FLAT, Y)).centre()
    assert Objective(perceptron(), (FLAT.numpy(), Y.int().numpy())).centre() == expected


class Coupled(nn.Module):
    """Scales its output by the largest of the batch, as dynamic ranges do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(20, 3)

    def forward(self, x):
        y = self.layer(x)
        return y / y.abs().amax()


@pytest.mark.parametrize(
    ("network", "settings", "passes"),
    [
        (nn.Linear(20, 3), {}, 1),
        (nn.Linear(20, 3), {"loss": lambda o, y: cross_entropy(o, y, reduction="none")}, 1),
        (nn.Linear(20, 3), {"loss": cross_entropy}, 5),  # a mean: the batches are all the error bar there is
        (nn.Linear(20, 3), {"metrics": {"worst": lambda o, y: o.amax()}}, 5),
        (nn.Linear(20, 3), {"batch_size": 70}, 3),
        (Coupled(), {}, 5),
    ],
)
def test_passes_for_means_take_the_fewest_batches_where_samples_do_not_mind(network, settings, passes):
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 20, generator=random), torch.randint(3, (200,), generator=random)
    function, seen = Objective(network.double(), (x, y), **settings), []
    assert len(function._source) == (3 if "batch_size" in settings else 5)
    function.centre()
    first = function.evaluate()
    network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    again, slope = function.evaluate(), function.gradient()
    assert len(seen) == 2 * passes and sum(seen) == 400
    apart = Objective(network, [(a, b) for a, b in function.batches()], **{**settings, "batch_size": None})
    torch.testing.assert_close(again, apart.evaluate(), rtol=1e-12, atol=1e-14, equal_nan=True)
    torch.testing.assert_close(again, first, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(slope, apart.gradient(), rtol=1e-10, atol=1e-14)
    assert function.on(next(function.batches())).evaluate().losses.numel() == (
        1 if passes == 5 and "loss" in settings else len(next(function.batches())[0])
    )
