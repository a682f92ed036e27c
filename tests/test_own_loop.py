"""SAM, and a monitor, in loops that are not ours: bare ones, Lightning, accelerate, transformers, processes."""

import contextlib
import copy
import doctest
import functools
import inspect
import pickle
import warnings

import pytest
import torch
from ranks import launched
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

import landscape
import saq_core
from saq_core import SAM, SAQ, files, parameter_groups, quantize

EXAMPLE = "".join(example.source for example in doctest.DocTestParser().get_examples(inspect.getdoc(SAM)))
quiet = pytest.mark.filterwarnings("ignore")  # what other packages say of themselves; of schedulers see `heard`
GENERATOR = torch.Generator().manual_seed(7)
BATCHES = [
    (torch.randn(8, 6, generator=GENERATOR, dtype=torch.float64), torch.randint(3, (8,), generator=GENERATOR))
    for _ in range(6)
]
SCHEDULERS = {
    "none": lambda optimizer: None,
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=6),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=7),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 0.7**step),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1.0),
}


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).double()


def sgd(model):
    return torch.optim.SGD(parameter_groups(model, weight_decay=0.01), lr=0.2, momentum=0.9)


def sharp(model, **settings):
    return SAM(model, sgd(model), **{"rho": 0.1, **settings})


def advance(scheduler, loss):
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(loss)
    elif scheduler is not None:
        scheduler.step()


def bare_step(model, optimizer, closure, rho):
    """One step of SAM by hand, with ε at the deltas where there are any (Case 3)."""
    layers = [layer for layer in model.modules() if hasattr(layer, "delta")]
    deltas, rounded = [layer.delta.requires_grad_() for layer in layers], {id(layer.weight) for layer in layers}
    targets = [p for name, p in model.named_parameters() if "quantizer" not in name and id(p) not in rounded]
    targets += deltas
    optimizer.zero_grad()
    loss = closure()
    size = torch.cat([t.grad.flatten() for t in targets]).norm()
    before = [t.detach().clone() for t in targets]
    with torch.no_grad():
        for t in targets:
            t.add_(t.grad * rho / size)
    optimizer.zero_grad()
    closure()
    with torch.no_grad():
        for t, value in zip(targets, before, strict=True):
            t.copy_(value)
    for delta in deltas:
        delta.requires_grad_(False).grad = None
    optimizer.step()
    return loss


def closure_of(model, x, y):
    def closure():
        loss = F.cross_entropy(model(x).double(), y)
        loss.backward()
        return loss

    return closure


def bare(model, schedule="none", rho=0.1, batches=BATCHES):
    """Train by hand; return every step's loss, lr and momentum."""
    optimizer, rows = sgd(model), []
    scheduler = SCHEDULERS[schedule](optimizer)
    for x, y in batches:
        loss = bare_step(model, optimizer, closure_of(model, x, y), rho)
        rows.append((loss.item(), optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        advance(scheduler, loss.detach())
    return rows


def own(model, sam, schedule="none", batches=BATCHES):
    rows, scheduler = [], SCHEDULERS[schedule](sam)
    for x, y in batches:
        loss = sam.step(closure_of(model, x, y))
        rows.append((loss.item(), sam.param_groups[0]["lr"], sam.param_groups[0]["momentum"]))
        advance(scheduler, loss.detach())
    return rows


def same(one, two, tolerance=1e-12):
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=tolerance, rtol=tolerance, msg=name)


@pytest.fixture
def heard(recwarn):
    """Fail if anything was said about schedulers, by torch or by whoever calls it."""
    yield
    assert not [str(w.message) for w in recwarn if "sched" in str(w.message)]


def test_the_example_is_the_bare_loop_of_case_3():
    setup, marker, _ = EXAMPLE.partition("for x, y in loader")
    assert marker and "SAM(" in setup
    torch.manual_seed(0)
    exec(EXAMPLE, example := {})
    torch.manual_seed(0)
    exec(setup, by_hand := {})
    model, base = by_hand["model"], by_hand["base"]
    scheduler = lr_scheduler.CosineAnnealingLR(base, T_max=4)
    for x, y in by_hand["loader"]:
        bare_step(model, base, closure_of(model, x, y), 0.05)
        scheduler.step()
    same(example["model"], model, 1e-6)
    assert example["sam"].param_groups[0]["lr"] == base.param_groups[0]["lr"] == 0


@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_schedulers_of_torch_take_a_sam(schedule):
    ours, theirs = net(), net()
    sam = sharp(ours)
    assert isinstance(sam, torch.optim.Optimizer)
    rows, expected = own(ours, sam, schedule), bare(theirs, schedule)
    torch.testing.assert_close(torch.tensor(rows), torch.tensor(expected))
    same(ours, theirs)
    assert schedule == "none" or len({lr for _, lr, _ in rows}) > 2
    assert schedule != "one cycle" or len({momentum for *_, momentum in rows}) > 2


def test_it_is_the_wrapped_optimizer_after_loading_too():
    model = net()
    sam = sharp(model)
    own(model, sam)
    scheduler = lr_scheduler.LambdaLR(sam, lambda step: 0.5**step)
    for _ in range(2):
        for name in ("param_groups", "state", "defaults"):
            assert getattr(sam, name) is getattr(sam.optimizer, name)
        sam.load_state_dict(copy.deepcopy(sam.state_dict()))
    sam.step(closure_of(model, *BATCHES[0]))
    scheduler.step()
    assert sam.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_hooks_are_called():
    model, calls = net(), []
    sam = sharp(model)
    sam.register_step_pre_hook(lambda optimizer, *_: calls.append(("before", optimizer)))
    sam.register_step_post_hook(lambda optimizer, *_: calls.append(("after", optimizer)))
    sam.register_state_dict_post_hook(lambda _, state: {**state, "mine": 1})
    sam.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    sam.step(closure_of(model, *BATCHES[0]))
    assert calls == [("before", sam), ("after", sam)]
    assert sam.state_dict()["mine"] == 1
    sam.load_state_dict(sam.state_dict())
    assert calls[-1] == "loaded"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))])
def test_a_copy_goes_on_to_the_same_numbers(copied):
    model = quantize(net(), "W4A32")
    sam = sharp(model, measured_at="quantized", applied_to="quantized", policy="look:2")
    lr_scheduler.StepLR(sam, 3)  # which puts its own function in the place of `step`
    sam.step(closure_of(model, *BATCHES[0]))
    twin, other = copied((model, sam))
    assert other.optimizer is not sam.optimizer and other.param_groups is other.optimizer.param_groups
    for one, optimizer in ((model, sam), (twin, other)):
        optimizer.step(closure_of(one, *BATCHES[1]))
    same(model, twin, 0)
    assert repr(other) == repr(sam)
    other.register_state_dict_post_hook(lambda _, state: {**state, "mine": 1})
    assert "mine" in other.state_dict() and "mine" not in sam.state_dict()


def test_a_parameter_that_is_added_later_is_perturbed_if_its_kind_fits():
    model = net()
    sam = SAM(model, torch.optim.SGD(model[0].parameters(), lr=0.2), rho=0.1, perturbed=("weight",))
    sam.step(closure_of(model, *BATCHES[0]))
    sam.add_param_group({"params": [model[1].weight, model[3].weight]})
    sam.optimizer.add_param_group({"params": [model[3].bias]})
    sam.zero_grad()  # of what has piled up there
    before, seen = model[3].weight.detach().clone(), []

    def closure():
        seen.append([model[3].weight.detach().clone(), model[1].weight.detach().clone()])
        return closure_of(model, *BATCHES[1])()

    sam.step(closure)
    assert not torch.equal(seen[0][0], seen[1][0]) and torch.equal(seen[0][1], seen[1][1])  # a norm is no "weight"
    assert not torch.equal(before, model[3].weight)
    assert [p.name for p in sam.parameters] == ["0.weight", "3.weight"]


def test_autocast_in_the_closure_is_that_of_a_bare_loop():
    def cast(model, x, y):
        def closure():
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x.float()), y)
            loss.backward()
            return loss

        return closure

    ours, theirs = net().float(), net().float()
    sam, base = sharp(ours), sgd(theirs)
    for x, y in BATCHES:
        sam.step(cast(ours, x, y))
        bare_step(theirs, base, cast(theirs, x, y), 0.1)
    same(ours, theirs, 1e-6)


def test_a_closure_need_not_clear_and_may_accumulate():
    models = [net() for _ in range(4)]

    def clearing(model, sam, x, y):
        def closure():
            sam.zero_grad()
            return closure_of(model, x, y)()

        return closure

    def emptying(model, sam, x, y):
        def closure():
            model.zero_grad(set_to_none=False)
            return closure_of(model, x, y)()

        return closure

    def in_parts(model, sam, x, y):
        def closure():
            for k in range(2):
                (F.cross_entropy(model(x[k::2]), y[k::2]) / 2).backward()

        return closure

    for model, make in zip(models, (lambda m, _, x, y: closure_of(m, x, y), clearing, emptying, in_parts), strict=True):
        sam = sharp(model)
        for x, y in BATCHES:
            sam.step(make(model, sam, x, y))
    for model in models[1:]:
        same(models[0], model)


def test_gradients_from_before_the_step_are_never_mixed_in():
    """They are refused, or cleared by the closure, whoever's method it calls."""
    model = net()
    sam, (x, y) = sharp(model), BATCHES[0]
    own(model, sam)
    before = copy.deepcopy(model)
    closure_of(model, x, y)()  # adds to what the last step left
    with pytest.raises(ValueError, match=r"gradients must be cleared before step\(\), or by the closure"):
        sam.step(closure_of(model, x, y))
    same(before, model, 0)

    def clearing():
        model.zero_grad()
        return closure_of(model, x, y)()

    twin, other = copy.deepcopy((model, sam))  # without gradients
    sam.step(clearing)
    other.step(closure_of(twin, x, y))
    same(model, twin, 0)


def test_a_closure_without_backward_is_refused():
    model = net()
    sam, before = sharp(model), copy.deepcopy(model)
    own_step = functools.partial(F.cross_entropy, target=BATCHES[0][1])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"closure must call backward\(\) on the loss, got no gradient"):
            sam.step(lambda: own_step(model(BATCHES[0][0])))
        same(before, model, 0)
        assert sam.steps == 0


def test_a_step_without_a_closure_says_what_to_do():
    model = net()
    sam = sharp(model)
    with pytest.raises(ValueError, match=r"closure must be a function .* got None; .* call passes\(closure\) before"):
        sam.step()
    twin = net()
    sam.passes(closure_of(model, *BATCHES[0]))
    same(model, twin, 0)
    sam.step()
    own(twin, sharp(twin), batches=BATCHES[:1])
    same(model, twin, 0)
    with pytest.raises(ValueError, match="closure must be a function"):
        sam.step()


def test_a_closure_may_return_nothing_unless_rho_needs_the_loss():
    def silent(model):
        def closure():
            closure_of(model, *BATCHES[0])()

        return closure

    one, two = net(), net()
    assert sharp(one).step(silent(one)) is None
    sharp(two).step(closure_of(two, *BATCHES[0]))
    same(one, two, 0)
    adaptive = SAQ(0.1, case=2, rho_range=(0.01, 0.2)).wrap(one, sgd(one))
    with pytest.raises(ValueError, match="closure must return the loss .* got None"):
        adaptive.step(silent(one))
    same(one, two, 0)


def test_a_share_never_comes_to_a_closure_that_takes_none():
    model = net()
    sam = sharp(model, policy="subset:0.5")
    for closure in (closure_of(model, *BATCHES[0]), functools.partial(closure_of(model, *BATCHES[0]))):
        with pytest.raises(ValueError, match=r'policy="subset:0.5" hands .* closure\(share=1.0\), got closure\(\)'):
            sam.step(closure)
    shares = []
    sam.step(lambda share=1.0: shares.append(share) or closure_of(model, *BATCHES[0])())
    assert shares == [0.5, 1.0]


def test_scalers_and_optimizers_that_call_closures_are_refused_by_name():
    model = net().float()
    sam, before = sharp(model), copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu")
    closure = closure_of(model, BATCHES[0][0].float(), BATCHES[0][1])
    scaler.scale(F.cross_entropy(model(BATCHES[0][0].float()), BATCHES[0][1])).backward()
    for arguments in ((), (closure,)):
        with pytest.raises(ValueError, match="GradScaler.* use torch.autocast to bfloat16"):
            scaler.step(sam, *arguments)
    same(before, model, 0)
    sam.zero_grad()
    sam.step(closure)  # nothing of the scaler stays
    for base, name in ((torch.optim.LBFGS(model.parameters()), "LBFGS"), (sam, "SAM")):
        with pytest.raises(ValueError, match=f"as SGD and AdamW do: {name} calls the closure by itself"):
            SAM(model, base, rho=0.1)


def test_states_go_between_it_and_the_wrapped_optimizer():
    model = net()
    sam = sharp(model, policy="look:2", rho=0.2)
    own(model, sam, batches=BATCHES[:3])
    state = sam.state_dict()
    assert state["param_groups"][0]["lr"] == 0.2 and set(state) == {"state", "param_groups", "sam"}
    plain = sgd(model)
    plain.load_state_dict(state)
    ends = []
    old = {"optimizer": sam.optimizer.state_dict(), "processes": [state["sam"]]}
    for stored in (state, old):
        twin = copy.deepcopy(model)
        other = sharp(twin, policy="look:2", rho=0.2)
        other.load_state_dict(copy.deepcopy(stored))
        own(twin, other, batches=BATCHES[3:])
        ends.append(twin)
    own(model, sam, batches=BATCHES[3:])
    same(model, ends[0], 0)
    same(model, ends[1], 0)
    sam.load_state_dict(plain.state_dict())
    assert sam.steps == 6


def test_a_training_that_an_older_version_stored_goes_on_to_the_same_numbers(tmp_path):
    def trained(path):
        model = net()
        split = tuple(torch.cat(part) for part in zip(*BATCHES, strict=True))
        recipe = saq_core.Recipe(3, 0.1, batch_size=8, sam=SAQ(0.2, case=2, policy="look:4"))
        saq_core.train(model, saq_core.Data(split, split, split, num_classes=3), recipe, checkpoint=path, **stop)
        return model

    stop = {}
    whole = trained(tmp_path / "whole.pt")
    stop["on_epoch"] = lambda state: state.epoch == 3 and 1 / 0
    with pytest.raises(ZeroDivisionError):
        trained(tmp_path / "old.pt")
    content = files.read(tmp_path / "old.pt", "training")
    content["optimizer"] = {"optimizer": content["optimizer"], "processes": content.pop("sam")}
    files.write(tmp_path / "old.pt", "training", {k: v for k, v in content.items() if k not in ("kind", "format")})
    stop.clear()
    same(trained(tmp_path / "old.pt"), whole, 0)


def test_decay_spares_what_must_not_shrink():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.position = nn.Embedding(5, 4), nn.Parameter(torch.zeros(3, 4))
            self.norm, self.scale, self.body = nn.GroupNorm(2, 4), nn.Parameter(torch.ones(4)), nn.Linear(4, 4)
            self.frozen, self.head = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight

    with warnings.catch_warnings(action="ignore"):  # that most of it stays in full precision
        model = quantize(Net(), {"body": "W4A4"}, per_channel=True, skip=["head"])
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, spared = parameter_groups(model, weight_decay=0.3)
    assert decayed["weight_decay"] == 0.3 and spared["weight_decay"] == 0
    assert [names[id(p)] for p in decayed["params"]] == ["position", "embedding.weight", "body.weight"]
    left = {"norm.weight", "norm.bias", "scale", "body.bias", "body.weight_quantizer.step", "body.input_quantizer.step"}
    assert {names[id(p)] for p in spared["params"]} == left
    assert model.body.weight_quantizer.step.ndim == 2  # so that its shape alone would not spare it
    with pytest.raises(ValueError, match="weight_decay must be >= 0 and finite, got -1"):
        parameter_groups(model, weight_decay=-1)
    with pytest.raises(ValueError, match="model must have trainable parameters, got none"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), weight_decay=0)


@quiet
@pytest.mark.parametrize("schedule", ["cosine", "one cycle"])
def test_lightning_takes_it(schedule, heard, tmp_path):
    model, expected = net(), net()
    lightning(model, schedule, tmp_path)
    bare(expected, schedule)
    same(model, expected)


@quiet
def test_lightning_must_accumulate_in_the_closure(tmp_path):
    model = net()
    with pytest.raises(ValueError, match="accumulate inside the closure"):
        lightning(model, "none", tmp_path, accumulate_grad_batches=2)
    same(model, net(), 0)


def lightning(model, schedule, folder, **options):
    import pytorch_lightning

    class Module(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = model

        def training_step(self, batch, _):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            sam = sharp(self.net)
            scheduler = SCHEDULERS[schedule](sam)
            return [sam], [{"scheduler": scheduler, "interval": "step"}] if scheduler else []

    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pytorch_lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=folder, **off, **options)
    trainer.fit(Module(), torch.utils.data.DataLoader(BATCHES, batch_size=None))
    return trainer


@quiet
def test_accelerate_takes_it(heard):
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    ours, theirs = net(), net()
    accelerator = Accelerator(cpu=True)
    sam = sharp(ours)
    loader = torch.utils.data.DataLoader(BATCHES, batch_size=None)
    model, optimizer, loader, scheduler = accelerator.prepare(ours, sam, loader, SCHEDULERS["cosine"](sam))
    for x, y in loader:

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            accelerator.backward(loss)
            return loss

        optimizer.step(closure)
        scheduler.step()
    bare(theirs, "cosine")
    same(ours, theirs)
    scaler = torch.amp.GradScaler("cpu")  # accelerate's own way with mixed_precision="fp16"
    scaled = AcceleratedOptimizer(sam, scaler=scaler)
    scaler.scale(F.cross_entropy(ours(x), y)).backward()
    with pytest.raises(ValueError, match="GradScaler"):
        scaled.step()
    same(ours, theirs)


@quiet
def test_the_documented_trainer_of_transformers_is_a_bare_loop(heard, tmp_path):
    import transformers

    names = {"transformers": transformers, "functools": functools}
    _, _, written = inspect.getdoc(SAM).partition("    class SAMTrainer")
    written, _, _ = f"class SAMTrainer{written}".partition("\n\n- No GradScaler")
    exec(inspect.cleandoc("\n" + "\n".join(["    " + written.split("\n")[0], *written.split("\n")[1:]])), names)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, **size, **dropouts)
    ours = transformers.BertForSequenceClassification(config)
    theirs = copy.deepcopy(ours)
    rows = [{"input_ids": torch.arange(k, k + 6) % 20, "labels": k % 2} for k in range(12)]
    options = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "logging_steps": 99}
    given = transformers.TrainingArguments(
        tmp_path, max_steps=3, per_device_train_batch_size=4, lr_scheduler_type="cosine", max_grad_norm=0.5, **options
    )
    trainer = names["SAMTrainer"](ours, given, train_dataset=rows, optimizers=(sharp(ours), None))
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)
    trainer.train()
    base = sgd(theirs)
    base.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(theirs.parameters(), 0.5) and None)
    scheduler = transformers.get_scheduler("cosine", base, 0, 3)
    for k in range(3):
        batch = {key: torch.stack([torch.as_tensor(row[key]) for row in rows[4 * k : 4 * k + 4]]) for key in rows[0]}

        def closure(batch=batch):
            loss = theirs(**batch).loss
            loss.backward()
            return loss

        bare_step(theirs, base, closure, 0.1)
        scheduler.step()
    same(ours, theirs, 1e-5)


@quiet
def test_lightning_takes_a_monitor_and_keeps_its_state(tmp_path):
    model = net()
    monitor = landscape.Monitor(model, BATCHES)
    monitor.budget = float("inf")
    trainer = lightning(model, "none", tmp_path, callbacks=[monitor])
    assert [row["step"] for row in monitor.rows] == [1, 2, 3, 4, 5, 6]
    assert monitor.rows[0]["threshold"] > 0 and monitor.rows[0]["lambda1"] > 0
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=False)["callbacks"]["landscape.Monitor"]
    landscape.Monitor(model, BATCHES).load_state_dict(kept)


@quiet
def test_the_trainer_of_transformers_takes_a_monitor(tmp_path):
    import transformers

    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=20, max_position_embeddings=8, attn_implementation="eager", **size)
    model = transformers.BertForSequenceClassification(config)
    rows = [{"input_ids": torch.arange(k, k + 6) % 20, "labels": k % 2} for k in range(8)]
    batch = {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}
    monitor = landscape.Monitor(model, [batch])
    monitor.budget = float("inf")
    options = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "logging_steps": 99}
    given = transformers.TrainingArguments(tmp_path, max_steps=2, per_device_train_batch_size=4, **options)
    transformers.Trainer(model, given, train_dataset=rows, callbacks=[monitor]).train()
    assert [row["step"] for row in monitor.rows] == [1, 2] and monitor.rows[1]["preconditioned_lambda1"] > 0


def _parallel(path):
    """Train with torch's own DistributedDataParallel, each process on its rows; only the first one saves."""
    with saq_core.processes.joined():
        rank = saq_core.processes.rank()
        ends = {}
        for name, bits in (("float", None), ("quantized", "W4A32")):
            model = net() if bits is None else quantize(net(), bits)
            case = {} if bits is None else {"measured_at": "quantized", "applied_to": "quantized"}
            parallel = nn.parallel.DistributedDataParallel(model)
            with pytest.raises(ValueError, match="broadcast_buffers") if bits else contextlib.nullcontext():
                sharp(model, no_sync=parallel.no_sync, **case)
            sam = sharp(model, synchronised=True, no_sync=parallel.no_sync, **case)
            scheduler = SCHEDULERS["cosine"](sam)
            for x, y in BATCHES:
                sam.step(closure_of(parallel, x[rank::2], y[rank::2]))
                scheduler.step()
            ends[name] = model.state_dict()
        if rank == 0:
            torch.save({"ends": ends, "sam": sam.state_dict()}, path)


def test_two_processes_train_as_one_and_the_first_alone_saves(tmp_path):
    launched(_parallel, tmp_path / "two.pt", patience=120)
    found = torch.load(tmp_path / "two.pt")
    for name, model in (("float", net()), ("quantized", quantize(net(), "W4A32"))):
        bare(model, "cosine")
        twin = copy.deepcopy(model)
        twin.load_state_dict(found["ends"][name])
        same(twin, model)
    assert found["sam"]["sam"]["steps"] == len(BATCHES)
