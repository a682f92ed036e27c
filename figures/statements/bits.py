"""What the figures and the table of bits per layer say."""

from statistics import fmean
from typing import Any

import numpy as np
import xarray

from .. import mixed_precision
from ..asga import rank_correlations
from ..drawing import METHODS
from ..study import (
    DISAGREEMENT,
    Images,
    Judged,
    decimal,
    images_unknown,
    judge,
    mean_and_error,
    mean_shown,
    number,
    read,
)
from ..surfaces import per_seed
from .digits import compared, curvature, data_of
from .words import bullets, claimed, conclude, joined, listed, upper

SEARCHED = {"samq": "SAMQ", "asga": "ASGA", "hessian": "the Hessian policy"}
ONE = "one search each, so the spread of its tunings is no error of the method, and nothing is tested"


def accuracy_tests(pairs: dict[str, tuple[np.ndarray, np.ndarray]], images: int) -> dict[str, Judged]:
    """Test paired differences of accuracies in %; on test images networks disagree no more than they miss."""

    def scatter(ours: np.ndarray, theirs: np.ndarray) -> Images:
        missed = 2 - float(ours.mean() + theirs.mean()) / 100
        return images_unknown(len(ours), images, min(DISAGREEMENT, missed))

    return judge({k: a - b for k, (a, b) in pairs.items()}, images={k: scatter(*own) for k, own in pairs.items()})


def _correlations(name: str) -> tuple[xarray.Dataset, dict[str, Judged]]:
    data = data_of(name)
    labels = [METHODS[str(v)][0] for v in data["variant"].values]
    return data, judge(dict(zip(labels, rank_correlations(data), strict=True)))


def saq_bits(claim: str) -> str:
    """Whether SAMQ's bits follow sharpness."""
    data, tests = _correlations("saq_bits")
    searches = data.sizes["seed"] * data.sizes["draw"]
    return claimed(
        claim,
        conclude({"SAMQ": tests["SAMQ"]}, 1),
        f"""Rank correlation of bits and sharpness over {searches} searches on {data.sizes["seed"]} networks:
        {listed(tests)} (constant bits count as 0). With {data.sizes["layer"]} layers whose trace falls with depth,
        sharpness and depth cannot be told apart.""",
    )


def asga_bits(claim: str) -> str:
    """Whether the searches' bits follow sharpness, and agree."""
    data, tests = _correlations("asga_bits")
    own = ["".join(map(str, bits)) for bits in data["bits"].sel(variant="asga").isel(draw=0).values]
    return claimed(
        claim,
        conclude(tests, 1),
        f"""Rank correlation, one search on each of {data.sizes["seed"]} networks: {listed(tests)}. ASGA's bits by
        seed: {joined(own)}.""",
    )


def saq_front(claim: str) -> str:
    """Whether SAQ is above SGD and SAMQ's bits above uniform ones."""
    data = data_of("saq_front")
    own = data.uniform_accuracy
    pairs: dict[str, Any] = {
        f"SAQ − SGD at {w}": (own.sel(variant="saq3", width=w).values, own.sel(variant="sgd", width=w).values)
        for w in data["width"].values
    }
    for variant, name in (("sgd", "SGD"), ("saq3", "SAQ")):
        pairs[f"SAMQ − W3A3 ({name})"] = (
            data[f"samq_{variant}_accuracy"].values,
            own.sel(variant=variant, width="W3A3").values,
        )
    tests = accuracy_tests(pairs, data.attrs["images"])
    low, high = float(own.mean("seed").min()), float(own.mean("seed").max())
    return claimed(
        claim,
        conclude(tests, 1),
        f"""{listed(tests)} points, on {data.attrs["images"]} test images; at {low:.0f} to {high:.0f} % the digits
        leave little room.""",
    )


def asga_surfaces(claim: str) -> str:
    """Whether ASGA's network is flatter than the plain search's."""
    data = data_of("asga_surfaces")
    tests, policies = compared(data, "ASGA", "Plain search"), data.about["policies"]
    alike = sum(a == b for a, b in zip(*policies.values(), strict=True))
    return claimed(
        claim,
        f"lower curvature: {conclude(curvature(tests), -1)}",
        f"""ASGA − plain search: {listed(tests)} (trace {mean_shown(per_seed(data, "Plain search", "trace_filter"))}).
        In {alike} of {len(data.about["order"])} seeds both find the same bits; the seed drawn is one where they
        differ.""",
    )


def asga_convergence(claim: str) -> str:
    """Whether an adaptive radius converges faster."""
    data = data_of("asga_convergence")
    loss = data.loss.mean("epoch")
    others = {f"{METHODS[str(v)][0]}": v for v in data["variant"].values if v != "asga"}
    tests = judge({name: (loss.sel(variant="asga") - loss.sel(variant=v)).values for name, v in others.items()})
    floor = 100 * float(data.at_floor.sel(variant="asga").isel(epoch=slice(1, None)).mean())
    return claimed(
        claim,
        f"lower loss: {conclude(tests, -1)}",
        f"""ASGA's training loss, mean over the epochs, less that of {listed(tests)}. After the first epoch ρ is at
        its floor in {floor:.0f} % of the steps: as a rule, ρ = min(ρ_max, ln(h + 1)) is a switch (see
        `saq_core.ASGA`). The networks start untrained; that was chosen after trained ones had shown nothing but the
        floor.""",
    )


def asga_proxies(claim: str) -> str:
    """Whether bits found on a proxy are as good as those of the target."""
    data = data_of("asga_proxies")
    own = data.accuracy.sel(budget="W3A3")
    names = {"a tenth of the images": "tenth", "half of the classes": "half"}
    tests = accuracy_tests(
        {n: (own.sel(source=s).values, own.sel(source="target").values) for n, s in names.items()}, data.attrs["images"]
    )
    return claimed(
        claim,
        f"worse than those of the target: {conclude(tests, -1)}",
        f"""At W3A3's cost, proxy less target: {listed(tests)} points: an interval that holds 0 does not say that they
        are as good. The proxies are ours, parts of the target: the paper's were other data sets.""",
    )


def sensitivity_front(claim: str) -> str:
    """Whether bits by measured sensitivity are above uniform ones, and what predictions of it are worth."""
    data = data_of("sensitivity_front")
    pairs = {
        f"{name} at {budget}": tuple(
            data[name].sel(variant=v, budget=budget).values for v in ("sensitivity", "uniform")
        )
        for name in ("rounded", "tuned")
        for budget in data["budget"].values
    }
    tests = accuracy_tests(pairs, data.attrs["images"])
    errors = {name: mean_and_error(ours - theirs) for name, (ours, theirs) in pairs.items()}
    below = [name for name, (mean, error) in errors.items() if mean < -2 * error]
    tau = data["tau"].sel(end="tau").mean("seed")
    names = {"hessian": "½ΔᵀHΔ", "trace": "mean trace × ‖Δ‖²"}
    taus = [
        f"{decimal(float(tau.sel(measured=what, prediction=key)), 2)} of {label} with {word}"
        for what, word in (("increase", "the loss"), ("kl", "KL"))
        for key, label in names.items()
    ]
    spans = [
        f"[{decimal(low, 2)}, {decimal(high, 2)}]"
        for low, high in data["tau"].sel(measured="increase", prediction="hessian", end=["low", "high"]).values
    ]
    repeat = data["tau"].sel(end="repeat", prediction="hessian").mean("seed").values
    return claimed(
        claim,
        conclude(tests, 1),
        f"""Sensitivity − uniform bits: {listed(tests)} points, on {data.attrs["images"]} test images. Below uniform by
        more than two errors paired by seed: {joined(below) if below else "nowhere"}. Of weights alone, one layer at a
        time, at {joined(map(str, data["format"].values))}: Kendall's τ {joined(taus)} (means over the seeds; the first
        with intervals over layers {joined(spans)}); other images would reach {decimal(float(repeat[0]), 2)} and
        {decimal(float(repeat[1]), 2)}.""",
    )


def _mean(label: str, source: str, on: str) -> float:
    return fmean(row["accuracy"] for row in mixed_precision.groups()[label, source, on])


def _ablation() -> tuple[dict[str, float], float]:
    """Return the accuracies of ASGA's parts on CIFAR-100, and what plain SGD's search takes of the whole's time."""
    names = {"plain SGD": "asga, SGD", "SAM": "asga, SAM", "the mean of both gradients": "asga, mean of both"}
    names |= {"aligned gradients at a fixed ρ": "asga, fixed ρ", "ASGA in full": "asga"}
    policies = read(mixed_precision.POLICIES, "policy", "searched_on")
    share = policies["asga, SGD", "cifar100"]["seconds"] / policies["asga", "cifar100"]["seconds"]
    return {name: _mean(label, "cifar100", "cifar100") for name, label in names.items()}, share


def page() -> str:
    """Return the page's bullets on bits per layer."""
    return bullets([_searches(), _transfer()])


def _searched() -> dict[str, float]:
    """Return what each search's policy comes to, less uniform bits, mean over its tunings."""
    own = {name: mixed_precision.less_uniform(label, "cifar10", "cifar10") for label, name in SEARCHED.items()}
    return {name: fmean(less.values()) for name, less in own.items()}


def _searches() -> str:
    """Say what policies come to within one budget."""
    rows = mixed_precision.groups()["uniform", "cifar10", "cifar10"]
    uniform = number(*mean_and_error([row["accuracy"] for row in rows]))
    random = {"random bits": mixed_precision.against_uniform("random")}
    less = _searched()
    searched = joined(f"{decimal(value, 2, '+')} ({name})" for name, value in less.items())
    above = "none" if max(less.values()) <= 0 else "not all"
    return f"""Bits per layer within W3A3's bit operations ([table](cpu/table_mixed.md)), against three bits
        everywhere ({uniform} %): are random bits worse? {upper(conclude(random, -1))}: {listed(random)} points. The
        policies that the searches found come to {searched} points, {above} of them above three bits everywhere;
        {ONE}."""


def _transfer() -> str:
    """Say what ASGA's bits come to on CIFAR-100, and what its parts do."""
    asga, own, alike = (
        _mean(*key, "cifar100") for key in (("asga", "cifar10"), ("asga", "cifar100"), ("uniform", "cifar10"))
    )
    parts, share = _ablation()
    each = joined(f"{value:.2f} % ({name})" for name, value in parts.items())
    return f"""On CIFAR-100, bits that ASGA found on CIFAR-10 come to {asga:.2f} %, those found there to {own:.2f},
        three bits everywhere to {alike:.2f}. ASGA's ablation there: {each}, within
        {max(parts.values()) - min(parts.values()):.2f} points; SGD's search takes {share:.2f} of the time. One search
        each: no part is seen to help."""


def table_mixed(claim: str) -> str:
    """Say what the table of policies shows."""
    random = mixed_precision.against_uniform("random")
    less = _searched()
    below = joined(f"{decimal(value, 2, '+')} ({name})" for name, value in less.items())
    above = joined(f"{decimal(value - random.mean, 2, '+')}" for value in less.values())
    parts, _ = _ablation()
    whole = parts.pop("ASGA in full")
    differences = joined(f"{decimal(whole - value, 2, '+')} ({name})" for name, value in parts.items())
    return claimed(
        claim,
        f"random bits are below uniform ones: {conclude({'random': random}, -1)}; of the searches nothing is tested",
        f"""Against W3A3 everywhere, paired by seed: {listed({"five random policies": random})} points, and what one
        search each found on the network of seed 0: {below}; against the random ones {above}. There is {ONE}. On
        CIFAR-100, ASGA's whole less its parts: {differences} points. Our ASGA is the search of GMPQ-ASGA without
        GMPQ's attribution loss.""",
    )
