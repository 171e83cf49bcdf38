"""8-bit products between real numbers: what makes a model fast on runtimes that have good integer products only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir import dtypes, fixedpoint, ops
from planish.ir.data import Data
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import constant
from planish.ir.types import Quant
from planish.passes.base import Context, Pass
from planish.passes.calibration import Statistics, collect
from planish.passes.exactness import Exactness, approximate
from planish.passes.integer.forms import Spec, column_scales
from planish.passes.integer.integerize import equalizing_factors, requests_of
from planish.passes.integer.plan import Plan
from planish.passes.rewrite import Changes


@dataclass(frozen=True)
class QuantizeProducts(Pass):
    """Linear layers with 8-bit weights and activations between float ops, for speed on ONNX Runtime.

    calibration: how ranges are found: "minmax", "ema", "percentile:P", "mse", "entropy".
    equalize: how far channels of norms are evened out between activations and weights, 0 to 1.
    floor: signal-to-noise ratio (dB) that 8-bit codes of an activation have to reach, or the layer stays as it is.
    """

    name: ClassVar[str] = "quantize-products"
    exactness: ClassVar[Exactness] = approximate(10.0)
    needs_calibration: ClassVar[bool] = True
    calibration: str = "mse"
    equalize: float = 0.5
    floor: float = 15.0

    def run(self, graph: Graph, context: Context) -> Changes:
        changes = Changes()
        flatten_patches(graph)
        statistics = collect(graph, context, requests_of(graph))
        plan = Plan(statistics, method=self.calibration)
        if self.equalize:
            even_out(graph, statistics, self.equalize, plan)
        codes: dict[tuple[Value, Spec], Value] = {}
        for node in graph.nodes(ops.Linear):
            reason = self._refusal(node, plan)
            if reason:
                changes.skipped.append((str(node.loc), reason))
                continue
            _quantize(graph, node, plan, codes, self.name)
            changes.rewrites[self.name] += 1
        graph.erase_dead()
        changes.rewrites = Counter({name: n for name, n in changes.rewrites.items() if n})
        return changes

    def _refusal(self, node: Node, plan: Plan) -> str:
        x = node.inputs[0]
        if any(constant(v) is None for v in node.inputs[1:]):
            return "its weights are computed"
        if x.tensor.dtype != dtypes.f32:
            return f"its input is {x.tensor.dtype}"
        spec = plan.evened(x) or plan.operand(x)
        return "" if spec.evened or plan.sqnr(x, spec) >= self.floor else "8 bits would be too noisy for its input"


def even_out(graph: Graph, statistics: Statistics, strength: float, plan: Plan) -> None:
    """Divide norms that only linear layers read by factors per channel, and multiply the layers' weights by them."""
    for value, factor in equalizing_factors(graph, statistics, strength, frozenset()).items():
        norm = value.node
        if norm is None or not all(isinstance(reader.op, ops.Linear) for reader in value.users):
            continue
        parameters = [None if p is None else constant(p) for p in norm.operands[1:]]
        if any(p is not None and data is None for p, data in zip(norm.operands[1:], parameters, strict=True)):
            continue
        gamma, beta = (*(None if data is None else data.numpy() for data in parameters), None, None)[:2]
        operands = [np.asarray(1 if gamma is None else gamma) / factor] + ([] if beta is None else [beta / factor])
        divided: Value = norm.op(norm.inputs[0], *(a.astype(value.tensor.dtype.storage) for a in operands))
        graph.attach(divided, norm, norm.loc.made_by(QuantizeProducts.name))
        divided.hint = value.hint
        graph.replace(value, divided)
        graph.erase_dead([norm])
        statistics.rename(value, divided)
        for reader in divided.users:
            data = constant(reader.operands[1])
            if data is not None:
                _set_constant(graph, reader, 1, (data.numpy() * factor[:, None]).astype(np.float32))
        plan.folded[divided] = factor


def _set_constant(graph: Graph, node: Node, index: int, array: np.ndarray) -> None:
    made = graph.add(ops.Const(Data(array)), loc=node.loc, before=node).result
    graph.set_operand(node, index, made)


def _quantize(graph: Graph, node: Node, plan: Plan, codes: dict[tuple[Value, Spec], Value], by: str) -> None:
    """Replace a Linear by IntLinearDequantize on codes; readers of one value share its codes."""
    x, loc = node.inputs[0], node.loc.made_by(by)
    spec = plan.evened(x) or plan.operand(x)
    if (x, spec) not in codes:
        made = ops.Quantize(spec.scale, spec.zero, spec.dtype)(x)
        graph.attach(made, node, loc)
        made.hint = f"{x.hint}/codes"
        codes[x, spec] = made
    data = constant(node.operands[1])
    assert data is not None
    w = data.numpy().astype(np.float64)
    scales = column_scales(w, 1)
    rounded = fixedpoint.quantized(w, dtypes.i8, scales)
    bias = constant(node.operands[2]) if len(node.operands) > 2 else None
    b = np.zeros(w.shape[1]) if bias is None else bias.numpy().astype(np.float64)
    mean = plan.statistics[x].channel_mean
    if mean is not None:
        factor = plan.folded.get(x)
        b = b + (mean if factor is None else mean / factor) @ (w - rounded * scales)
    weight = Data(rounded, Quant(tuple(scales.tolist()), 0, 1))
    result = ops.IntLinearDequantize()(codes[x, spec], weight, b.astype(np.float32))
    graph.attach(result, node, loc)
    result.hint = node.result.hint
    graph.replace(node.result, result)


def flatten_patches(graph: Graph) -> None:
    """Convolutions of patches side by side as Linear on rows of pixels: the integer product is the fast one."""
    for node in graph.nodes(ops.Conv):
        made = _as_linear(node)
        if made is not None:
            graph.attach(made, node, node.loc.made_by(QuantizeProducts.name))
            made.hint = node.result.hint
            graph.replace(node.result, made)
    graph.erase_dead()


def _as_linear(node: Node) -> Value | None:
    op, x, data = node.op, node.inputs[0], constant(node.operands[1])
    assert isinstance(op, ops.Conv)
    if data is None or any(op.pads) or op.group != 1 or set(op.dilations) != {1} or data.numpy().ndim != 4:
        return None
    w = data.numpy()
    filters, channels, kh, kw = w.shape
    extents = x.tensor.dims[1:]
    if op.strides != (kh, kw) or not all(isinstance(d, int) for d in extents):
        return None
    _, height, width = (int(d) for d in extents)
    if height % kh or width % kw or kh * kw == 1:
        return None
    rows, columns = height // kh, width // kw
    batch = -1 if isinstance(x.tensor.dims[0], str) else int(x.tensor.dims[0])
    cut = ops.Reshape((batch, channels, rows, kh, columns, kw))(x)
    flat = ops.Reshape((batch, rows * columns, channels * kh * kw))(ops.Transpose((0, 2, 4, 1, 3, 5))(cut))
    bias = node.operands[2] if len(node.operands) > 2 else None
    tokens = ops.Linear()(flat, np.ascontiguousarray(w.reshape(filters, -1).T), bias)
    moved: Value = ops.Reshape((batch, filters, rows, columns))(ops.Transpose((0, 2, 1))(tokens))
    return moved if moved.type.interface() == node.result.type.interface() else None
