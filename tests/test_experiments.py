import json
from dataclasses import replace

import pytest
import torch

import saq_core
from saq_core import EXPERIMENTS, SAQ, Experiment, Recipe, load, processes, reproduce
from saq_core import __main__ as command_line
from saq_core.models import NAMES
from saq_core.training.experiments import VARIANTS, find_experiment

TINY = Experiment("tiny", "digits", "resnet8", Recipe(epochs=1, lr=0.1, batch_size=50), limit=100)
SHARP = Recipe(epochs=2, lr=0.01, batch_size=50, sam=SAQ())
TWIN = Experiment("twin", "digits", "resnet8", SHARP, "W4A4", start="test_experiments:TINY", limit=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    command_line.main(["train", "test_experiments:TWIN", "--seed", "3", "--out", str(out), "--device", "cpu"])
    return out


def test_an_experiment_leaves_the_network_its_start_the_epochs_and_the_test(folder):
    stems = ("tiny-3", "twin-3")
    assert {p.name for p in folder.iterdir()} == {
        f"{s}{e}" for s in stems for e in (".pt", ".training.pt", ".jsonl", ".json")
    }
    model = saq_core.load(folder / "twin-3.pt")
    assert model.quantization["bits"] == "W4A4" and model.recipe == Recipe(2, 0.01, 50, sam=SAQ(), seed=3)
    record = json.loads((folder / "twin-3.json").read_text())
    data = saq_core.load_data("digits", limit=100, device="cpu")
    assert record["test"]["accuracy"] == pytest.approx(saq_core.evaluate(model, data.test).accuracy)
    assert record["recipe"]["sam"]["policy"] == "full" and record["start"] == "test_experiments:TINY"
    assert len((folder / "twin-3.jsonl").read_text().splitlines()) == 2


def test_what_is_there_is_not_trained_again_and_other_settings_are_refused(folder):
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    model = reproduce(TWIN, seed=3, out=folder, device="cpu")
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before and not model.training
    with pytest.raises(ValueError, match=r"twin-3.json must hold .*got other {'epochs': 2}: .*delete it"):
        reproduce(TWIN, seed=3, out=folder, device="cpu", epochs=5)
    for change in ({"bits": "W2A2"}, {"network": "vit"}, {"quantizer": "liq"}, {"limit": 50}):
        with pytest.raises(ValueError, match=f"got other {{'{next(iter(change))}'"):
            reproduce(replace(TWIN, **change), seed=3, out=folder, device="cpu")
    reproduce(replace(TWIN, source="told in other words"), seed=3, out=folder, device="cpu")


def test_a_start_on_other_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"twin must have the data and limit of tiny, .*\('digits', 100\), got .*200"):
        reproduce(replace(TWIN, limit=200), out=tmp_path, device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_record_older_than_a_setting_means_its_default(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    record = tmp_path / "twin-3.json"
    known = json.loads(record.read_text())
    del known["per_channel"], known["recipe"]["fpq"]
    record.write_text(json.dumps(known))
    reproduce(TWIN, seed=3, out=tmp_path, device="cpu")
    with pytest.raises(ValueError, match="got other {'per_channel': False}"):
        reproduce(replace(TWIN, per_channel=True), seed=3, out=tmp_path, device="cpu")


def test_changes_hold_for_the_start_as_well(tmp_path):
    model = reproduce(TWIN, out=tmp_path, device="cpu", epochs=1, lr=0.02)
    start = saq_core.load(tmp_path / "tiny-0.pt")
    assert (model.recipe.epochs, model.recipe.lr, start.recipe.lr) == (1, 0.02, 0.02)


def test_the_list_shows_every_experiment_with_its_source(capsys):
    command_line.main(["list"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert len(lines) == len(EXPERIMENTS) == 2 * (2 + 2 * len(VARIANTS)) + 7
    assert any("cifar10-resnet20-w2a2-saq3 " in line and "W2A2" in line and "10000 images" in line for line in lines)


def test_every_experiment_can_be_made():
    for name, experiment in EXPERIMENTS.items():
        assert name == experiment.name and experiment.network in NAMES and experiment.source
        assert experiment.start is None or EXPERIMENTS[experiment.start].bits is None
        assert experiment.bits is None or saq_core.quantization.parse_bits(experiment.bits)


def test_unknown_experiments_are_refused_with_the_close_ones():
    with pytest.raises(ValueError, match="got 'digits-resnet8-w2a2-saq4': close are .*digits-resnet8-w2a2-saq3"):
        reproduce("digits-resnet8-w2a2-saq4")
    with pytest.raises(ValueError, match="must be a saq_core.Experiment, got NoneType"):
        find_experiment("test_experiments:NOTHING")


def test_the_command_line_teaches(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["--help"])
    text = capsys.readouterr().out
    for word in ("torchrun --nproc-per-node", "saq_core.Experiment(", "goes on after the last finished epoch"):
        assert word in text
    with pytest.raises(SystemExit):
        command_line.main(["train", "--help"])
    assert "--micro-batch" in capsys.readouterr().out


def test_errors_of_the_command_line_are_one_line(capsys, tmp_path):
    for words, message in (
        (["digits-resnet8", "--epochs", "0", "--out", str(tmp_path)], "epochs must be a whole number >= 1, got 0"),
        (["cifar10-resnet20", "--root", str(tmp_path)], "no complete cifar10 under"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command_line.main(["train", *words])
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error


def test_a_saved_network_is_described_from_the_command_line(folder, capsys):
    command_line.main(["describe", str(folder / "twin-3.pt")])
    out = capsys.readouterr().out
    assert "conv1" in out and "BOPs" in out and torch.get_num_threads()


def test_a_saved_network_is_exported_from_the_command_line(folder, tmp_path, capsys):
    command_line.main(["export", str(folder / "twin-3.pt"), str(tmp_path / "small.pt")])
    assert "times fewer than" in capsys.readouterr().out
    x = torch.randn(2, *load(folder / "twin-3.pt").architecture["input_shape"])
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "small.pt")(x), load(folder / "twin-3.pt")(x))


def test_many_processes_are_not_put_on_one_gpu(folder, monkeypatch, capsys):
    monkeypatch.setattr(processes, "size", lambda: 2)
    with pytest.raises(SystemExit, match="2"):
        command_line.main(["train", "digits-resnet8", "--device", "cuda:0"])
    assert "device must be left out" in capsys.readouterr().err
