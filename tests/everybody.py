"""Networks of other people's, each with a batch of data, and what is done with them: ``python tests/everybody.py``.

It prints the table model × call: ✓, or the error.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from functools import partial

import torch
from torch import nn

import landscape
import saq_core


def images(size=32, channels=3, rows=4, classes=10):
    random = torch.Generator().manual_seed(0)
    return torch.randn(rows, channels, size, size, generator=random), torch.arange(rows) % classes


def torchvision_network(name, **settings):
    import torchvision

    return torchvision.models.get_model(name, weights=None, num_classes=10, **settings)


def thin_convnext():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    sizes = ((16, 32, 1), (32, 48, 1), (48, 64, 2), (64, None, 1))
    return ConvNeXt([CNBlockConfig(*size) for size in sizes], num_classes=10)


def thin_swin():
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 16, [1, 2], [2, 4], [4, 4], num_classes=10)


def timm_network(name, **settings):
    import timm

    return timm.create_model(name, num_classes=10, **settings)


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=24, num_labels=3))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=12, n_embd=16, n_layer=2, n_head=2, use_cache=False))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=24, use_cache=False))


def tokens(labels=None, length=10, rows=4):
    ids = torch.randint(1, 40, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    targets = torch.arange(rows) % labels if labels else ids.masked_fill(mask == 0, -100)
    return [{"input_ids": ids, "attention_mask": mask, "labels": targets}]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(40, 8), nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, ids):
        return self.head(self.lstm(self.embedding(ids))[0][:, -1])


class Segmenting(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.up = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x):
        return {"out": self.up(self.down(x))}


def segments():
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (4, 16, 16), generator=random)
    labels[:, :2] = 255
    return torch.randn(4, 3, 16, 16, generator=random), labels


def lit():
    import pytorch_lightning

    class Lit(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Flatten())
            self.head = nn.Sequential(nn.Linear(392, 16), nn.ReLU(), nn.Linear(16, 10))

        def forward(self, x):
            return self.head(self.net(x))

    return Lit()


def values():
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    return x, x.sum(1, keepdim=True)


def perceptron():
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1))


PIXELS = {"loss": nn.CrossEntropyLoss(ignore_index=255), "output": "out"}
MSE = {"loss": nn.MSELoss()}
NETWORKS = {  # name -> (network, data, arguments of measuring and training)
    "torchvision resnet18": (partial(torchvision_network, "resnet18"), images, {}),
    "torchvision mobilenet_v3_small": (partial(torchvision_network, "mobilenet_v3_small"), images, {}),
    "torchvision convnext_tiny": (thin_convnext, partial(images, 64), {}),
    "torchvision swin_t": (thin_swin, images, {}),
    "timm resnet": (partial(timm_network, "test_resnet"), partial(images, 64), {}),
    "timm vit_tiny": (partial(timm_network, "vit_tiny_patch16_224", img_size=32, depth=2), images, {}),
    "timm efficientnet": (partial(timm_network, "test_efficientnet"), partial(images, 64), {}),
    "timm convnext": (partial(timm_network, "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)), images, {}),
    "timm beit": (
        partial(timm_network, "beit_base_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=2),
        images,
        {},
    ),
    "HF BERT": (bert, partial(tokens, 3), {}),
    "HF GPT-2": (gpt2, tokens, {}),
    "HF Llama": (llama, tokens, {}),
    "LSTM": (Recurrent, lambda: (tokens()[0]["input_ids"], torch.arange(4) % 3), {}),
    "segmentation": (Segmenting, segments, PIXELS),
    "MLP regression": (perceptron, values, MSE),
    "Lightning module": (lit, images, {}),
}


def batch_of(data):
    return data if isinstance(data, tuple) else data[0]


def outputs(model, data):
    batch = batch_of(data)
    with torch.no_grad():
        result = model(batch[0]) if isinstance(batch, tuple) else model(**batch)
    part = result if isinstance(result, torch.Tensor) else getattr(result, "logits", None)
    return result["out"] if part is None else part


class Calls:
    """All calls on one network, in their order: each starts from what those before made."""

    def __init__(self, name):
        made, data, self.arguments = NETWORKS[name]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = made().eval()
        self.data = data()
        self.budget = None
        self.copy = None

    def quantize(self):
        self.copy = saq_core.quantize(self.model, "W4A4")

    def calibrate(self):
        saq_core.calibrate(self.copy, self.data)

    def describe(self):
        self.description = saq_core.describe(self.copy, batch_of(self.data))
        assert self.description.macs > 0

    def cost(self):
        self.budget = saq_core.cost(self.model, batch_of(self.data), bits="W4A4").bops
        assert self.budget < saq_core.cost(self.model, batch_of(self.data)).bops

    def search_uniform(self):
        policy = saq_core.search(self.model, self.data, budget=self.budget, method="uniform", candidates=(2, 4))
        assert set(policy.bits.values()) == {"W4A4"}

    def search_hessian(self):
        settings = {"budget": self.budget, "method": "hessian", "candidates": (2, 4), **self.arguments}
        assert saq_core.search(self.model, self.data, **settings).bops <= self.budget

    def gptq(self):
        other = saq_core.gptq(self.model, self.data, "W4A32")
        assert outputs(other, self.data).isfinite().all()

    def train(self):
        recipe = saq_core.Recipe(epochs=1, lr=0.001, batch_size=4, sam=saq_core.SAQ(), compile=False)
        history = saq_core.train(self.copy, self.data, recipe, **self.arguments)
        assert history.steps.isfinite().all()

    def save_load(self):
        with tempfile.TemporaryDirectory() as folder:
            saq_core.save(self.copy, f"{folder}/model.pt")
            back = saq_core.load(f"{folder}/model.pt", self.model)
        assert torch.equal(outputs(back, self.data), outputs(self.copy, self.data))

    def export_load(self):
        with tempfile.TemporaryDirectory() as folder:
            saq_core.export(self.copy, f"{folder}/model.pt")
            back = saq_core.load(f"{folder}/model.pt", self.model)
        assert torch.equal(outputs(back, self.data), outputs(self.copy, self.data))

    def trace(self):
        assert landscape.trace(self._objective(), num_probes=2).about["space"] == "quantized"

    def surface(self):
        assert landscape.surface(self._objective(), points=3).loss.isfinite().any()

    def _objective(self):
        return landscape.Objective(self.copy, self.data, **self.arguments)


CALLS = [name for name in vars(Calls) if not name.startswith("_")]


def tried(name):
    """Return call -> "" where it succeeded, or the error."""
    found, calls = {}, Calls(name)
    for call in CALLS:
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                getattr(calls, call)()
            found[call] = ""
        except Exception as error:
            found[call] = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        took = time.perf_counter() - start
        print(f"{name:32} {call:16} {took:6.1f} s  {found[call] or '✓'}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    names = [name for name in NETWORKS if not sys.argv[1:] or any(part in name for part in sys.argv[1:])]
    rows = {name: tried(name) for name in names}
    print(f"| | {' | '.join(CALLS)} |\n|---|{'---|' * len(CALLS)}")
    for name, found in rows.items():
        print(f"| {name} | {' | '.join('no' if found[call] else '✓' for call in CALLS)} |")
    right = sum(not error for found in rows.values() for error in found.values())
    print(f"\n{right} of {len(rows) * len(CALLS)}")
    for name, found in rows.items():
        print(*(f"{name}, {call}: {error}" for call, error in found.items() if error), sep="\n")
