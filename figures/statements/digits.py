"""What the figures of SAQ and FPQ on the digits say, each from the data that it is drawn from."""

from typing import Any

import numpy as np
import xarray

import saq_core

from ..catalogue import folder, read
from ..drawing import METHODS
from ..fpq import mean_shift
from ..saq import converged, fluctuations
from ..study import Judged, judge, mean_shown
from ..surfaces import per_seed, profile
from .words import claimed, conclude, joined, listed, upper

QUANTITIES = {"trace_filter": "trace", "lambda1_filter": "λ₁", "loss": "probe loss"}
CURVATURE = ("trace", "λ₁")  # the loss stands beside them: a network may be flatter because it is fitted more, or less


def data_of(name: str, profile: str = "cpu") -> Any:
    """Return what a figure is drawn from; None where a profile other than "cpu" was not computed."""
    file = folder(profile) / f"{name}.nc"
    return read(file) if profile == "cpu" or file.exists() else None


def short(variant: Any) -> str:
    """Return what a method is called in a sentence."""
    name, _, setting = METHODS[str(variant)][0].removeprefix("SAQ, ").partition(", ")
    return f"{name} ({setting})" if setting else name


def compared(comparison: Any, network: str, other: str) -> dict[str, Judged]:
    """Test trace, λ₁ and loss of a network less another's, paired by seed."""
    quantities = QUANTITIES.items()
    return judge({n: per_seed(comparison, network, q) - per_seed(comparison, other, q) for q, n in quantities})


def curvature(tests: dict[str, Judged]) -> dict[str, Judged]:
    """Return those of the tests that say how sharp a network is."""
    return {name: tests[name] for name in CURVATURE}


def saq_surfaces(claim: str) -> str:
    """SAQ's 2-bit network against SGD's, and both against the float one."""
    data = data_of("saq_surfaces")
    fp32, sgd, saq = ("FP32", "W2A2 SGD", "W2A2 SAQ")
    tests = compared(data, saq, sgd)
    values = [f"{name} {mean_shown(per_seed(data, sgd, q))}" for q, name in QUANTITIES.items()]
    float_tests = compared(data, sgd, fp32)
    of_sgd, of_fp32 = (np.median(profile(data.surfaces[name])[1], 1) for name in (sgd, fp32))
    return claimed(
        claim,
        f"lower curvature: {conclude(curvature(tests), -1)}",
        f"""SAQ − SGD: {listed(tests)} (of {joined(values)}). Are 2 bits sharper than the float network, tuned as
        long? {upper(conclude(curvature(float_tests), 1))}: SGD − FP32 {listed(float_tests)}. A trace is of the centre;
        in the plane drawn, of one seed, FP32's loss is {of_fp32[0] / of_sgd[0]:.2g} times SGD's there and
        {of_fp32[-1] / of_sgd[-1]:.2g} times at the rim (median over the directions).""",
    )


def saq_staircase(claim: str) -> str:
    """How much rougher a line is over the latent weights."""
    loss = data_of("saq_staircase").loss
    rough = np.abs(np.diff(loss.transpose("space", "bits", "alpha").values, 2)).mean(-1)
    spaces = dict(zip(map(str, loss.space.values), rough, strict=True))
    ratio = dict(zip(map(str, loss.bits.values), spaces["latent"] / spaces["quantized"], strict=True))
    text = joined(f"{value:.1f} times ({bits})" for bits, value in ratio.items())
    return claimed(
        claim,
        "yes, on the line that is drawn" if min(ratio.values()) > 2 else "not on the line that is drawn",
        f"""The mean second difference between neighbouring points is {text} as large over the latent weights; what
        remains behind the rounding of the weights are the stairs of the rounded activations. One line of one network:
        no test.""",
    )


def saq_radii(claim: str) -> str:
    """Worst-case loss increases of SAQ's cases over SGD's, tested where every ascent converged."""
    data = data_of("saq_radii")
    ratio = data.rise / data.rise.sel(variant="sgd")
    done = converged(data)
    cases = [v for v in data["variant"].values if v != "sgd"]
    less = {
        (f"{short(v)} at {100 * r:g} %", str(b)): ratio.sel(bits=b, variant=v, radius=r).values - 1
        for b in data.bits.values
        for v in cases
        for r in data.radius.values
        if done.sel(bits=b, variant=v, radius=r)
    }
    tests = judge(less)
    by_bits = {str(b): {key[0]: test for key, test in tests.items() if key[1] == b} for b in data.bits.values}
    verdicts = [f"at {b} {conclude(own, -1)}" for b, own in by_bits.items() if own]
    middle = data.radius.values[len(data.radius) // 2]
    parts = []
    for b in data.bits.values:
        own = ratio.sel(bits=b, radius=middle)
        shown = joined(f"{mean_shown(own.sel(variant=v).values)} ({short(v)})" for v in cases)
        parts.append(f"{shown} of SGD's at {b}")
    left = ratio.sel(variant=cases).isel(seed=0).size - len(tests)
    return claimed(
        claim,
        "; ".join(verdicts) or "not tested",
        f"At {100 * middle:g} %: {'; '.join(parts)}, ± one standard error over seeds.",
        f"Corrected over {len(tests)} tests." if tests else "",
        f"For {left} of the points no convergence of the ascent is on record: lower bounds, not tested."
        if left
        else "",
    )


def saq_flips(claim: str) -> str:
    """How many weights change level under ε, and how much the ε of two cases agree."""
    data = data_of("saq_flips")
    means = data.mean(("variant", "seed", "epoch"))
    rate = data.flip_rate.mean(("seed", "epoch")) * saq_core.SAQ().rho / data.rho
    rates = joined(f"{1e3 * float(rate.sel(bits=b).mean()):.1f} ({b})" for b in data.bits.values)
    cosines = joined(f"{float(means.cosine_case1_case3.sel(bits=b)):.2f} ({b})" for b in data.bits.values)
    apart = float((rate.max("variant") / rate.min("variant") - 1).max())
    few, unlike = float(means.flip_rate.max()) < 0.05, float(means.cosine_case1_case3.min()) < 0.95
    verdict = f"few weights change level: {'yes' if few else 'no'}; the ε differ: {'yes' if unlike else 'hardly'}"
    return claimed(
        claim,
        verdict,
        f"""{rates} in a thousand weights change level for every {saq_core.SAQ().rho:g} of ρ, the cases within
        {100 * apart:.0f} % of each other; each moves by a whole step. ‖ε‖ is
        {100 * float(means.relative_norm.mean()):.2g} % of ‖w‖. Cosine of the two ε: {cosines}.""",
    )


def saq_curvature(claim: str) -> str:
    """Trace and λ₁ of SAQ's cases against SGD's."""
    data = data_of("saq_curvature").sel(space="quantized")
    names = {q: title for q, title in (("trace", "trace"), ("top", "λ₁"), ("probe_loss", "probe loss")) if q in data}
    differences = {
        (short(v), str(b), q): (data[q].sel(bits=b, variant=v) - data[q].sel(bits=b, variant="sgd")).values
        for b in data.bits.values
        for q in names
        for v in data["variant"].values
        if v != "sgd"
    }
    tests = judge(differences, lambda key: key[1:])
    parts, verdicts = [], []
    for b in data.bits.values:
        for q, title in names.items():
            own = {key[0]: test for key, test in tests.items() if key[1:] == (str(b), q)}
            verdicts += [f"{title} at {b}: {conclude(own, -1)}"] if title in CURVATURE else []
            parts.append(f"{title} at {b} {listed(own)} (SGD {mean_shown(data[q].sel(bits=b, variant='sgd').values)})")
    return claimed(claim, "; ".join(verdicts), f"Less SGD, corrected over these {len(tests)}: {'; '.join(parts)}.")


def saq_fluctuation(claim: str) -> str:
    """How much the training loss fluctuates from step to step."""
    data = data_of("saq_fluctuation")
    tests = fluctuations(data)
    calm = {name: test for name, test in tests.items() if "SAQ" in name}
    more = {name: test for name, test in tests.items() if name not in calm}
    verdict = f"rounded weights fluctuate more: {conclude(more, 1)}; SAQ calms: {conclude(calm, -1)}"
    fp32 = mean_shown(data.spread.mean("epoch").sel(network="fp32").values)
    return claimed(
        claim,
        verdict,
        f"""Spread of the step-to-step change over the mean loss, {fp32} in the float network: {listed(tests)}. It
        holds the batches' own differences, which are alike for all.""",
    )


def saq_steps(claim: str) -> str:
    """What a step costs."""
    data = data_of("saq_steps")
    own = [v for v in data["variant"].values if v != "sgd"]
    seconds = joined(f"{mean_shown(data.seconds.sel(variant=v).values)} ({short(v)})" for v in own)
    memory = joined(f"{float(data.memory.sel(variant=v)):.2f} ({short(v)})" for v in own)
    two = float(data.seconds.sel(variant="saq3").mean())
    return claimed(
        claim,
        f"two passes: {'yes' if 1.7 < two < 2.4 else 'no'}; the paper's efficient strategy is not known to us",
        f"""Time of an epoch as a multiple of LSQ with SGD, ± one standard error over {data.sizes["round"]} rounds:
        {seconds}; peak memory {memory}. The policies are ours. README.md has the speeds of larger networks.""",
    )


def table_bops(claim: str) -> str:
    """Whether bit operations are the authors'."""
    data = data_of("table_bops")
    digits = [2 if u == "G" and b < 32 else 1 for u, b in zip(data.unit.values, data.bits.values, strict=True)]
    off = [
        abs(round(float(o), d) - float(t)) for o, t, d in zip(data.ours.values, data.theirs.values, digits, strict=True)
    ]
    wrong, networks = sum(o > 1e-9 for o in off), len({*zip(data.network.values, data["size"].values, strict=True)})
    verdict = "yes, to the last printed digit" if not wrong else f"no: {wrong} of {len(off)} differ"
    return claimed(claim, verdict, f"{len(off)} numbers of {networks} networks.")


def _fpq_less_lsq(values: xarray.DataArray, bits: str) -> np.ndarray:
    return (values.sel(network=f"fpq {bits}") - values.sel(network=f"sgd {bits}")).values


def fpq_variance(claim: str) -> str:
    """Whether noise on the images scatters LSQ's outputs most."""
    data = data_of("fpq_variance")
    columns = {"variance": (data.variance, 1.0), "share": (data.relative, 100.0)}
    tests = judge(
        {(b, c): scale * _fpq_less_lsq(own, b) for b in ("W4A4", "W2A4") for c, (own, scale) in columns.items()}
    )
    variance, share = ({b: t for (b, c), t in tests.items() if c == column} for column in columns)
    of = [
        joined(f"{mean_shown(own.sel(network=f'sgd {b}').values * s)} ({b})" for b in variance)
        for own, s in columns.values()
    ]
    return claimed(
        claim,
        f"FPQ's scatter less: {conclude(variance, -1)}; as a share of the variance between images: "
        f"{conclude(share, -1)}",
        f"""FPQ − LSQ, corrected over these {len(tests)}: {listed(variance)} logits² of {of[0]}; as a share
        {listed(share)} points of {of[1]} %. Size of the noise and number of draws are ours.""",
    )


def fpq_gradients(claim: str) -> str:
    """Whether noise on weights makes larger gradients than noise on features."""
    data = data_of("fpq_gradients").isel(epoch=slice(1, None))
    size = 100 * data[["size_features", "size_weights"]].mean(("seed", "epoch"))
    less = {
        f"{b}, LSQ's trajectory": (data.weights - data.features).sel(bits=b).mean("epoch").values
        for b in ("W4A4", "W2A4")
    }
    less["W4A4, trained under the noise"] = (data.own_weights - data.own_features).mean("epoch").values
    alike = {
        f"{b}, at equal relative size": (data.weights_alike - data.features).sel(bits=b).mean("epoch").values
        for b in ("W4A4", "W2A4")
    }
    tests = judge(less | alike)
    sizes = joined(
        f"{float(own.size_weights):.0f} % of the weights' and {float(own.size_features):.0f} % of the features' ({b})"
        for b, own in ((b, size.sel(bits=b)) for b in ("W4A4", "W2A4"))
    )
    return claimed(
        claim,
        conclude({key: tests[key] for key in less}, 1),
        f"""Norm under noise on weights less that under noise on features, mean after the first epoch, corrected over
        {len(tests)}: {listed(tests)}. The noise's rms is {sizes}. The kind of noise is ours; W2A4 was added after
        W4A4.""",
    )


def fpq_channels(claim: str) -> str:
    """How rounding shifts range and mean of a ReLU output's channels."""
    data = data_of("fpq_channels").activation
    width = data.sel(statistic="high") - data.sel(statistic="low")
    cut = float((1 - width.sel(when="after") / width.sel(when="before")).max())
    means = data.sel(statistic="mean")
    shift = means.sel(when="after") / means.sel(when="before") - 1
    rms = [f"{name} {mean_shown(mean_shift(data.sel(variant=v)))} %" for v, name in (("sgd", "LSQ"), ("fpq", "FPQ"))]
    return claimed(
        claim,
        "range yes, mean barely" if cut > 0.1 > float(abs(shift).max()) else "both",
        f"""The widest cut of a channel's range is {100 * cut:.0f} %; means move by {joined(rms)} (rms), the worst by
        {100 * float(abs(shift).max()):.1f} %, {100 * float((shift < 0).mean()):.0f} % of them downward. The paper
        shows one of 8 %.""",
    )


def fpq_histograms(claim: str) -> str:
    """How far activations are from the float network's."""
    distance = 100 * data_of("fpq_histograms").distance
    tests = judge({b: _fpq_less_lsq(distance, b) for b in ("W4A4", "W2A4")})
    of = joined(f"{mean_shown(distance.sel(network=f'sgd {b}').values)} ({b})" for b in ("W4A4", "W2A4"))
    return claimed(
        claim,
        f"FPQ's are closer: {conclude(tests, -1)}",
        f"""Wasserstein's distance in % of σ, FPQ − LSQ: {listed(tests)} of LSQ's {of}; a float network that is only
        trained on is at {mean_shown(distance.sel(network="fp32").values)}.""",
    )


def fpq_traces(claim: str) -> str:
    """Whether FPQ's trace is lower over training."""
    data = data_of("fpq_traces").isel(epoch=slice(1, None)).mean("epoch")["filter"]
    tests = judge({"FPQ − LSQ": (data.sel(variant="fpq") - data.sel(variant="sgd")).values})
    return claimed(
        claim,
        conclude(tests, -1),
        f"""{listed(tests)} of {mean_shown(data.sel(variant="sgd").values)}, filter-relative, mean after the first
        epoch. 4 bits are our choice; the paper's second network is left out.""",
    )


def edge_of_stability(claim: str) -> str:
    """How near λ₁ stays to what the steps bear, over the second half of each training."""
    found = data_of("edge_of_stability").found
    late = found.sel(step=slice(float(found.step.mean()), None))
    top = late.sel(column="preconditioned_lambda1").fillna(late.sel(column="lambda1"))
    ratio = top / late.sel(column="threshold")
    means = dict(zip(map(str, ratio.run.values), ratio.mean("step").values, strict=True))
    lowest, highest = float(ratio.min()), float(ratio.max())
    text = joined(f"{value:.2f} ({run})" for run, value in means.items())
    return claimed(
        claim,
        "yes" if all(abs(mean - 1) < 0.1 for mean in means.values()) else "not for all",
        f"""λ₁ over the threshold, mean of the second half: {text}, between {lowest:.2f} and {highest:.2f}
        at all times. Critical sharpness, along the (preconditioned) gradient by forward
        passes alone, is far below while that points along flat directions, and meets λ₁ where the steps swing. One
        seed, a known effect: what `landscape.Monitor` has to show.""",
    )
