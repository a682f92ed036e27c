from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from landscape import load
from landscape.plotting import drawing_function, paper
from landscape.plotting.captions import BAND, wrapped
from landscape.plotting.levels import asinh_ticks, linear_levels, log_levels
from landscape.plotting.style import COLOURS
from landscape.plotting.values import gaps, is_log
from landscape.surfaces.axes import describe
from landscape.surfaces.grids import Line, Surface
from landscape.surfaces.survey import FAILED, INTERPOLATED, PENDING

RANDOM = {"kind": "random", "normalize": "filter"}
ABOUT = {"space": "float", "batchnorm": "fixed", "samples": 1024, "axes": [RANDOM, RANDOM]}
NAN, INF = float("nan"), float("inf")
plot_lines, draw_lines = (drawing_function("lines.lines", how) for how in ("plot", "draw"))
plot_surfaces, draw_surfaces = (drawing_function("surfaces.surfaces", how) for how in ("plot", "draw"))


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def line(scale=1.0, gaps=(), **about):
    alphas = torch.arange(-5, 6, dtype=torch.float64) / 5
    loss = scale * (0.01 + 10 * alphas**2)
    for where, gap in gaps:
        loss[where] = gap
    return Line(ABOUT | about, alphas, loss, 1 - alphas**2 / 2)


def surface(scale=1.0, gaps=(), **about):
    alphas, betas = torch.linspace(-1, 1, 9, dtype=torch.float64), torch.linspace(-2, 2, 9, dtype=torch.float64)
    loss = scale * (0.01 + 10 * alphas[:, None] ** 2 + betas[None, :] ** 2 + 0.5 * betas)  # not symmetric
    loss = loss + 0.1
    for where, gap in gaps:
        loss[where] = gap
    return Surface(ABOUT | about, alphas, betas, loss, torch.exp(-loss.abs()))


def sheets(figure):
    return [trace for trace in figure.data if trace.type == "surface"]


def text_of(figure):
    return " ".join([figure.layout.title.subtitle.text, *(note.text for note in figure.layout.annotations)])


def said(figure):
    """What a printed figure says beside its axes, on one line."""
    texts = [figure.get_suptitle(), figure.get_supxlabel()]
    texts += [text for ax in figure.axes for text in (ax.get_title(), *(note.get_text() for note in ax.texts))]
    return " ".join(" ".join(texts).split())


def bar_of(figure):
    return next(ax for ax in figure.axes if ax.get_label() == "<colorbar>")


def ax_of(figure):
    return figure.axes[0]


def contour_levels(ax):
    return [list(drawn.levels) for drawn in ax.collections]


# interactive curves


def test_interactive_curves_have_their_colours_in_order_and_a_marked_centre():
    figure = plot_lines({"FP32": line(), "W4A4": line(2.0)})
    curves, centres = figure.data[::2], figure.data[1::2]
    assert [curve.name for curve in curves] == ["FP32", "W4A4"] and figure.layout.showlegend
    assert [curve.line.color for curve in curves] == list(COLOURS[:2])
    assert curves[0].marker.symbol != curves[1].marker.symbol
    assert [(point.x[0], point.y[0]) for point in centres] == [(0, pytest.approx(0.01)), (0, pytest.approx(0.02))]
    np.testing.assert_array_equal(curves[1].y, line(2.0).loss.numpy())
    assert figure.layout.xaxis.title.text == "Step along the direction, in filter norms"


def test_interactive_curve_alone_has_no_legend_and_says_what_was_measured():
    figure = plot_lines({"": line()}, title="mine")
    assert not figure.layout.showlegend and figure.layout.title.text == "mine"
    about = "random direction in filter norms, span 1 · float weights · BatchNorm statistics fixed · 1,024 samples"
    assert figure.layout.title.subtitle.text == about


def test_interactive_curve_leaves_gaps_and_counts_them():
    figure = plot_lines({"A": line(), "B": line(gaps=[(0, NAN), (3, INF), (4, -INF)])}, scale="linear")
    assert list(np.flatnonzero(np.isnan(figure.data[2].y))) == [0, 3, 4] and not figure.data[2].connectgaps
    assert text_of(figure).endswith("<br>B: 3 of 11 points not drawn (NaN or infinite)")


def test_interactive_log_curve_takes_values_below_zero_as_gaps():
    figure = plot_lines({"A": line(gaps=[(0, 0.0), (1, -1.0)])}, scale="log")
    assert list(figure.layout.yaxis.ticktext) == [f"{tick:g}" for tick in figure.layout.yaxis.tickvals]
    assert {1.0, 10.0} <= {*figure.layout.yaxis.tickvals}
    assert figure.layout.yaxis.type == "log" and np.isnan(figure.data[0].y[:2]).all()
    assert "2 of 11 points not drawn (NaN, infinite or ≤ 0)" in text_of(figure)


def test_different_spaces_are_said_with_the_names():
    figure = plot_lines({"FP32": line(), "W4A4": line(space="quantized"), "W2A2": line(space="quantized")})
    assert "float weights (FP32) · quantized weights (W4A4, W2A2)<br>BatchNorm" in text_of(figure)


def test_interactive_accuracy_has_its_own_range_and_values():
    figure = plot_lines({"A": line()}, value="accuracy")
    np.testing.assert_array_equal(figure.data[0].y, line().accuracy.numpy())
    assert figure.layout.yaxis.range == (-0.02, 1.02) and figure.layout.yaxis.title.text == "Accuracy"


# interactive surfaces


def test_interactive_surfaces_share_colours_heights_and_camera():
    figure = plot_surfaces({"A": surface(), "B": surface(3.0)}, scale="linear")
    scenes = [figure.layout.scene, figure.layout.scene2]
    low, high = float(surface().loss.min()), float(surface(3.0).loss.max())
    low = min(low, float(surface(3.0).loss.min()))
    assert {sheet.coloraxis for sheet in sheets(figure)} == {"coloraxis"}
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (pytest.approx(low), pytest.approx(high))
    assert scenes[0].zaxis.range == scenes[1].zaxis.range and scenes[0].camera == scenes[1].camera
    assert scenes[0].zaxis.range[0] < low and scenes[0].zaxis.range[1] >= high
    assert sheets(figure)[0].contours.z == sheets(figure)[1].contours.z and sheets(figure)[0].contours.z.project.z
    assert [note.text.split("<br>")[0] for note in figure.layout.annotations] == ["<b>A</b>", "<b>B</b>"]


def test_interactive_surface_puts_alpha_on_x():
    figure, given = plot_surfaces({"": surface()}, scale="linear"), surface()
    sheet = sheets(figure)[0]
    np.testing.assert_array_equal(sheet.x, given.alphas)
    np.testing.assert_array_equal(sheet.y, given.betas)
    assert sheet.z[7][2] == given.loss[2, 7]
    # plotly.js looks heights up by [y, x] and custom data by [x, y] (seen in a browser)
    assert tuple(sheet.customdata[2][7]) == (given.loss[2, 7], given.accuracy[2, 7])
    assert figure.layout.scene.yaxis.title.text == "Step along direction 2<br>in filter norms"


def test_interactive_surface_marks_the_centre_and_plumbs_it_to_the_floor():
    figure = plot_surfaces({"": surface()}, scale="linear")
    centre = next(trace for trace in figure.data if trace.type == "scatter3d")
    assert tuple(centre.x) == tuple(centre.y) == (0, 0)
    assert tuple(centre.z) == (float(surface().loss[4, 4]), figure.layout.scene.zaxis.range[0])


def test_interactive_log_surface_draws_log10_with_ticks_in_units_of_the_loss():
    given = surface(gaps=[((0, 0), NAN), ((0, 1), INF), ((8, 8), 0.0)])
    figure = plot_surfaces({"A": given}, scale="log")
    heights = sheets(figure)[0].z
    assert heights[3][5] == pytest.approx(np.log10(float(given.loss[5, 3])))
    assert np.isnan([heights[0][0], heights[1][0], heights[8][8]]).all() and np.isnan(heights).sum() >= 3
    axis = figure.layout.scene.zaxis
    np.testing.assert_allclose(10 ** np.array(axis.tickvals), [float(text) for text in axis.ticktext], rtol=1e-5)
    assert "points not drawn (NaN, infinite or ≤ 0)" in text_of(figure)


def test_interactive_accuracy_surface_runs_from_0_to_1():
    figure = plot_surfaces({"A": surface()}, value="accuracy")
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert figure.layout.coloraxis.colorbar.title.text == "Accuracy"


@pytest.mark.parametrize(("count", "rows"), [(3, 1), (4, 2), (5, 2)])
def test_more_than_three_networks_fill_a_second_row(count, rows):
    given = {f"network {number}": surface(1.0 + number) for number in range(count)}
    scenes = [getattr(plot_surfaces(given).layout, f"scene{number or ''}") for number in (0, *range(2, count + 1))]
    assert len({scene.domain.y for scene in scenes}) == rows
    panels = [ax for ax in draw_surfaces(given).axes if ax.get_label() != "<colorbar>"]
    assert len(panels) == count and len({ax.get_subplotspec().rowspan.start for ax in panels}) == rows


# on paper


def test_paper_curves_have_colours_dashes_labels_and_a_marked_centre():
    ax = ax_of(draw_lines({"FP32": line(), "W4A4": line(2.0)}, scale="log"))
    curves = [artist for artist in ax.lines if len(artist.get_xdata()) == 11]
    centres = [artist for artist in ax.lines if len(artist.get_xdata()) == 1]
    assert [to_hex(curve.get_color()).upper() for curve in curves] == list(COLOURS[:2])
    assert curves[0].is_dashed() != curves[1].is_dashed() and curves[0].get_marker() != curves[1].get_marker()
    assert [centre.get_ydata()[0] for centre in centres] == pytest.approx([0.01, 0.02])
    assert ax.get_yscale() == "log" and ax.get_xlabel() == "Step along the direction, in filter norms"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["FP32", "W4A4"]


def test_paper_curve_marks_points_between_gaps():
    ax = ax_of(draw_lines({"": line(gaps=[(2, NAN), (4, INF)])}))
    curve = ax.lines[1]
    assert list(np.flatnonzero(np.isnan(curve.get_ydata()))) == [2, 4] and 3 in curve.get_markevery()
    assert ax.get_legend() is None


def test_paper_keeps_the_axes_and_labels_that_it_is_given():
    _, axes = plt.subplots(1, 2)
    axes[0].set_xlabel("mine")
    assert draw_lines({"": line()}, axes[0]) is axes[0].figure and axes[0].get_xlabel() == "mine"
    assert axes[0].get_ylabel() == "Loss"
    axes[1].set_ylabel("mine")
    assert draw_surfaces({"": surface()}, axes[1]) is axes[1].figure and axes[1].get_ylabel() == "mine"
    assert axes[1].get_xlabel() == "Step along direction 1, in filter norms" and len(plt.get_fignums()) == 1


def test_contours_are_logarithmic_labelled_and_crossed_at_the_centre():
    ax = ax_of(draw_surfaces({"": surface()}))
    filled, drawn = contour_levels(ax)
    assert filled == log_levels(float(surface().loss[surface().loss > 0].min()), float(surface().loss.max()), 9)
    assert set(drawn) <= set(filled) and {text.get_text() for text in ax.texts} <= {f"{level:g}" for level in drawn}
    assert ax.texts and ax.lines[-1].get_marker() == "+" and ax.lines[-1].get_xydata().tolist() == [[0, 0]]
    assert ax.get_xlim() == (-1, 1) and ax.get_ylim() == (-2, 2)


def test_contours_leave_gaps():
    ax = ax_of(draw_surfaces({"": surface(gaps=[((slice(0, 3), slice(0, 3)), INF)])}))
    inside = [path.contains_point((-0.9, -1.9)) for path in ax.collections[0].get_paths()]
    assert not any(inside)


def test_given_levels_are_used_as_they_are():
    filled, drawn = contour_levels(ax_of(draw_surfaces({"": surface()}, levels=[1, 2, 5])))
    assert drawn == [1, 2, 5] and filled == [1, 2, 5]


@pytest.mark.parametrize("kind", ["contour", "3d"])
def test_paper_panels_share_levels_and_one_colour_bar(kind):
    figure = draw_surfaces({"A": surface(), "B": surface(0.01)}, kind=kind)
    panels = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    assert [ax.get_title() for ax in panels] == ["A", "B"] and len(figure.axes) == 3
    assert figure.get_figwidth() == 6.75 and bar_of(figure).get_ylabel() == "Loss"
    if kind == "contour":
        assert contour_levels(panels[0])[0] == contour_levels(panels[1])[0]
    else:
        assert panels[0].get_zlim() == panels[1].get_zlim()
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in panels] == [
        ("Direction 1", "Direction 2"),
        ("Direction 1", "" if kind == "contour" else "Direction 2"),
    ]
    assert "random directions in filter norms, span 1 and 2" in said(figure)
    sizes = [text.get_fontsize() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]
    assert min(sizes) >= 7


def test_paper_accuracy_has_linear_levels_from_0_to_1():
    ax = ax_of(draw_surfaces({"": surface()}, value="accuracy"))
    assert contour_levels(ax)[0] == pytest.approx([number / 10 for number in range(11)])


def test_paper_draws_flat_and_negative_surfaces():
    flat = surface()
    flat.loss[:] = 0.7
    draw_surfaces({"": flat}).canvas.draw()
    negative = surface(-1.0)
    filled, _ = contour_levels(ax_of(draw_surfaces({"": negative})))
    assert np.ptp(np.diff(filled)) == pytest.approx(0) and filled[0] <= negative.loss.min()


def test_paper_changes_no_setting_and_saves_the_same_bytes_when_drawn_again(tmp_path):
    before = dict(matplotlib.rcParams)
    figure = draw_surfaces({"A": surface()})
    pdf, png = paper.save(figure, tmp_path / "deep" / "picture.v2")
    first = pdf.read_bytes(), png.read_bytes()
    assert (pdf.name, png.name) == ("picture.v2.pdf", "picture.v2.png")
    again = paper.save(draw_surfaces({"A": surface()}), pdf)
    assert tuple(path.read_bytes() for path in again) == first
    assert b"CreationDate" not in first[0] and b"/Type3" not in first[0]
    assert dict(matplotlib.rcParams) == before and figure.get_figwidth() == 3.25


# both


@pytest.mark.parametrize("draw", [plot_lines, draw_lines])
def test_curves_without_a_finite_value_say_so(draw):
    drawn = draw({"A": line(gaps=[(slice(None), NAN)])})
    texts = text_of(drawn) if draw is plot_lines else " ".join(text.get_text() for text in ax_of(drawn).texts)
    assert "finite" in texts and "loss" in texts


@pytest.mark.parametrize("kind", ["contour", "3d"])
def test_surfaces_without_a_finite_value_say_so(kind):
    empty = surface(gaps=[(slice(None), INF)])
    figure = plot_surfaces({"A": empty})
    assert "no loss can be drawn" in text_of(figure) and not sheets(figure)
    both = draw_surfaces({"A": empty, "B": surface()}, kind=kind)
    both.canvas.draw()
    assert [[text.get_text() for text in ax.texts if "finite" in text.get_text()] for ax in both.axes[:2]] == [
        ["no finite loss"],
        [],
    ]
    draw_surfaces({"A": empty}, kind=kind).canvas.draw()


@pytest.mark.parametrize("draw", [plot_lines, draw_lines])
def test_wrong_settings_are_named(draw):
    with pytest.raises(
        ValueError, match='value must be one of "loss", "accuracy", which is what there is, got \'error\''
    ):
        draw({"": line()}, value="error")
    has = 'one of "loss", "accuracy", "stderr", "top5", which is what \'B\' has, got \'calibration\''
    with pytest.raises(ValueError, match=has):
        draw({"A": richer(line(), "top5", "calibration"), "B": richer(line(), "top5")}, value="calibration")
    with pytest.raises(ValueError, match="which is what 'B' has, got 'stderr'"):
        draw({"A": richer(line()), "B": line()}, value="stderr")
    with pytest.raises(ValueError, match='scale must be "auto" or "linear" for value="accuracy"'):
        draw({"": line()}, value="accuracy", scale="log")
    with pytest.raises(ValueError, match="nothing to draw"):
        draw({})
    with pytest.raises(ValueError, match="kind must be one of 'contour', '3d', got '4d'"):
        draw_surfaces({"": surface()}, kind="4d")
    with pytest.raises(ValueError, match="scale must be one of 'auto', 'linear', 'log', got 'symlog'"):
        draw({"": line()}, scale="symlog")


GRADIENT, GIVEN, NETWORK = {"kind": "gradient"}, {"kind": "given"}, {"kind": "network"}


def indexed(kind, index):
    return {"kind": kind, "index": index}


AXES = [
    (
        [{"kind": "random", "normalize": "layer"}] * 2,
        ["Step along direction 1, in layer norms", "Step along direction 2, in layer norms"],
    ),
    ([NETWORK, GIVEN], ["Step towards the first other network (at 1)", "Step along given direction 2"]),
    ([indexed("eigenvector", i) for i in (1, 2)], ["Step along eigenvector 1", "Step along eigenvector 2"]),
    (
        [{"kind": "random", "normalize": "none"}, GRADIENT],
        ["Step along direction 1, not normalised", "Step along the gradient, in learning rates"],
    ),
    (
        [indexed("principal component", i) for i in (1, 2)],
        ["Step along principal component 1", "Step along principal component 2"],
    ),
    ([], ["Step along direction 1", "Step along direction 2"]),
]


@pytest.mark.parametrize(("axes", "labels"), AXES)
def test_axes_say_which_direction(axes, labels):
    ax = ax_of(draw_surfaces({"": surface(axes=axes)}))
    assert [ax.get_xlabel(), ax.get_ylabel()] == labels


@pytest.mark.parametrize(("axes", "labels"), AXES)
def test_files_of_an_earlier_version_are_read_with_the_axes_that_they_put_in_words(axes, labels, tmp_path):
    old = surface()
    words = describe(axes)["directions"] if axes else "walked by hand"
    about = {name: value for name, value in old.about.items() if name != "axes"} | {"directions": words}
    again = load(replace(old, about=about).save(tmp_path / "old.nc"))
    ax = ax_of(again.draw())
    assert [ax.get_xlabel(), ax.get_ylabel()] == labels and again.about["directions"] == words


@pytest.mark.parametrize(
    ("axis", "label"),
    [
        (NETWORK, "Step towards the other network (at 1)"),
        (indexed("eigenvector", 1), "Step along eigenvector 1"),
        (GRADIENT, "Step along the gradient, in learning rates"),
        (GIVEN, "Step along the given direction"),
    ],
)
def test_a_line_says_its_direction(axis, label):
    assert ax_of(draw_lines({"": line(axes=[axis])})).get_xlabel() == label
    assert plot_lines({"": line(axes=[axis])}).layout.xaxis.title.text == label


def test_panels_name_directions_briefly_and_the_caption_says_each_unit():
    given = {name: surface(axes=[RANDOM, GRADIENT], seed=3) for name in "AB"}
    figure, print_ = plot_surfaces(given), draw_surfaces(given, kind="3d")
    assert [figure.layout.scene2[axis].title.text for axis in ("xaxis", "yaxis")] == ["Direction 1", "Gradient"]
    assert [print_.axes[1].get_xlabel(), print_.axes[1].get_ylabel()] == ["Direction 1", "Gradient"]
    words = "direction 1 in filter norms and the gradient in learning rates, seed 3, span 1 and 2"
    assert words in said(print_) and words in text_of(figure)
    plain = draw_surfaces({"A": surface(axes=[NETWORK, indexed("principal component", 2)])}, kind="3d")
    assert [plain.axes[0].get_xlabel(), plain.axes[0].get_ylabel()] == ["First network", "Component 2"]


def test_results_along_different_directions_are_named_each():
    top = line(axes=[indexed("eigenvector", 1)])
    for found, label in (({"A": line(), "B": top}, "Step along each one's direction"), ({"B": top}, "eigenvector 1")):
        figure, ax = plot_lines(found), ax_of(draw_lines(found))
        assert figure.layout.xaxis.title.text.endswith(label) and ax.get_xlabel().endswith(label)
    both = {"A": line(), "B": top}
    for words in (text_of(plot_lines(both)), said(draw_lines(both))):
        assert "random direction in filter norms, span 1 (A)" in words and "eigenvector 1, span 1 (B)" in words
    planes = {"A": surface(), "B": surface(axes=[indexed("eigenvector", i) for i in (1, 2)])}
    maps, scenes = plot_surfaces(planes, kind="contour").layout, plot_surfaces(planes).layout
    for layout, axes in ((maps, ("yaxis", "yaxis2")), (scenes, ())):
        assert [layout[name].title.text for name in axes] in ([], ["Direction 2", "Eigenvector 2"])
    assert (scenes.scene.yaxis.title.text, scenes.scene2.yaxis.title.text) == ("Direction 2", "Eigenvector 2")
    assert [ax.get_ylabel() for ax in draw_surfaces(planes).axes[:2]] == ["Direction 2", "Eigenvector 2"]
    hover = [sheet.hovertemplate for sheet in sheets(plot_surfaces(planes))]
    assert "Direction 1" in hover[0] and "Eigenvector 2" in hover[1] and "alpha" not in "".join(hover)


# more than the loss


def richer(result, *metrics, status=None):
    """Add a standard error, metrics (the first one negative in part), and a status."""
    found = {name: result.loss * (number + 2) - 3 for number, name in enumerate(metrics)}
    return replace(result, stderr=0.1 + result.loss / 4, metrics=found, status=status)


@pytest.mark.parametrize(("value", "label"), [("top5", "top5"), ("stderr", "Standard error")])
def test_metrics_and_standard_errors_are_drawn_as_they_are(value, label):
    curve, plane = richer(line(), "top5"), richer(surface(), "top5")
    expected = [result.stderr if value == "stderr" else result.metrics[value] for result in (curve, plane)]
    figure, ax = curve.plot(value=value, scale="linear"), ax_of(curve.draw(value=value))
    np.testing.assert_array_equal(figure.data[0].y, expected[0])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), expected[0])
    assert figure.layout.yaxis.title.text == ax.get_ylabel() == label
    assert len(figure.data) == 2 and not ax.collections  # a band is of the loss alone
    sheet = sheets(plane.plot(value=value, scale="linear"))[0]
    np.testing.assert_array_equal(sheet.z, expected[1].T)
    filled, _ = contour_levels(ax_of(plane.draw(value=value)))
    low, high = float(expected[1].min()), float(expected[1].max())
    assert filled == (log_levels(low, high, 9) if value == "stderr" else linear_levels(low, high))
    assert bar_of(draw_surfaces({"A": plane, "B": plane}, value=value)).get_ylabel() == label
    assert ("stderr of the loss's difference to the centre" in said(ax.figure)) == (value == "stderr")


def test_metrics_of_several_networks_share_limits():
    figure = plot_surfaces({"A": richer(surface(), "m"), "B": richer(surface(3.0), "m")}, value="m")
    both = torch.cat([richer(surface(scale), "m").metrics["m"] for scale in (1.0, 3.0)])
    axis = figure.layout.coloraxis
    assert (axis.cmin, axis.cmax, axis.colorbar.title.text) == (float(both.min()), float(both.max()), "m")


def test_hovering_tells_all_that_was_measured():
    curve, plane = richer(line(), "m"), richer(surface(), "m")
    assert curve.plot().data[0].customdata[3].tolist() == [
        float(part[3]) for part in (curve.loss, curve.accuracy, curve.stderr, curve.metrics["m"])
    ]
    sheet = sheets(plane.plot())[0]
    assert sheet.customdata[2][7][3] == plane.metrics["m"][2, 7] and "m %{customdata[3]:.4g}" in sheet.hovertemplate


@pytest.mark.parametrize("log", [False, True])
def test_a_band_is_one_standard_error_wide_in_the_colour_of_its_curve(log):
    given = {"A": line(), "B": richer(line(2.0, gaps=[(3, NAN), (4, INF)]))}
    loss = np.where(given["B"].loss.isfinite().numpy(), given["B"].loss.numpy(), NAN)
    low, high = loss - given["B"].stderr.numpy(), loss + given["B"].stderr.numpy()
    low, scale = np.maximum(low, np.nanmin(loss)) if log else low, {"scale": "log" if log else "linear"}
    figure, ax = plot_lines(given, **scale), ax_of(draw_lines(given, **scale))
    (band,) = (trace for trace in figure.data if trace.fill)
    assert band.fillcolor == "rgba(213, 94, 0, 0.18)" and band.legendgroup == "B" and not band.showlegend
    seen = np.isfinite(loss)
    for edge in (low, high):
        assert {*zip(given["B"].alphas[seen].tolist(), edge[seen], strict=True)} <= {*zip(band.x, band.y, strict=True)}
    assert np.isnan(band.y).sum() == 2  # a run on either side of the gap, closed by itself
    assert np.nanmin(band.y) == np.nanmin(low) and np.nanmax(band.y) == np.nanmax(high)
    (area,) = ax.collections
    corners = np.concatenate([path.vertices for path in area.get_paths()])
    assert len(area.get_paths()) == 2 and to_hex(area.get_facecolor()[0]).upper() == COLOURS[1]
    assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((np.nanmin(low), np.nanmax(high)))
    assert BAND in text_of(figure) and BAND in said(ax.figure)


def test_no_band_without_an_error_to_state():
    unknown = richer(line())
    unknown.stderr[:] = NAN
    for given in (line(), unknown):
        figure, ax = given.plot(), ax_of(given.draw())
        assert not [trace for trace in figure.data if trace.fill] and not ax.collections
        assert BAND not in text_of(figure) + said(ax.figure)


# what is missing or interpolated


def status_of(result, *marks):
    status = torch.ones(result.loss.shape, dtype=torch.int8)
    for where, kind in marks:
        status[where] = kind
    return status


def test_gaps_say_whether_they_failed_or_were_not_reached():
    kinds = [((0, slice(None)), PENDING), ((3, 4), FAILED), ((3, 5), FAILED)]
    given = surface(gaps=[(where, NAN) for where, _ in kinds])
    given = richer(given, status=status_of(given, *kinds))
    told = "9 of 81 points not yet measured, 2 of 81 points failed (NaN, infinite or an error)"
    assert told in text_of(given.plot()) and told in said(given.draw())
    panels = draw_surfaces({"A": surface(), "B": given})
    assert f"B: {told}" in said(panels)
    curve = line(gaps=[(0, NAN), (1, INF)])
    curve = richer(curve, status=status_of(curve, (0, PENDING), (1, FAILED)))
    told = "1 of 11 points not yet measured, 1 of 11 points failed (NaN, infinite or an error)"
    assert told in text_of(curve.plot()) and told in said(curve.draw())
    below = richer(line(gaps=[(2, -1.0)]), status=status_of(line()))
    assert "1 of 11 points not drawn (NaN, infinite or ≤ 0)" in text_of(below.plot(scale="log"))


def test_interpolation_is_said_with_its_error():
    about = {"evaluated": 60, "interpolation_error": 0.0123, "interpolation_error_of": "log-loss"}
    given = surface(**about, interpolation_errors={"accuracy": 0.034, "m": 5.6})
    given = richer(given, "m", status=status_of(given, ((0, slice(None)), INTERPOLATED)))
    given.stderr[0] = NAN
    start = "interpolated from 60 measured points"
    for value, error in (("loss", ", error ≤ 1.2 % of the log-loss range"), ("accuracy", ", error ≤ 0.034")):
        assert start + error in text_of(given.plot(value=value))
        assert start + error in said(given.draw(value=value))
    assert f"{start}, error ≤ 5.6" in text_of(given.plot(value="m"))
    assert "9 of 81 points interpolated, without a standard error" in text_of(given.plot(value="stderr"))
    assert "error ≤" not in text_of(given.plot(value="stderr"))
    both = text_of(plot_surfaces({"A": surface(), "B": given}))
    assert f"{start}, error ≤ 1.2 % of the log-loss range (B)" in both.replace("<br>", " ")


def test_captions_break_between_phrases():
    assert wrapped("one two · three four · five", 12) == "one two\nthree four\nfive"
    assert wrapped("one two · three four · five", 24) == "one two · three four\nfive"
    assert wrapped("one two three four", 9) == "one two\nthree\nfour"


@pytest.mark.parametrize(("low", "high"), [(1e-9, 60), (0.002, 36), (0.6, 3.9), (0.9, 6.9), (2.301, 2.305), (1, 10)])
def test_log_levels_enclose_the_range(low, high):
    levels = log_levels(low, high, 9)
    assert 0 < levels[0] <= low and levels[-1] >= high and 5 <= len(levels) <= 15
    assert levels == sorted(set(levels))


def test_linear_levels_and_gap_counts():
    assert linear_levels(0, 1) == pytest.approx([number / 10 for number in range(11)])
    assert linear_levels(-3, 17)[0] == -4 and gaps(np.array([1.0, 2.0])) == ""


def test_ticks_of_an_axis_that_is_linear_near_zero_are_round_and_stay_out_of_its_linear_part():
    ticks = asinh_ticks(0.1, -2.0, 400.0)
    assert [tick for tick in ticks if f"{tick:e}".startswith(("1", "-1", "0")) and abs(tick) != 0.1] == [
        -1,
        0,
        1,
        10,
        100,
    ]
    assert (ticks >= -2).all() and (ticks <= 400).all() and not ((ticks != 0) & (abs(ticks) < 0.1)).any()


# the scale


@pytest.mark.parametrize(
    ("values", "value", "log"),
    [
        ([1.0, 30.0], "loss", False),
        ([1.0, 31.0], "loss", True),
        ([1.0, 31.0, NAN, INF], "stderr", True),
        ([0.0, 31.0], "loss", False),
        ([-1.0, 31.0], "loss", False),
        ([1.0, 31.0], "accuracy", False),
        ([1.0, 31.0], "a metric", False),
        ([NAN], "loss", False),
    ],
)
def test_a_scale_is_logarithmic_where_a_loss_spans_more_than_a_factor_of_30(values, value, log):
    assert is_log("auto", [np.array(values)], value) == log
    assert is_log("log", [np.array(values)], "loss") and not is_log("linear", [np.array(values)], value)


@pytest.mark.parametrize(("scale", "log"), [("auto", True), ("linear", False), ("log", True)])
def test_both_back_ends_decide_alike_on_a_scale(scale, log):
    steep, flat = line(), line()
    flat.loss[:] = 1 + flat.alphas**2
    assert (plot_lines({"": steep}, scale=scale).layout.yaxis.type == "log") == log
    assert (ax_of(draw_lines({"": steep}, scale=scale)).get_yscale() == "log") == log
    heights = sheets(plot_surfaces({"": surface()}, scale=scale))[0].z
    np.testing.assert_allclose(heights, (surface().loss.log10() if log else surface().loss).T, rtol=1e-12)
    filled, _ = contour_levels(ax_of(draw_surfaces({"": surface()}, scale=scale)))
    assert (np.ptp(np.diff(filled)) < 1e-9) != log
    assert (
        plot_lines({"": flat}).layout.yaxis.type == "linear" and ax_of(draw_lines({"": flat})).get_yscale() == "linear"
    )
    both = plot_lines({"steep": steep, "flat": flat})
    assert both.layout.yaxis.type == "log"  # one axis for all


@pytest.mark.parametrize("kind", ["contour", "3d"])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_interactive_surfaces_take_kinds_and_levels_as_printed_ones_do(kind, scale):
    levels = [0.2, 1.0, 3.0]
    figure = plot_surfaces({"A": surface(), "B": surface(2.0)}, kind=kind, levels=levels, scale=scale, title="mine")
    assert figure.layout.title.text == "mine"
    assert list(figure.layout.coloraxis.colorbar.ticktext) == ["0.2", "1", "3"]
    lines = [trace for trace in figure.data if getattr(trace, "mode", "") == "lines"]
    assert len(lines) == 2 and all(np.isnan(trace.x).any() for trace in lines)
    filled, _ = contour_levels(ax_of(draw_surfaces({"": surface()}, levels=levels, scale=scale)))
    assert filled == levels
    x, y = lines[0].x, lines[0].y  # the contour at 3 of this surface, a level after the other
    last = np.flatnonzero(np.isnan(x))[-2] + 1
    value = 0.11 + 10 * x[last:-1] ** 2 + y[last:-1] ** 2 + 0.5 * y[last:-1]
    assert np.abs(value - 3).max() < 0.7  # interpolated between nine points a side


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": [1.0]}, "levels must be two or more increasing numbers"),
        ({"levels": [2.0, 1.0]}, "levels must be two or more increasing numbers"),
        ({"levels": [0.0, 1.0], "scale": "log"}, 'levels must be > 0 on a logarithmic scale.*scale="linear"'),
    ],
)
@pytest.mark.parametrize("draw", [plot_surfaces, draw_surfaces])
def test_levels_that_are_none_are_refused(draw, options, message):
    with pytest.raises(ValueError, match=message):
        draw({"": surface()}, **options)


def test_axes_of_the_caller_hold_one_surface_flat_or_in_3d():
    figure = plt.figure()
    flat, deep = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2, projection="3d")
    assert surface().draw(flat) is figure and surface().draw(deep, kind="3d") is figure and flat.texts
    with pytest.raises(ValueError, match='ax must have projection="3d" for kind="3d" and not otherwise'):
        surface().draw(flat, kind="3d")
    with pytest.raises(ValueError, match="ax must be None for several surfaces"):
        draw_surfaces({"A": surface(), "B": surface()}, flat)
    part = plt.figure().subfigures(1, 2)[0]
    whole = line().draw(part.add_subplot())
    assert isinstance(whole, matplotlib.figure.Figure) and whole is part.figure


def test_options_that_a_picture_does_not_have_are_named():
    with pytest.raises(TypeError, match="Line.plot takes value, scale, title, got log"):
        line().plot(log=True)
    with pytest.raises(TypeError, match="Surface.draw takes value, scale, kind, levels, title, got log"):
        surface().draw(log=True)
