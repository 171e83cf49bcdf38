"""Named predicates on graphs. Each lists what stands against it; an empty list means that it holds."""

from __future__ import annotations

from planish.ir.graph import Graph
from planish.ir.ops import DynamicReshape, Opaque
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
