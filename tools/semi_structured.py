"""Which 2:4 weights of an ONNX file GPUs can skip zeros of, by the rules of TensorRT and of torch.

Of each four in a row along the axis that a product sums over, two are zero: axis 1 of a convolution's weight, axis -2
of a MatMul's second operand (-1 of its first), and of a Gemm's second operand axis 0, or 1 with transB. TensorRT looks
through QuantizeLinear, DequantizeLinear, Cast, Identity and Transpose between weight and product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from planish.ir.sparsity import fault
from planish.ir.types import Sparsity

_THROUGH = ("QuantizeLinear", "DequantizeLinear", "Cast", "Identity", "Transpose")
_INTEGER = {"MatMulInteger": 1, "QLinearMatMul": 3, "ConvInteger": 1, "QLinearConv": 3}
"""Products of codes, which TensorRT doesn't read, and which operand is the weight."""

TORCH_SHAPES: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "cutlass": {"int8": (16, 128), "float16": (32, 64), "bfloat16": (32, 64), "float32": (32, 32)},
    "cusparselt": {"int8": (32, 32), "float16": (16, 16), "bfloat16": (16, 16)},
}
"""What rows (outputs) and columns (inputs) of a weight [N, K] have to be multiples of, by backend and dtype.

Source: torch.sparse.semi_structured, classes SparseSemiStructuredTensorCUTLASS and ..CUSPARSELT.
"""


@dataclass(frozen=True)
class SemiStructured:
    """A weight at least half of which is zero.

    name: of the initializer. op, node: what multiplies by it. shape: as the product reads it. axis: that the product
    sums over. fault: why TensorRT can't skip its zeros, "" if it can. torch: the same for torch, by backend.
    """

    name: str
    op: str
    node: str
    shape: tuple[int, ...]
    axis: int
    fault: str
    torch: Mapping[str, str]

    @property
    def eligible(self) -> bool:
        """True if TensorRT can skip its zeros."""
        return not self.fault


def semi_structured(model: onnx.ModelProto, folder: Path | None = None) -> list[SemiStructured]:
    """All weights of which at least half is zero, in the order of the products. folder: where external data lies.

    Raises OSError or ValueError if a weight can't be read.
    """
    weights = _Weights(model.graph, folder)
    found = []
    for node in model.graph.node:
        for operand, axis in _weights_of(node):
            read = weights.at(operand)
            if read is None:
                continue
            name, array, centred = read
            axis = axis % array.ndim if array.ndim > 1 else -1
            if axis < 0 or 2 * np.count_nonzero(array) > array.size or not array.size:
                continue
            why = pattern_fault(array, axis)
            if node.op_type in _INTEGER:
                why = f"TensorRT reads DequantizeLinear, not {node.op_type}"
            elif not centred:
                why = "its codes have a zero point"
            at = array.reshape(array.shape[0], -1) if node.op_type in ("Conv", "ConvInteger") else array
            torch = {
                backend: why_not_torch(np.moveaxis(at, axis, -1), backend) if at.ndim == 2 else "it isn't a matrix"
                for backend in TORCH_SHAPES
            }
            found.append(SemiStructured(name, node.op_type, node.name, array.shape, axis, why, torch))
    return found


def pattern_fault(array: np.ndarray, axis: int) -> str:
    """What a weight lacks for a product that sums over an axis to skip two of each four; "" if nothing."""
    if array.shape[axis] % 4:
        return f"it sums over {array.shape[axis]}, which isn't a multiple of 4"
    why = fault(array, Sparsity("n:m", (2, 4), axis))
    if not why:
        return ""
    others = [i for i in range(array.ndim) if i != axis and not fault(array, Sparsity("n:m", (2, 4), i))]
    return f"its zeros are 2:4 along axis {others[0]}, but products sum over axis {axis}" if others else why


def why_not_torch(weight: np.ndarray, backend: str, dtype: str = "") -> str:
    """Why torch can't compress a weight [N, K] for a backend; "" if it can. dtype: it is cast to; default half.

    Floats are cast to float16 as a rule, codes stay int8. Raises KeyError for other backends.
    """
    dtype = dtype or ("int8" if weight.dtype == np.int8 else "float16")
    shapes = TORCH_SHAPES[backend]
    if dtype not in shapes:
        return f"{backend} has no {dtype}"
    for extent, least, what in zip(weight.shape, shapes[dtype], ("outputs", "inputs"), strict=True):
        if extent < least or extent % least:
            return f"it has {extent} {what}, not a multiple of {least}"
    return pattern_fault(weight, 1)


def _weights_of(node: onnx.NodeProto) -> Iterator[tuple[str, int]]:
    """Operands that may be weights, and the axis that the product sums over."""
    if node.op_type == "MatMul":
        yield from ((node.input[1], -2), (node.input[0], -1))
    elif node.op_type == "Gemm":
        flags = {attribute.name: attribute.i for attribute in node.attribute}
        yield node.input[1], 1 if flags.get("transB") else 0
        yield node.input[0], 0 if flags.get("transA") else 1
    elif node.op_type == "Conv":
        yield node.input[1], 1
    elif node.op_type in _INTEGER:
        yield node.input[_INTEGER[node.op_type]], 1 if "Conv" in node.op_type else -2


class _Weights:
    """Constants of a graph, as products read them."""

    def __init__(self, graph: onnx.GraphProto, folder: Path | None):
        self._held = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._folder = str(folder or "")

    def at(self, name: str) -> tuple[str, np.ndarray, bool] | None:
        """The constant's name, its numbers less their zero point, and whether there is none; None if it is computed."""
        if name in self._held:
            return name, self._array(name), True
        maker = self._makers.get(name)
        if maker is not None and maker.op_type == "Constant":
            tensors = [attribute.t for attribute in maker.attribute if attribute.name == "value"]
            return (name, numpy_helper.to_array(tensors[0], self._folder), True) if tensors else None
        if maker is None or maker.op_type not in _THROUGH:
            return None
        read = self.at(maker.input[0])
        if read is None:
            return None
        found, array, centred = read
        if maker.op_type == "Transpose":
            perm = [list(attribute.ints) for attribute in maker.attribute if attribute.name == "perm"]
            return found, np.transpose(array, perm[0] if perm else None), centred
        if maker.op_type == "DequantizeLinear" and len(maker.input) > 2 and maker.input[2]:
            zero = self.at(maker.input[2])
            if zero is None:
                return None
            axis = next((attribute.i for attribute in maker.attribute if attribute.name == "axis"), 1)
            points = zero[1].astype(np.int32)
            if points.ndim == 1 and points.size > 1:
                points = points.reshape([-1 if i == axis % array.ndim else 1 for i in range(array.ndim)])
            centred = centred and not np.any(points)
            return found, array if centred else array - points, centred
        return found, array, centred

    def _array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self._held[name], self._folder)
