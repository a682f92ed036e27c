"""One bar per layer, its error, the colour of its bits."""

import math

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

import landscape

VALUES = {"conv1.weight": (3.0, 0.5), "block.conv.weight": (-1.0, 0.25), "attn.in_proj_weight": (7.0, 1.0), "fc": 2}
BITS = {"block.conv": "W4A8", "attn": 2, "attn.products": "W2A2"}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_every_layer_has_its_value_error_and_bits_where_one_can_hover():
    figure = landscape.plot_layers(VALUES, bits=BITS, quantity="Trace")
    bars = {bar.name: bar for bar in figure.data}
    assert list(bars) == ["2 bits", "4 bits", "not chosen"] and figure.layout.showlegend
    assert (bars["4 bits"].x, bars["4 bits"].y, bars["4 bits"].text) == (("block.conv",), (-1.0,), ("W4A8",))
    assert tuple(bars["4 bits"].error_y.array) == (0.25,) and bars["2 bits"].x == ("attn",)
    assert bars["not chosen"].x == ("conv1", "fc") and math.isnan(bars["not chosen"].error_y.array[1])
    assert figure.layout.xaxis.categoryarray == ("conv1", "block.conv", "attn", "fc")
    assert len({bar.marker.color for bar in figure.data}) == 3
    assert figure.layout.yaxis.type == "linear" and figure.layout.title.text == "Trace by layer"


def test_the_printed_figure_shows_the_same_in_the_order_of_the_layers():
    (ax,) = landscape.draw_layers(VALUES, bits=BITS, quantity="Trace").axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["conv1", "block.conv", "attn", "fc"]
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in ax.patches}
    assert heights == {0: 3.0, 1: -1.0, 2: 7.0, 3: 2.0} and ax.get_ylabel() == "Trace"
    assert {text.get_text() for text in ax.texts} == {"4/8", "2/2"}
    figure = landscape.plot_layers(VALUES, bits=BITS)
    assert {to_hex(bar.get_facecolor()) for bar in ax.patches} == {bar.marker.color for bar in figure.data}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["2 bits", "4 bits", "not chosen"]


def test_axes_of_the_caller_are_used_and_without_bits_there_is_no_legend():
    _, ax = plt.subplots()
    assert landscape.draw_layers({"a": 1.0, "b": 2.0}, ax, title="mine") is ax.figure and ax.get_legend() is None
    assert ax.get_title() == "mine" and not landscape.plot_layers({"a": 1.0, "b": 2.0}).layout.showlegend


def test_values_over_orders_of_magnitude_get_a_logarithmic_axis_unless_one_is_not_positive():
    wide = {"a": 1.0, "b": 100.0}
    for values, scale, expected in (
        (wide, "auto", "log"),
        (wide, "linear", "linear"),
        (wide | {"c": -1.0}, "auto", "linear"),
        ({"a": 1.0, "b": 2.0}, "log", "log"),
    ):
        assert landscape.draw_layers(values, scale=scale).axes[0].get_yscale() == expected
        assert landscape.plot_layers(values, scale=scale).layout.yaxis.type == expected


def test_what_is_not_finite_is_a_gap():
    figure = landscape.plot_layers({"a": math.nan, "b": 1.0})
    assert math.isnan(figure.data[0].y[0]) and figure.data[0].y[1] == 1.0
    landscape.draw_layers({"a": math.nan, "b": math.inf, "c": 1.0}, bits={"a": 2, "c": 3}).canvas.draw()


@pytest.mark.parametrize("function", [landscape.plot_layers, landscape.draw_layers])
def test_nothing_and_bits_of_unknown_layers_are_refused(function):
    with pytest.raises(ValueError, match="at least one layer"):
        function({})
    with pytest.raises(ValueError, match=r"every layer that bits name, got none for \['other'\]"):
        function({"a": 1.0}, bits={"other": 4})


def test_numbers_of_numpy_and_torch_are_numbers():
    figure = landscape.plot_layers({"a": np.float32(1), "b": torch.tensor(2.0)}, bits={"a": np.int64(4)})
    assert [list(bar.y) for bar in figure.data] == [[1.0], [2.0]] and list(figure.data[0].text) == ["W4A4"]


def test_bits_without_meaning_and_two_numbers_for_a_layer_are_refused():
    with pytest.raises(ValueError, match='must look like "W4A4".*got .4. for a'):
        landscape.plot_layers({"a": 1.0}, bits={"a": "4"})
    with pytest.raises(ValueError, match="one number per layer, got two for a"):
        landscape.plot_layers({"a": 1.0, "a.weight": 2.0})
