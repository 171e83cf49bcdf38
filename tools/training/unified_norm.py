"""Unified Normalization (arXiv 2208.01313): a norm whose statistics are constants after training.

Where LayerNorm divides each token by its own deviation, UN divides each channel by the root of a second moment of
the whole batch (no mean is subtracted). Batches of token models vary too much for that alone, so while training the
moments of the last few batches are averaged geometrically, a batch that differs too much from them is kept apart, and
the backward pass averages its own statistic likewise. In evaluation the norm is one multiplication and one addition
per element with constants, which a compiler folds into the linear layer that follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from planish.ir.errors import UsageError

_UNSCALED_STEPS = 1000  # the running moment is no measure of scale before, however short the warm-up is
_SCALE_LIMIT = 5.0


class UnifiedNorm(nn.Module):
    """f32 (or less) [..., C] to the same, by channel: weight * x / sqrt(moment + eps) + bias.

    window: batches whose moments are averaged; 1 makes it a plain norm by the batch, with its exact gradient.
    warmup: steps in which each batch is still normalised by its own moment; they count from `reset`.
    momentum: share that the running averages keep per step.
    filter_outliers: leave the window aside for batches that stand out; the paper does so for images, not for text.
    """

    moment: Tensor  # f32 [C], running second moment: what evaluation uses
    moments: Tensor  # f32 [window, C], of the last batches
    slope: Tensor  # f32 [C], running average of the backward statistic
    slopes: Tensor  # f32 [window, C], of the last batches
    step: Tensor  # i64 [], training steps since the last reset
    outliers: Tensor  # i64 [], how many of them were kept apart

    def __init__(
        self,
        channels: int,
        *,
        window: int = 4,
        warmup: int = 4000,
        momentum: float = 0.9,
        eps: float = 1e-5,
        filter_outliers: bool = True,
    ):
        super().__init__()
        if window < 1:
            raise UsageError(f"a window of {window} batches holds none", remedy="take 1 or more; the paper takes 4")
        self.window, self.warmup, self.momentum, self.eps = window, warmup, momentum, eps
        self.filter_outliers = filter_outliers
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("moment", torch.ones(channels))
        self.register_buffer("moments", torch.zeros(window, channels))
        self.register_buffer("slope", torch.zeros(channels))
        self.register_buffer("slopes", torch.zeros(window, channels))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("outliers", torch.zeros((), dtype=torch.int64))

    def reset(self) -> None:
        """Warm up anew: before a trained model is trained further, on other data or at another rate."""
        self.step.zero_()
        self.outliers.zero_()

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """`padding` bool [...] is true where a token is none: it is normalised too but counts in no statistic."""
        if not self.training:
            return x * (self.weight / (self.moment + self.eps).sqrt()) + self.bias
        real = None if padding is None else (~padding)[..., None]
        with torch.no_grad():
            batch = self._take(_second_moment(x.float(), real))
        y: Tensor = _Normalize.apply(x.float(), self.weight, self.bias, real, batch, self)
        return y.to(x.dtype)

    def _take(self, moment: Tensor) -> _Batch:
        """Take the second moment f32 [C] of a batch in."""
        self.step += 1
        step = self.step.clone()
        spread = self.moments.sqrt().var()
        self.moments.index_copy_(0, self._slot(step), moment[None])
        geometric = self.moments.log().mean(0).exp()
        alone = torch.full_like(step, self.window == 1, dtype=torch.bool)
        if self.filter_outliers and self.window > 1:
            gap = self.moments.mean(0) - geometric
            alone = self._settled(step) & (gap > self.window * spread).any()
            self.moments.index_copy_(0, self._slot(step), torch.where(alone, self.moment, moment)[None])
            self.outliers += alone
        used = torch.where(self._settled(step) & ~alone, geometric, moment)
        deviation = (used + self.eps).sqrt()
        scale = (deviation / (self.moment + self.eps).sqrt()).clamp(1 / _SCALE_LIMIT, _SCALE_LIMIT)
        unscaled = alone | (step <= max(_UNSCALED_STEPS, self.warmup))
        self.moment.lerp_(used, 1 - self.momentum)
        return _Batch(step, deviation, torch.where(unscaled, 1.0, scale), alone)

    def _smooth(self, slope: Tensor, batch: _Batch) -> Tensor:
        """Take the backward statistic f32 [C] of a batch in; what its gradient uses instead, f32 [C]."""
        self.slopes.index_copy_(0, self._slot(batch.step), torch.where(batch.alone, self.slope, slope)[None])
        mean = torch.where(self._settled(batch.step) & ~batch.alone, self.slopes.mean(0), slope)
        self.slope.lerp_(mean, 1 - self.momentum)
        return torch.where(batch.alone, mean, self.slope)

    def _settled(self, step: Tensor) -> Tensor:
        """bool []: the window is full of batches since the last reset, and warm-up is over."""
        return (step > self.window) & (step >= self.warmup)

    def _slot(self, step: Tensor) -> Tensor:
        return (step % self.window)[None]

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, window={self.window}, warmup={self.warmup}, eps={self.eps}"


@dataclass(frozen=True)
class _Batch:
    """What the forward pass of one step hands to its backward pass, which another step may overtake."""

    step: Tensor  # i64 []
    deviation: Tensor  # f32 [C], root of the moment it was normalised by
    scale: Tensor  # f32 [C], of that to the running one
    alone: Tensor  # bool [], its statistics stay out of the window, and the window out of its


class _Normalize(torch.autograd.Function):
    """weight * x / deviation + bias; backward treats the deviation as depending on x, through smoothed statistics.

    With z = x / deviation and g = dy * weight * scale, the statistic is the mean of g * z over tokens.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        real: Tensor | None,
        batch: _Batch,
        norm: UnifiedNorm,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, real)
        ctx.batch, ctx.norm = batch, norm
        return torch.addcmul(bias, x, weight / batch.deviation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, real = ctx.saved_tensors
        deviation, scale = ctx.batch.deviation, ctx.batch.scale
        (dy,) = gradients
        product = dy * x
        along = _token_sum(product) / deviation
        counted, tokens = along, x.numel() // x.shape[-1]
        if real is not None:
            counted, tokens = _token_sum(torch.where(real, product, 0)) / deviation, real.sum()
        slope = ctx.norm._smooth(weight * scale * counted / tokens, ctx.batch)
        dx = torch.addcmul(dy * (weight * scale / deviation), x, slope / deviation.square(), value=-1)
        return dx, scale * along, _token_sum(dy), None, None, None


def _token_sum(x: Tensor) -> Tensor:
    """f32 [C]: over all axes but the last."""
    return x.reshape(-1, x.shape[-1]).sum(0)


def _second_moment(x: Tensor, real: Tensor | None) -> Tensor:
    """f32 [C]: mean over tokens of x * x; `real` bool [..., 1] says which ones count."""
    squares = x.square()
    if real is None:
        return squares.reshape(-1, x.shape[-1]).mean(0)
    return _token_sum(torch.where(real, squares, 0)) / real.sum()
