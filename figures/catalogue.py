"""What a figure is, where its data and pictures lie, and the list of all of them."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import landscape

from .profiles import Profile
from .study import latex, markdown

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """One figure of a paper, made anew.

    Args:
        name: Of its files and on the command line.
        source: The paper's figure, or where it is defined.
        claim: What it is to show, as the paper has it.
        compute: Profile -> data: an `xarray.Dataset` or a `landscape.Result`. None: `draw` reads committed rows alone.
        draw: Data -> matplotlib figure, or the rows of a table with its titles first. It computes nothing.
    """

    name: str
    source: str
    claim: str
    compute: Callable[[Profile], Any] | None
    draw: Callable[..., Any]


def folder(profile: str) -> Path:
    """Return where a profile's data and pictures lie; those of "cpu" and "cifar" are committed."""
    return HERE / profile if profile in ("cpu", "cifar") else Path("build/figures") / profile


def make(figure: Figure, profile: Profile, out: Path, anew: bool = False) -> list[Path]:
    """Compute what is not saved yet (or all `anew`), draw it, and return the pictures' files."""
    file = out / f"{figure.name}.nc"
    if figure.compute and (anew or not file.exists()):
        began = time.monotonic()
        data = figure.compute(profile)
        save(data, file, figure=figure.name, profile=profile.name, seconds_of_figure=round(time.monotonic() - began, 1))
    with landscape.paper_style():
        drawn = figure.draw(read(file)) if figure.compute else figure.draw()
    return write(drawn, out / figure.name)


def save(data: Any, file: Path, **provenance: Any) -> None:
    """Write data as netCDF with what it was made with."""
    import torch

    provenance |= {"torch": str(torch.__version__)}
    if isinstance(data, landscape.Result):
        dataclasses.replace(data, about=data.about | provenance).save(file)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(file.name + ".part")
    data.assign_attrs(provenance).to_netcdf(scratch, engine="h5netcdf")
    scratch.replace(file)


def read(file: Path) -> Any:
    """Return what `save` wrote."""
    import xarray

    data = xarray.load_dataset(file, engine="h5netcdf")
    return landscape.load(file) if "result" in data.attrs else data


def write(drawn: Any, stem: Path) -> list[Path]:
    """Write a figure as PDF and PNG, a table as Markdown and LaTeX; return the files."""
    if not isinstance(drawn, list):
        import matplotlib.pyplot as plt

        files = landscape.save_figure(drawn, stem)
        plt.close(drawn)
        return files
    stem.parent.mkdir(parents=True, exist_ok=True)
    texts = {".md": markdown(drawn), ".tex": latex(drawn)}
    for suffix, text in texts.items():
        stem.with_suffix(suffix).write_text(text)
    return [stem.with_suffix(suffix) for suffix in texts]
