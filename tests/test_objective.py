import collections
import types

import pandas as pd
import pytest
import torch
from networks import (
    RAGGED,
    X,
    Y,
    as_function,
    classification,
    convolutional,
    perceptron,
    quantized,
    recomputed_by_hand,
    varied,
)
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

import landscape
from landscape import Hessian, Objective, trace

FLAT = X.flatten(1)[:, :5]
PAIRS = [(FLAT[:3], Y[:3]), (FLAT[3:], Y[3:])]


class Reiterable:
    """Batches without a length."""

    def __iter__(self):
        return iter(PAIRS)


Batch = collections.namedtuple("Batch", ["x", "y"])
FORMS = {
    "tensors": (FLAT, Y),
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
    loss, accuracy = (float(value) for value in function.centre[:2])
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
    assert Objective(model).centre[:2] == Objective(model, (FLAT, Y)).centre[:2]


def test_a_training_network_is_measured_in_eval_mode():
    model = nn.Sequential(convolutional(), nn.Dropout(0.5)).train()
    assert Objective(model, RAGGED).centre.loss.item() == pytest.approx(classification(model.eval()).item())


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
    loss, accuracy = (float(value) for value in Objective(model, batches, objective=objective).centre[:2])
    assert loss == pytest.approx((0.5 * parts[0] + 2 * parts[1]).item() / 2.5) and accuracy != accuracy


def test_recomputed_statistics_are_those_of_one_pass_over_the_data():
    for model in (convolutional(), quantized("W4A4")):
        twin = recomputed_by_hand(model)
        expected = sum(len(x) / 7 * cross_entropy(twin(x), y).item() for x, y in RAGGED)
        assert Objective(model, RAGGED, batchnorm="recomputed").centre.loss.item() == pytest.approx(expected, rel=1e-9)
        assert Objective(model, RAGGED).centre.loss.item() != pytest.approx(expected, rel=1e-3)


def test_a_last_batch_of_one_does_not_stop_the_recomputation():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    assert Objective(model, (FLAT, Y), batchnorm="recomputed", batch_size=6).centre.loss.item() > 0


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
    ({"x": FLAT}, {}, ValueError, "entries must be arguments of the model, got 'x': missing a required argument"),
    ([FLAT, Y], {}, ValueError, r"a list of two tensors: pass the tuple \(x, y\)"),
    ((FLAT, Y + 5), {}, ValueError, r"labels must lie in 0…2 for 3 outputs, got 5…7"),
    ((FLAT, Y - 1), {}, ValueError, r"labels must lie in 0…2 for 3 outputs, got -1…1"),
    ((FLAT * float("nan"), Y), {}, ValueError, "the loss of the model itself is nan"),
    ((FLAT, Y), {"loss": lambda o, y: o.mean() / 0}, ValueError, "the loss of the model itself is -?inf"),
    ((FLAT, Y), {"objective": moody}, ValueError, "the loss changed when repeated"),
    ((FLAT, Y), {"loss": mse_loss, "objective": moody}, ValueError, "give loss, output and metrics, or objective"),
    ((FLAT, Y), {"space": "weights"}, ValueError, "space must be one of 'quantized', 'latent', None, got 'weights'"),
]


@pytest.mark.parametrize(("data", "settings", "error", "message"), BAD)
def test_bad_input_is_refused_in_words(data, settings, error, message):
    with pytest.raises(error, match=message):
        trace(perceptron(), data, **settings)


def test_unknown_batchnorm_policies_are_refused():
    with pytest.raises(ValueError, match="batchnorm must be one of 'fixed', 'recomputed', got 'train'"):
        Objective(perceptron(), PAIRS, batchnorm="train")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_data_are_moved_to_the_model():
    found = Objective(perceptron().cuda(), PAIRS)
    assert (
        found.centre.loss.item() == pytest.approx(Objective(perceptron(), PAIRS).centre.loss.item())
        and found.device.type == "cuda"
    )


def test_data_that_change_from_pass_to_pass_are_refused():
    class Augmented:
        def __init__(self):
            self.pass_ = 0

        def __iter__(self):
            self.pass_ += 1
            yield FLAT + 0.1 * self.pass_, Y

    with pytest.raises(ValueError, match="the data change from pass to pass"):
        Objective(perceptron(), Augmented()).centre[:2]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("limit", "again"), [(None, 0), (100, 64)], ids=["kept", "too large"])
def test_a_loader_is_read_once_if_its_batches_are_small(limit, again, shuffle, monkeypatch):
    reads = []

    class Counting(TensorDataset):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    if limit:
        monkeypatch.setattr(landscape.model.objective, "KEPT", limit)
    torch.manual_seed(0)
    loader = DataLoader(Counting(torch.randn(64, 4), torch.randint(3, (64,))), batch_size=16, shuffle=shuffle)
    objective = Objective(nn.Linear(4, 3), loader)
    reads.clear()
    found = objective.evaluate()
    assert len(reads) == again
    assert float(found.loss) == pytest.approx(float(Objective(objective.model, list(loader)).centre.loss), rel=1e-6)
    assert objective.same_order == (not shuffle or not again)


def test_numpy_arrays_and_short_integer_labels_are_taken():
    expected = Objective(perceptron(), (FLAT, Y)).centre[:2]
    assert Objective(perceptron(), (FLAT.numpy(), Y.int().numpy())).centre[:2] == expected


def test_an_objective_is_taken_by_every_measuring_call_in_place_of_a_model():
    model, direction = perceptron(), {"0.weight": torch.ones_like(perceptron()[0].weight)}
    calls = {
        "trace": {"num_probes": 10},
        "top_eigenvalues": {"k": 2},
        "density": {"k": 1, "steps": 3},
        "curvature_at_scale": {"directions": direction, "radii": False},
        "sharpness": {"measures": ["average, filter", "worst case, plain, m samples"]},
        "average_sharpness": {"radii": (0.01,)},
        "worst_case_sharpness": {"radii": (0.01,), "m": 3},
        "rounding_sharpness": {"bits": (4,)},
        "line": {"points": 3, "directions": "eigenvectors"},
        "surface": {"points": 3},
        "batchnorm_check": {},
    }
    for name, options in calls.items():
        function = getattr(landscape, name)
        given = function(Objective(model, PAIRS), **options)
        pd.testing.assert_frame_equal(given.frame, function(model, PAIRS, **options).frame)
    found = landscape.trajectory(Objective(model, PAIRS, batchnorm="recomputed"), [perceptron(1), perceptron(2)])
    torch.testing.assert_close(found.loss, landscape.trajectory(model, [perceptron(1), perceptron(2)], PAIRS).loss)
    both = landscape.compare({"a": Objective(model, PAIRS), "b": Objective(perceptron(1), PAIRS)}, points=0)
    pd.testing.assert_frame_equal(
        both.frame, landscape.compare({"a": model, "b": perceptron(1)}, PAIRS, points=0).frame
    )
    v = torch.ones(Objective(model, PAIRS).coordinates.numel, dtype=torch.float64)
    torch.testing.assert_close(Hessian(Objective(model, PAIRS)) @ v, Hessian(model, PAIRS) @ v, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda o: landscape.trace(o, PAIRS), "data"),
        (lambda o: landscape.trace(o, loss=cross_entropy), "loss"),
        (lambda o: landscape.line(o, batchnorm="recomputed", batch_size=4), "batchnorm, batch_size"),
        (lambda o: landscape.line(o, precision="bf16"), "precision"),
        (lambda o: Hessian(o, layers=["0"]), "layers"),
        (lambda o: landscape.rounding_sharpness(o, PAIRS), "data"),
    ],
)
def test_arguments_of_an_objective_are_refused_beside_one(call, named):
    with pytest.raises(ValueError, match=f"an objective has its own {named}:"):
        call(Objective(perceptron(), PAIRS))


def test_products_refuse_an_objective_whose_statistics_or_precision_they_do_not_have():
    with pytest.raises(ValueError, match="batchnorm='fixed' and precision='fp32'"):
        landscape.trace(Objective(perceptron(), PAIRS, precision="bf16"))


class Answer(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = perceptron(), kind

    def forward(self, x):
        logits = self.layer(x)
        answers = {"tuple": (x, logits), "dict": {"logits": logits}, "object": types.SimpleNamespace(logits=logits)}
        return answers[self.kind]


@pytest.mark.parametrize(
    ("kind", "output"), [("tuple", 1), ("dict", "logits"), ("object", "logits"), ("tuple", lambda answer: answer[1])]
)
def test_output_names_the_part_that_the_loss_is_given(kind, output):
    function = Objective(Answer(kind), PAIRS, output=output)
    assert torch.equal(function.centre.loss, Objective(perceptron(), PAIRS).centre.loss)


def test_data_may_be_anything_with_a_probe():
    class Data:
        probe = (FLAT, Y)

    assert Objective(perceptron(), Data()).centre[:2] == Objective(perceptron(), (FLAT, Y)).centre[:2]
    with pytest.raises(ValueError, match="carries no probe"):
        Objective(perceptron(), None)


def test_without_validation_a_stochastic_or_infinite_loss_is_let_through():
    def infinite(output, target):
        return cross_entropy(output, target) / 0

    with pytest.raises(ValueError, match="is inf"):
        Objective(perceptron(), PAIRS, loss=infinite)
    function = Objective(perceptron(), PAIRS, loss=infinite, validate=False)
    assert function.centre.loss.isinf() and function.samples == 7 and function.batch_weights == [3.0, 4.0]
