"""Networks by name: ResNets, MobileNetV2 and vision transformers, each in a form for small and for large images."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from landscape.checking import numbers

from . import files
from .contexts import seeded
from .data import Data

DEPTHS = {"resnet8": 1, "resnet20": 3, "resnet32": 5, "resnet56": 9}  # blocks per stage, (depth - 2) / 6
LARGE = 64  # pixels of height from which an image is large: below, nothing is down-sampled early
VITS = {  # patch size, layers, heads, width, width of the MLP
    "deit_tiny": (16, 12, 3, 192, 768),
    "deit_small": (16, 12, 6, 384, 1536),
    "vit_b_16": (16, 12, 12, 768, 3072),
}
INVERTED = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
NAMES = (*DEPTHS, "preresnet20", "resnet18", "resnet34", "resnet50", "mobilenet_v2", "vit", *VITS)


def _conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters.

    Source: He et al., Deep Residual Learning (2016), section 4.2, shortcut option A.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(channels_in, channels_out, stride), nn.BatchNorm2d(channels_out)
        self.conv2, self.bn2 = _conv3x3(channels_out, channels_out), nn.BatchNorm2d(channels_out)
        self.stride, self.grown = stride, channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grown:
            x = F.avg_pool2d(x, 1, self.stride)  # x[:, :, ::stride, ::stride], but that its gradient keeps the layout
            x = F.pad(x, (0, 0, 0, 0, self.grown // 2, self.grown // 2))
        return F.relu(out + x)


class PreActBlock(nn.Module):
    """Normalisation before each convolution; a convolution as shortcut where the width changes.

    In the first block of a stage the shortcut branches off after BatchNorm and ReLU ("half pre-activation").

    Source: He et al., Identity Mappings (2016); Liu et al., Sharpness-aware Quantization (2021), released code.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, first: bool) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels_in), _conv3x3(channels_in, channels_out, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(channels_out), _conv3x3(channels_out, channels_out)
        wider = channels_in != channels_out
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False) if wider else nn.Identity()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        active = F.relu(self.bn1(x))
        shortcut = self.shortcut(active if self.first else x)
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut


class ResNet(nn.Module):
    """Three stages of 16, 32, 64 channels, average pooling, one linear layer."""

    def __init__(self, blocks: int, num_classes: int, channels: int, *, preactivation: bool = False) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, 16)
        self.bn1 = nn.Identity() if preactivation else nn.BatchNorm2d(16)
        stages: list[nn.Module] = []
        for stage, (before, after) in enumerate([(16, 16), (16, 32), (32, 64)]):
            layers: list[nn.Module] = []
            for k in range(blocks):
                ends = (before if k == 0 else after, after, 2 if stage and k == 0 else 1)
                layers.append(PreActBlock(*ends, first=k == 0) if preactivation else BasicBlock(*ends))
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn2 = nn.BatchNorm2d(64) if preactivation else nn.Identity()
        self.fc = nn.Linear(64, num_classes)
        self.preactivation = preactivation
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.conv1(x)
        x = x if self.preactivation else F.relu(self.bn1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.relu(self.bn2(x)) if self.preactivation else x
        return self.fc(x.mean((2, 3)))


def _conv_norm(channels_in: int, channels_out: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels_out)]


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow; a shortcut wherever the stride is 1.

    Source: Sandler et al., MobileNetV2 (2018); Liu et al., Sharpness-aware Quantization (2021), released code: ReLU
    in place of ReLU6, and a 1x1 convolution with BatchNorm as the shortcut where the width changes.
    """

    def __init__(self, channels_in: int, channels_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = expansion * channels_in
        layers = [*_conv_norm(channels_in, wide, 1), nn.ReLU(), *_conv_norm(wide, wide, 3, stride, wide), nn.ReLU()]
        self.body = nn.Sequential(*layers, *_conv_norm(wide, channels_out, 1))
        self.shortcut: nn.Module | None = nn.Identity() if stride == 1 else None
        if stride == 1 and channels_in != channels_out:
            self.shortcut = nn.Sequential(*_conv_norm(channels_in, channels_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.body(x)
        return out if self.shortcut is None else out + self.shortcut(x)


def _small_mobilenet_v2(num_classes: int, channels: int) -> nn.Module:
    """Build MobileNetV2 as Liu et al. do for CIFAR; the initial weights are drawn as torchvision's are."""
    blocks: list[nn.Module] = []
    width = 32
    for expansion, after, count, stride in INVERTED:
        for k in range(count):
            blocks.append(InvertedResidual(width, after, expansion, stride if k == 0 else 1))
            width = after
    fc = nn.Linear(1280, num_classes)
    parts = {
        "stem": nn.Sequential(*_conv_norm(channels, 32, 3), nn.ReLU()),
        "blocks": nn.Sequential(*blocks),
        "last": nn.Sequential(*_conv_norm(width, 1280, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "fc": fc,
    }
    model = nn.Sequential(OrderedDict(parts))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    nn.init.normal_(fc.weight, 0, 0.01)
    nn.init.zeros_(fc.bias)
    return model


def _vision_transformer(name: str, num_classes: int, shape: tuple[int, ...]) -> nn.Module:
    from torchvision.models import VisionTransformer

    channels, height, width = shape
    small = (2, 4, 4, 64, 128) if height < 16 else (4 if height < LARGE else 8, 6, 4, 256, 512)
    patch, layers, heads, hidden, mlp = VITS.get(name, small)
    if height != width or height % patch:
        raise ValueError(f"{name} needs square images whose side is a multiple of {patch}, got {height} x {width}")
    model = VisionTransformer(height, patch, layers, heads, hidden, mlp, num_classes=num_classes)
    if channels != 3:
        model.conv_proj = nn.Conv2d(channels, hidden, patch, patch)
        nn.init.trunc_normal_(model.conv_proj.weight, std=(channels * patch**2) ** -0.5)  # as VisionTransformer does
        nn.init.zeros_(model.conv_proj.bias)
    return model


def _torchvision(name: str, num_classes: int, shape: tuple[int, ...]) -> nn.Module:
    from torchvision import models

    if name not in models.list_models(models):
        raise ValueError(f"name must be one of {list(NAMES)} or of torchvision's classifiers, got {name!r}")
    model = models.get_model(name, weights=None, num_classes=num_classes)
    if isinstance(model, models.ResNet) and shape[1] < LARGE:
        model.conv1 = nn.Conv2d(shape[0], 64, 3, 1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()  # type: ignore[assignment]
    elif shape[0] != 3:
        raise ValueError(f"{name} is torchvision's and takes images of 3 channels, got {shape[0]}")
    return model


def build_model(
    name: str,
    data: Data | None = None,
    *,
    num_classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    weights: str | Path | Mapping[str, Any] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build a network for `data`, or for a number of classes and a shape, with initial weights drawn by `seed`.

    Images count as small below a height of 64 pixels; the shape of the input decides on the form of the network.

    Args:
        name: "resnet8", "resnet20", "resnet32", "resnet56" (He et al.'s CIFAR form) or "preresnet20", for any size;
            "resnet18", "resnet34", "resnet50" (torchvision's; on small images with a 3x3 stem and no max-pooling);
            "mobilenet_v2" (torchvision's; on small images Liu et al.'s, of `InvertedResidual`s);
            "vit" (sizes of ViT-Lite-6 by Hassani et al. (2021), in patches of 4 pixels, 8 on large images; below 16
            pixels patches of 2, 4 layers, width 64: our choice);
            "deit_tiny", "deit_small", "vit_b_16" (patches of 16). All transformers are torchvision's
            `VisionTransformer`. Any other of torchvision's classifiers goes by its name there.
        data: Give the number of classes, the shape of the input and the device; without data it is the CPU.
        num_classes: Width of the last layer; None = that of the data.
        input_shape: Of one image, (channels, height, width); None = that of the data.
        weights: Trained weights: a file, a state dict, or the name of weights that torchvision has for this network
            ("DEFAULT", "IMAGENET1K_V1"; it downloads them). A last layer for another number of classes stays fresh,
            with a warning that names it.
        seed: Draws the initial weights; the global random state is left as it is.

    Raises:
        ValueError: If the name is unknown, the data are not images of a size it takes, the number of classes or the
            shape is missing or another than that of the data, or the weights do not fit.

    Example:
        >>> import saq_core
        >>> data = saq_core.load_data("digits", limit=64, device="cpu")
        >>> model = saq_core.build_model("resnet8", data, seed=1)
        >>> model(data.test[0][:2]).shape
        torch.Size([2, 10])
        >>> saq_core.build_model("resnet20", num_classes=10, input_shape=(3, 32, 32)).architecture["input_shape"]
        [3, 32, 32]
    """
    shape = list(_agreed("input_shape", None if input_shape is None else tuple(input_shape), data))
    classes = _agreed("num_classes", num_classes, data)
    numbers(whole=True, at_least=1, num_classes=classes, input_shape=min(shape, default=1))
    model = make({"name": name, "num_classes": classes, "input_shape": shape}, seed=seed)
    if weights is not None:
        _load_weights(model, name, _read_weights(name, weights))
    return model if data is None else model.to(data.train[0].device)


def _agreed(key: str, given: Any, data: Data | None) -> Any:
    """Return an argument of `build_model`, or what the data say of it."""
    known = getattr(data, key, None)
    values = {value for value in (given, known) if value is not None}
    if len(values) != 1:
        rule = f"{key} must be passed, or be that of data, and the same where both are given"
        raise ValueError(f"{rule}, got {given}, {'no data' if data is None else f'and {known} of data'}")
    return values.pop()


def make(architecture: dict[str, Any], *, seed: int = 0) -> nn.Module:
    """Build the network that `model.architecture` describes."""
    name, classes, shape = (architecture[key] for key in ("name", "num_classes", "input_shape"))
    if len(shape) != 3:
        raise ValueError(f"{name} needs images (channels, height, width), got inputs of shape {tuple(shape)}")
    with seeded(seed):
        if name in DEPTHS or name == "preresnet20":
            model: nn.Module = ResNet(DEPTHS.get(name, 3), classes, shape[0], preactivation=name == "preresnet20")
        elif name == "vit" or name in VITS:
            model = _vision_transformer(name, classes, tuple(shape))
        elif name == "mobilenet_v2" and shape[1] < LARGE:
            model = _small_mobilenet_v2(classes, shape[0])
        else:
            model = _torchvision(name, classes, tuple(shape))
    model.architecture = dict(architecture)  # type: ignore[assignment]
    return model


def _read_weights(name: str, weights: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state dict that `weights` stands for."""
    if isinstance(weights, Mapping):
        return weights
    if not Path(weights).is_file():
        from torchvision import models

        known = list(models.get_model_weights(name)) if name in models.list_models(models) else []
        named = {entry.name: entry for entry in known} | ({"DEFAULT": known[0].DEFAULT} if known else {})
        if str(weights) not in named:
            raise ValueError(f"weights must be a file, a state dict or one of {sorted(named)}, got {str(weights)!r}")
        return named[str(weights)].get_state_dict(progress=False, check_hash=True)
    content = files.read_any(weights)
    inner = (content[key] for key in ("state", "state_dict", "model") if isinstance(content.get(key), Mapping))
    return next(inner, content)


def _load_weights(model: nn.Module, name: str, state: Mapping[str, Any]) -> None:
    """Load `state`, except for a last layer of another number of classes."""
    for head, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1:]:
        stored, fresh = state.get(f"{head}.weight", layer.weight), layer.weight
        if len(stored) != len(fresh) and stored.shape[1:] == fresh.shape[1:]:
            warnings.warn(f"weights are for {len(stored)} classes, not {len(fresh)}: {head} stays fresh", stacklevel=4)
            state = {**state, **{f"{head}.{key}": value for key, value in layer.state_dict().items()}}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"weights must fit {name}: {error}") from error
