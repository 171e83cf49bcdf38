"""Norms and activations that models write out by hand, in the ways their authors do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

WIDTH = 32
EPS = 1e-5

Tensor = torch.Tensor


class Written(nn.Module):
    """``formula(x, weight, bias)`` with vectors of parameters."""

    def __init__(self, formula: Callable[..., Tensor], width: int = WIDTH) -> None:
        super().__init__()
        self.formula = formula
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, *operands: Tensor) -> Tensor:
        return self.formula(*operands, self.weight, self.bias)


def mean_of(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)


def duplicated_sub(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L2: the centred values are computed for the variance and again for the quotient."""
    mean = mean_of(x)
    variance = mean_of((x - mean) ** 2)
    return weight * ((x - mean) / torch.sqrt(variance + EPS)) + bias


def square_as_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L3."""
    centred = x - mean_of(x)
    return centred / torch.sqrt(mean_of(centred * centred) + EPS) * weight + bias


def inverse_as_rsqrt(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L4: rsqrt, exported as 1 / Sqrt or as Reciprocal."""
    centred = x - mean_of(x)
    return weight * (centred * torch.rsqrt(mean_of(centred.pow(2)) + EPS)) + bias


def inverse_as_power(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L4: (var + eps) ** -0.5."""
    centred = x - mean_of(x)
    return bias + centred * (mean_of(centred.pow(2)) + EPS) ** -0.5 * weight


def inverse_as_reciprocal(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L4: the reciprocal of the root."""
    centred = x - mean_of(x)
    return bias + weight * (torch.reciprocal(torch.sqrt(mean_of(centred**2) + EPS)) * centred)


def single_precision(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L5: float16 values, normalised in float32, scaled in float16."""
    wide = x.float()
    centred = wide - mean_of(wide)
    normal = centred / torch.sqrt(mean_of(centred.pow(2)) + EPS)
    return normal.to(x.dtype) * weight.to(x.dtype) + bias.to(x.dtype)


def square_in_single_precision(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L5: float16, only the variance computed in float32."""
    centred = x - mean_of(x)
    deviation = torch.sqrt(mean_of(centred.float().pow(2)) + EPS).to(x.dtype)
    return centred / deviation * weight.to(x.dtype) + bias.to(x.dtype)


def scale_alone(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L6: no bias."""
    centred = x - mean_of(x)
    return centred / torch.sqrt(mean_of(centred**2) + EPS) * weight


def bias_alone(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L6: no scale."""
    centred = x - mean_of(x)
    return centred / torch.sqrt(mean_of(centred**2) + EPS) + bias


def two_axes(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L7: over tokens and channels."""
    centred = x - x.mean((1, 2), keepdim=True)
    return centred * torch.rsqrt(centred.pow(2).mean((1, 2), keepdim=True) + EPS) * weight + bias


def folded_affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L8: TensorFlow's batch_normalization: x * s + (beta - mean * s)."""
    mean = mean_of(x)
    scale = torch.rsqrt(mean_of(torch.square(x - mean)) + EPS) * weight
    return x * scale + (bias - mean * scale)


def folded_affine_negated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L8: Keras 3's batch_normalization: x * s + (-mean * s + beta)."""
    mean = mean_of(x)
    scale = torch.rsqrt(mean_of(torch.square(x - mean)) + EPS) * weight
    return x * scale + (-mean * scale + bias)


def raw_moments(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L9: the variance as E[x^2] - E[x]^2."""
    mean = mean_of(x)
    variance = mean_of(x * x) - mean * mean
    return (x - mean) / torch.sqrt(variance + EPS) * weight + bias


def clamped_raw_moments(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L9: the variance as E[x^2] - E[x]^2, kept from falling below zero."""
    mean = mean_of(x)
    variance = (mean_of(x.pow(2)) - mean.pow(2)).clamp(min=0.0)
    return (x - mean) * torch.rsqrt(variance + EPS) * weight + bias


def library_variance(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The variance by torch.var, which divides by D."""
    return (x - mean_of(x)) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + EPS) * weight + bias


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L10: every token an instance."""
    return functional.instance_norm(x, eps=EPS) * weight + bias


def modulated(x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L13: adaptive layer norm, scale and shift computed from a condition."""
    return functional.layer_norm(x, (WIDTH,), eps=EPS) * (1 + scale[:, None] * weight) + (shift[:, None] + bias)


def modulated_written_out(x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L13 with the norm written out, and constants besides."""
    return duplicated_sub(x, weight, bias) * (1 + scale[:, None]) + shift[:, None]


def used_statistics(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L14: mean and inverse deviation are used besides."""
    normal, mean, inverse = torch.native_layer_norm(x, (WIDTH,), weight, bias, EPS)
    return normal / inverse + mean


def constant_added(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L15."""
    return functional.layer_norm(x, (WIDTH,), weight, bias, EPS) + bias


def residual_added(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """L15, where the Add must stay."""
    return functional.layer_norm(x, (WIDTH,), weight, bias, EPS) + x


def one_standard_deviation(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """No layer norm: epsilon is added to the deviation (the annotated transformer)."""
    return weight * (x - mean_of(x)) / (x.std(-1, keepdim=True, unbiased=False) + 1e-3) + bias


def rms_by_root(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """R1."""
    return x / torch.sqrt(mean_of(x * x) + EPS) * weight


def rms_by_rsqrt(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """R2 and R3, gamma second."""
    return x * torch.rsqrt(mean_of(x.pow(2)) + EPS) * weight


def rms_scaled_inverse(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """R4: gamma times the inverse root first, as Keras does."""
    return x * (torch.rsqrt(mean_of(torch.square(x)) + EPS) * weight)


def rms_cast_after_scale(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """R5: float16, scaled in float32, cast back last."""
    return (rms_by_rsqrt(x.float(), weight, bias)).to(x.dtype)


def rms_kept_wide(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """R5: float16, not cast back."""
    return rms_by_root(x.float(), weight, bias)


def rms_by_sum(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """R6."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) / WIDTH + EPS) * weight


def rms_by_length(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """R6: divided by the length over the root of D."""
    return x / (x.norm(dim=-1, keepdim=True) * WIDTH**-0.5) * weight


def unit_length(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """R6, no RMS norm: the length is bounded from below."""
    return functional.normalize(x, dim=-1) * WIDTH**0.5 * weight


def rms_after_skip(x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """R7: a bias before the residual, whose sum is read again."""
    total = (x + bias) + skip
    return rms_by_rsqrt(total, weight, bias) + total


def rms_of_deviation(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """R8, no RMS norm: x over its standard deviation."""
    return x * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + EPS) * weight


class Pointwise(nn.Module):
    """A formula of x alone."""

    def __init__(self, formula: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x: Tensor) -> Tensor:
        return self.formula(x)


def erf_other_branch(x: Tensor) -> Tensor:
    """G2 and G3."""
    return 0.5 * x * (1.0 + torch.erf(x * 0.7071067811865475))


def erf_half_inside(x: Tensor) -> Tensor:
    """G4."""
    return x * (0.5 * (1.0 + torch.erf(x / 2**0.5)))


def erf_computed_root(x: Tensor) -> Tensor:
    """G5: the root is computed from a tensor."""
    return x * 0.5 * (1.0 + torch.erf(x / torch.sqrt(torch.tensor(2.0))))


def erf_in_single_precision(x: Tensor) -> Tensor:
    """G6."""
    return functional.gelu(x.float()).to(x.dtype)


def tanh_half_last(x: Tensor) -> Tensor:
    """T2."""
    return x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * torch.pow(x, 3)))) * 0.5


def tanh_half_before_x(x: Tensor) -> Tensor:
    """T2, as BERT for TensorFlow has it."""
    return x * (0.5 * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))))


def tanh_factored(x: Tensor) -> Tensor:
    """T3, as Megatron has it."""
    return x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


def hard_swish_of_relu6(x: Tensor) -> Tensor:
    """As networks had it before torch did."""
    return x * functional.relu6(x + 3.0) / 6.0


def hard_swish_of_clamp(x: Tensor) -> Tensor:
    return x * torch.clamp(x + 3.0, 0.0, 6.0) * (1 / 6)
