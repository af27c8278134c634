"""The quickstart's network, in PyTorch. `make` is what `jaxinvert audit --model net:make` calls."""

import torch
from torch import nn


class Net(nn.Module):
    """Two convolutions and two dense layers, for images [B, 3, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(12, 12, 5, stride=2, padding=2)
        self.fc1 = nn.Linear(12 * 8 * 8, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalized images to logits."""
        x = torch.sigmoid(self.conv1(x))
        x = torch.sigmoid(self.conv2(x))
        return self.fc2(torch.sigmoid(self.fc1(x.flatten(1))))


def make() -> Net:
    """The network, with the same parameters every time."""
    torch.manual_seed(0)
    return Net()
