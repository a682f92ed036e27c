import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from saq_core import Data, build_model, load_data
from saq_core.data.batches import evaluation_batches, steps_per_epoch, training_batches
from saq_core.data.image_files import MOMENTS, ImageFiles

CPU = torch.device("cpu")
MEAN, STD = (np.array(m)[:, None, None] for m in MOMENTS)


def write_image(path, seed=0, size=(12, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_classes(folder, per_class, suffix="png", first_seed=0):
    """Write one folder per class; every image is another one."""
    for c, count in enumerate(per_class):
        for k in range(count):
            write_image(folder / f"class{c}" / f"{k}.{suffix}", seed=first_seed + 1000 * c + k)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    write_classes(root, (10, 14, 12))
    return root


@pytest.fixture(scope="module")
def data(tree):
    return load_data("folder", tree, device="cpu", image_size=8, workers=0)


@pytest.fixture(scope="module")
def ramp(tmp_path_factory):
    """One image whose red grows to the right and whose green grows downwards."""
    path = tmp_path_factory.mktemp("ramp") / "ramp.png"
    across, down = np.meshgrid(np.linspace(0, 255, 160), np.linspace(0, 255, 120))
    Image.fromarray(np.stack([across, down, 0 * down], axis=2).round().astype(np.uint8)).save(path)
    return path


def files(paths, **settings):
    return ImageFiles(np.array([str(p).encode() for p in paths]), **settings)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def names(images):
    return [path.decode() for path in images.paths]


def with_workers(data, workers):
    return dataclasses.replace(data, train=(dataclasses.replace(data.train[0], workers=workers), data.train[1]))


def test_a_folder_of_classes_is_split_into_three(tree, data):
    splits = (data.train, data.val, data.test)
    assert [len(x) for x, _ in splits] == [29, 3, 4] and [len(y) for _, y in splits] == [29, 3, 4]
    assert len({name for x, _ in splits for name in names(x)}) == 36
    for x, y in splits:
        assert [int(name.split("class")[1][0]) for name in names(x)] == y.tolist()
        assert torch.bincount(y, minlength=3).min() >= 1
    other = load_data("folder", tree, device="cpu", image_size=8, seed=1, workers=0)
    assert names(other.test[0]) == names(data.test[0]) and names(other.val[0]) != names(data.val[0])


def test_a_stream_shows_itself_like_tensors_do(data):
    assert repr(data) == "Data(folder: 29 train, 3 val, 4 test; inputs (3, 8, 8), 3 classes)"
    assert data.input_shape == (3, 8, 8) and data.train[0].shape == (29, 3, 8, 8) and data.train[0].device == CPU
    assert steps_per_epoch(data, 8) == 3
    model = build_model("resnet8", data)
    outputs = [model(x) for x, _ in evaluation_batches(data.test, 3, CPU)]
    assert [tuple(o.shape) for o in outputs] == [(3, 3), (1, 3)]


@pytest.mark.parametrize("size, shape", [(224, (300, 280)), (7, (20, 12)), (8, (9, 30))])
def test_evaluation_scales_the_shorter_side_and_takes_the_centre(tmp_path, size, shape):
    write_image(tmp_path / "a.png", size=shape)
    found = files([tmp_path / "a.png"], size=size)[torch.tensor([0])]
    image = Image.open(tmp_path / "a.png")
    short = round(size * 256 / 224)
    scaled = [short if side == min(shape) else int(short * side / min(shape)) for side in shape]
    pixels = np.asarray(image.resize(scaled, Image.Resampling.BILINEAR))
    left, top = (round((side - size) / 2) for side in scaled)
    expected = (pixels[top : top + size, left : left + size].transpose(2, 0, 1) / 255 - MEAN) / STD
    assert found.dtype == torch.float32 and found.shape == (1, 3, size, size)
    torch.testing.assert_close(found[0].double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


def boxes(images):
    """Return width and height of the crops of the ramp as shares of the image, and where they are mirrored."""
    pixels = images * torch.from_numpy(STD).float() + torch.from_numpy(MEAN).float()
    n = images.shape[-1]
    across, down = (pixels[:, 0, n // 2, -3] - pixels[:, 0, n // 2, 2]), pixels[:, 1, -3, 0] - pixels[:, 1, 2, 0]
    return (across.abs() * n / (n - 5)).clamp(max=1), (down * n / (n - 5)).clamp(max=1), across < 0


@pytest.mark.parametrize("min_scale", [0.08, 0.6])
def test_every_training_image_has_its_own_crop_and_flip(ramp, min_scale):
    images = files([ramp] * 200, size=24, min_scale=min_scale)
    [found] = images.batches([slice(None)], [np.arange(200)], flip=True)
    width, height, mirrored = boxes(found)
    area = width * height
    assert min_scale - 0.02 < area.min() < min_scale + 0.1 and area.max() > 0.9
    ratio = width / height * 160 / 120
    assert 0.7 < ratio.min() < 0.85 and 1.2 < ratio.max() < 1.4  # sides 3:4 to 4:3
    assert 70 < mirrored.sum() < 130
    [straight] = images.batches([slice(None)], [np.arange(200)])
    assert not boxes(straight)[2].any()
    torch.testing.assert_close(straight, torch.where(mirrored[:, None, None, None], found.flip(3), found))


def test_flipping_is_a_setting_of_the_data(ramp, data):
    stream = (files([ramp] * 30, size=12), torch.arange(30) % 3)
    for flip in (True, False):
        own = dataclasses.replace(data, train=stream, flip=flip)
        mirrored = torch.cat([boxes(x)[2] for x, _ in training_batches(own, 10, generator=seeded())])
        assert mirrored.any() == flip


@pytest.mark.filterwarnings("ignore:.*suggested max number of worker:UserWarning")  # on a single core
def test_training_is_the_same_for_any_number_of_workers_and_processes(data):
    whole = list(training_batches(data, 8, generator=seeded(5)))
    assert [len(x) for x, _ in whole] == [8, 8, 8]
    shares = [list(training_batches(with_workers(data, 2), 8, generator=seeded(5)))]
    assert all(
        torch.equal(a, b) for one, two in zip(whole, shares[0], strict=True) for a, b in zip(one, two, strict=True)
    )
    for world_size in (2, 4):
        for rank in range(world_size):
            share = training_batches(data, 8, generator=seeded(5), rank=rank, world_size=world_size)
            for (x, y), (own_x, own_y) in zip(whole, share, strict=True):
                assert torch.equal(x[rank::world_size], own_x) and torch.equal(y[rank::world_size], own_y)
    other = next(training_batches(data, 8, generator=seeded(6)))
    assert not torch.equal(other[0], whole[0][0])


def test_labels_stay_with_their_rows(data):
    x, y = data.train
    for (images, labels), rows in zip(
        training_batches(data, 8, generator=seeded(2)), torch.randperm(29, generator=seeded(2)).split(8), strict=False
    ):
        assert torch.equal(labels, y[rows])
        assert images.shape == (8, 3, 8, 8)
    plain = list(evaluation_batches(data.train, 8, CPU))
    assert torch.equal(torch.cat([b for b, _ in plain]), x[torch.arange(29)])
    assert torch.equal(torch.cat([b for _, b in plain]), y)


def test_evaluation_shares_are_disjoint_and_complete(data):
    parts = [torch.cat([x for x, _ in evaluation_batches(data.val, 2, CPU, rank=r, world_size=3)]) for r in range(3)]
    assert torch.equal(torch.cat(parts), data.val[0][torch.arange(3)])


def test_streaming_leaves_the_global_generator_alone(data):
    before = torch.get_rng_state()
    list(training_batches(data, 8, generator=seeded()))
    next(iter(training_batches(with_workers(data, 1), 8, generator=seeded())))
    list(evaluation_batches(data.val, 8, CPU))
    assert torch.equal(torch.get_rng_state(), before)


def test_probe_is_balanced_unaugmented_and_the_same_again(tmp_path):
    write_classes(tmp_path, (800, 700), suffix="bmp")
    data = load_data("folder", tmp_path, device="cpu", image_size=4, workers=0)
    x, y = data.probe
    assert x.shape == (1024, 3, 4, 4) and torch.bincount(y).tolist() == [512, 512]
    every = {tuple(row) for row in data.train[0][torch.arange(len(data.train[0]))].flatten(1).tolist()}
    assert all(tuple(row) in every for row in x.flatten(1).tolist())
    again = load_data("folder", tmp_path, device="cpu", image_size=4, workers=0)
    assert torch.equal(again.probe[0], x) and torch.equal(again.probe[1], y)


def test_folders_of_splits_are_used_as_they_are(tmp_path):
    for k, split in enumerate(("train", "val", "test")):
        write_classes(tmp_path / split, (6 - k, 6 - k), first_seed=100 * k)
    data = load_data("folder", tmp_path, device="cpu", image_size=8, limit=5)
    assert [len(x) for x, _ in (data.train, data.val, data.test)] == [5, 10, 8]
    for split in ("train", "val", "test"):
        assert all(f"/{split}/" in name for name in names(getattr(data, split)[0]))
    with pytest.raises(ValueError, match="limit must be from 1 to 12, got 13"):
        load_data("folder", tmp_path, limit=13)


@pytest.mark.parametrize("held", ["val", "test"])
def test_a_lone_held_out_folder_is_the_test_split(tmp_path, held):
    write_classes(tmp_path / "train", (10, 10))
    write_classes(tmp_path / held, (3, 3))
    data = load_data("folder", tmp_path, device="cpu", image_size=8, val_fraction=0.2)
    assert [len(x) for x, _ in (data.train, data.val, data.test)] == [16, 4, 6]
    assert all(f"/{held}/" in name for name in names(data.test[0]))
    assert all("/train/" in name for name in names(data.val[0]))


def test_flowers_come_with_three_official_splits(tmp_path, monkeypatch):
    from scipy.io import savemat

    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)
    folder = tmp_path / "flowers-102"
    labels = np.arange(408) % 102 + 1
    for k in range(1, 409):
        write_image(folder / "jpg" / f"image_{k:05d}.jpg", seed=k, size=(4, 4))
    ids = np.random.default_rng(0).permutation(102)
    splits = {"trnid": ids + 1, "valid": ids + 103, "tstid": np.concatenate([ids + 205, ids + 307])}
    savemat(folder / "imagelabels.mat", {"labels": labels})
    savemat(folder / "setid.mat", splits)
    data = load_data("flowers102", tmp_path, device="cpu", image_size=4, workers=0)
    assert repr(data) == "Data(flowers102: 102 train, 102 val, 204 test; inputs (3, 4, 4), 102 classes)"
    for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        images, y = getattr(data, split)
        numbers = [int(name[-9:-4]) for name in names(images)]
        assert sorted(numbers) == sorted(splits[key].tolist())
        assert y.tolist() == [labels[number - 1] - 1 for number in numbers]
    assert next(evaluation_batches(data.val, 5, CPU))[0].shape == (5, 3, 4, 4)


def test_pets_have_37_breeds_and_a_drawn_validation_split(tmp_path):
    folder = tmp_path / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    for split, copies in (("trainval", 3), ("test", 2)):
        lines = [f"breed_{c}_{split}{k} {c + 1} {c % 2 + 1} 1" for c in range(37) for k in range(copies)]
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            write_image(folder / "images" / f"{line.split()[0]}.jpg", size=(4, 4))
    data = load_data("pets", tmp_path, device="cpu", image_size=4, workers=0, val_fraction=1 / 3)
    assert repr(data) == "Data(pets: 74 train, 37 val, 74 test; inputs (3, 4, 4), 37 classes)"
    for images, y in (data.train, data.val, data.test):
        assert [int(name.split("breed_")[1].split("_")[0]) for name in names(images)] == y.tolist()
    assert all("_test" in name for name in names(data.test[0])) and len(set(data.val[1].tolist())) == 37


def test_imagenet_tests_on_its_official_validation_images(tmp_path):
    wnids = ["n01440764", "n01443537", "n01484850"]
    torch.save(({w: (w.upper(),) for w in wnids}, wnids), tmp_path / "meta.bin")
    for split, copies in (("train", 4), ("val", 2)):
        for wnid in wnids:
            for k in range(copies):
                write_image(tmp_path / split / wnid / f"{k}.JPEG")
    data = load_data("imagenet", tmp_path, device="cpu", workers=0, val_fraction=0.25)
    assert repr(data) == "Data(imagenet: 9 train, 3 val, 6 test; inputs (3, 224, 224), 3 classes)"
    assert all("/val/" in name for name in names(data.test[0]))
    assert [wnids.index(name.split("/")[-2]) for name in names(data.train[0])] == data.train[1].tolist()


@pytest.mark.parametrize("name", ["flowers102", "pets", "imagenet", "folder"])
def test_missing_files_are_missed(name, tmp_path):
    remedy = {"folder": "any class folder in", "imagenet": "download it externally"}.get(name, "download=True")
    with pytest.raises(FileNotFoundError, match=remedy):
        load_data(name, tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_data(name, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"root must be the folder of the {name} files, got None"):
        load_data(name)


def test_folders_that_do_not_fit_together_are_refused(tmp_path):
    write_classes(tmp_path / "lone" / "test", (2, 2))
    with pytest.raises(FileNotFoundError, match=r"lone must hold a folder train beside \['test'\], got none"):
        load_data("folder", tmp_path / "lone")
    write_classes(tmp_path / "two" / "train", (4, 4, 4))
    write_classes(tmp_path / "two" / "test", (2, 2))
    with pytest.raises(ValueError, match=r"two/test must hold the classes of train, got a difference in \['class2'\]"):
        load_data("folder", tmp_path / "two")
    write_classes(tmp_path / "one", (9,))
    with pytest.raises(ValueError, match="of two at least, got 1 of 1 classes"):
        load_data("folder", tmp_path / "one")
    write_classes(tmp_path / "few", (1, 1, 1, 1))
    with pytest.raises(ValueError, match="train must hold images of every class.*, got 2 of 4 classes.*add images"):
        load_data("folder", tmp_path / "few")
    (tmp_path / "one" / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no valid file for the classes empty"):
        load_data("folder", tmp_path / "one")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["cut", "text", "gone"])
def test_a_broken_image_is_named(tmp_path, workers, damage):
    path = tmp_path / "broken.jpg"
    write_image(path, size=(64, 64))
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:500] if damage == "cut" else b"no image")
    images = files([path] * 2, size=8, workers=workers)
    with pytest.raises(ValueError, match=r"broken\.jpg must be an image, got .*replace the file or take it out"):
        images[torch.tensor([0, 1])]


def test_settings_out_of_range_are_refused(tree, data):
    for settings, message in [
        ({"image_size": 0}, "image_size must be a whole number >= 1, got 0"),
        ({"workers": -1}, "workers must be a whole number >= 0 or None, got -1"),
        ({"min_scale": 0.0}, "min_scale must be > 0 and <= 1, got 0.0"),
        ({"min_scale": 1.5}, "min_scale must be > 0 and <= 1, got 1.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_data("folder", tree, **settings)
    with pytest.raises(ValueError, match="padding must be 0 for image files, .*, got 4"):
        Data(data.train, data.val, data.test, 3, padding=4)


def test_gray_and_transparent_images_become_three_channels(tmp_path):
    Image.fromarray(np.full((6, 6), 90, dtype=np.uint8)).save(tmp_path / "gray.png")
    Image.fromarray(np.full((6, 6, 4), 90, dtype=np.uint8)).save(tmp_path / "clear.png")
    found = files([tmp_path / "gray.png", tmp_path / "clear.png"], size=4)[torch.tensor([0, 1])]
    expected = torch.from_numpy((90 / 255 - MEAN) / STD).float().expand(2, 3, 4, 4)
    torch.testing.assert_close(found, expected)


def test_batches_move_with_the_data(device, data):
    x = data.train[0].to(device)
    rows = torch.tensor([3, 1], device=device)
    assert x.device == device and x[rows].device.type == device.type
    torch.testing.assert_close(x[rows].cpu(), data.train[0][rows.cpu()])
    batch, labels = next(evaluation_batches(data.val, 2, device))
    assert batch.device.type == labels.device.type == device.type


def test_images_are_found_where_torchvision_puts_them(tree):
    """ImageFolder's own list is the reference for paths and labels."""
    source = datasets.ImageFolder(tree)
    data = load_data("folder", tree, device="cpu")
    found = {
        name: label
        for x, y in (data.train, data.val, data.test)
        for name, label in zip(names(x), y.tolist(), strict=True)
    }
    assert found == dict(source.samples)
