import copy
import pickle

import pytest
import torch
from torch import nn

from saq_core import SAQ, Recipe, build_model, calibrate, load, quantize, save, train

LIMIT = 100  # of the digits


@pytest.fixture(scope="module")
def trained(digits):
    model = calibrate(
        quantize(build_model("resnet8", digits), {"layer1.0.conv1": "W2A4", "fc": 3}, quantizer="liq"), digits
    )
    train(model, digits, Recipe(epochs=1, lr=0.05, batch_size=32, sam=SAQ(0.1, case=1)))
    return model


def test_a_saved_network_comes_back_whole(trained, digits, tmp_path):
    save(trained, tmp_path / "new" / "model.pt")
    back = load(tmp_path / "new" / "model.pt")
    x = digits.test[0]
    assert torch.equal(back(x), trained(x)) and not back.training
    assert back.recipe == trained.recipe and back.quantization == trained.quantization
    assert back.architecture == trained.architecture
    assert all(torch.equal(a, b) for a, b in zip(back.probe, trained.probe, strict=True))
    assert back.history.epochs == trained.history.epochs
    assert torch.equal(back.history.steps, trained.history.steps)
    train(back, digits, Recipe(epochs=1, lr=0.01))


def test_an_untrained_network_can_be_saved(digits, tmp_path):
    model = build_model("resnet8", digits).eval()
    save(model, tmp_path / "m")
    back = load(tmp_path / "m")
    assert torch.equal(back(digits.test[0]), model(digits.test[0])) and not hasattr(back, "probe")


def test_a_network_quantized_to_32_bits_is_taken_as_an_instance(digits, tmp_path):
    twin = quantize(build_model("resnet8", digits), "W32A32", first_last_bits=None)
    save(twin, tmp_path / "net.pt")
    again = load(tmp_path / "net.pt", quantize(build_model("resnet8", digits, seed=1), "W32A32", first_last_bits=None))
    assert torch.equal(again.conv1.weight, twin.conv1.weight)


def test_double_precision_comes_back_as_it_was(digits, tmp_path):
    model = build_model("resnet8", digits, seed=3).double()
    save(model, tmp_path / "net.pt")
    again = load(tmp_path / "net.pt")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_an_uncalibrated_network_stays_uncalibrated(digits, tmp_path):
    save(quantize(build_model("resnet8", digits), "W4A4"), tmp_path / "m")
    with pytest.raises(RuntimeError, match="calibrate"):
        load(tmp_path / "m")(digits.test[0])


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def test_other_modules_need_an_instance_float_or_quantized(tmp_path):
    x = torch.randn(5, 3)
    model = calibrate(quantize(plain(), "W3A3"), x)
    model[0].weight.data += 0.1
    save(model, tmp_path / "m")
    with pytest.raises(ValueError, match="model must be given"):
        load(tmp_path / "m")
    for given in (plain(), quantize(plain(), "W3A3")):
        before = copy.deepcopy(given.state_dict())
        assert torch.equal(load(tmp_path / "m", given)(x), model(x))
        assert str(before) == str(given.state_dict())


def test_another_network_is_refused(tmp_path):
    save(quantize(plain(), "W3A3"), tmp_path / "m")
    with pytest.raises(ValueError, match="holds another network: .*missing"):
        load(tmp_path / "m", nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"0.weight has shape \(4, 3\) there, \(5, 3\) here"):
        load(tmp_path / "m", nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    with pytest.raises(ValueError, match="has 8 bits there, 4 here"):
        load(tmp_path / "m", quantize(plain(), "W4A3", first_last_bits=None))


@pytest.mark.parametrize("there, here", [("lsq", "liq"), ("liq", "lsq")])
def test_an_instance_with_another_quantizer_is_refused(tmp_path, there, here):
    save(quantize(plain(), "W3A32", quantizer=there), tmp_path / "m")
    with pytest.raises(
        ValueError, match=f"model must have the quantizer '{there}' of .*, got '{here}': pass the float"
    ):
        load(tmp_path / "m", quantize(plain(), "W3A32", quantizer=here))
    load(tmp_path / "m", quantize(plain(), "W3A32", quantizer=there))


def test_files_that_are_cut_short_or_foreign_are_refused(trained, tmp_path):
    path = tmp_path / "m"
    save(trained, path)
    whole = path.read_bytes()
    for size in (0, 10, 1000, len(whole) // 2, len(whole) - 50):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut short"):
            load(path)
    torch.save({"state": 1}, path)
    with pytest.raises(ValueError, match="written by something else"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere")


def test_a_training_checkpoint_is_not_a_model(digits, tmp_path):
    model = build_model("resnet8", digits)
    train(model, digits, Recipe(epochs=1, lr=0.01), checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="must hold a model, got a training"):
        load(tmp_path / "run")


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({"format": Bomb()}, tmp_path / "m")
    with pytest.raises(ValueError, match="not a saq_core checkpoint"):
        load(tmp_path / "m")
    (tmp_path / "m").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="not a saq_core checkpoint"):
        load(tmp_path / "m")


def test_a_file_is_as_open_to_others_as_the_umask_says(digits, tmp_path):
    file, plain = tmp_path / "a.pt", tmp_path / "plain"
    save(build_model("resnet8", digits), file)
    plain.touch()
    assert file.stat().st_mode == plain.stat().st_mode and sorted(tmp_path.iterdir()) == [file, plain]


def test_a_failed_write_leaves_the_old_file(trained, tmp_path, monkeypatch):
    path = tmp_path / "m"
    save(trained, path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="disk full"):
        save(trained, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
