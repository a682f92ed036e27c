import copy

import matplotlib.pyplot as plt
import pytest
import torch
from networks import EYE, PAIRED, RAGGED, convolutional, linear, quantized, recomputed_by_hand
from states import assert_same, network, state
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from landscape import line, load, surface
from landscape.model.objective import Objective
from landscape.surfaces.trajectories import trajectory


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def wide(*weight):
    model = nn.Linear(len(weight), 1, bias=False).double()
    model.weight.data = torch.tensor([weight], dtype=torch.float64)
    return model


WIDE = {"data": (torch.eye(3).double(), torch.zeros(3, 1).double()), "loss": mse_loss}  # loss = ‖w‖²/3


def own(model, batchnorm="recomputed"):
    twin = recomputed_by_hand(model) if batchnorm == "recomputed" else model
    return sum(len(x) / 7 * cross_entropy(twin(x), y).item() for x, y in RAGGED)


def test_a_path_between_two_networks_has_exactly_both_at_its_ends():
    mine, other = convolutional(0).eval(), convolutional(1).eval()
    found = line(mine, RAGGED, directions=other, span=(0, 1), points=4)
    assert found.alphas.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1]) and found.centre == 0
    assert float(found.alphas[0]) == 0 and float(found.alphas[-1]) == 1
    assert float(found.loss[0]) == pytest.approx(own(mine), rel=1e-9)
    assert float(found.loss[-1]) == pytest.approx(own(other), rel=1e-9)
    assert float(found.loss[-1]) == pytest.approx(Objective(other, RAGGED, batchnorm="recomputed").centre.loss.item())


def test_oblique_directions_of_any_length_give_coordinates_in_multiples_of_them():
    # the peer's coordinates are lengths: its paths lie elsewhere on the surface
    first, second = torch.tensor([[2.0, 0.0, 0.0]]).double(), torch.tensor([[3.0, 0.5, 0.0]]).double()
    plane = surface(wide(1.0, 1.0, 1.0), **WIDE, directions=[{"weight": first}, {"weight": second}], points=3)
    away = torch.tensor([[0.0, 0.0, 4.0]]).double()
    points = [wide(1.0, 1.0, 1.0).weight.data + a * first + b * second + away for a, b in ((0.5, -1.0), (2.0, 0.25))]
    found = trajectory(wide(1.0, 1.0, 1.0), [{"weight": point} for point in points], **WIDE, surface=plane)
    expected = torch.tensor([[0.5, -1.0], [2.0, 0.25]]).double()
    torch.testing.assert_close(found.coordinates, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.off_plane, torch.tensor([4.0, 4.0]).double())
    torch.testing.assert_close(found.loss, torch.stack([point.square().sum() / 3 for point in points]))
    torch.testing.assert_close(found.plane_loss, torch.stack([(p - away).square().sum() / 3 for p in points]))
    torch.testing.assert_close(found.distance, torch.stack([(p - 1).norm() for p in points]))
    shares = 1 - found.off_plane.square().sum() / found.distance.square().sum()
    torch.testing.assert_close(found.explained, shares[None])


def test_principal_components_are_those_of_the_differences_to_the_model():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(5, 3, generator=generator, dtype=torch.float64) * torch.tensor([5.0, 2.0, 0.1]) + 1
    model = wide(*(points[-1].tolist()))
    found = trajectory(model, [{"weight": point[None]} for point in points], **WIDE)
    u, s, v = torch.linalg.svd(points - points[-1], full_matrices=False)
    torch.testing.assert_close(found.explained, (s.square() / s.square().sum())[:2])
    axes = torch.cat([found.direction(axis)["weight"] for axis in range(2)])
    torch.testing.assert_close((axes @ v[:2].T).abs(), torch.eye(2).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.coordinates, (points - points[-1]) @ axes.T)
    torch.testing.assert_close(found.off_plane, (points - points[-1] - found.coordinates @ axes).norm(dim=1))
    assert (
        not found.coordinates[-1].any() and (found.coordinates.abs().max(0).values == found.coordinates.max(0)[0]).all()
    )


def test_the_plane_through_three_checkpoints_holds_them_all():
    mine, first, second = (convolutional(i).eval() for i in range(3))
    found = trajectory(mine, [first, second, mine], RAGGED)
    torch.testing.assert_close(found.plane_loss, found.loss, rtol=1e-9, atol=0)
    assert (
        float(found.off_plane.max()) < 1e-12 * float(found.distance.max()) and float(found.explained.sum()) > 1 - 1e-12
    )
    assert found.loss.tolist() == pytest.approx([own(m) for m in (first, second, mine)], rel=1e-9)


@pytest.mark.filterwarnings("ignore:the end of the line has loss")  # of the model's statistics
@pytest.mark.parametrize("batchnorm", ["fixed", "recomputed"])
def test_a_checkpoint_keeps_its_own_buffers_and_the_plane_the_models(batchnorm):
    mine, other = convolutional(0).eval(), convolutional(1).eval()
    plane = surface(mine, RAGGED, directions=[other, convolutional(2)], points=3, batchnorm=batchnorm)
    modules = trajectory(mine, [other], RAGGED, surface=plane)
    states = trajectory(mine, [other.state_dict()], RAGGED, surface=plane)
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in other.state_dict().items()}  # of torch.compile
    assert torch.equal(trajectory(mine, [compiled], RAGGED, surface=plane).loss, states.loss)
    assert torch.equal(modules.loss, states.loss) and modules.about["batchnorm"] == batchnorm
    assert float(modules.loss[0]) == pytest.approx(own(other, batchnorm), rel=1e-9)
    torch.testing.assert_close(modules.coordinates, torch.tensor([[1.0, 0.0]]).double(), rtol=0, atol=1e-9)
    assert float(modules.plane_loss[0]) == pytest.approx(float(plane.loss[2, 1]), rel=1e-6)
    assert (float(modules.plane_loss[0]) == pytest.approx(own(other, batchnorm))) == (batchnorm == "recomputed")


def test_a_quantized_trajectory_projects_what_the_network_computes_with():
    mine, other = quantized("W4A4"), quantized("W4A4")
    with torch.no_grad():
        other[3].weight.mul_(1.5)
        other[7].weight.add_(0.2)
    found = trajectory(mine, [other, mine, convolutional(1)], RAGGED, batchnorm="fixed")
    assert found.about["space"] == "quantized" and float(found.distance[1]) == 0
    used = sum(
        float((a.used_weight() - b.used_weight()).detach().square().sum())
        for a, b in ((mine[i], other[i]) for i in (3, 7))
    )
    assert float(found.distance[0]) == pytest.approx(used**0.5)
    assert float(found.loss[0]) == pytest.approx(Objective(other, RAGGED).centre.loss.item(), rel=1e-12)


def test_a_surface_is_measured_over_the_trajectorys_plane_and_drawn_under_it(tmp_path):
    mine, first, second = (convolutional(i).eval() for i in range(3))
    found = trajectory(mine, [first, second, mine], RAGGED)
    (left, right), (low, high) = found.span()
    assert (
        left < 0 and right > float(found.coordinates[:, 0].max()) and low < float(found.coordinates[:, 1].min()) < high
    )
    plane = surface(mine, RAGGED, directions=found, span=found.span(), points=(5, 4))
    assert plane.about["batchnorm"] == "recomputed" and plane.about["directions"].startswith("principal component 1")
    assert plane.about["axes"] == found.about["axes"]
    plane, found = (load(result.save(tmp_path / f"{type(result).__name__}.nc")) for result in (plane, found))
    ax = found.draw(surface=plane).axes[0]
    drawn = next(artist for artist in ax.lines if len(artist.get_xdata()) == 3)
    assert drawn.get_xydata().tolist() == found.coordinates.tolist()
    marks = next(c for c in ax.collections if len(c.get_offsets()) == 3 and c.get_array() is not None)
    assert list(marks.get_array()) == found.loss.tolist()
    assert ax.get_xlabel() == "Step along principal component 1"
    assert "100 % of the squared distance lies in the plane" in ax.figure.get_supxlabel()
    trace = next(t for t in found.plot(surface=plane, scale="log").data if t.name == "checkpoints, their own loss")
    assert list(trace.x) == found.coordinates[:, 0].tolist()
    assert list(trace.z) == pytest.approx(found.loss.log10().tolist())
    assert trace.customdata[0].tolist() == [
        v[0].item() for v in (found.loss, found.plane_loss, found.off_plane, found.distance)
    ]
    with pytest.raises(ValueError, match="surface must lie in the trajectory's plane, but its plane is another"):
        found.draw(surface=surface(mine, RAGGED, points=3))
    assert repr(found).startswith("Trajectory(3 checkpoints, 100 % of the squared distance in the plane, loss ")


def test_a_trajectory_leaves_the_networks_alone():
    model, other = network("W4A4"), network("W4A4")
    with torch.no_grad():
        other[3].weight.mul_(2)
        other[7].weight.add_(1)
    before = state(model), state(other)
    states = [copy.deepcopy(other.state_dict()), {"0.weight": other[0].weight.detach() + 1}]
    trajectory(model, [other, *states], RAGGED)
    assert_same(before, (state(model), state(other)))

    def loss(output, target):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trajectory(model, [other], RAGGED, loss=loss)
    assert_same(before, (state(model), state(other)))


def test_bad_trajectories_are_refused():
    mine = convolutional()
    with pytest.raises(ValueError, match="checkpoints must hold at least one"):
        trajectory(mine, [], RAGGED)
    with pytest.raises(ValueError, match="the checkpoints span 1 dimensions, and 2 are needed"):
        trajectory(mine, [mine, convolutional(1)], RAGGED)
    with pytest.raises(ValueError, match="the checkpoints span 0 dimensions"):
        trajectory(mine, [mine], RAGGED)
    with pytest.raises(ValueError, match="a checkpoint holds 'a', which the model does not have"):
        trajectory(mine, [{"a": torch.ones(1)}], RAGGED)
    with pytest.raises(ValueError, match="networks of different weights"):
        trajectory(mine, [nn.Linear(2, 2)], RAGGED)
    plane = surface(convolutional(1), RAGGED, points=3)
    with pytest.raises(ValueError, match="surface must be one of this very model"):
        trajectory(mine, [mine], RAGGED, surface=plane)


def test_linear_interpolation_evaluates_both_ends():
    # a peer's never evaluates α = 0
    found = line(linear(), EYE, loss=PAIRED["loss"], directions=wide(3.0, 0.0), span=(0.0, 1.0), points=2)
    assert found.loss.tolist() == pytest.approx([(0.5**2 + 5**2) / 2, (2.5**2 + 3**2) / 2])
