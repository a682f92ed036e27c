import gc

import pytest
import torch
from networks import RAGGED, convolutional, perceptron
from states import same

from landscape import (
    average_sharpness,
    batchnorm_check,
    compare,
    curvature_at_scale,
    density,
    line,
    load,
    rounding_sharpness,
    sharpness,
    surface,
    top_eigenvalues,
    trace,
    trajectory,
    worst_case_sharpness,
)

MAKERS = {
    "Trace": lambda: trace(convolutional(), RAGGED, num_probes=10),
    "Trace of a matrix": lambda: trace(torch.eye(3)),
    "Trace by pyhessian": lambda: trace(convolutional(), RAGGED, num_probes=3, engine="pyhessian"),
    "Eigenvalues": lambda: top_eigenvalues(convolutional(), RAGGED, k=2),
    "Eigenvalues of a matrix": lambda: top_eigenvalues(torch.diag(torch.arange(5.0)), k=2),
    "Line": lambda: line(convolutional().float(), RAGGED, points=3),
    "Line without accuracy": lambda: line(
        convolutional(), RAGGED, points=3, objective=lambda m, b: (m(b[0]).mean(), 1)
    ),
    "Surface": lambda: surface(convolutional(), RAGGED, points=3),
    "average Sharpness": lambda: average_sharpness(convolutional(), RAGGED, num_samples=2),
    "worst Sharpness": lambda: worst_case_sharpness(convolutional(), RAGGED, steps=1),
    "Trace with layers": lambda: trace(convolutional(), RAGGED, num_probes=10, per_layer=True),
    "Density": lambda: density(convolutional(), RAGGED, k=2, num_probes=2, steps=5, points=50),
    "ScaleCurvature": lambda: curvature_at_scale(convolutional(), RAGGED, num_samples=2, radii=[1e-2]),
    "RoundingSharpness": lambda: rounding_sharpness(convolutional(), RAGGED, num_samples=2),
    "SharpnessTable": lambda: sharpness(convolutional(), RAGGED, measures=["average, filter", "rounding noise"]),
    "Trajectory": lambda: trajectory(convolutional(), [convolutional(s) for s in range(3)], RAGGED),
    "BatchNormCheck": lambda: batchnorm_check(convolutional(), RAGGED),
    "Comparison": lambda: compare({"a b/c": convolutional(), "W4": convolutional(1)}, RAGGED, points=3, radii=(0.1,)),
    "Comparison without pictures": lambda: compare({"a": convolutional()}, RAGGED, points=0, radii=(0.1,)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_loaded_is_what_was_saved(name, tmp_path, coarse):
    result = MAKERS[name]()
    path = result.save(tmp_path / "deep" / "result.nc")
    found = load(path)
    assert type(found).__name__ in name and same(result, found)
    assert repr(found) == repr(result) and not list(path.parent.glob("*.part"))
    result.save(path)  # over an earlier one
    assert same(result, load(path))


def test_results_say_how_they_came_about():
    found = trace(convolutional(), RAGGED, seed=3)
    expected = {
        "space": "float",
        "derivatives": "exact",
        "batchnorm": "fixed",
        "samples": 7,
        "dtype": "float64",
        "seed": 3,
    }
    assert expected.items() <= found.about.items()
    assert found.about["torch"] == torch.__version__ and found.about["seconds"] > 0 and found.about["units"] == "raw"


def test_files_of_version_0_1_are_read(tmp_path):
    import xarray

    result = average_sharpness(convolutional(), RAGGED, num_samples=2)
    tree = xarray.open_datatree(result.save(tmp_path / "new.nc"), engine="h5netcdf").load()
    tree.close()
    old = tree.to_dataset().rename({"delta_loss": "rise", "data_delta_loss": "data_rises"})
    with pytest.raises(ValueError, match="has lost its checksum: .*another program wrote it anew"):
        tree.to_netcdf(tmp_path / "anew.nc", engine="h5netcdf")
        load(tmp_path / "anew.nc")
    del old.attrs["sealed"]
    xarray.DataTree(old).to_netcdf(tmp_path / "old.nc", engine="h5netcdf")
    loaded = load(tmp_path / "old.nc")
    assert "without a checksum" in loaded.about.pop("note")
    assert same(result, loaded)


def test_a_file_cut_short_is_refused(tmp_path):
    path = trace(torch.eye(3)).save(tmp_path / "result.nc")
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="is not a readable netCDF file|is damaged, or cut short"):
            load(path)
    gc.collect()


def test_damaged_contents_are_refused(tmp_path):
    path = line(perceptron(), (torch.ones(3, 5), torch.tensor([0, 1, 2])), points=3).save(tmp_path / "result.nc")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"about"', b'"abort"'))
    with pytest.raises(ValueError, match="is not a readable netCDF file|is damaged"):
        load(path)
    gc.collect()


@pytest.mark.parametrize("attributes", [{}, {"result": "Other", "fields": "{}"}, {"result": "Trace", "fields": "{}"}])
def test_files_of_others_are_refused(attributes, tmp_path):
    import xarray

    path = tmp_path / "other.nc"
    xarray.Dataset({"a": 1}, attrs=attributes).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ValueError, match="holds no landscape result|written by another version"):
        load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no result at .*nothing.nc"):
        load(tmp_path / "nothing.nc")
