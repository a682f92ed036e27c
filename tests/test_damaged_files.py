"""Files that are damaged, foreign or malicious, disks that are full: an error in words, never other numbers."""

import functools
import json
import os
import random
import signal

import h5py
import numpy as np
import pytest
import torch
from ranks import forked, launched
from strangers import X, Y, perceptron

import landscape
import saq_core
from landscape import files
from landscape.surfaces.tiles import Tiles

resource = pytest.importorskip("resource")


def damaged(content, draw):
    """Return a file's bytes with a bit flipped, a stretch zeroed, cut, doubled or exchanged."""
    kind, at = draw.randrange(5), draw.randrange(len(content) - 64)
    if kind == 0:
        return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]
    if kind == 1:
        return content[:at] + bytes(min(64, len(content) - at)) + content[at + 64 :]
    if kind == 2:
        return content[:at]
    if kind == 3:
        return content + content[at:]
    return content[at:] + content[:at]


def write_result(path):
    return landscape.line(perceptron(), (X, Y), points=3).save(path)


def write_network(path):
    model = saq_core.build_model("resnet8", saq_core.load_data("digits", limit=64))
    saq_core.save(model, path)
    return path


@pytest.mark.parametrize(
    ("write", "read", "count"),
    [(write_result, landscape.load, 60), (write_network, saq_core.load, 30)],
    ids=["result", "network"],
)
def test_damage_is_noticed_before_anything_is_read(write, read, count, tmp_path):
    path, draw = write(tmp_path / "whole"), random.Random(0)
    content, told = path.read_bytes(), []
    for trial in range(count):
        broken = damaged(content, draw)
        if broken == content:
            continue
        path.write_bytes(broken)
        if len(broken) < len(content) or broken[-73:] != content[-73:]:
            continue  # without its end a file is first taken for one of 0.1: see below, and test_five_hundred_files
        with pytest.raises(ValueError, match="is damaged: its checksum"):
            read(path)
        told.append(trial)
    assert len(told) > count / 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_classes": 10**9}, "names a network of .* weights, but holds"),
        ({"name": "vit_b_16", "input_shape": [3, 64, 64]}, "names a network of .* weights, but holds"),
        ({"name": "no such network"}, "names no network that can be built"),
        ({"input_shape": "abc"}, "names no network that can be built"),
    ],
)
def test_an_architecture_that_the_weights_do_not_justify_is_not_built(change, words, tmp_path):
    path = write_network(tmp_path / "model.pt")
    content = saq_core.files.read(path, "model")
    saq_core.files.write(path, "model", content | {"architecture": content["architecture"] | change})
    with pytest.raises(ValueError, match=words):
        saq_core.load(path)


def test_a_file_without_a_checksum_is_read_by_another_process_first(tmp_path):
    path = write_result(tmp_path / "line.nc")
    path.write_bytes(files.unsealed(path))
    with h5py.File(path, "r+") as file:
        del file.attrs["sealed"]
    content = path.read_bytes()
    assert not files.is_sealed(path) and len(landscape.load(path).alphas) == 3
    for cut in (10, len(content) // 2, len(content) - 9):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match="not a readable netCDF file"):
            landscape.load(path)


def test_what_lies_outside_of_a_file_is_not_read(tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["numbers"] = np.arange(4.0)
    reached = {
        "link": lambda file: file.__setitem__("xcoordinates", h5py.ExternalLink(str(secret), "numbers")),
        "virtual": lambda file: file.create_virtual_dataset("xcoordinates", layout(secret)),
        "elsewhere": lambda file: file.create_dataset(
            "xcoordinates", (4,), "f8", external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
        ),
        "absurd": lambda file: file.create_dataset("xcoordinates", (10**12,), "f8", chunks=(1000,)),
    }
    for name, reach in reached.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            reach(file)
        with pytest.raises(ValueError, match="another file|claims 8,000,000,000,000 bytes"):
            landscape.load(tmp_path / f"{name}.h5")


def layout(path):
    found = h5py.VirtualLayout((4,), "f8")
    found[:] = h5py.VirtualSource(str(path), "numbers", (4,))
    return found


def test_damaged_tiles_are_measured_again_and_damaged_manifests_named(tmp_path):
    settings = {"points": 3, "path": tmp_path / "s"}
    expected = landscape.surface(perceptron(), (X, Y), **settings)
    (tile,) = (tmp_path / "s").glob("tile_*.npz")
    for content in (b"", b"PK\3\4", tile.read_bytes()[:-100], bytes(len(tile.read_bytes()))):
        tile.write_bytes(content)
        assert torch.equal(landscape.surface(perceptron(), (X, Y), **settings).loss, expected.loss)
    manifest = tmp_path / "s" / "manifest.json"
    for content in ("[]", "{", json.dumps(3)):
        manifest.write_text(content)
        with pytest.raises(ValueError, match="manifest.json is damaged"):
            landscape.surface(perceptron(), (X, Y), **settings)
    assert Tiles(tmp_path / "new", {}).read(0, torch.arange(3)) is None


def full(folder):
    """Save into files that may not grow beyond 2,000 bytes."""
    line = landscape.line(perceptron(), (X, Y), points=3)
    model = saq_core.build_model("resnet8", saq_core.load_data("digits", limit=64))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for save, name in ((line.save, "line.nc"), (functools.partial(saq_core.save, model), "model.pt")):
        with pytest.raises(OSError, match=f"{folder}.*could not be written"):
            save(folder / name)


def test_a_full_disk_is_an_error_with_the_path_and_leaves_nothing(tmp_path):
    launched(full, tmp_path, count=1)
    assert not list(tmp_path.iterdir())


def killed(path):
    with files.atomic(path) as scratch:
        scratch.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_behind_is_swept(tmp_path):
    forked(killed, tmp_path / "numbers.txt").join()
    (left,) = tmp_path.iterdir()
    with files.atomic(tmp_path / "numbers.txt") as scratch:
        scratch.write_text("whole")
    assert [file.name for file in tmp_path.iterdir()] == ["numbers.txt"] and not left.exists()


@pytest.mark.parametrize("names", [[("W4", 0.1), ("W2", None)], [4, 2], ["a/b", "", "a:b\n"], [True, 1.5]])
def test_networks_of_any_name_come_back_from_a_file(names, tmp_path):
    networks = {name: perceptron() for name in names}
    found = landscape.compare(networks, (X, Y), radii=(0.05,), points=3)
    again = landscape.load(found.save(tmp_path / "c.nc"))
    assert list(again.seeds) == list(again.surfaces) == names
    assert again.value(names[1], "loss") == found.value(names[1], "loss")
    assert found.draw() is not None and found.plot() is not None and repr(again) == repr(found)


def test_compare_looks_at_every_network_before_it_measures_the_first(monkeypatch):
    def measured(*_arguments):
        raise AssertionError("measured too early")

    monkeypatch.setattr("landscape.comparison._measure", measured)
    broken = perceptron()
    with torch.no_grad():
        broken[0].weight[0] = float("nan")
    with pytest.raises(ValueError, match="network 'second': the loss of the model itself is nan"):
        landscape.compare({"first": perceptron(), "second": broken}, (X, Y))


def test_a_network_without_filters_has_rows_without_numbers():
    norm = torch.nn.LayerNorm(6).double()
    found = landscape.compare({"norm": torch.nn.Sequential(norm)}, (X, Y), radii=(0.05,), points=0)
    values = {row["quantity"]: row["value"] for row in found.rows}
    assert np.isnan(values["trace_filter"]) and np.isnan(values["worst_0.05"]) and np.isfinite(values["trace_raw"])
