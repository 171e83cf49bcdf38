"""Which kernel computes a region: the fast ones where they apply, plain loops elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from planish.backends.tvm import (
    float_attention,
    float_gemm,
    float_loops,
    float_rows,
    float_windows,
    shifts,
    sparse_attention,
)
from planish.backends.tvm.attention import attention
from planish.backends.tvm.batched_products import batched, is_batched
from planish.backends.tvm.binary_bytes import counted, counts_bytes
from planish.backends.tvm.epilogue import Context
from planish.backends.tvm.gemm import convolution, is_packable, linear
from planish.backends.tvm.plain import PLAIN, Emitter, pointwise
from planish.backends.tvm.region import Region
from planish.backends.tvm.relu_mlp import relu_mlp
from planish.backends.tvm.row_blocks import in_blocks
from planish.backends.tvm.scope import Kernel
from planish.backends.tvm.token_merging import merging
from planish.backends.tvm.token_moves import placed, taken
from planish.backends.tvm.token_ranks import top
from planish.backends.tvm.token_scores import float_matching, int_matching
from planish.ir import ops
from planish.ir.op import Op

FLOAT: Mapping[type[Op], Emitter] = {
    ops.Linear: float_gemm.linear,
    ops.MatMul: float_gemm.matmul,
    ops.AddMatMul: float_gemm.matmul,
    ops.Conv: float_windows.convolution,
    ops.ReluMLP: relu_mlp,
    ops.MaxPool: float_loops.pooled,
    ops.AveragePool: float_loops.pooled,
    ops.Attention: float_attention.attention,
    ops.SparseAttention: sparse_attention.attention,
    ops.RotaryEmbedding: float_loops.turned,
    ops.LayerNorm: float_rows.normalised,
    ops.RMSNorm: float_rows.normalised,
    ops.InstanceNorm: float_rows.normalised,
    ops.Softmax: float_rows.softmax,
    ops.LogSoftmax: float_rows.softmax,
    ops.ReduceMean: float_loops.reduction,
    ops.ReduceSum: float_loops.reduction,
    ops.ReduceMax: float_loops.reduction,
    ops.ReduceMin: float_loops.reduction,
    ops.ReduceProd: float_loops.reduction,
    ops.ReduceL2: float_loops.reduction,
    ops.ReduceSumSquare: float_loops.reduction,
    ops.ArgMax: float_loops.greatest_place,
}
"""Kernels of plain numbers."""

SHIFTS: Mapping[type[Op], Emitter] = {
    ops.IntSoftmax: shifts.softmax,
    ops.Shiftmax: shifts.softmax,
    ops.ShiftLayerNorm: shifts.layer_norm,
}
"""Kernels of the profile `ivit`."""

TOKENS: Mapping[type[Op], Emitter] = {
    ops.MatchTokens: float_matching,
    ops.IntMatchTokens: int_matching,
    ops.MergeTokens: merging,
    ops.IntMergeTokens: merging,
    ops.TopTokens: top,
    ops.TakeTokens: taken,
    ops.PlaceTokens: placed,
}
"""Kernels that choose, merge and move tokens."""

_KERNELS: Mapping[type[Op], Emitter] = {**FLOAT, **PLAIN, **SHIFTS, **TOKENS}


def kernel_of(region: Region, context: Context) -> Kernel:
    """The kernel of a region."""
    node = region.anchor
    if region.norms or (node is not None and isinstance(node.op, ops.IntLayerNorm | ops.IntRMSNorm)):
        return in_blocks(region, context)
    if node is None:
        return pointwise(region, context)
    if isinstance(node.op, ops.Attention) and sparse_attention.skips_blocks(node):
        return sparse_attention.attention(region, context)
    if region.attention is not None:
        return attention(region, context)
    if isinstance(node.op, ops.IntMatMul | ops.IntAddMatMul | ops.IntBinaryMatMul) and is_batched(node):
        return counted(region, context) if counts_bytes(region, context.isa) else batched(region, context)
    if isinstance(node.op, ops.IntLinear | ops.IntConv) and is_packable(node):
        if isinstance(node.op, ops.IntLinear):
            return linear(region, context)
        if node.op.group == 1:
            return convolution(region, context)
    return _KERNELS[type(node.op)](region, context)
