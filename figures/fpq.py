"""The figures of FPQ (Pang and Cai, 2025): noise on features, and distillation of them, against plain LSQ.

The paper has ResNet-18 on CIFAR-10 and asymmetric LSQ with a step per channel. Here it is the profile's family, whose
LSQ is symmetric with a step per layer; FPQ adds p = 0.1 and CSD with weight 1.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray
from scipy import stats
from torch import nn

import landscape
import saq_core

from .catalogue import Figure
from .drawing import MARKERS, METHODS, curve, dots, legend, note, panels, told, whole_epochs
from .features import DRAWS, SHARE, distance, features, gradient_norm, noise, noisy_layers, relative_sizes, scatter
from .profiles import Profile
from .study import ALPHA, mean_and_error

NETWORKS = ("fp32", "sgd W4A4", "sgd W2A4", "fpq W4A4", "fpq W2A4")
LABELS = {"fp32": "FP32", "sgd": "LSQ", "fpq": "FPQ"}
TWO = ("sgd", "fpq")
PAIRED = ("W4A4", "W2A4")
STATISTICS = ("low", "mean", "high")
CHANNELS = 32  # of the layer whose input is shown, as in the paper
NOISES = {  # where the noise is -> label, colour, dash
    "none": ("No noise", "#777777", ":"),
    "features": ("On features", "#0072B2", "-"),
    "weights": ("On weights", "#D55E00", "--"),
    "weights_alike": ("On weights, of the features' relative size", "#009E73", "-."),
}


def compute_variance(profile: Profile) -> xarray.Dataset:
    """Measure how much the logits scatter under Gaussian noise on the images.

    Ours: noise of 0.1 of the images' standard deviation, 100 draws (the paper gives neither), on images of the probe;
    and the variance relative to that of the logits between images, because it goes with the square of their scale.
    """

    def found(name: str, seed: int) -> tuple[float, float]:
        model = _network(profile, name, seed)
        return scatter(model, profile.measured(model)[0])

    values = np.array([[found(name, seed) for seed in profile.seeds] for name in NETWORKS])
    columns = {"variance": values[..., 0], "relative": values[..., 1]}
    return profile.dataset(columns, network=NETWORKS, seed=profile.seeds)


def draw_variance(data: xarray.Dataset):
    """Draw both variances, a network on each row."""
    figure, axes = panels(2, 1.9, sharey=True)
    share = 100 * data.relative
    for ax, values in zip(axes, (data.variance, share), strict=True):
        _rows(ax, values)
        ax.set_xlim(0, 1.05 * float(values.max()))
    axes[0].set(title="Variance of the logits under noise", xlabel="Variance, logits²")
    axes[1].set(title="Share of their variance between images", xlabel="Share, %")
    note(figure, told(data, f"{DRAWS} draws of {SHARE:g} σ"))
    return figure


def over_training(
    profile: Profile,
    variant: str,
    bits: str,
    seed: int,
    epochs: list[int],
    measure: Callable[[nn.Module], dict[str, float]],
    under: Callable[[nn.Module], AbstractContextManager[None]] = nullcontext,
) -> dict[str, list[float]]:
    """Train a network as `Profile.network` does, `under` a noise; return what is measured after these epochs."""
    chosen = profile.experiment(variant, bits)
    options: dict[str, Any] = {"quantizer": chosen.quantizer, "per_channel": chosen.per_channel}
    model = saq_core.quantize(profile.network("base", None, seed), bits, **options)
    saq_core.calibrate(model, profile.data)
    rows: list[dict[str, float]] = []

    def note(epoch: int) -> None:
        if epoch in epochs:
            rows.append(measure(model))

    with under(model):
        note(0)
        saq_core.train(model, profile.data, profile.recipe(chosen, seed), on_epoch=lambda state: note(state.epoch))
    return {name: [row[name] for row in rows] for name in rows[0]}


def epochs_of(profile: Profile) -> list[int]:
    """Return some epochs, evenly from 0 (before) to the last: 6 in the cpu profile, 2 in smoke."""
    last = dict(profile.changes).get("epochs", profile.experiment("sgd", "W4A4").recipe.epochs)
    return sorted(set(np.linspace(0, last, max(2, profile.points // 4)).round().astype(int).tolist()))


def compute_gradients(profile: Profile) -> xarray.Dataset:
    """Measure the gradient of the weights under noise on features and under noise on weights, over training.

    Ours: the bits; the noise is uniform, half a step to either side, on the input or on the weights of every
    convolution with a quantized input, without gates; the norm is over the weights of convolutions and linear layers,
    of the loss on images of the probe as one batch in training mode, mean of 4 draws. The paper's "over training" may
    mean either: LSQ's trajectory, with each noise added for the measurement alone, or (at 4 bits) a training under each
    noise. Half a step is more of a weight than of a feature; so there is noise on weights of the features' relative
    size, too.
    """

    def all_norms(model: nn.Module) -> dict[str, float]:
        x, y = profile.measured(model)
        feature, weight = np.mean(list(relative_sizes(model, x).values()), 0)
        norms = {kind: gradient_norm(model, x, y, kind) for kind in NOISES}
        return norms | {"size_features": feature, "size_weights": weight}

    def own_norm(model: nn.Module) -> dict[str, float]:
        return {"own": gradient_norm(model, *profile.measured(model))}  # the training's noise is in it

    epochs, seeds = epochs_of(profile), profile.seeds
    rows = [[over_training(profile, "sgd", bits, seed, epochs, all_norms) for seed in seeds] for bits in PAIRED]
    columns = {name: [[one[name] for one in row] for row in rows] for name in rows[0][0]}
    found = profile.dataset(columns, bits=PAIRED, seed=seeds, epoch=epochs)
    for kind in ("features", "weights"):
        own = [over_training(profile, "sgd", "W4A4", s, epochs, own_norm, partial(noise, kind))["own"] for s in seeds]
        found[f"own_{kind}"] = (("seed", "epoch"), np.array(own))
    return found


def draw_gradients(data: xarray.Dataset):
    """Draw the norms on one trajectory at both numbers of bits, and in trainings of their own."""
    figure, axes = panels(3, 2.4)
    shown = {f"{bits}, LSQ's trajectory": data.sel(bits=bits)[list(NOISES)] for bits in PAIRED}
    own = data[["own_features", "own_weights"]].rename(own_features="features", own_weights="weights")
    shown[f"{PAIRED[0]}, trained under the noise"] = own
    for ax, (title, norms) in zip(axes, shown.items(), strict=True):
        for kind in norms:
            label, colour, dash = NOISES[kind]
            curve(ax, data.epoch, norms[kind], "sfp", color=colour, linestyle=dash, label=label, marker=".")
        ax.set_title(title)
        ax.set_ylim(0, None)
        whole_epochs(ax)
    axes[0].set_ylabel("‖∇L‖ of all weights")
    legend(figure, axes[0], 4)
    note(figure, told(data))
    return figure


def compute_channels(profile: Profile) -> xarray.Dataset:
    """Take range and mean of every channel of one ReLU output before and after rounding, W4A4, LSQ and FPQ.

    Ours: the input of the first convolution with 32 input channels, the bits, and images of the probe: the paper says
    nothing of them.
    """

    def found(variant: str, seed: int) -> np.ndarray:
        model = profile.network(variant, "W4A4", seed)
        layer = shown_layer(model)
        before = features(model, [layer], profile.measured(model)[0])[layer]
        with torch.no_grad():
            both = torch.stack([before, model.get_submodule(layer).input_quantizer(before)])
        of_all = (1, 3, 4)
        return torch.stack([both.amin(of_all), both.mean(of_all), both.amax(of_all)]).cpu().numpy()

    values = np.array([[found(variant, seed) for seed in profile.seeds] for variant in TWO])
    where = {"variant": TWO, "seed": profile.seeds, "statistic": STATISTICS, "when": ("before", "after")}
    layer = shown_layer(profile.network("sgd", "W4A4", profile.seeds[0]))
    return profile.dataset({"activation": values}, **where, channel=range(values.shape[-1])).assign_attrs(layer=layer)


def shown_layer(model: nn.Module) -> str:
    """Return the first convolution with a quantized input of 32 channels."""
    return next(name for name, layer in noisy_layers(model).items() if layer.in_channels == CHANNELS)


def draw_channels(data: xarray.Dataset):
    """Draw the maxima of the channels of the first seed, sorted, and by how much rounding moves all seeds' means."""
    figure, (*ranges, shifts) = panels(3, 2.3, width_ratios=[1, 1, 1.2])
    for ax, variant in zip(ranges, TWO, strict=True):
        high = data.activation.sel(variant=variant, statistic="high").isel(seed=0)
        before, after = high.sortby(high.sel(when="before")).values
        places, colour = 1 + np.arange(len(before)), METHODS[variant][1]
        ax.fill_between(places, after, before, color="0.85", linewidth=0, label="Cut off")
        ax.plot(places, before, "_", color="0.4", markersize=4, label="Before")
        ax.plot(places, after, MARKERS[variant], color=colour, markersize=2.5, label="After")
        ax.set(title=f"{LABELS[variant]}: largest output", xlabel="Channel, sorted", ylim=(0, None))
        ax.legend(frameon=False, loc="lower right")
        before, after = data.activation.sel(variant=variant, statistic="mean").transpose("when", ...).values
        moved = np.sort(100 * (after / before - 1).ravel())
        label, dash = LABELS[variant], METHODS[variant][2]
        shifts.plot(np.linspace(0, 100, len(moved)), moved, color=colour, linestyle=dash, label=label)
    ranges[1].sharey(ranges[0])
    shifts.axhline(0, color="0.4", linewidth=0.6)
    shifts.set(title="Shift of the channels' means, all seeds", xlabel="Channels, %, sorted", ylabel="% of the mean")
    shifts.legend(frameon=False, loc="lower right")
    note(figure, told(data, f"W4A4, ReLU output before {data.layer}", errors=""))
    return figure


def mean_shift(activation: xarray.DataArray) -> np.ndarray:
    """Return (seeds,) by how much rounding moves the channels' means, rms, in per cent of the rms of the means."""
    before, after = activation.sel(statistic="mean").transpose("when", "seed", "channel").values
    return 100 * np.sqrt(((after - before) ** 2).mean(1) / (before**2).mean(1))


def compute_histograms(profile: Profile) -> xarray.Dataset:
    """Take the activations of one layer on three images, and the distance of their distribution to the float network's.

    Ours: the layer of `compute_channels`; its input before it is rounded, because a comb of 16 levels overlaps nothing;
    FP is the float network from which the others start, and "FP32" the same trained on as long as they are; the
    distance is Wasserstein's between the values of one image, in units of FP's standard deviation there, mean over
    the measured images.
    """
    layer = shown_layer(profile.network("sgd", "W4A4", profile.seeds[0]))

    def values(name: str, seed: int) -> np.ndarray:
        model = _network(profile, name, seed)
        return features(model, [layer], profile.measured(model)[0])[layer].flatten(1).cpu().numpy()

    names, distances = ("base", "sgd W4A4", "fpq W4A4"), np.empty((len(NETWORKS), len(profile.seeds)))
    for k, seed in enumerate(profile.seeds):
        true = values("base", seed)
        distances[:, k] = [distance(true, values(name, seed)).mean() for name in NETWORKS]
    found = profile.dataset({"distance": distances}, network=NETWORKS, seed=profile.seeds).assign_attrs(layer=layer)
    shown = np.array([values(name, profile.seeds[0])[:3] for name in names])
    return found.assign(activation=(("shown", "image", "value"), shown)).assign_coords(shown=list(names))


def draw_histograms(data: xarray.Dataset):
    """Draw three images' histograms, and the distances of all."""
    figure, axes = panels(4, 2.1, width_ratios=[1, 1, 1, 1.3])
    edges = np.linspace(0, float(data.activation.max()), 17)
    for image, ax in enumerate(axes[:3]):
        for name, label in (("base", "FP"), ("sgd W4A4", "LSQ W4A4"), ("fpq W4A4", "FPQ W4A4")):
            own = data.activation.sel(shown=name).isel(image=image).values
            shares = np.histogram(own, edges)[0] / own.size
            _, colour, dash = METHODS.get(name.split()[0], METHODS["fp32"])
            line = {"fill": True, "color": "0.8"} if name == "base" else {"color": colour, "ls": dash, "lw": 1.1}
            ax.stairs(shares, edges, **line, label=label)
        ax.set(title=f"Image {image + 1}", xlabel="Activation", yscale="log", ylim=(0.5 / data.sizes["value"], 1))
        ax.tick_params(labelleft=image == 0)
    axes[0].set_ylabel("Share of values")
    legend(figure, axes[0], 3)
    distances = 100 * data.distance
    _rows(axes[3], distances)
    axes[3].set(title="Distance to FP", xlabel="Wasserstein, % of FP's σ", xlim=(0, None))
    note(figure, f"{told(data)}, input of {data.layer}; FP32: FP, trained on")
    return figure


def compute_traces(profile: Profile) -> xarray.Dataset:
    """Measure the trace of the Hessian over training, FPQ against LSQ.

    Ours: W4A4 (the paper does not say), quantized coordinates, in filter-relative units and raw; 10 to 15 probes, the
    same for both. Of one network: the paper's second one, a MobileNetV2, is left out.
    """
    epochs = epochs_of(profile)
    settings: dict[str, Any] = {"method": "hutchinson", "rtol": 0.05, "num_probes": profile.effort(15, 2)}

    def both(model: nn.Module) -> dict[str, float]:
        data = profile.measured(model)
        return {units: landscape.trace(model, data, units=units, **settings).value for units in ("filter", "raw")}

    found = [[over_training(profile, v, "W4A4", seed, epochs, both) for seed in profile.seeds] for v in TWO]
    columns = {units: [[own[units] for own in row] for row in found] for units in ("filter", "raw")}
    return profile.dataset(columns, variant=TWO, seed=profile.seeds, epoch=epochs)


def draw_traces(data: xarray.Dataset):
    """Draw FPQ's trace less LSQ's, paired by seed: seeds thin, their mean, and what three seeds cannot tell from 0."""
    figure, axes = panels(2, 2.1, sharey=True)
    titles = {"filter": "Filter-relative: Tr(D ∇²L D)", "raw": "Raw: Tr(∇²L), each at its own ‖w‖"}
    for ax, (units, title) in zip(axes, titles.items(), strict=True):
        own = data[units].isel(epoch=slice(1, None))  # both start from one network
        lsq = own.sel(variant="sgd")
        less = 100 * (own.sel(variant="fpq") - lsq) / lsq.mean("seed")
        mean, error = mean_and_error(less.transpose("seed", "epoch").values)
        half = stats.t.ppf(1 - ALPHA / 2, less.sizes["seed"] - 1) * error
        ax.fill_between(less.epoch, -half, half, color="0.88", linewidth=0, label="not told from 0 (95 %)")
        ax.axhline(0, color=METHODS["sgd"][1], linewidth=1)
        ax.plot(less.epoch, less.transpose("epoch", "seed"), color=METHODS["fpq"][1], linewidth=0.5, alpha=0.6)
        ax.plot(less.epoch, mean, MARKERS["fpq"], ls="-", color=METHODS["fpq"][1], label="FPQ − LSQ, mean")
        ax.set_title(title)
        whole_epochs(ax)
    axes[0].set_ylabel("FPQ − LSQ, % of LSQ's")
    legend(figure, axes[0], 2)
    note(figure, told(data, "W4A4, paired by seed; thin: seeds; orange: LSQ", errors=""))
    return figure


def _network(profile: Profile, name: str, seed: int) -> nn.Module:
    variant, _, bits = name.partition(" ")
    return profile.network(variant, bits or None, seed)


def _rows(ax: Any, values: xarray.DataArray) -> None:
    """Draw a network on each row: seeds as dots, the mean with its error."""
    names = [str(name).split() for name in values.network.values]
    labels = [" ".join([LABELS[variant], *bits]) for variant, *bits in names]
    dots(ax, values.values, [variant for variant, *_ in names], labels)


FIGURES = [
    Figure(
        "fpq_variance",
        "FPQ, output variance under input noise",
        "under Gaussian noise on the images the outputs of LSQ scatter most",
        compute_variance,
        draw_variance,
    ),
    Figure(
        "fpq_gradients",
        "FPQ, figure 2",
        "over training the gradient of the weights is larger under noise on weights than under noise on features",
        compute_gradients,
        draw_gradients,
    ),
    Figure(
        "fpq_channels",
        "FPQ, figure 3",
        "quantization shifts range and mean of the channels of a ReLU output",
        compute_channels,
        draw_channels,
    ),
    Figure(
        "fpq_histograms",
        "FPQ, activation histograms",
        "the activations of FPQ overlap those of the float network, those of LSQ do not",
        compute_histograms,
        draw_histograms,
    ),
    Figure(
        "fpq_traces",
        "FPQ, Hessian trace over training",
        "the trace of the Hessian is clearly lower with FPQ than with LSQ",
        compute_traces,
        draw_traces,
    ),
]
