"""Layers that multiply: linear layers, convolutions, products of matrices, with their sizes and what weights need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from planish.ir import dims, ops, signed_digits
from planish.ir.codebooks import CODEBOOKS
from planish.ir.dims import Dim
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import constant
from planish.ir.types import TensorType

WEIGHT_BITS = 8  # of integer weights that are in no codebook


@dataclass(frozen=True)
class ProductLayer:
    """One product of a layer, for one inference.

    name: of its node. op: what it is. macs: products of two numbers that are added up. weights: elements of a constant
    operand, 0 where both are data. channels: of the result. inputs, outputs: elements of data read and written.
    digits: signed powers of two per weight or code, on average. ternary: all of them are -1, 0 or 1. bits: that a
    weight is stored in as an integer, with what its codebook stores besides.
    """

    name: str
    op: str
    macs: int
    weights: int
    channels: int
    inputs: int
    outputs: int
    digits: float
    ternary: bool
    bits: float


def product_layers(graph: Graph, binding: Mapping[str, int] | None = None) -> Iterator[ProductLayer]:
    """The products of a graph in order. binding: extents of symbolic dimensions, 1 for those that aren't in it.

    Ops that were carried through count as far as they are ONNX products of integers.
    """
    for node in graph:
        kind = node.op.op_type if isinstance(node.op, ops.Opaque) else node.op.name
        if kind in _FINDERS:
            yield from _FINDERS[kind](node, kind, binding or {})


def skipped_ops(graph: Graph) -> tuple[str, ...]:
    """Ops that were carried through without being understood, so that nobody knows what they multiply."""
    found = {node.op.op_type for node in graph if isinstance(node.op, ops.Opaque)}
    return tuple(sorted(found & _UNKNOWN))


_UNKNOWN = frozenset(
    (
        *("Gemm", "MatMul", "Conv", "ConvTranspose", "QLinearConv", "QLinearMatMul", "LSTM", "GRU", "RNN", "Einsum"),
        *("If", "Loop", "Scan", "Attention", "MultiHeadAttention", "MatMulNBits", "FusedConv", "FusedMatMul"),
    )
)


def _extents(type_: TensorType, binding: Mapping[str, int]) -> list[int]:
    return [_extent(dim, binding) for dim in type_.dims]


def _extent(dim: Dim, binding: Mapping[str, int]) -> int:
    known = dims.substitute(dim, {symbol: binding.get(symbol, 1) for symbol in dims.symbols(dim)})
    return known if isinstance(known, int) else 1


def _layer(node: Node, kind: str, sizes: tuple[int, int, int], weight: Value, axis: int, channels: int) -> ProductLayer:
    """A product with `weight`, whose channels lie along `axis`. sizes: multiply-adds, inputs, outputs."""
    macs, inputs, outputs = sizes
    data = constant(weight)
    name = next(iter(node.loc.sources), "") or node.results[0].hint or kind
    if data is None:  # codes of which nothing is known: each is as likely as any other
        mean = float(np.mean(signed_digits.count(_every_code(weight.tensor))))
        return ProductLayer(name, kind, macs, 0, channels, inputs, outputs, mean, False, WEIGHT_BITS)
    array = data.numpy()
    codes = _rounded(array, axis) if data.type.dtype.is_float else array.astype(np.int64)
    quant = data.type.quant
    bits = float(WEIGHT_BITS)
    if quant is not None and quant.codebook:
        bits = CODEBOOKS[quant.codebook].stored_bits(array.shape, quant.axis) / max(array.size, 1)
    ternary = bool(np.all(np.abs(codes) <= 1))
    mean = float(np.mean(signed_digits.count(codes))) if codes.size else 0.0
    return ProductLayer(name, kind, macs, array.size, channels, inputs, outputs, mean, ternary, bits)


def _every_code(type_: TensorType) -> np.ndarray:
    """The codes of a tensor less their zero point; of real numbers, those of 8 bits with a sign."""
    if not type_.dtype.is_integer:
        return np.arange(-128, 128)
    return np.arange(type_.dtype.min, type_.dtype.max + 1) - (0 if type_.quant is None else type_.quant.zero)


def _rounded(array: np.ndarray, axis: int) -> np.ndarray:
    """Real weights in 8 bits, as an integer recipe would have them: symmetric, one scale per channel."""
    others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    top = np.max(np.abs(array), axis=others, keepdims=True)
    return np.asarray(np.rint(array / np.where(top > 0, top, 1) * 127)).astype(np.int64)


def _matrices(node: Node, kind: str, binding: Mapping[str, int]) -> Iterator[ProductLayer]:
    a, b = node.inputs[0], node.inputs[1]
    left, right = _extents(a.tensor, binding), _extents(b.tensor, binding)
    outputs = prod(_extents(node.results[0].tensor, binding))
    inputs = sum(prod(extents) for value, extents in ((a, left), (b, right)) if constant(value) is None)
    weight, extents, axis = (a, left, -2) if constant(b) is None and constant(a) is not None else (b, right, -1)
    channels = extents[axis] if len(extents) > 1 else 1
    yield _layer(node, kind, (outputs * left[-1], inputs, outputs), weight, axis if len(extents) > 1 else 0, channels)


def _convolution(node: Node, kind: str, binding: Mapping[str, int]) -> Iterator[ProductLayer]:
    x, w = (_extents(value.tensor, binding) for value in node.inputs[:2])
    outputs = prod(_extents(node.results[0].tensor, binding))
    yield _layer(node, kind, (outputs * prod(w[1:]), prod(x), outputs), node.inputs[1], 0, w[0])


def _attention(node: Node, kind: str, binding: Mapping[str, int]) -> Iterator[ProductLayer]:
    """Both products: of queries and keys, and of what the softmax makes of these, and values."""
    q, k, v = (_extents(value.tensor, binding) for value in node.inputs[:3])
    scores, outputs = prod(q[:3]) * k[2], prod(q[:3]) * v[3]
    yield _layer(node, f"{kind} q k", (scores * q[3], prod(q) + prod(k), scores), node.inputs[1], 3, k[2])
    yield _layer(node, f"{kind} p v", (outputs * k[2], scores + prod(v), outputs), node.inputs[2], 3, v[3])


_FINDERS: Mapping[str, Callable[[Node, str, Mapping[str, int]], Iterator[ProductLayer]]] = {
    **dict.fromkeys(("Linear", "MatMul", "ShiftLinear", "IntLinear", "IntLinearDequantize"), _matrices),
    **dict.fromkeys(("IntMatMul", "IntWeightedMean", "MatMulInteger", "MatMulIntegerToFloat"), _matrices),
    **dict.fromkeys(("Conv", "ShiftConv", "IntConv", "ConvInteger"), _convolution),
    "Attention": _attention,
}
