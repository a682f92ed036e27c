"""What the figures of basins say, from the data that they are drawn from."""

import math
from itertools import product
from typing import Any

from ..basins import WAYS
from ..study import decimal, judge, mean_shown
from .digits import data_of
from .words import claimed, conclude, joined, listed, paragraph


def basin_by_bits(claim: str) -> str:
    """Which networks lie outside, at which bits, and whether training comes back; the same on CIFAR-10."""
    data, cifar = data_of("basin_by_bits"), data_of("basin_by_bits", "cifar")
    return _of_seeds(claim, data) + (f"\n\n{_of_one(cifar)}" if cifar is not None else "")


def basin_of_text(claim: str) -> str:
    """The same of a transformer on text."""
    data = data_of("basin_of_text")
    return _of_seeds(claim, data)


def _of_one(data: Any) -> str:
    """Return what one network's basin says, with errors over the images."""
    own, parts = data.isel(seed=0), []
    for bits in map(str, data.bits.values):
        excess = own.excess_in_stderr.sel(bits=bits)
        texts = (f"{name} {decimal(float(excess.sel(network=name)), 1, '+')}" for name in WAYS)
        parts.append(f"{bits[:2]} {joined(texts)}")
    cells = product(map(str, data.bits.values), WAYS)
    outside = [f"{bits[:2]} {name}" for bits, name in cells if not own.inside.sel(bits=bits, network=name)]
    few = own.isel(bits=-1)
    shown = (
        f"{name} {float(few.loss.sel(network=name)):.3g} and {100 * float(few.accuracy.sel(network=name)):.1f} % "
        f"(recomputed {float(few.loss_recomputed.sel(network=name)):.3g})"
        for name in WAYS
    )
    return paragraph(
        f"""ResNet-20 on CIFAR-10, one seed, {data.attrs["samples"]} training images: the increase of the loss less the
        margin of {data.margin:g}, in its standard errors over the images: {"; ".join(parts)}. Outside:
        {joined(outside) if outside else "none"}. Own loss and accuracy at {str(data.bits.values[-1])[:2]} with the
        statistics as they are: {"; ".join(shown)}; the float network's loss, recomputed, is {data.centre:.3g}."""
    )


def _of_seeds(claim: str, data: Any) -> str:
    seeds, places, beyond = len(data.seed), {}, {}
    for bits in map(str, data.bits.values):
        own = data.sel(bits=bits)
        outside = {str(n): seeds - int(own.inside.sel(network=n).sum()) for n in own.network.values}
        places[bits] = joined(f"{count} ({name})" for name, count in outside.items())
        for name in outside:
            beyond[f"{bits[:2]} {name}"] = own.increase.sel(network=name).values - data.margin
    tests = judge(beyond)
    closer = judge(
        {
            f"{str(b)[:2]} {other}": (
                data.increase.sel(bits=b, network=other).values - data.increase.sel(bits=b, network="RTN").values
            )
            for b in data.bits.values
            for other in ("GPTQ", "QAT")
        }
    )
    few = str(data.bits.values[-1])
    loss, again = (data[key].sel(bits=few, network="RTN").values for key in ("loss", "loss_recomputed"))
    has_batchnorm = not math.isnan(again[0])
    left = {name: test for name, test in tests.items() if name.endswith("RTN")}
    fewest = {name: test for name, test in tests.items() if name.startswith(few[:2])}
    return claimed(
        claim,
        f"beyond the rim after rounding to nearest: {conclude(left, 1)}. Lower than that by GPTQ and by training: "
        f"{conclude(closer, -1)}",
        f"""Outside, of {seeds} seeds: {"; ".join(f"at {bits[:2]} {text}" for bits, text in places.items())}. The
        increase of the loss (weights alone{", BatchNorm's statistics recomputed" * has_batchnorm}) less the margin of
        {data.margin:g}: {listed(fewest)}; less RTN's: {listed(closer)}.""",
        f"""RTN's own loss at {few[:2]}, with the float network's statistics, is {mean_shown(loss)}, with recomputed
        ones {mean_shown(again)}: how much of the harm is the statistics' shows only where they are recomputed."""
        if has_batchnorm
        else "QAT goes on training, so that its loss may fall below the float network's.",
    )
