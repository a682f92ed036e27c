import copy
from typing import get_args

import pytest
import torch
from perturbing import X, Y, build, closure_for, norm, perturbation, positions, prepared
from torch.nn import functional as F

from saq_core import SAQ
from saq_core.sharpness.radius import AdaptiveRho
from saq_core.sharpness.step_policies import LOOK_ALPHA, POLICIES, Look, make_policy
from saq_core.sharpness.targets import Kind

ALL = ["full", "look:3", "momentum:0.5", "subset:0.5"]


def gradients(model, at=None):
    """Gradients of the parameters, at other positions where given."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in positions(twin).items():
            if at:
                value.copy_(at[name])
    twin.zero_grad()
    F.cross_entropy(twin(X.to(next(twin.parameters()).dtype)), Y).backward()
    return [p.grad for p in twin.parameters() if p.grad is not None]


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def shared_closure(model, optimizer, sizes=None, seen=None):
    """A closure that can compute on a share of its batch."""
    x = X.to(next(model.parameters()).dtype)

    def closure(share=1.0):
        optimizer.zero_grad()
        rows = max(2, round(share * len(x)))
        if sizes is not None:
            sizes.append(rows)
        if seen is not None:
            seen.append({k: v.detach().clone() for k, v in positions(model).items()})
        loss = F.cross_entropy(model(x[:rows]), Y[:rows])
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("case", [2, 3])
@pytest.mark.parametrize("combine", ["perturbed", "mean", "gsam"])
def test_the_update_combines_the_two_gradients_as_defined(combine, case):
    model = build("W4A32")
    start = copy.deepcopy(model)
    optimizer, seen = prepared(model, 0.3, case, lr=0.0, combine=combine), []
    optimizer.step(closure_for(model, optimizer, seen))
    g, s = flat(gradients(start)), flat(gradients(start, seen[1]))
    assert (g - s).norm() > 1e-3 * g.norm()
    along = (g @ s) / (s @ s)
    expected = {"perturbed": s, "mean": (g + s) / 2, "gsam": s - 0.4 * (g - along * s)}[combine]
    found = flat([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(
    "policy, passes",
    [
        ("full", [2, 2, 2, 2]),
        ("look:2", [2, 1, 2, 1]),
        ("momentum", [1] * 4),
        ("subset:0.5", [2] * 4),
    ],
)
def test_policies_pay_for_the_passes_they_promise(policy, passes):
    model = build("W4A32")
    optimizer, sizes, found = prepared(model, 0.1, 3, policy=policy), [], []
    for _ in passes:
        sizes.clear()
        optimizer.step(shared_closure(model, optimizer, sizes))
        found.append(len(sizes))
    assert found == passes and sizes[-1] == len(X) and (sizes[0] < len(X)) == (policy == "subset:0.5")


@pytest.mark.parametrize("case", [1, 2, 3])
@pytest.mark.parametrize("policy", ALL)
def test_rho_zero_is_the_base_optimizer_bit_for_bit(policy, case):
    plain, sharp = (build("W4A32", dtype=torch.float32) for _ in range(2))
    base, sam = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), prepared(sharp, 0.0, case, policy=policy)
    for model, optimizer in ((plain, base), (sharp, sam)):
        closure = shared_closure(model, optimizer)
        for _ in range(5):
            optimizer.step(closure)
    for name, value in plain.state_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, sharp.state_dict()[name]), name


def test_between_looks_the_orthogonal_part_is_added_again():
    model = build("W4A32")
    optimizer, seen = prepared(model, 0.3, 3, policy="look:2"), []
    start = copy.deepcopy(model)
    optimizer.step(closure_for(model, optimizer, seen))
    g, s = flat(gradients(start)), flat(gradients(start, seen[1]))
    v = s - (s @ g) / (g @ g) * g
    now = flat(gradients(model))
    optimizer.step(closure_for(model, optimizer))
    found = flat([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found, now + LOOK_ALPHA * now.norm() / v.norm() * v, atol=1e-12, rtol=1e-9)


def test_momentum_perturbs_along_the_average_gradient_of_the_quantized_weights():
    model = build("W3A32")
    third = copy.deepcopy(model)
    optimizer, seen = prepared(model, 0.3, 3, lr=0.0, policy="momentum:0.8"), []
    closure = closure_for(model, optimizer, seen)
    optimizer.step(closure)
    optimizer.step(closure)
    assert all(torch.equal(seen[0][k], v) for k, v in positions(third).items())  # nothing is known at first
    expected = perturbation(third, prepared(third, 0.3, 3, lr=0.0))  # the average of one gradient points as it does
    for name, value in seen[1].items():
        torch.testing.assert_close(value - seen[0][name], expected[name], atol=1e-12, rtol=1e-9)
    before = {k: v.clone() for k, v in optimizer.policy.state.items()}
    optimizer.step(closure)
    g = flat(optimizer.policy.state.values()) - 0.8 * flat(before.values())
    displaced = copy.deepcopy(third)
    for name, value in displaced.named_buffers():
        if name.endswith("delta"):
            value.requires_grad_(True)
    with torch.no_grad():
        for name, value in positions(displaced).items():
            value.copy_(seen[2][name])
    F.cross_entropy(displaced(X.double()), Y).backward()
    there = {k: v.grad for k, v in positions(displaced).items()}
    named = [there[k.replace("weight", "delta")] if there.get(k.replace("weight", "delta")) is not None else there[k]
             for k in before]  # fmt: skip
    torch.testing.assert_close(g, 0.2 * flat(named), atol=1e-12, rtol=1e-9)


def test_subset_takes_epsilon_from_a_share_and_moves_batchnorm_once_on_the_whole_batch():
    model = build("W4A32")
    whole, half = copy.deepcopy(model), copy.deepcopy(model)
    optimizer, seen = prepared(model, 0.3, 3, lr=0.0, policy="subset:0.5"), []
    optimizer.step(shared_closure(model, optimizer, seen=seen))
    sam = prepared(half, 0.3, 3, lr=0.0)
    few, ours = shared_closure(half, sam), []

    def closure():
        ours.append({k: v.detach().clone() for k, v in positions(half).items()})
        return few(0.5)

    sam.step(closure)
    for name, value in seen[1].items():
        torch.testing.assert_close(value, ours[1][name], atol=1e-14, rtol=0)
    with torch.no_grad():
        for name, value in positions(whole).items():
            value.copy_(seen[1][name])
        whole(X.double())
    for norm_ in ("bn1", "bn2"):
        one, two = model.get_submodule(norm_), whole.get_submodule(norm_)
        assert torch.equal(one.running_mean, two.running_mean) and one.num_batches_tracked == 1


@pytest.mark.parametrize("policy", ALL)
def test_a_resumed_policy_goes_on_to_the_same_numbers(policy):
    def run(interrupted):
        model = build("W4A32")
        optimizer = prepared(model, 0.2, 3, policy=policy)
        for k in range(6):
            if interrupted and k == 4:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = prepared(model, 0.2, 3, policy=policy)
                optimizer.load_state_dict(state)
            optimizer.step(shared_closure(model, optimizer))
        return flat(model.parameters())

    assert torch.equal(run(False), run(True))


@pytest.mark.parametrize("kind", get_args(Kind))
def test_only_the_kinds_that_are_named_are_perturbed(kind):
    model = build("W4A4")
    for module in model.modules():
        if getattr(module, "activation", False):
            module._set_signed(True)
    moved = {k for k, e in perturbation(model, prepared(model, 0.3, 3, perturbed=(kind,))).items() if e.any()}
    ends = {
        "weight": {"conv1.delta", "conv2.delta", "fc.delta"},
        "bias": {"conv1.bias", "conv2.bias", "fc.bias"},
        "norm": {f"{n}.{p}" for n in ("bn1", "bn2") for p in ("weight", "bias")},
        "weight_step": {"conv2.weight_quantizer.step"},
        "input_step": {"conv2.input_quantizer.step"},
    }
    assert moved == ends[kind]


def test_the_authors_settings_are_theirs():
    settings = SAQ.from_paper()
    assert (settings.rho, settings.case, settings.metric) == (0.4, 3, "normalised")
    assert "input_step" in settings.perturbed and "weight_step" not in settings.perturbed
    assert SAQ.from_paper(0.9, case=1).rho == 0.9


def test_adaptive_rho_follows_the_gap_of_the_step_before():
    rule = AdaptiveRho(0.05, 0.01, 0.1)
    assert rule(None, None, 0) == 0.05
    for gap, rho in ((-1.0, 0.01), (0.0, 0.01), (0.05, 0.04879), (1.0, 0.1)):
        assert float(rule(torch.tensor(2.0), torch.tensor(2.0 + gap), 1)) == pytest.approx(rho, rel=1e-3)
    model = build("W4A32")
    optimizer = SAQ(0.05, rho_range=(0.01, 0.5)).wrap(model, torch.optim.SGD(model.parameters(), lr=0.0))
    first = perturbation(model, optimizer)
    loss, perturbed = optimizer.losses
    second = perturbation(model, optimizer)
    assert float(norm(first.values())) == pytest.approx(0.05)
    expected = (perturbed - loss).log1p().clamp(0.01, 0.5)
    assert float(norm(second.values())) == pytest.approx(float(expected)) and float(expected) > 0.011


def test_clipping_before_the_update_never_changes_epsilon():
    def run(clip):
        model = build("W4A32")
        optimizer = prepared(model, 0.3, 3, lr=1.0)
        if clip:
            optimizer.optimizer.register_step_pre_hook(
                lambda *_: torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3) and None
            )
        before = flat(model.parameters()).detach().clone()
        return perturbation(model, optimizer), (flat(model.parameters()) - before).norm()

    (free, far), (clipped, near) = run(False), run(True)
    assert all(torch.equal(free[k], clipped[k]) for k in free) and near < 2e-3 < far


@pytest.mark.parametrize(
    "text", ["often", "every:5", "look:0", "look:x", "full:2", "momentum:1", "subset:0", "look:2.5", ""]
)
def test_bad_policies_are_refused(text):
    with pytest.raises(ValueError, match="policy"):
        SAQ(policy=text)


def test_policies_can_be_objects_and_have_defaults():
    assert isinstance(make_policy("look"), Look) and make_policy("look").k == 5 and set(POLICIES) >= {"full"}
    model = build("W4A32")
    assert prepared(model, 0.1, 3, policy=Look(2)).policy.k == 2


def test_bad_settings_of_the_family_are_refused():
    with pytest.raises(ValueError, match=r"perturbed must be .*'weight', 'bias', .*got \('clips',\)"):
        SAQ(perturbed=("clips",))
    with pytest.raises(ValueError, match=r"combine must be one of 'perturbed', 'mean', 'gsam', got 'sum'"):
        SAQ(combine="sum")
    with pytest.raises(ValueError, match="rho must be within rho_range, got 0.5 for 0.01 … 0.1"):
        SAQ(0.5, rho_range=(0.01, 0.1))
    with pytest.raises(ValueError, match="rho must be a number, got AdaptiveRho"):
        SAQ(AdaptiveRho())


def test_settings_that_a_policy_would_ignore_are_refused():
    for policy in ("momentum", "subset:0.5"):
        for other in ({"combine": "mean"}, {"rho_range": (0.01, 0.1)}):
            with pytest.raises(
                ValueError, match="policy must see a whole batch at w and at w .* got '(momentum|subset)'"
            ):
                SAQ(0.05, policy=policy, **other)


def test_normalised_units_are_those_of_the_latent_weights():
    model = build("W4A32", "liq")
    spread = {name: layer.weight.detach().std() for name, layer in model.named_children() if hasattr(layer, "delta")}
    epsilon = perturbation(model, prepared(model, 0.4, 3, metric="normalised", perturbed=("weight",)))
    assert float(norm([epsilon[f"{name}.delta"] / s for name, s in spread.items()])) == pytest.approx(0.4)


def test_a_model_that_is_moved_or_frozen_later_keeps_its_case():
    model = build("W4A32", dtype=torch.float32)
    sam = prepared(model, 0.3, 3)
    model.double()
    model.conv1.weight.requires_grad_(False)
    moved = {name for name, e in perturbation(model, sam).items() if e.any()}
    assert {"conv2.delta", "fc.delta"} <= moved and "conv1.delta" not in moved


def test_autocast_around_the_step_does_not_hide_the_perturbation():
    model = build(dtype=torch.float32)
    sam, losses = prepared(model, 2.0), []

    def closure():
        sam.zero_grad()
        loss = F.cross_entropy(model(X.float()).float(), Y)
        losses.append(float(loss.detach()))
        loss.backward()
        return loss

    with torch.autocast("cpu", torch.bfloat16):
        sam.step(closure)
    assert losses[1] > losses[0] + 0.1


@pytest.mark.parametrize("policy", ["look:2", "full"])
@pytest.mark.parametrize("combine", ["perturbed", "gsam", "mean"])
def test_a_layer_that_one_pass_leaves_out_is_no_obstacle(policy, combine):
    model, calls = build("W4A32"), []
    sam = prepared(model, 0.2, 3, policy=policy, combine=combine)

    def closure():
        sam.zero_grad()
        calls.append(1)
        head = model(X.double())
        loss = F.cross_entropy(head if len(calls) % 2 else head.detach() + model.fc.bias, Y)
        loss.backward()
        return loss

    for _ in range(4):
        sam.step(closure, diagnose=torch.float64)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_loaded_state_is_a_copy():
    one, two = (prepared(build("W4A32"), 0.2, 3, policy="momentum") for _ in range(2))
    one.step(closure_for(one.model, one))
    two.load_state_dict(one.state_dict())
    before = flat(one.policy.state.values()).clone()
    two.step(closure_for(two.model, two))
    assert torch.equal(before, flat(one.policy.state.values()))
