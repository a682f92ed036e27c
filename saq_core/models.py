"""CIFAR-size residual networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import Data

DEPTHS = {"resnet8": 1, "resnet20": 3, "resnet32": 5, "resnet56": 9}  # blocks per stage, (depth - 2) / 6
NAMES = (*DEPTHS, "preresnet20", "resnet18")


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
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.grown // 2, self.grown // 2))
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


def _resnet18(num_classes: int, channels: int) -> nn.Module:
    from torchvision.models import resnet18

    model = resnet18(num_classes=num_classes)
    model.conv1 = nn.Conv2d(channels, 64, 3, 1, padding=1, bias=False)  # small images: no early down-sampling
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def build_model(name: str, data: Data, *, seed: int = 0) -> nn.Module:
    """Build a network for `data`, on the device of the data, with initial weights drawn by `seed`.

    Args:
        name: "resnet8", "resnet20", "resnet32", "resnet56" (He et al.'s CIFAR form), "preresnet20", or "resnet18"
            (torchvision's, with a 3x3 stem and no max-pooling).
        data: Gives the number of classes and the shape of the input, (channels, height, width).
        seed: Draws the initial weights; the global random state is left as it is.

    Raises:
        ValueError: If the name is unknown or the data are not images.
    """
    architecture = {"name": name, "num_classes": data.num_classes, "input_shape": list(data.input_shape)}
    return make(architecture, seed=seed).to(data.train[0].device)


def make(architecture: dict[str, Any], *, seed: int = 0) -> nn.Module:
    """Build the network that `model.architecture` describes."""
    name, classes, shape = (architecture[key] for key in ("name", "num_classes", "input_shape"))
    if name not in NAMES:
        raise ValueError(f"name must be one of {list(NAMES)}, got {name!r}")
    if len(shape) != 3:
        raise ValueError(f"{name} needs images (channels, height, width), got inputs of shape {tuple(shape)}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if name == "resnet18":
            model = _resnet18(classes, shape[0])
        elif name == "preresnet20":
            model = ResNet(3, classes, shape[0], preactivation=True)
        else:
            model = ResNet(DEPTHS[name], classes, shape[0])
    model.architecture = dict(architecture)  # type: ignore[assignment]
    return model
