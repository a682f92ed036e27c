"""What the figure of basins says, from the data that it is drawn from."""

from ..study import judge, mean_shown
from .digits import data_of
from .words import claimed, conclude, joined, listed


def basin_by_bits(claim: str) -> str:
    """Which networks lie outside, at which bits, and whether training comes back."""
    data = data_of("basin_by_bits")
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
    left = {name: test for name, test in tests.items() if name.endswith("RTN")}
    fewest = {name: test for name, test in tests.items() if name.startswith(few[:2])}
    return claimed(
        claim,
        f"beyond the rim after rounding to nearest: {conclude(left, 1)}. Lower than that by GPTQ and by training: "
        f"{conclude(closer, -1)}",
        f"""Outside, of {seeds} seeds: {"; ".join(f"at {bits[:2]} {text}" for bits, text in places.items())}. The
        increase of the loss (weights alone, BatchNorm's statistics recomputed) less the margin of {data.margin:g}:
        {listed(fewest)}; less RTN's: {listed(closer)}. RTN's own loss at {few[:2]}, with the float network's
        statistics, is {mean_shown(loss)}, with recomputed ones {mean_shown(again)}: how much of the harm is the
        statistics' shows only where they are recomputed.""",
    )
