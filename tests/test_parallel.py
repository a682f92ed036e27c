"""Two processes give the numbers of one; the command line; tables and other people's files."""

import contextlib

import h5py
import numpy as np
import pytest
import torch
from networks import RAGGED, X, Y, convolutional
from ranks import launched, torchrun

import landscape
from landscape import __main__ as command_line
from landscape import load, parallel


def measured():
    """The network and data that the command lines below ask for: a function of `--model test_parallel:measured`."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(36, 2, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (36,), generator=generator)
    sizes = [3, 4, 5, 3, 4, 5, 6, 6]
    return convolutional(), list(zip(x.split(sizes), y.split(sizes), strict=True))


def run(*words, out, processes=1):
    """Give the command line these words, in this process or in two; return what they print."""
    words = [*map(str, words), "--model", "test_parallel:measured", "--out", str(out)]
    if processes == 1:
        return command_line.main(words)
    launched(told, words, str(out))
    return out.with_suffix(".told").read_text()


def told(words, out):
    with open(f"{out.removesuffix('.nc')}.told", "a") as file, contextlib.redirect_stdout(file):
        command_line.main(words)


COMMANDS = {
    "surface": ["--points", 7, "--seed", 2],
    "adaptive": ["--points", 9, "--adaptive", "--tolerance", 0.2],
    "trace": ["--units", "filter", "--per-layer"],
    "eigen": ["--k", 3, "--which", "both"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_two_processes_give_the_numbers_of_one(name, tmp_path):
    command = "surface" if name == "adaptive" else name
    one, two = tmp_path / "one.nc", tmp_path / "two.nc"
    run(command, *COMMANDS[name], out=one)
    assert run(command, *COMMANDS[name], out=two, processes=2).count(str(two)) == 1
    same(load(one), load(two))


def same(ours, theirs):
    for field in ("loss", "stderr", "status", "value", "samples", "values", "residuals", "fold_values"):
        if field in vars(ours):
            found, expected = (torch.as_tensor(getattr(r, field), dtype=torch.float64) for r in (theirs, ours))
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-10, equal_nan=True)


def test_torchrun_gives_the_numbers_of_one_process(tmp_path):
    """The real thing, once."""
    one, two = tmp_path / "one.nc", tmp_path / "two.nc"
    words = ["landscape", "eigen", "--k", 3, "--model", "test_parallel:measured", "--out", two]
    assert torchrun(*words, told=tmp_path / "told").count(str(two)) == 1
    run("eigen", "--k", 3, out=one)
    same(load(one), load(two))


def test_a_network_is_sharded_on_request(tmp_path):
    one, two = tmp_path / "one.nc", tmp_path / "two.nc"
    words = ["eigen", "--k", 2]
    run(*words, out=one)
    assert run(*words, "--shard", out=two, processes=2).count(str(two)) == 1
    ours, theirs = load(one), load(two)
    same(ours, theirs)
    for name, part in ours.vector(0).items():  # gathered by both of them for the file
        torch.testing.assert_close(theirs.vector(0)[name].abs(), part.abs(), rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="this is the only one: start them by torchrun --nproc-per-node=N"):
        run(*words, "--shard", out=one)


def shared_products(out):
    """Keep products of two batches that two processes cannot share evenly as they are, and the rows of each process."""
    parallel.start()
    model, data = convolutional(), [(X[:2], Y[:2]), (X[2:], Y[2:])]
    found = {}
    for name, operator, settings in (
        ("mean", landscape.Hessian, {}),
        ("sum", landscape.Hessian, {"loss": torch.nn.CrossEntropyLoss(reduction="sum")}),
        ("some targets", landscape.Hessian, {"loss": torch.nn.CrossEntropyLoss(ignore_index=2)}),
        ("of its own", landscape.Hessian, {"loss": lambda z, y: (z.softmax(1)[range(len(y)), y] - 1).square().mean()}),
        ("differences", landscape.Hessian, {"products": "difference"}),
        ("Gauss-Newton", landscape.GGN, {}),
        ("a layer's input", landscape.Hessian, {"at": "6.input"}),
    ):
        shared = operator(model, data, **settings)
        vector = torch.linspace(-1, 1, shared.shape[0], dtype=torch.float64)
        found[name] = shared @ vector, shared.by_fold(vector), shared @ vector
        rows = parallel.gather({index: list(rows) for index, rows in shared._mine.items()})
    found["rows"] = shared.objective.share()
    found["all rows"] = parallel.gather(found["rows"])
    if parallel.rank() == 0:
        torch.save(found | {"whole": rows}, out)


def test_processes_share_rows_of_batches_and_give_the_numbers_of_one(tmp_path):
    shared_products(tmp_path / "one")
    launched(shared_products, tmp_path / "two", count=2)
    one, two = (torch.load(tmp_path / name, weights_only=False) for name in ("one", "two"))
    assert two["all rows"] == [{0: range(2), 1: range(1)}, {1: range(1, 5)}]
    assert two["whole"] == [{0: [0, 1]}, {1: [0, 1, 2, 3, 4]}]  # what goes into a layer is laid out by batch
    for name in one.keys() - {"rows", "all rows", "whole"}:
        tolerance = {"rtol": 1e-6, "atol": 1e-6} if name == "differences" else {"rtol": 1e-9, "atol": 1e-12}
        for ours, theirs in zip(one[name], two[name], strict=True):
            torch.testing.assert_close(ours, theirs, **tolerance)


class InGroups(torch.nn.Module):
    """Rows depend on three others; a batch whose length is no multiple of four does not fit."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3).double()

    def forward(self, x):
        h = self.linear(x).view(4, -1, 3)
        return (h - h.mean(0)).reshape(-1, 3)


def test_batches_that_the_network_cannot_take_apart_are_shared_whole(monkeypatch):
    """A sum of squares is that of its parts; the network's outputs are not those of parts of a batch."""
    x = torch.randn(24, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batches = [(part, torch.ones(8, 3, dtype=torch.float64)) for part in x.split(8)]
    objective = landscape.Objective(InGroups(), batches, loss=torch.nn.MSELoss(reduction="sum"))
    assert objective.reduction == "sum"
    as_process(monkeypatch, 0, 2)
    assert objective.share() == {0: range(8), 2: range(8)}
    many = x.repeat(14, 1)[:320], torch.ones(320, 3, dtype=torch.float64)  # a plain network's would be cut into five
    whole = landscape.Objective(InGroups(), many, loss=torch.nn.MSELoss(reduction="sum"))
    assert whole.batch_rows == [320]


def as_process(monkeypatch, rank, size):
    monkeypatch.setattr(parallel, "rank", lambda: rank)
    monkeypatch.setattr(parallel, "size", lambda: size)


@pytest.mark.parametrize("counts", [[52, 52, *[51] * 8], [512], [8], [1] * 8, [9] * 7, [100, 1, 1, 100]])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_each_row_is_shared_once_and_evenly(counts, size, monkeypatch):
    shares = []
    for rank in range(size):
        as_process(monkeypatch, rank, size)
        shares.append(parallel.share_rows(counts))
    for index, count in enumerate(counts):
        assert [row for share in shares for row in share.get(index, ())] == list(range(count))
    assert all(shares)
    even = sum(counts) / size
    assert all(abs(sum(map(len, share.values())) - even) <= max(1, even / 4) for share in shares)


def test_batches_are_cut_only_where_shares_would_be_uneven_and_too_few_rows_are_refused(monkeypatch):
    as_process(monkeypatch, 0, 2)
    assert parallel.share_rows([50, 53]) == {0: range(50)}
    assert parallel.share_rows([10] * 5) == {0: range(10), 1: range(10)}  # 20 and 30: nearly even, and no batch is cut
    assert parallel.share_rows([10] * 3) == {0: range(10), 1: range(5)}
    as_process(monkeypatch, 0, 8)
    with pytest.raises(ValueError, match="8 processes have only 7 rows to share: use fewer processes"):
        parallel.share_rows([3, 4])


def test_two_processes_share_a_folder_of_tiles(tmp_path):
    words = ["surface", "--points", 9, "--path", tmp_path / "tiles"]
    run(*words, out=tmp_path / "two.nc", processes=2)
    written = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "tiles").iterdir()}
    assert len(written) == 1 + -(-81 // 16)
    run(*words, out=tmp_path / "one.nc")
    assert torch.equal(load(tmp_path / "one.nc").loss, load(tmp_path / "two.nc").loss)
    assert written == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "tiles").iterdir()}


def test_every_process_takes_its_own_gpu_before_the_first_message(monkeypatch):
    told = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: told.append(device))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: told.append(backend))
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert parallel.start() == torch.device("cuda", 1) and told == [1, "nccl"]


def test_alone_everything_is_the_identity():
    assert (parallel.rank(), parallel.size(), list(parallel.share(3)), parallel.gather("a")) == (0, 1, [0, 1, 2], ["a"])
    tensor = torch.ones(2)
    assert parallel.sum_(tensor) is tensor and parallel.first_alone(lambda: 7) == 7


def test_the_command_line_measures_and_writes(tmp_path, capsys):
    out = tmp_path / "top.nc"
    command_line.main(["eigen", "--model", "test_parallel:measured", "--k", "2", "--out", str(out)])
    model, data = measured()
    expected = landscape.top_eigenvalues(model, data, k=2)
    assert torch.equal(load(out).values, expected.values) and "Eigenvalues([" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere:at_all", "--model must be package.module:function, got 'nowhere:at_all'"),
        ("test_parallel:nothing", "has no attribute 'nothing'"),
        ("test_parallel", "must be package.module:function"),
        ("builtins:list", "must return a network"),
    ],
)
def test_a_bad_model_is_refused_in_words(spec, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        command_line.main(["trace", "--model", spec, "--out", str(tmp_path / "x.nc")])


def test_the_help_names_every_command_and_option(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in command_line.COMMANDS)
    for name, (_, options) in command_line.COMMANDS.items():
        with pytest.raises(SystemExit):
            command_line.main([name, "--help"])
        text = capsys.readouterr().out
        assert all(f"--{option.replace('_', '-')}" in text for option in options)


# --- exchange -------------------------------------------------------------------------------------------------------


def test_tables_have_a_row_per_point(tmp_path):
    import pandas

    found = landscape.surface(convolutional(), RAGGED, points=(3, 5))
    table = pandas.read_csv(found.save(tmp_path / "surface.csv"))
    assert list(table.columns) == ["alpha", "beta", "loss", "accuracy", "stderr", "status"] and len(table) == 15
    row = table[(table.alpha == -1) & (table.beta == 0.5)]
    assert float(row.loss.iloc[0]) == pytest.approx(float(found.loss[0, 3]), rel=1e-12)
    density = landscape.density(convolutional(), RAGGED, k=2, num_probes=2, steps=4, points=20)
    assert list(density.frame.columns) == ["grid", "density", "low", "high"]
    line = landscape.line(convolutional(), RAGGED, points=3, metrics={"size": lambda z, y: z.norm(dim=1)})
    assert list(line.frame["size"]) == pytest.approx(line.metrics["size"].tolist())
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("shape", [(3, 3), (3, 5)])
def test_their_surfaces_are_read_at_the_coordinates_they_were_measured_at(shape, tmp_path):
    """As their script writes: raveled meshgrid coordinates, arrays shaped (x, y), −1 where nothing is measured yet."""
    x, y = np.linspace(-1, 1, shape[0]), np.linspace(-2, 2, shape[1])
    losses, accuracies = -np.ones(shape), -np.ones(shape)
    across, up = np.meshgrid(x, y)
    for index in range(losses.size - 1):  # the last one is pending
        losses.ravel()[index] = 10 + 3 * across.ravel()[index] + up.ravel()[index] ** 2
        accuracies.ravel()[index] = 50.0
    losses.ravel()[0] = np.nan
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["xcoordinates"], file["ycoordinates"], file["train_loss"], file["train_acc"] = x, y, losses, accuracies
    found = load(tmp_path / "theirs.h5")
    expected = 10 + 3 * found.alphas[:, None] + found.betas[None] ** 2
    known = found.status == 1
    torch.testing.assert_close(found.loss[known], expected[known])
    assert found.status[0, 0] == 3 and found.status[-1, -1] == 0 and found.loss[-1, -1].isnan()
    assert float(found.accuracy[known].unique()) == 0.5 and len(known.nonzero()) == losses.size - 2
    found.draw()


def test_their_lines_are_read_too(tmp_path):
    with h5py.File(tmp_path / "line.h5", "w") as file:
        file["xcoordinates"], file["test_loss"], file["test_acc"] = np.linspace(0, 1, 3), np.ones(3), 100 * np.ones(3)
    found = load(tmp_path / "line.h5")
    assert found.loss.tolist() == [1, 1, 1] and found.accuracy.tolist() == [1, 1, 1] and found.about["data"] == "test"
    assert found.frame.loss.tolist() == [1, 1, 1] and "stderr" not in found.frame
