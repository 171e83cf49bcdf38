"""The graph as networkx sees it: dominance, convex regions, liveness."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import networkx as nx

from planish.ir import dims
from planish.ir.dims import Dim
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import Const
from planish.ir.types import TensorType

SOURCE = "source"
"""The vertex that stands for all graph inputs and constants, from which everything flows."""


def dataflow(graph: Graph, *, constants: bool = False) -> nx.DiGraph:
    """Nodes as vertices, an edge from producer to reader. Inputs (and constants, unless wanted) become SOURCE."""
    flow = nx.DiGraph()
    flow.add_node(SOURCE)
    for node in graph:
        if isinstance(node.op, Const) and not constants:
            continue
        flow.add_node(node)
        producers = [
            SOURCE if v.node is None or (isinstance(v.op, Const) and not constants) else v.node for v in node.inputs
        ]
        flow.add_edges_from((producer, node) for producer in producers or [SOURCE])
    return flow


def dominators(graph: Graph) -> dict[Node, Node | None]:
    """For each node the nearest one that every path from the inputs passes; None if there is none but the inputs."""
    found = nx.immediate_dominators(dataflow(graph), SOURCE)
    return {node: None if above == SOURCE else above for node, above in found.items() if node != SOURCE}


def post_dominators(graph: Graph) -> dict[Node, Node | None]:
    """For each node the nearest one that every path to the outputs passes; None for the Return."""
    flow = dataflow(graph).reverse(copy=False)
    if graph.tail is None:
        return {}
    found = nx.immediate_dominators(flow, graph.tail)
    return {node: (None if node is graph.tail else below) for node, below in found.items() if node != SOURCE}


def is_convex(graph: Graph, region: Collection[Node]) -> bool:
    """True if no path leaves the region and comes back: it can be replaced by one node."""
    inside, position = set(region), {node: i for i, node in enumerate(graph)}
    if not inside:
        return True
    last = max(position[node] for node in inside)
    work = [user for node in inside for result in node.results for user in result.users if user not in inside]
    seen: set[Node] = set()
    while work:
        node = work.pop()
        if node in inside:
            return False
        if node in seen or position[node] > last:
            continue
        seen.add(node)
        work.extend(user for result in node.results for user in result.users)
    return True


def region_inputs(region: Collection[Node]) -> list[Value]:
    """Values that the region reads from outside, in order of first use."""
    inside = set(region)
    return list(dict.fromkeys(v for node in region for v in node.inputs if v.node not in inside))


def region_outputs(region: Collection[Node]) -> list[Value]:
    """Values of the region that are read outside."""
    inside = set(region)
    return [r for node in region for r in node.results if any(user not in inside for user in r.users)]


def between(sources: Iterable[Value], sinks: Iterable[Value]) -> list[Node]:
    """Nodes on the paths from `sources` to `sinks`, in graph order is not promised."""
    stops = {v.node for v in sources}
    work = [v.node for v in sinks if v.node is not None]
    seen: dict[Node, None] = {}
    while work:
        node = work.pop()
        if node in stops or node in seen or isinstance(node.op, Const):
            continue
        seen[node] = None
        work.extend(v.node for v in node.inputs if v.node is not None)
    return list(seen)


@dataclass(frozen=True)
class Liveness:
    """Memory that activations need when nodes run in order: `bytes_at[i]` while node i runs; `peak` is the largest."""

    bytes_at: tuple[int, ...]

    @property
    def peak(self) -> int:
        return max(self.bytes_at, default=0)


def liveness(graph: Graph, binding: dict[str, Dim] | None = None) -> Liveness:
    """Bytes of live activations at each node (constants excluded). Symbols are bound by `binding`, else count as 1."""
    order = list(graph)
    position = {node: i for i, node in enumerate(order)}
    change = [0] * (len(order) + 1)
    values = [*graph.inputs, *(r for node in order if not isinstance(node.op, Const) for r in node.results)]
    for value in values:
        start = 0 if value.node is None else position[value.node]
        end = max((position[user] for user in value.users), default=start)
        size = _bytes(value, binding or {})
        change[start] += size
        change[end + 1] -= size
    live, totals = 0, []
    for delta in change[:-1]:
        live += delta
        totals.append(live)
    return Liveness(tuple(totals))


def _bytes(value: Value, binding: dict[str, Dim]) -> int:
    if not isinstance(value.type, TensorType) or value.type.shape is None:
        return 0
    count = 1
    for dim in value.type.shape:
        ones: dict[str, Dim] = dict.fromkeys(dims.symbols(dim), 1)
        bound = dims.substitute(dim, {**ones, **binding})
        count *= bound if isinstance(bound, int) else 1
    return (count * value.type.dtype.bits + 7) // 8
