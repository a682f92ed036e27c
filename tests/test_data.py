import pickle

import numpy as np
import pytest
import torch
from torchvision import datasets

from saq_core import Data, load_data
from saq_core.data.batches import augment, evaluation_batches, mix, steps_per_epoch, training_batches
from saq_core.data.datasets import MOMENTS
from saq_core.data.splits import balanced_order


def custom(n=20, shape=(3, 6, 6), classes=4, **options):
    x, y = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(n) % classes
    return Data((x, y), (x[:4], y[:4]), (x[:5], y[:5]), classes, **options)


def write_cifar(root, kind, monkeypatch, train=(40, 40, 40, 40, 40), test=30):
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
    assert (len(data.train[0]), len(data.val[0]), len(data.test[0])) == (160, 40, 30)
    assert data.input_shape == (3, 32, 32) and data.num_classes == (10 if name == "cifar10" else 100)
    assert (data.padding, data.flip) == (4, True)
    test = kind.test_list[0][0]
    mean, std = (torch.tensor(m).view(3, 1, 1) for m in MOMENTS[name])
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
    with pytest.raises(ValueError, match=r"name must be one of 'digits', 'cifar10', .*'folder', got 'mnist'"):
        load_data("mnist")
    for limit in (0, -1, 5000):
        with pytest.raises(ValueError, match="limit must be from 1 to 1293"):
            load_data("digits", limit=limit)
    with pytest.raises(ValueError, match="val_fraction must be between"):
        load_data("digits", val_fraction=1)
    with pytest.raises(ValueError, match="image_size must be None for digits, whose images have one size, got 224"):
        load_data("digits", image_size=224)
    with pytest.raises(
        ValueError, match="images of every class, and of two at least, got 9 of 10 classes: raise limit"
    ):
        load_data("digits", limit=9, device="cpu")


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
    proportional = balanced_order(y, 0, proportional=True)
    for cut in range(1, 61):
        wanted = torch.tensor([30, 10, 20]) * cut / 60
        assert (torch.bincount(y[proportional[:cut]], minlength=3) - wanted).abs().max() <= 1
    even = torch.arange(60) % 3
    assert torch.equal(balanced_order(even, 0), balanced_order(even, 0, proportional=True))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_batches_visit_every_sample_once_and_drop_the_ragged_end():
    data = custom(n=20)
    first = [x for x, _ in training_batches(data, 8, generator=seeded())]
    assert [len(x) for x in first] == [8, 8] and steps_per_epoch(data, 8) == 2
    assert len(torch.cat(first).flatten(1).unique(dim=0)) == 16
    assert [len(x) for x, _ in training_batches(data, 64, generator=seeded())] == [20]
    assert steps_per_epoch(data, 64) == steps_per_epoch(data, 20) == 1


def crop(image, down, right, mirrored, p, fill):
    c, h, w = image.shape
    padded = torch.tensor(fill).view(-1, 1, 1).expand(c, h + 2 * p, w + 2 * p).clone()
    padded[:, p : p + h, p : p + w] = image
    cut = padded[:, down : down + h, right : right + w]
    return cut.flip(2) if mirrored else cut


@pytest.mark.parametrize("padding, flip", [(2, True), (2, False), (0, True), (0, False)])
def test_the_draws_are_those_of_the_global_generator_and_every_image_has_its_own(padding, flip):
    """Experiments that ran before the generator was an argument go on with the same numbers."""
    fill = (5.0, 6.0, 7.0)
    data = custom(n=130, padding=padding, flip=flip, fill=fill)
    found = list(training_batches(data, 64, generator=seeded(3)))
    torch.manual_seed(3)
    x, y = data.train
    order, seen = torch.randperm(130), set()
    assert len(found) == 2
    for rows, (images, labels) in zip(order[:128].split(64), found, strict=True):
        assert torch.equal(labels, y[rows])
        down, right, mirrored = (torch.zeros(64, 1, dtype=torch.int64) for _ in range(3))
        if padding or flip:
            down, right = torch.randint(0, 2 * padding + 1, (2, 64, 1))
        if flip:
            mirrored = torch.rand(64, 1) < 0.5
        places = list(zip(down.flatten().tolist(), right.flatten().tolist(), mirrored.flatten().tolist(), strict=True))
        for image, row, place in zip(images, rows.tolist(), places, strict=True):
            assert torch.equal(image, crop(x[row], *place, padding, fill))
        seen.update(places)
    assert len(seen) > 0.7 * (2 * padding + 1) ** 2 * (1 + flip)


@pytest.mark.parametrize("world_size, batch_size", [(2, 12), (3, 12), (5, 15), (4, 200)])
def test_processes_share_every_batch_image_by_image(world_size, batch_size):
    data = custom(n=40, padding=1, flip=True, fill=(0.0,) * 3)
    whole = list(training_batches(data, batch_size, generator=seeded()))
    shares = [
        list(training_batches(data, batch_size, generator=seeded(), rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for k, (x, y) in enumerate(whole):
        for rank, share in enumerate(shares):
            assert torch.equal(share[k][0], x[rank::world_size]) and torch.equal(share[k][1], y[rank::world_size])
    assert {len(share) for share in shares} == {len(whole)}


@pytest.mark.parametrize("n, batch_size, samples", [(40, 12, 12), (40, 3, 3), (18, 20, 18)])
def test_processes_need_equal_shares(n, batch_size, samples):
    """Averaging gradients weights every process alike, so that unequal shares would weight the samples."""
    with pytest.raises(ValueError, match=f"equal shares for 5 processes.*, got {samples} samples in a batch"):
        next(training_batches(custom(n=n), batch_size, generator=seeded(), rank=4, world_size=5))


def test_no_augmentation_draws_nothing():
    data, generator = custom(), seeded()
    rows = torch.tensor([3, 1, 2])
    assert torch.equal(augment(data, rows, generator), data.train[0][rows])
    assert torch.equal(generator.get_state(), seeded().get_state())


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_sees_every_sample_once_in_order(world_size):
    x, y = torch.arange(5.0)[:, None], torch.arange(5)
    parts = [
        list(evaluation_batches((x, y), 2, torch.device("cpu"), rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    batches = [batch for part in parts for batch in part]
    assert torch.equal(torch.cat([b for b, _ in batches]), x) and torch.equal(torch.cat([b for _, b in batches]), y)
    assert all(1 <= len(b) <= 2 for b, _ in batches)
    sizes = [sum(len(b) for b, _ in part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_mixup_is_the_mean_that_its_labels_say():
    x, y = torch.randn(6, 3, 5, 5, dtype=torch.float64, generator=seeded()), torch.tensor([0, 1, 2, 3, 0, 2])
    mixed, labels = mix(x, y, 4, "mixup", seeded())
    one_hot = torch.eye(4)[y]
    weight = labels[0, 0]  # of the first image, whose neighbour is the last and of class 2
    torch.testing.assert_close(labels, weight * one_hot + (1 - weight) * one_hot.roll(1, 0))
    torch.testing.assert_close(mixed, weight.double() * x + (1 - weight.double()) * x.roll(1, 0), atol=1e-6, rtol=0)
    assert 0 < weight < 1


def test_cutmix_takes_a_box_as_large_as_its_labels_say():
    x, y = torch.rand(2, 1, 8, 10, generator=seeded()), torch.tensor([0, 1])
    boxes = set()
    for seed in range(20):
        mixed, labels = mix(x, y, 2, "cutmix", seeded(seed))
        other = (mixed == x.roll(1, 0)).all(1)
        assert torch.equal(other | (mixed == x).all(1), torch.ones(2, 8, 10, dtype=torch.bool))
        assert torch.equal(other[0], other[1])
        torch.testing.assert_close(labels[0, 1], other[0].float().mean())
        rows, columns = other[0].any(1), other[0].any(0)
        assert other[0].sum() == rows.sum() * columns.sum()  # a box
        boxes.add(tuple(rows.tolist() + columns.tolist()))
    assert len(boxes) > 10


def test_mixing_follows_its_generator_and_leaves_the_global_one_alone():
    x, y = torch.rand(4, 1, 8, 8, generator=seeded()), torch.arange(4)
    before = torch.get_rng_state()
    kinds = set()
    for seed in range(10):
        generator, again = seeded(seed), seeded(seed)
        first, labels = mix(x, y, 4, "both", generator)
        assert torch.equal(mix(x, y, 4, "both", again)[0], first)
        assert not torch.equal(mix(x, y, 4, "both", generator)[0], first)
        torch.testing.assert_close(labels.sum(1), torch.ones(4))
        kinds.add(bool(torch.isin(first, x).all()))
    assert kinds == {True, False}  # boxes hold pixels that were there, means do not
    assert torch.equal(torch.get_rng_state(), before)


def test_own_tensors_are_checked():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"train labels must lie in 0 … 2, got 0 … 3"):
        Data((x, y), (x, y), (x, y), 3)
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \(n,\), got torch.int32 of shape \(4,\)"):
        Data((x, y.int()), (x, y), (x, y), 4)
    with pytest.raises(ValueError, match="val must hold one target per input and at least one"):
        Data((x, y), (x[:0], y[:0]), (x, y), 4)
    with pytest.raises(ValueError, match="got 4 inputs, 3 targets"):
        Data((x, y), (x, y), (x, y[:3]), 4)
    with pytest.raises(ValueError, match="need a tensor of images"):
        Data((x, y), (x, y), (x, y), 4, padding=1)


def test_data_show_themselves_in_one_line():
    assert repr(load_data("digits")) == "Data(digits: 1,293 train, 144 val, 360 test; inputs (1, 8, 8), 10 classes)"
