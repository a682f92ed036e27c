import pytest
import torch

from saq_core import Data, build_model
from saq_core.models import NAMES, make


def images(classes=10, shape=(3, 32, 32)):
    x, y = torch.randn(2, *shape), torch.zeros(2, dtype=torch.long)
    return Data((x, y), (x, y), (x, y), classes)


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "name, classes, parameters",
    [("resnet20", 10, 269_722), ("preresnet20", 100, 278_132), ("resnet32", 10, 464_154), ("resnet56", 10, 853_018)],
)
def test_parameter_counts_are_the_papers(name, classes, parameters):
    assert count(build_model(name, images(classes))) == parameters


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8)])
def test_every_network_takes_both_image_sizes(name, shape):
    if name in ("resnet56", "resnet32") and shape[1] == 32:
        pytest.skip("as resnet20")
    data = images(7, shape)
    model = build_model(name, data)
    assert model(data.train[0]).shape == (2, 7)
    assert model.architecture == {"name": name, "num_classes": 7, "input_shape": list(shape)}


def test_weights_follow_the_seed_and_the_global_state_is_left_alone():
    data, before = images(), torch.get_rng_state()
    one, same, other = (build_model("resnet8", data, seed=s) for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.conv1.weight, same.conv1.weight) and not torch.equal(one.conv1.weight, other.conv1.weight)
    assert torch.equal(make(one.architecture).fc.weight, one.fc.weight)


def test_resnet8_has_eight_layers_and_option_a_shortcuts():
    names = [n for n, m in build_model("resnet8", images()).named_modules() if hasattr(m, "weight") and "bn" not in n]
    assert len(names) == 8 and not any("shortcut" in n for n in names)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"name must be one of \['resnet8', .*got 'resnet21'"):
        build_model("resnet21", images())
    with pytest.raises(ValueError, match="needs images"):
        build_model("resnet8", images(shape=(3,)))
