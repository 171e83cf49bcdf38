"""Named predicates on graphs. Each lists what stands against it; an empty list means that it holds."""

from __future__ import annotations

from planish.ir.graph import Graph, Value
from planish.ir.op import Return
from planish.ir.ops import Dequantize, DynamicReshape, Opaque, Quantize, Shape, Size
from planish.ir.types import TensorType


def dynamic_shapes(graph: Graph) -> list[str]:
    """Values whose shape isn't made of integers only."""
    values = [*graph.inputs, *(result for node in graph for result in node.results)]
    return [f"{v.hint}: {v.type}" for v in values if not (isinstance(v.type, TensorType) and v.type.is_static)]


def opaque_nodes(graph: Graph) -> list[str]:
    """Nodes that are carried without being understood."""
    return [f"{n.op.op_type} at {n.loc}" for n in graph if isinstance(n.op, Opaque)]


def computed_shapes(graph: Graph) -> list[str]:
    """Reshapes whose target is computed while the model runs."""
    return [f"{n.op.name} at {n.loc}" for n in graph if isinstance(n.op, DynamicReshape)]


def integer_only(graph: Graph) -> list[str]:
    """Floating-point values, but for the border: inputs that are only quantized, or asked for their shape, and outputs
    that are codes made real and nothing else.
    """
    values = [*graph.inputs, *(result for node in graph for result in node.results)]
    return [f"{v.hint}: {v.type}" for v in values if _is_float(v) and not _is_border(v)]


def _is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype.kind in ("float", "complex")


def _is_border(value: Value) -> bool:
    readers = [user.op for user in value.users]
    if value.node is None:
        return all(isinstance(op, Quantize | Shape | Size) for op in readers)
    return isinstance(value.op, Dequantize) and all(isinstance(op, Return) for op in readers)
