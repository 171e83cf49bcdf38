"""Ops in torch, differentiable: one function per op class, `(op, *operands) -> result`, the law being its `evaluate`.

Floats come and go as float32, whatever their width in the graph; operands that are no floats come as bool or int64
tensors. Only ops with float results have an entry: integers and truth values carry no gradient, so the interpreter's
own `evaluate` will do for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from planish.ir import ops
from planish.ir.op import Op

TorchOp = Callable[..., Any]

_RAMP = 1.5  # root mean squares over which the sign of a number counts as sloping

_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def linear(op: ops.Linear, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    return F.linear(x, w.mT, b)


def conv(op: ops.Conv, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    spatial = x.ndim - 2
    padded = _padded(x, op.pads, 0.0)
    none = (0,) * spatial
    return torch.convolution(padded, w, b, op.strides, none, op.dilations, False, none, op.group)


def attention(op: ops.Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    if (group := q.shape[1] // k.shape[1]) > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=op.causal, scale=op.scale)
    scores = (q * op.scale) @ k.mT  # [B, H, N, M]
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    if op.causal:
        triangle = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~triangle, -math.inf)
    # Softmax of a row that is all -inf has a gradient of NaN even where a later Where drops the row.
    empty = (scores == -math.inf).all(-1, keepdim=True)
    return (scores.masked_fill(empty, 0.0).softmax(-1) @ v).masked_fill(empty, math.nan)


def rotary_embedding(op: ops.RotaryEmbedding, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = cos[:, None], sin[:, None]  # [B, 1, N, D / 2]
    a, b = (x[..., 0::2], x[..., 1::2]) if op.interleaved else x.chunk(2, -1)
    turned = a * cos - b * sin, a * sin + b * cos
    return torch.stack(turned, -1).flatten(-2) if op.interleaved else torch.cat(turned, -1)


def layer_norm(op: ops.LayerNorm, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, x.shape[op.axis :], gamma, beta, op.eps)


def rms_norm(op: ops.RMSNorm, x: Tensor, gamma: Tensor | None = None) -> Tensor:
    return F.rms_norm(x, x.shape[op.axis :], gamma, op.eps)


def batch_norm(op: ops.BatchNorm, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    # torch's own refuses a computed mean or variance.
    scale = gamma / torch.sqrt(var + op.eps)
    shift = beta - mean * scale
    return x * scale.reshape(-1, *(1,) * (x.ndim - 2)) + shift.reshape(-1, *(1,) * (x.ndim - 2))


def instance_norm(op: ops.InstanceNorm, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    axes, spread = tuple(range(2, x.ndim)), (-1, *(1,) * (x.ndim - 2))
    centred = x - x.mean(axes, keepdim=True)
    y = centred / torch.sqrt((centred * centred).mean(axes, keepdim=True) + op.eps)
    return y * gamma.reshape(spread) + beta.reshape(spread)


def max_pool(op: ops.MaxPool, x: Tensor) -> Tensor:
    pool = _MAX_POOLS[len(op.kernel)]
    return pool(_padded(x, op.pads, -math.inf), op.kernel, op.strides, 0, op.dilations)


def average_pool(op: ops.AveragePool, x: Tensor) -> Tensor:
    pool = _AVERAGE_POOLS[len(op.kernel)]
    means = pool(_padded(x, op.pads, 0.0), op.kernel, op.strides)
    if op.count_include_pad or not any(op.pads):
        return means
    there = torch.ones((1, 1, *x.shape[2:]), device=x.device)
    return means / pool(_padded(there, op.pads, 0.0), op.kernel, op.strides)


def pad(op: ops.Pad, x: Tensor) -> Tensor:
    if op.mode == "constant":
        return F.pad(x, _torch_pads(op.pads), value=float(op.value))
    for axis, extent in enumerate(x.shape):
        before, after = op.pads[axis], op.pads[axis + x.ndim]
        if before or after:
            picked = ops.Pad((before, after), op.mode).evaluate(np.arange(extent))
            x = x.index_select(axis, torch.as_tensor(picked, device=x.device))
    return x


def slice_(op: ops.Slice, x: Tensor) -> Tensor:
    for start, end, axis, step in zip(op.starts, op.ends, op.axes, op.steps, strict=True):
        picked = ops.Slice((start,), (end,), (0,), (step,)).evaluate(np.arange(x.shape[axis]))
        if step > 0 and picked.size:
            index = [slice(None)] * axis + [slice(int(picked[0]), int(picked[-1]) + 1, step)]
            x = x[tuple(index)]
        else:  # torch has no negative steps
            x = x.index_select(axis, torch.as_tensor(picked.copy(), device=x.device))
    return x


def gather(op: ops.Gather, x: Tensor, indices: Tensor) -> Tensor:
    flat = torch.where(indices < 0, indices + x.shape[op.axis], indices).reshape(-1)
    return x.index_select(op.axis, flat).reshape(*x.shape[: op.axis], *indices.shape, *x.shape[op.axis + 1 :])


def reshape(op: ops.Reshape, x: Tensor) -> Tensor:
    return x.reshape([x.shape[i] if dim == 0 else dim for i, dim in enumerate(op.shape)])


def dynamic_reshape(op: ops.DynamicReshape, x: Tensor, shape: Tensor) -> Tensor:
    target = [int(dim) for dim in shape]
    return x.reshape(target if op.allow_zero else [x.shape[i] if dim == 0 else dim for i, dim in enumerate(target)])


def squeeze(op: ops.Squeeze, x: Tensor) -> Tensor:
    return x.squeeze(op.axes)


def unsqueeze(op: ops.Unsqueeze, x: Tensor) -> Tensor:
    for axis in op.axes:
        x = x.unsqueeze(axis)
    return x


def expand(op: ops.Expand, x: Tensor, shape: Tensor) -> Tensor:
    return x.broadcast_to(torch.broadcast_shapes(x.shape, torch.Size(shape.tolist())))


def reduce_prod(op: ops.ReduceProd, x: Tensor) -> Tensor:
    for axis in op.axes:
        x = x.prod(axis, keepdim=True)
    return x if op.keepdims else x.squeeze(op.axes)


def gelu(op: ops.Gelu, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=op.approximate)


class _Signs(torch.autograd.Function):
    """Codes of signs, with the gradient of a ramp from -1 to 1 over 1.5 root mean squares of x, per head.

    Straight through (Bengio et al. 2013), clipped: where |x| is beyond the ramp, nothing small changes the sign.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, zero: int) -> Tensor:
        axes = [axis for axis in range(x.ndim) if axis != x.ndim - 3]
        width = _RAMP * x.square().mean(axes, keepdim=True).sqrt()
        ctx.save_for_backward(x, width)
        return (x >= 0 if zero == 1 else x > 0).to(x.dtype) * 2 - 1  # twice as fast as where

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x, width = ctx.saved_tensors
        return gradients[0] * (x.abs() <= width) / width.clamp(min=1e-12), None


def binarize(op: ops.Binarize, x: Tensor) -> Tensor:
    signs: Tensor = _Signs.apply(x, op.zero)  # type: ignore[no-untyped-call]
    return signs


TORCH_OPS: Mapping[type[Op], TorchOp] = {
    # products and what stands between them
    ops.Linear: linear,
    ops.MatMul: lambda op, a, b: a @ b,
    ops.Conv: conv,
    ops.Binarize: binarize,
    ops.AddMatMul: lambda op, a, b: a @ b,
    ops.Attention: attention,
    ops.RotaryEmbedding: rotary_embedding,
    ops.Softmax: lambda op, x: x.softmax(op.axis),
    ops.LogSoftmax: lambda op, x: x.log_softmax(op.axis),
    ops.LayerNorm: layer_norm,
    ops.RMSNorm: rms_norm,
    ops.BatchNorm: batch_norm,
    ops.InstanceNorm: instance_norm,
    ops.MaxPool: max_pool,
    ops.AveragePool: average_pool,
    # activations
    ops.Relu: lambda op, x: x.relu(),
    ops.Gelu: gelu,
    ops.Tanh: lambda op, x: x.tanh(),
    ops.Sigmoid: lambda op, x: x.sigmoid(),
    ops.Softplus: lambda op, x: torch.logaddexp(x, torch.zeros_like(x)),
    ops.Swish: lambda op, x: x * (op.alpha * x).sigmoid(),
    ops.HardSigmoid: lambda op, x: (op.alpha * x + op.beta).clamp(0, 1),
    ops.HardSwish: lambda op, x: F.hardswish(x),
    ops.LeakyRelu: lambda op, x: F.leaky_relu(x, op.alpha),
    ops.Elu: lambda op, x: F.elu(x, op.alpha),
    ops.Clip: lambda op, x: x if op.lo is None and op.hi is None else x.clamp(op.lo, op.hi),
    # elementwise
    ops.Add: lambda op, x, y: x + y,
    ops.Sub: lambda op, x, y: x - y,
    ops.Mul: lambda op, x, y: x * y,
    ops.Div: lambda op, x, y: x / y,
    ops.Pow: lambda op, x, y: x.pow(y),
    ops.Max: lambda op, x, y: torch.maximum(x, y),
    ops.Min: lambda op, x, y: torch.minimum(x, y),
    ops.Mod: lambda op, x, y: torch.fmod(x, y),
    ops.Where: lambda op, condition, x, y: torch.where(condition, x, y),
    ops.Abs: lambda op, x: x.abs(),
    ops.Neg: lambda op, x: -x,
    ops.Sign: lambda op, x: x.sign(),
    ops.Sqrt: lambda op, x: x.sqrt(),
    ops.Reciprocal: lambda op, x: x.reciprocal(),
    ops.Exp: lambda op, x: x.exp(),
    ops.Log: lambda op, x: x.log(),
    ops.Erf: lambda op, x: x.erf(),
    ops.Sin: lambda op, x: x.sin(),
    ops.Cos: lambda op, x: x.cos(),
    ops.Floor: lambda op, x: x.floor(),
    ops.Ceil: lambda op, x: x.ceil(),
    ops.Round: lambda op, x: x.round(),
    ops.Cast: lambda op, x: x.float(),
    ops.Identity: lambda op, x: x,
    # reductions
    ops.ReduceMean: lambda op, x: x.mean(op.axes, op.keepdims),
    ops.ReduceSum: lambda op, x: x.sum(op.axes, op.keepdims),
    ops.ReduceMax: lambda op, x: x.amax(op.axes, op.keepdims),
    ops.ReduceMin: lambda op, x: x.amin(op.axes, op.keepdims),
    ops.ReduceProd: reduce_prod,
    ops.ReduceL2: lambda op, x: torch.linalg.vector_norm(x, 2, op.axes, op.keepdims),
    ops.ReduceSumSquare: lambda op, x: (x * x).sum(op.axes, op.keepdims),
    # shapes and indices
    ops.Reshape: reshape,
    ops.DynamicReshape: dynamic_reshape,
    ops.Transpose: lambda op, x: x.permute(op.perm),
    ops.Squeeze: squeeze,
    ops.Unsqueeze: unsqueeze,
    ops.Expand: expand,
    ops.Tile: lambda op, x: x.tile(op.repeats),
    ops.Concat: lambda op, *parts: torch.cat(parts, op.axis),
    ops.Split: lambda op, x: x.split(op.sizes, op.axis),
    ops.Slice: slice_,
    ops.Gather: gather,
    ops.Pad: pad,
}
"""The function of each op class that yields floats."""


def _torch_pads(pads: Sequence[int]) -> list[int]:
    """Pads as torch wants them: (begin, end) of each axis, the last axis first."""
    rank = len(pads) // 2
    return [pads[axis + side] for axis in reversed(range(rank)) for side in (0, rank)]


def _padded(x: Tensor, pads: Sequence[int], value: float) -> Tensor:
    """x with explicit pads on its spatial axes, which may differ on both sides as torch's own can't."""
    return F.pad(x, _torch_pads(pads), value=value) if any(pads) else x
