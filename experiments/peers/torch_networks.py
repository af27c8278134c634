"""The networks of `benchmark_peers` in PyTorch, with the zoo's names of layers. Imports nothing of this library."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

nn: Any = torch.nn


def make(name: str, *, side: int, channels: int, classes: int) -> Any:
    """A network by the zoo's name, for square images, in eval mode.

    Raises:
      ValueError: for a network that is not here.
    """
    if name == "lenet":
        return LeNet(side, channels, classes).eval()
    if name == "mobile":
        return Mobile(channels, classes).eval()
    if name == "resnet18":
        return ResNet(64, (2, 2, 2, 2), channels, classes, imagenet=True).eval()
    for pattern, network in {
        r"small-convnet(\d*)": lambda width="": SmallConvNet(int(width or 32), side, channels, classes),
        r"convnet(\d+)": lambda width: ConvNet(int(width), side, channels, classes),
        r"resnet(\d+)-(\d+)": lambda depth, factor: ResNet(
            16 * int(factor), ((int(depth) - 2) // 6,) * 3, channels, classes
        ),
        r"vit-pre-norm-(\d+)-(\d+)-(\d+)": lambda patch, width, depth: VisionTransformer(
            int(patch), int(width), int(depth), side, channels, classes
        ),
    }.items():
        if match := re.fullmatch(pattern, name):
            return network(*match.groups()).eval()
    raise ValueError(f"no PyTorch network is called {name!r}")


class LeNet(nn.Module):
    """Three 5 x 5 convolutions with sigmoid, strides 2, 2, 1."""

    def __init__(self, side: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv_0, self.conv_1 = nn.Conv2d(channels, 12, 5, 2, 2), nn.Conv2d(12, 12, 5, 2, 2)
        self.conv_2, self.flat_channels = nn.Conv2d(12, 12, 5, 1, 2), 12
        self.head = nn.Linear(12 * (side // 4) ** 2, classes)

    def forward(self, x: Any) -> Any:
        """Images `[B, C, H, W]` to logits."""
        for conv in (self.conv_0, self.conv_1, self.conv_2):
            x = torch.sigmoid(conv(x))
        return self.head(x.flatten(1))


class SmallConvNet(nn.Module):
    """Three 3 x 3 convolutions at full resolution."""

    def __init__(self, width: int, side: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv_0, self.conv_1 = nn.Conv2d(channels, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.conv_2, self.flat_channels = nn.Conv2d(width, width, 3, 1, 1), width
        self.head = nn.Linear(width * side**2, classes)

    def forward(self, x: Any) -> Any:
        """Images `[B, C, H, W]` to logits."""
        for conv in (self.conv_0, self.conv_1, self.conv_2):
            x = torch.relu(conv(x))
        return self.head(x.flatten(1))


class ConvNet(nn.Module):
    """Eight 3 x 3 convolutions with BatchNorm, two pools by 3."""

    def __init__(self, width: int, side: int, channels: int, classes: int) -> None:
        super().__init__()
        self.flat_channels = 4 * width
        for i, multiple in enumerate((1, 2, 2, 4, 4, 4, 4, 4)):
            self.add_module(f"conv_{i}", nn.Conv2d(channels, multiple * width, 3, 1, 1))
            self.add_module(f"norm_{i}", nn.BatchNorm2d(multiple * width))
            channels = multiple * width
        self.head = nn.Linear(channels * (side // 9) ** 2, classes)

    def forward(self, x: Any) -> Any:
        """Images `[B, C, H, W]` to logits."""
        for i in range(8):
            x = torch.relu(getattr(self, f"norm_{i}")(getattr(self, f"conv_{i}")(x)))
            x = nn.functional.max_pool2d(x, 3) if i in (5, 7) else x
        return self.head(x.flatten(1))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv_0, self.norm_0 = nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv_1, self.norm_1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.changes = stride > 1 or channels != width
        if self.changes:
            self.shortcut_conv = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(width)

    def forward(self, x: Any) -> Any:
        """Features `[B, c, h, w]` to features."""
        y = self.norm_1(self.conv_1(torch.relu(self.norm_0(self.conv_0(x)))))
        return torch.relu(y + (self.shortcut_norm(self.shortcut_conv(x)) if self.changes else x))


class ResNet(nn.Module):
    """A stem for CIFAR or ImageNet, stages of basic blocks, a global mean."""

    def __init__(
        self, width: int, blocks: tuple[int, ...], channels: int, classes: int, *, imagenet: bool = False
    ) -> None:
        super().__init__()
        kernel, stride, padding = (7, 2, 3) if imagenet else (3, 1, 1)
        self.stem_conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.stem_norm, self.imagenet, self.names = nn.BatchNorm2d(width), imagenet, []
        channels = width
        for stage, count in enumerate(blocks):
            for i in range(count):
                self.names.append(f"stage_{stage}_block_{i}")
                stride = 2 if stage and not i else 1
                self.add_module(self.names[-1], BasicBlock(channels, width * 2**stage, stride))
                channels = width * 2**stage
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Any) -> Any:
        """Images `[B, C, H, W]` to logits."""
        x = torch.relu(self.stem_norm(self.stem_conv(x)))
        x = nn.functional.max_pool2d(x, 3, 2, 1) if self.imagenet else x
        for name in self.names:
            x = getattr(self, name)(x)
        return self.head(x.mean((2, 3)))


class Mobile(nn.Module):
    """`peers.mobile`: depthwise and pointwise convolutions in turn."""

    blocks = ((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1))

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem_conv = nn.Conv2d(channels, self.blocks[0][0], 3, 1, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(self.blocks[0][0])
        for i, (narrow, wide, stride) in enumerate(self.blocks):
            self.add_module(f"depthwise_{i}", nn.Conv2d(narrow, narrow, 3, stride, 1, groups=narrow, bias=False))
            self.add_module(f"depthwise_norm_{i}", nn.BatchNorm2d(narrow))
            self.add_module(f"pointwise_{i}", nn.Conv2d(narrow, wide, 1, bias=False))
            self.add_module(f"norm_{i}", nn.BatchNorm2d(wide))
        self.head = nn.Linear(self.blocks[-1][1], classes)

    def forward(self, x: Any) -> Any:
        """Images `[B, C, H, W]` to logits."""
        x = torch.relu(self.stem_norm(self.stem_conv(x)))
        for i in range(len(self.blocks)):
            x = torch.relu(getattr(self, f"depthwise_norm_{i}")(getattr(self, f"depthwise_{i}")(x)))
            x = torch.relu(getattr(self, f"norm_{i}")(getattr(self, f"pointwise_{i}")(x)))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Self-attention with separate query, key and value layers and eight heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Any) -> Any:
        """`[B, n, d]` to `[B, n, d]`."""
        heads = [layer(tokens).unflatten(-1, (8, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        query, key, value = heads
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Two dense layers with a GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense_0, self.dense_1 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Any) -> Any:
        """`[B, n, d]` to `[B, n, d]`."""
        return self.dense_1(nn.functional.gelu(self.dense_0(tokens)))


class VisionTransformer(nn.Module):
    """Patches, position embeddings, pre-norm blocks, the mean of all tokens."""

    def __init__(self, patch: int, width: int, depth: int, side: int, channels: int, classes: int) -> None:
        super().__init__()
        self.patch, self.depth = patch, depth
        self.patches = nn.Linear(patch * patch * channels, width)
        self.positions = nn.Parameter(torch.zeros((side // patch) ** 2, width))
        for i in range(depth):
            self.add_module(f"attention_{i}", Attention(width))
            self.add_module(f"perceptron_{i}", Perceptron(width))
            self.add_module(f"attention_norm_{i}", nn.LayerNorm(width))
            self.add_module(f"perceptron_norm_{i}", nn.LayerNorm(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Any) -> Any:
        """Images `[B, C, H, W]` to logits."""
        grid = x.unflatten(2, (-1, self.patch)).unflatten(4, (-1, self.patch))
        tokens = self.patches(grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)) + self.positions
        for i in range(self.depth):
            tokens = tokens + getattr(self, f"attention_{i}")(getattr(self, f"attention_norm_{i}")(tokens))
            tokens = tokens + getattr(self, f"perceptron_{i}")(getattr(self, f"perceptron_norm_{i}")(tokens))
        return self.head(self.norm(tokens).mean(1))


_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def as_torch(network: Any, named: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Flax's tensors by path as PyTorch's by name, for the network here that has the same layers.

    Kernels `HWIO` become `OIHW` and `[in, out]` becomes `[out, in]`; the head behind flattened features `[H, W, C]`
    is sorted for `[C, H, W]`.
    """
    found = {}
    for path, value in named.items():
        *layers, leaf = path.split("/")[1:]
        if leaf == "kernel" and value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        elif leaf == "kernel" and layers == ["head"] and hasattr(network, "flat_channels"):
            pixels = value.reshape(-1, network.flat_channels, value.shape[-1])
            value = pixels.transpose(2, 1, 0).reshape(value.shape[-1], -1)
        elif leaf == "kernel":
            value = value.T
        found[".".join([*layers, _LEAVES.get(leaf, leaf)])] = torch.tensor(np.ascontiguousarray(value))
    return found
