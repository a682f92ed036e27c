import pytest
import torch
from networks import RAGGED, convolutional, quantized
from test_curvature import rescaled
from torch import nn

from landscape import average_sharpness, worst_case_sharpness
from landscape.coordinates import gaussian

RADII = (0.01, 0.1, 0.5)
measures = pytest.mark.parametrize("measure", [average_sharpness, worst_case_sharpness])


def linear():
    model = nn.Linear(3, 4).double()
    generator = torch.Generator().manual_seed(0)
    model.weight.data = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return model


W = linear().weight.detach()
G = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ONCE = [torch.zeros(1)]


def bowl(model, _):
    return (model.weight - W).square().sum() + 0 * model.bias.sum(), 1


def slope(model, _):
    return (model.weight * G).sum() + 100 * model.bias.sum(), 1


@measures
def test_every_filter_is_moved_by_its_share(measure):
    found = measure(linear(), ONCE, objective=bowl, radii=RADII)
    if measure is worst_case_sharpness:  # the gradient is zero at the centre: ascent finds no way up
        assert not found.rise.any()
        return
    expected = torch.tensor(RADII).double().square() * W.square().sum()
    torch.testing.assert_close(found.rise, expected, rtol=1e-6, atol=0)
    assert float(found.stderr.max()) < 1e-12 and found.radii.tolist() == list(RADII)


def test_on_a_slope_the_worst_case_is_exact_and_biases_stay():
    found = worst_case_sharpness(linear(), ONCE, objective=slope, radii=RADII)
    expected = torch.tensor(RADII).double() * (W.norm(dim=1) * G.norm(dim=1)).sum()
    torch.testing.assert_close(found.rise, expected, rtol=1e-6, atol=0)
    assert found.stderr.isnan().all() and found.samples.shape == (3, 1)


def test_averages_are_over_draws_scaled_to_the_filters():
    found = average_sharpness(linear(), ONCE, objective=slope, radii=RADII, draws=5, seed=2)
    for draw in range(5):
        ((_, step),) = gaussian({"weight": W}, 2 * 1_000_003 + draw)
        step = step * W.norm(dim=1, keepdim=True) / step.norm(dim=1, keepdim=True)
        expected = torch.tensor(RADII).double() * (step * G).sum()
        torch.testing.assert_close(found.samples[:, draw], expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(found.rise, found.samples.mean(1))
    torch.testing.assert_close(found.stderr, found.samples.std(1) / 5**0.5)
    assert len(found.samples.unique()) == 15


def test_the_perturbed_point_stays_in_its_ball_and_bends_back():
    def tilted(model, _):
        e = model.weight - W
        return (e * G).sum() - 3 * e.square().sum(), 1

    found = worst_case_sharpness(linear(), ONCE, objective=tilted, radii=(10.0,), steps=200)
    assert 0.98 * float(G.square().sum() / 12) < float(found.rise) <= float(G.square().sum() / 12) + 1e-12


def test_the_worst_case_is_never_below_the_centre():
    def peak(model, _):
        return -1e6 * (model.weight - W).square().sum() + 1e-3 * (model.weight * G).sum(), 1

    assert worst_case_sharpness(linear(), ONCE, objective=peak, radii=(0.1,)).rise.tolist() == [0.0]


@pytest.mark.parametrize("make", [convolutional, lambda: quantized("W4A4")])
def test_the_worst_case_is_worse_than_the_average_and_than_every_random_point(make):
    model = make()
    worst, average = (m(model, RAGGED, radii=(0.02, 0.1)) for m in (worst_case_sharpness, average_sharpness))
    assert (worst.rise > average.samples.amax(1)).all() and worst.rise[1] > worst.rise[0] > 0


@measures
def test_rises_do_not_see_the_scale_of_weights_in_front_of_a_batchnorm(measure):
    mine, theirs = (measure(m, RAGGED) for m in (convolutional(), rescaled(convolutional())))
    torch.testing.assert_close(mine.rise, theirs.rise, rtol=1e-5, atol=0)


@measures
@pytest.mark.parametrize("radii", [(), (0.1, 0.0), (-0.1,), (float("nan"),), (float("inf"),)])
def test_radii_that_mean_nothing_are_refused(measure, radii):
    with pytest.raises(ValueError, match="radii must be finite numbers > 0, relative to the filters' norms, got"):
        measure(convolutional(), RAGGED, radii=radii)


def test_too_few_draws_or_steps_are_refused():
    with pytest.raises(ValueError, match="draws must be >= 2, for a standard error, got 1"):
        average_sharpness(convolutional(), RAGGED, draws=1)
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        worst_case_sharpness(convolutional(), RAGGED, steps=0)
