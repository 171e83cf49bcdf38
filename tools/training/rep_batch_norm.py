"""RepBN and its progressive training (SLAB, arXiv 2405.11582): from LayerNorm to a batch norm beside a plain path."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planish.ir.errors import UsageError


class RepBatchNorm(nn.Module):
    """f32 [..., C] to the same: batch norm by channel plus `gain` times the input.

    In evaluation both paths are one diagonal affine, x * a + d, which a compiler folds into what follows.
    """

    mean: Tensor  # f32 [C], running
    variance: Tensor  # f32 [C], running

    def __init__(self, channels: int, *, gain: float = 1.0, momentum: float = 0.9, eps: float = 1e-5):
        """momentum: share that the running statistics keep per step (torch's own norms call the rest by this name)."""
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.gain = nn.Parameter(torch.tensor(gain))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            scale, offset = self.affine()
            return x * scale + offset
        tokens = x.reshape(-1, x.shape[-1])
        normal = F.batch_norm(
            tokens, self.mean, self.variance, self.weight, self.bias, True, 1 - self.momentum, self.eps
        )
        return normal.reshape(x.shape) + self.gain * x

    def affine(self) -> tuple[Tensor, Tensor]:
        """a = weight / sigma + gain and d = bias - weight * mean / sigma, f32 [C] each."""
        scale = self.weight / (self.variance + self.eps).sqrt()
        return scale + self.gain, self.bias - scale * self.mean

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class ProgressiveNorm(nn.Module):
    """share * LayerNorm + (1 - share) * RepBN, the share falling linearly to none; evaluation takes RepBN alone.

    steps: training steps until only RepBN is left; the first `hold` of them are LayerNorm's alone.
    start: the LayerNorm's share when it begins to fall.
    """

    step: Tensor  # i64 [], training steps so far

    def __init__(self, layer_norm: nn.LayerNorm, steps: int, *, hold: int = 0, start: float = 1.0):
        super().__init__()
        if not 0 <= hold < steps:
            raise UsageError(f"LayerNorm alone for {hold} of {steps} steps leaves none to move from it to RepBN")
        self.steps, self.hold, self.start = steps, hold, start
        self.layer_norm = layer_norm
        self.batch_norm = RepBatchNorm(layer_norm.normalized_shape[-1])
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def share(self) -> float:
        """The LayerNorm's part at the current step."""
        done = int(self.step) - self.hold
        return 1.0 if done < 0 else self.start * max(0.0, 1 - done / (self.steps - self.hold))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.batch_norm(x)
        if not self.training:
            return y
        share = self.share()
        self.step += 1
        return torch.lerp(y, self.layer_norm(x), share) if share > 0 else y

    def extra_repr(self) -> str:
        return f"steps={self.steps}, hold={self.hold}, start={self.start}"
