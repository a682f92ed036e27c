import pickle

import numpy as np
import pytest
import torch
from torchvision import datasets

from saq_core import Data, load_data
from saq_core.data import CIFAR_MOMENTS, augment, balanced_order, training_batches


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", device="cpu")


def custom(n=20, shape=(3, 6, 6), classes=4, **options):
    x, y = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(n) % classes
    return Data((x, y), (x[:4], y[:4]), (x[:5], y[:5]), classes, **options)


def write_cifar(root, kind, monkeypatch, train=(20, 20, 20, 20, 20), test=30):
    """Write small files in torchvision's own layout and let them pass its md5 check."""
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    coarse = kind is datasets.CIFAR100
    classes = 100 if coarse else 10
    sizes = [sum(train)] if coarse else list(train)
    images, labels = {}, {}
    for (name, _), size in zip(kind.train_list + kind.test_list, [*sizes, test], strict=True):
        images[name] = generator.integers(0, 256, (size, 3072), dtype=np.uint8)
        labels[name] = (np.arange(size) % classes).tolist()
        key = "fine_labels" if coarse else "labels"
        (folder / name).write_bytes(pickle.dumps({"data": images[name], key: labels[name]}))
    meta = {kind.meta["key"]: [str(k) for k in range(classes)]}
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps(meta))
    return images, labels


@pytest.mark.parametrize("name, kind", [("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)])
def test_cifar_is_read_normalised_and_split(name, kind, tmp_path, monkeypatch):
    images, labels = write_cifar(tmp_path, kind, monkeypatch)
    data = load_data(name, tmp_path, device="cpu", val_fraction=0.2)
    assert (len(data.train[0]), len(data.val[0]), len(data.test[0])) == (80, 20, 30)
    assert data.input_shape == (3, 32, 32) and data.num_classes == (10 if name == "cifar10" else 100)
    assert (data.padding, data.flip) == (4, True)
    test = kind.test_list[0][0]
    mean, std = (torch.tensor(m).view(3, 1, 1) for m in CIFAR_MOMENTS[name])
    first = torch.from_numpy(images[test][0].reshape(3, 32, 32)) / 255
    torch.testing.assert_close(data.test[0][0], (first - mean) / std)
    assert data.test[1].tolist() == labels[test]
    every = np.concatenate([images[f] for f, _ in kind.train_list])
    found = torch.cat([data.train[0], data.val[0]]) * std + mean
    assert sorted((found * 255).round().flatten(1).sum(1).tolist()) == sorted(every.sum(1, dtype=np.int64).tolist())
    torch.testing.assert_close(torch.tensor(data.fill), (-mean / std).flatten())


def test_missing_files_say_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no complete cifar10 under .*download=True"):
        load_data("cifar10", tmp_path)
    with pytest.raises(ValueError, match="root must be the folder"):
        load_data("cifar100")


def test_digits_are_split_balanced_and_never_flipped(digits):
    assert [len(s[0]) for s in (digits.train, digits.val, digits.test)] == [1293, 144, 360]
    assert digits.input_shape == (1, 8, 8) and digits.num_classes == 10
    assert not digits.flip and digits.padding == 1
    assert abs(float(digits.train[0].mean())) < 0.02 and abs(float(digits.train[0].std()) - 1) < 0.02
    for split in (digits.train, digits.val, digits.test):
        counts = torch.bincount(split[1])
        assert counts.max() - counts.min() <= 0.2 * counts.max()


def test_splits_are_disjoint_and_the_test_split_does_not_depend_on_the_seed(digits):
    other = load_data("digits", seed=1, device="cpu")
    assert torch.equal(other.test[0], digits.test[0]) and not torch.equal(other.val[0], digits.val[0])
    rows = torch.cat([digits.train[0], digits.val[0], digits.test[0]]).flatten(1)
    assert len(rows.unique(dim=0)) == 1797
    assert torch.equal(load_data("digits", device="cpu").train[0], digits.train[0])


def test_limit_keeps_balanced_training_images_and_the_whole_test_split():
    data = load_data("digits", limit=100, device="cpu")
    assert len(data.train[0]) == 100 and torch.bincount(data.train[1], minlength=10).min() >= 9
    assert len(data.val[0]) == 11 and len(data.test[0]) == 360


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"name must be one of \['cifar10', 'cifar100', 'digits'\], got 'mnist'"):
        load_data("mnist")
    for limit in (0, -1, 5000):
        with pytest.raises(ValueError, match="limit must be from 1 to 1293"):
            load_data("digits", limit=limit)
    with pytest.raises(ValueError, match="val_fraction must be between"):
        load_data("digits", val_fraction=1)


def test_probe_is_balanced_fixed_and_of_the_training_split(digits):
    x, y = digits.probe
    assert x.shape == (1024, 1, 8, 8) and torch.bincount(y).max() - torch.bincount(y).min() <= 2
    again = load_data("digits", device="cpu").probe
    assert torch.equal(again[0], x) and torch.equal(again[1], y)
    train = {tuple(row) for row in digits.train[0].flatten(1).tolist()}
    assert all(tuple(row) in train for row in x.flatten(1).tolist())
    assert len(custom().probe[0]) == 20


def test_balanced_order_is_balanced_at_every_cut():
    y = torch.tensor([0] * 30 + [1] * 10 + [2] * 20)
    order = balanced_order(y, 0)
    assert sorted(order.tolist()) == list(range(60))
    for cut in range(1, 31):
        counts = torch.bincount(y[order[:cut]], minlength=3)
        assert counts.max() - counts.min() <= 1


def test_batches_visit_every_sample_once_and_drop_the_ragged_end():
    data = custom(n=20)
    torch.manual_seed(0)
    first = [x for x, _ in training_batches(data, 8)]
    assert [len(x) for x in first] == [8, 8]
    assert len(torch.cat(first).flatten(1).unique(dim=0)) == 16
    assert [len(x) for x, _ in training_batches(data, 64)] == [20]
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, training_batches(data, 8), strict=True))


def test_every_image_is_cropped_and_flipped_on_its_own():
    data = custom(n=400, padding=2, flip=True, fill=(5.0, 6.0, 7.0))
    x = data.train[0]
    torch.manual_seed(0)
    out = augment(x, data)
    padded = torch.tensor(data.fill).view(1, 3, 1, 1).expand(400, 3, 10, 10).clone()
    padded[:, :, 2:8, 2:8] = x
    seen = set()
    for k in range(400):
        options = {
            (i, j, flipped): crop.flip(2) if flipped else crop
            for i in range(5)
            for j in range(5)
            for crop in [padded[k, :, i : i + 6, j : j + 6]]
            for flipped in (False, True)
        }
        match = [place for place, image in options.items() if torch.equal(image, out[k])]
        assert len(match) == 1
        seen.update(match)
    assert len(seen) == 50  # all shifts and both orientations


def test_no_augmentation_returns_the_images_themselves():
    data = custom()
    assert augment(data.train[0], data) is data.train[0]


def test_own_tensors_are_checked():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"train labels must lie in 0 … 2, got 0 … 3"):
        Data((x, y), (x, y), (x, y), 3)
    with pytest.raises(ValueError, match="val must hold one label per input and at least one"):
        Data((x, y), (x[:0], y[:0]), (x, y), 4)
    with pytest.raises(ValueError, match="got 4 inputs, 3 labels"):
        Data((x, y), (x, y), (x, y[:3]), 4)
    with pytest.raises(ValueError, match="need images"):
        Data((x, y), (x, y), (x, y), 4, padding=1)


def test_data_show_themselves_in_one_line():
    assert repr(load_data("digits")) == "Data(digits: 1,293 train, 144 val, 360 test; inputs (1, 8, 8), 10 classes)"
