import copy
import warnings

import pytest
import torch
import torchvision
from torch import nn

from saq_core import Data, build_model, quantize, save
from saq_core.models import NAMES, make


def images(classes=10, shape=(3, 32, 32)):
    x, y = torch.randn(2, *shape), torch.zeros(2, dtype=torch.long)
    return Data((x, y), (x, y), (x, y), classes)


def count(model):
    return sum(p.numel() for p in model.parameters())


SMALL, LARGE = (3, 32, 32), (3, 224, 224)


@pytest.mark.parametrize(
    "name, classes, shape, parameters",
    [
        ("resnet20", 10, SMALL, 269_722),
        ("preresnet20", 100, SMALL, 278_132),
        ("resnet32", 10, SMALL, 464_154),
        ("resnet56", 10, SMALL, 853_018),
        ("mobilenet_v2", 100, SMALL, 2_412_212),
        ("mobilenet_v2", 1000, LARGE, 3_504_872),
        ("resnet18", 1000, LARGE, 11_689_512),
        ("resnet34", 1000, LARGE, 21_797_672),
        ("resnet50", 1000, LARGE, 25_557_032),
        ("deit_tiny", 1000, LARGE, 5_717_416),
        ("deit_small", 1000, LARGE, 22_050_664),
        ("vit_b_16", 1000, LARGE, 86_567_656),
        ("efficientnet_b0", 1000, LARGE, 5_288_548),
    ],
)
def test_parameter_counts_are_the_published_ones(name, classes, shape, parameters):
    with torch.device("meta"):  # nothing is drawn
        assert count(make({"name": name, "num_classes": classes, "input_shape": shape})) == parameters


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("resnet32", "resnet56", "vit_b_16")])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8)])
def test_every_network_takes_both_image_sizes(name, shape):
    data = images(7, shape)
    if name.startswith("deit") and shape[1] == 8:
        with pytest.raises(ValueError, match="square images whose side is a multiple of 16, got 8 x 8"):
            build_model(name, data)
        return
    model = build_model(name, data)
    assert model(data.train[0]).shape == (2, 7)
    assert model.architecture == {"name": name, "num_classes": 7, "input_shape": list(shape)}


def test_the_input_decides_on_the_form():
    small, large = (build_model("resnet50", images(10, (3, size, size))) for size in (63, 64))
    assert small.conv1.kernel_size == (3, 3) and type(small.maxpool) is nn.Identity
    assert large.conv1.kernel_size == (7, 7) and type(large.maxpool) is nn.MaxPool2d
    forms = [build_model("mobilenet_v2", images(10, (3, size, size))) for size in (32, 64)]
    assert [type(model) for model in forms] == [nn.Sequential, torchvision.models.MobileNetV2]
    patches = [build_model("vit", images(10, (1, size, size))).conv_proj.kernel_size[0] for size in (8, 28, 32, 96)]
    assert patches == [2, 4, 4, 8]


def test_small_mobilenet_keeps_the_size_as_long_as_the_authors_does():
    model, sizes = build_model("mobilenet_v2", images()), []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _x, out: sizes.append(out.shape[-1]))
    model(torch.zeros(2, 3, 32, 32))
    assert sizes == [32] * 3 + [16] * 3 + [8] * 7 + [4] * 4
    projections = [k for k, block in enumerate(model.blocks) if isinstance(block.shortcut, nn.Sequential)]
    assert projections == [0, 1, 10, 16]


def test_transformers_have_torchvisions_names():
    ours = make({"name": "vit_b_16", "num_classes": 1000, "input_shape": LARGE})
    with torch.device("meta"):
        theirs = torchvision.models.vit_b_16()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    small = build_model("vit", images(10, (1, 8, 8)))
    assert small.encoder.layers.encoder_layer_0.mlp[3].in_features == 128 and small.seq_length == 17


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "vit"])
def test_weights_follow_the_seed_and_the_global_state_is_left_alone(name):
    data, before = images(), torch.get_rng_state()
    one, same, other = (build_model(name, data, seed=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())


def test_a_model_is_made_anew_from_its_architecture():
    one = build_model("resnet8", images())
    assert torch.equal(make(one.architecture).fc.weight, one.fc.weight)


def test_a_network_needs_no_data():
    shape, data = (3, 32, 32), images(7, (3, 32, 32))
    model = build_model("resnet8", num_classes=7, input_shape=shape, seed=3)
    theirs = build_model("resnet8", data, seed=3)
    assert model.architecture == theirs.architecture and equal(model, theirs.state_dict())
    assert equal(build_model("resnet8", data, num_classes=7, input_shape=shape, seed=3), model.state_dict())
    assert next(model.parameters()).device.type == "cpu" and model(torch.zeros(1, *shape)).shape == (1, 7)
    for given, message in (
        ({}, "input_shape must be passed, or be that of data, .* got None, no data"),
        ({"input_shape": shape}, "num_classes must be passed, or be that of data, .* got None, no data"),
        ({"data": data, "num_classes": 5}, "num_classes must .* the same where both are given, got 5, and 7 of data"),
        ({"data": data, "input_shape": (1, 8, 8)}, r"input_shape must .*, got \(1, 8, 8\), and \(3, 32, 32\) of data"),
        ({"num_classes": 0, "input_shape": shape}, "num_classes must be a whole number >= 1, got 0"),
        ({"num_classes": 3, "input_shape": (3, 0, 8)}, "input_shape must be a whole number >= 1, got 0"),
        ({"num_classes": 3, "input_shape": (16,)}, r"resnet8 needs images .*, got inputs of shape \(16,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model("resnet8", **given)


def test_resnet8_has_eight_layers_and_option_a_shortcuts():
    names = [n for n, m in build_model("resnet8", images()).named_modules() if hasattr(m, "weight") and "bn" not in n]
    assert len(names) == 8 and not any("shortcut" in n for n in names)


# --- trained weights -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    return build_model("vit", images(5, (1, 8, 8)), seed=4)


def equal(model, state):
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_weights_come_from_a_state_dict_or_a_file(trained, tmp_path):
    data, state = images(5, (1, 8, 8)), trained.state_dict()
    assert equal(build_model("vit", data, weights=state), state)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "theirs.pt")
    torch.save(state, tmp_path / "plain.pt")
    save(trained, tmp_path / "ours.pt")
    for file in ("theirs.pt", "plain.pt", "ours.pt"):
        assert equal(build_model("vit", data, weights=tmp_path / file), state)
    assert equal(build_model("vit", data, weights=str(tmp_path / "plain.pt")), state)


def test_a_head_of_another_size_stays_fresh_and_is_named(trained):
    state, data = copy.deepcopy(trained.state_dict()), images(7, (1, 8, 8))
    state["heads.head.bias"] += 1
    with pytest.warns(UserWarning, match="weights are for 5 classes, not 7: heads.head stays fresh"):
        model = build_model("vit", data, weights=state, seed=2)
    fresh = build_model("vit", data, seed=2)
    assert torch.equal(model.heads.head.bias, fresh.heads.head.bias) and len(state["heads.head.bias"]) == 5
    assert torch.equal(model.conv_proj.weight, trained.conv_proj.weight)


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1"])
def test_weights_by_name_are_torchvisions(monkeypatch, weights):
    theirs = torchvision.models.resnet18(num_classes=1000)
    asked = []

    def answer(self, **settings):
        asked.append((self, settings["check_hash"]))
        return {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}  # as in torchvision's old files

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", answer)
    assert equal(build_model("resnet18", images(1000, (3, 64, 64)), weights=weights), theirs.state_dict())
    assert asked == [(torchvision.models.ResNet18_Weights.IMAGENET1K_V1, True)]
    with pytest.raises(ValueError, match=r"weights must fit resnet18: (.|\n)*conv1\.weight"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build_model("resnet18", images(10), weights=weights)


def test_weights_that_do_not_fit_are_refused(trained):
    data, state = images(5, (1, 8, 8)), trained.state_dict()
    lacking = {key: value for key, value in state.items() if key != "encoder.ln.weight"}
    with pytest.raises(ValueError, match=r"weights must fit vit: (.|\n)*encoder\.ln\.weight"):
        build_model("vit", data, weights=lacking)
    with pytest.raises(ValueError, match=r"weights must fit vit: (.|\n)*Unexpected(.|\n)*other"):
        build_model("vit", data, weights={**state, "other": state["class_token"]})
    with pytest.raises(ValueError, match=r"weights must fit vit: (.|\n)*step"):
        build_model("vit", data, weights=quantize(trained).state_dict())
    with pytest.raises(ValueError, match=r"weights must be a file, .* one of \['DEFAULT', 'IMAGENET1K_V1'\], got 'V9'"):
        build_model("resnet18", images(10), weights="V9")
    with pytest.raises(ValueError, match=r"one of \[\], got 'DEFAULT'"):
        build_model("resnet20", images(10), weights="DEFAULT")


def test_a_quantized_network_takes_float_weights(trained):
    twin = quantize(build_model("vit", images(5, (1, 8, 8))))
    result = twin.load_state_dict(trained.state_dict(), strict=False)
    assert result.unexpected_keys == [] and all("quantizer" in name for name in result.missing_keys)
    assert torch.equal(twin.conv_proj.weight, trained.conv_proj.weight)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"name must be one of \['resnet8', .*classifiers, got 'resnet21'"):
        build_model("resnet21", images())
    with pytest.raises(ValueError, match="needs images"):
        build_model("resnet8", images(shape=(3,)))
    with pytest.raises(ValueError, match="square images whose side is a multiple of 4, got 30 x 30"):
        build_model("vit", images(shape=(3, 30, 30)))
    with pytest.raises(ValueError, match="square images .*, got 32 x 16"):
        build_model("vit", images(shape=(3, 32, 16)))
    with pytest.raises(ValueError, match="resnet18 is torchvision's and takes images of 3 channels, got 1"):
        build_model("resnet18", images(shape=(1, 64, 64)))
