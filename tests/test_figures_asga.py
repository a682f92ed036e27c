"""The figures of ASGA and of bits per layer: what is searched, on which images, what is kept, and what is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray

import landscape
import saq_core
from figures import asga, policies, profiles

SMOKE, CPU = profiles.PROFILES["smoke"], profiles.PROFILES["cpu"]
MIXED = {"a": "W2A2", "b": "W4A4", "c": "W3A3"}


@pytest.fixture
def closing():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def hand_made(classes=4, each=10) -> saq_core.Data:
    y = torch.arange(classes * each) % classes
    split = (torch.arange(len(y), dtype=torch.float32)[:, None], y)
    return saq_core.Data(train=split, val=split, test=split, num_classes=classes)


def test_proxies_hold_the_images_they_are_named_after():
    data = hand_made()
    assert policies.proxy(data, "target").train[0].equal(data.train[0])
    assert policies.proxy(data, "tenth").train[0].flatten().tolist() == [0, 1, 2, 3]
    half = policies.proxy(data, "half")
    assert set(half.train[1].tolist()) == {0, 1} and len(half.train[1]) == 20
    assert half.test[1].equal(data.test[1]) and half.num_classes == 4
    assert policies.proxy(data, "half", most=8).train[0].flatten().tolist() == [0, 1, 4, 5]


def test_a_proxy_is_searched_for_as_many_steps_as_the_target():
    for source, least in (("target", 1.0), ("untrained", 1.0), ("half", 1.9), ("tenth", 9.9)):
        part, longer = policies.images_of(CPU, source)
        assert least <= longer < 1.1 * least
        assert len(part.train[1]) * longer == pytest.approx(len(CPU.data.train[1]))
    assert policies.settings_of(CPU, "asga", "tenth", 10.0).epochs == 10 * policies.settings_of(CPU, "asga").epochs


def test_the_searches_differ_in_nothing_but_the_radius():
    found = {label: policies.settings_of(CPU, label) for label in policies.CHANGES}
    assert found["asga-plain"].passes == 1 and found["asga"].passes == 2
    assert found["asga"].rho_range and found["asga-fixed"].rho_range is found["asga-cap"].rho_range is None
    assert found["asga-cap"].rho == found["asga"].rho_range[1] and found["asga-fixed"].rho == found["asga"].rho
    alike = [replace(own, rho=0.0, beta=0.0, rho_range=None) for own in found.values()]
    assert all(own == alike[0] for own in alike)
    assert policies.settings_of(SMOKE, "samq").epochs == 2 and policies.settings_of(CPU, "hessian") is None


def test_a_budget_between_two_widths_is_their_mean():
    model = saq_core.build_model("resnet8", CPU.data)
    low, high, middle = (policies.budget_of(model, bits) for bits in ("W2A2", "W3A3", "W2A2-W3A3"))
    assert low == saq_core.cost(model, bits="W2A2").bops and middle == (low + high) / 2


def test_policies_are_kept_until_the_settings_change(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "RUNS", tmp_path)
    first = policies.policy(SMOKE, "uniform", 0, source="untrained")
    assert set(first.bits.values()) == {"W3A3"} and len(list(tmp_path.rglob("policy-*.json"))) == 1
    assert policies.policy(SMOKE, "uniform", 0, source="untrained") == first  # seconds as well: it was read
    monkeypatch.setattr(policies, "settings_of", lambda *_: saq_core.SAMQ(epochs=2, warmup=1))
    with pytest.raises(ValueError, match="settings must be None"):  # it searched again
        policies.policy(SMOKE, "uniform", 0, source="untrained")


def test_networks_are_named_by_their_bits(monkeypatch):
    asked = []
    monkeypatch.setattr(saq_core, "reproduce", lambda experiment, *_, **settings: asked.append((experiment, settings)))
    policies.tuned(SMOKE, dict.fromkeys("abc", "W3A3"), 1)
    policies.tuned(SMOKE, "W3A3", 1)
    assert asked[0] == asked[1] and asked[0][0].name == "digits-resnet8-w3a3-sgd"
    policies.tuned(SMOKE, MIXED, 1, "saq3")
    experiment, settings = asked[2]
    assert (experiment.name, experiment.bits) == ("digits-resnet8-mixed243-saq3", MIXED)
    assert experiment.recipe.sam.case == 3 and experiment.start == "figures.profiles:SMALL"
    assert settings["seed"] == 1 and settings["epochs"] == 2 and settings["out"] == SMOKE.runs


def test_the_first_seed_drawn_is_one_whose_searches_differ(monkeypatch):
    def policy(_, label, seed):
        bits = MIXED if (label, seed) == ("asga", 1) else dict.fromkeys("abc", "W3A3")
        return saq_core.Policy(bits, 1, 1.0, "asga", 1.0)

    def compare(models, data, **settings):
        return landscape.Comparison({"models": models, "data": data}, {}, {}, {})

    monkeypatch.setattr(asga, "policy", policy)
    monkeypatch.setattr(asga, "tuned", lambda _, bits, seed: (bits if isinstance(bits, str) else bits["a"], seed))
    monkeypatch.setattr(profiles.Profile, "measured", lambda *_: None)
    monkeypatch.setattr(landscape, "compare", compare)
    about = asga.compute_surfaces(CPU).about
    assert about["order"] == [1, 0, 2] and about["policies"]["ASGA"] == ["243", "333", "333"]
    assert about["models"]["ASGA"] == [("W2A2", 1), ("W3A3", 0), ("W3A3", 2)]
    assert about["models"]["Plain search"] == [("W3A3", 1), ("W3A3", 0), ("W3A3", 2)]


def layers(bits) -> xarray.Dataset:
    bits = np.array(bits)
    where = {"variant": ["samq", "asga"], "seed": [0, 1], "draw": list(range(bits.shape[2])), "layer": list("abcd")}
    sharpness = (("seed", "layer"), np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]]))
    told = {"family": "made by hand", "samples": 1, "images": 1, "seeds": 2}
    return xarray.Dataset({"bits": (tuple(where), bits), "sharpness": sharpness}, where, told)


def test_rank_correlations_of_known_orders():
    down, up, same = [5, 4, 3, 2], [2, 3, 4, 5], [3, 3, 3, 3]
    found = asga.rank_correlations(layers([[[down, down], [down, up]], [[same, down], [same, same]]]))
    assert found == pytest.approx(np.array([[1.0, 0.0], [0.5, 0.0]]))


def test_every_layers_bits_are_written_beside_its_sharpness(closing):
    data = layers([[[[5, 4, 3, 2]], [[2, 3, 4, 5]]], [[[3, 3, 3, 3]], [[2, 2, 2, 5]]]])
    figure = asga.draw_bits(data)
    top, ax = figure.axes[:2]
    assert [text.get_text() for text in ax.texts] == ["5 2", "4 3", "3 4", "2 5", "3 2", "3 2", "3 2", "3 5"]
    assert ax.images[0].get_array().tolist() == [[3.5] * 4, [2.5, 2.5, 2.5, 4.0]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["SAMQ", "ASGA"] and top.get_yscale() == "log"
    assert len(asga.draw_correlation(data).axes) == 3


def test_rows_go_where_their_axes_say():
    axes = {"source": ["x", "y"], "seed": [0, 1, 2]}
    rows = [(10.0 * s + k, 0.5, 7.0) for s in range(2) for k in axes["seed"]]
    found = xarray.Dataset(asga.table(rows, axes, "own_"), axes)
    assert found["own_accuracy"].sel(source="y", seed=2) == 12 and (found["own_bops"] == 7).all()


def test_the_front_shows_every_seed_its_mean_and_its_error(closing):
    axes = {"variant": ["sgd", "saq3"], "width": list(asga.WIDTHS), "seed": [0, 1, 2]}
    uniform = [(90 + seed, 0.1, 2.0 ** (k + 1)) for _ in range(2) for k in range(4) for seed in range(3)]
    values = asga.table(uniform, axes, "uniform_")
    for label, variant in asga.FOUND:
        values |= asga.table([(80.0 + seed, 0.2, 4.0) for seed in range(3)], {"seed": [0, 1, 2]}, f"{label}_{variant}_")
    told = {"family": "made by hand", "samples": 1, "images": 1, "seeds": 2}
    figure = asga.draw_front(xarray.Dataset(values, axes, told))
    top, _, below, _ = figure.axes
    assert [line.get_ydata().tolist() for line in top.lines] == 2 * [[91.0] * 4]
    assert top.get_xscale() == "log" and top.get_xticks().tolist() == [2, 4, 8, 16]
    labels = [label.get_text() for label in below.get_yticklabels()]
    assert len(labels) == 2 + len(asga.FOUND) and labels[0] == "Uniform bits, SGD"
    row = below.containers[labels.index("SAMQ, SGD")]
    low, high = row[2][0].get_segments()[0][:, 0]
    assert (low + high) / 2 == pytest.approx(81) and (high - low) / 2 == pytest.approx(1 / 3**0.5)


def test_a_search_without_a_radius_has_a_loss_and_no_gap(closing):
    where = {"variant": ["asga", "asga-plain"], "seed": [0, 1], "epoch": [1, 2, 3]}
    full = np.arange(12.0).reshape(2, 2, 3) + 1
    gap = np.where(np.array([True, False])[:, None, None], full, np.nan)
    values = {name: (tuple(where), own) for name, own in (("loss", full), ("gap", gap), ("rho", gap))}
    figure = asga.draw_convergence(xarray.Dataset(values, where, {"family": "made by hand", "samples": 1, "seeds": 2}))
    gaps, above = figure.axes
    assert [text.get_text() for text in gaps.texts] == ["ASGA,\nadaptive ρ"]
    assert gaps.lines[0].get_ydata().tolist() == [2.5, 3.5, 4.5]
    assert [text.get_text() for text in above.texts] == ["ρ = 0", "ASGA"]
    assert above.lines[0].get_ydata().tolist() == [6.0, 6.0, 6.0]
