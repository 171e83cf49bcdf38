"""Single-layer and small convolutional modules of the zoo."""

from __future__ import annotations

import torch
from torch import nn

WIDTH = 32


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class ChannelFirstLayerNorm(nn.Module):
    """Layer norm over axis 1 of [B, C, H, W], mean and variance written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNextBlock(nn.Module):
    """Depthwise convolution, permute to channels last, layer norm, GELU network, layer scale, permute back."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.reduce = nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.reduce(self.act(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class TokenBatchNorm(nn.Module):
    """Linear, then BatchNorm1d over the channels of [B, N, C] through two transposes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x).transpose(1, 2)).transpose(1, 2)


class SqueezeExcite(nn.Module):
    """x scaled per channel by a gate from the mean over the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, width // 4, 1)
        self.expand = nn.Conv2d(width // 4, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.reduce(x.mean((2, 3), keepdim=True)).relu()
        return x * nn.functional.hardsigmoid(self.expand(gate))


def mobile_block() -> nn.Module:
    """Expand, depthwise, squeeze-excite, project: batch norm after each convolution, ReLU and HardSwish."""
    return nn.Sequential(
        nn.Conv2d(8, 16, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.Hardswish(),
        SqueezeExcite(16),
        nn.Conv2d(16, 8, 1, bias=False),
        nn.BatchNorm2d(8),
    )


def conv_batch_norm() -> nn.Module:
    """Padded 3 x 3 convolution with bias, then BatchNorm2d."""
    return nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16))


def linear_batch_norm() -> nn.Module:
    """Linear on rows [B, C], then BatchNorm1d."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))


def norm_before_conv(padding: int) -> nn.Module:
    """BatchNorm2d in front of a 3 x 3 convolution; with padding its shift can't move into the convolution."""
    return nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 16, 3, padding=padding))


class SelfAttention(nn.Module):
    """nn.MultiheadAttention on [B, N, C]; with ``weights`` it takes the batched-matmul path with merged heads."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.weights = weights
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=self.weights)[0]
