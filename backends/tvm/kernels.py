"""Which kernel computes a region: the fast ones where they apply, plain loops elsewhere."""

from __future__ import annotations

from planish.backends.tvm.attention import attention
from planish.backends.tvm.epilogue import Context
from planish.backends.tvm.gemm import convolution, linear
from planish.backends.tvm.norms import normalised
from planish.backends.tvm.plain import PLAIN, pointwise
from planish.backends.tvm.regions import Region
from planish.backends.tvm.scope import Kernel
from planish.ir import ops
from planish.ir.op import constant


def kernel_of(region: Region, context: Context) -> Kernel:
    """The kernel of a region."""
    node = region.anchor
    if node is None:
        return pointwise(region, context)
    if region.attention is not None:
        return attention(region, context)
    if isinstance(node.op, ops.IntLayerNorm | ops.IntRMSNorm):
        return normalised(region, context)
    if isinstance(node.op, ops.IntLinear | ops.IntConv) and _packable(region):
        if isinstance(node.op, ops.IntLinear):
            return linear(region, context)
        if node.op.group == 1:
            return convolution(region, context)
    return PLAIN[type(node.op)](region, context)


def _packable(region: Region) -> bool:
    """True if weights and bias are known, and activations have at most 16 bits."""
    assert region.anchor is not None
    x, *parameters = region.anchor.inputs
    known = all(constant(value) is not None for value in parameters)
    return known and x.tensor.dtype.bits <= 16 and parameters[0].tensor.dtype.bits <= 8
