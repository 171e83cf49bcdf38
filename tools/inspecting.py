"""Looking into a model: what it consists of, its text IR, and why a rule did or didn't apply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from planish.backends.ort.evaluate import evaluate_opaque
from planish.frontend import load
from planish.ir.errors import UsageError
from planish.ir.graph import Graph, Node
from planish.ir.op import Const
from planish.ir.ops import Opaque
from planish.ir.types import TensorType
from planish.passes.base import Context, Pass, Pipeline
from planish.passes.pipelines import PASSES
from planish.passes.rewrite import Rule, explain

Shapes = Mapping[str, tuple[int | str, ...]]


@dataclass(frozen=True)
class Summary:
    """What a model consists of. `opaque` counts the nodes carried without being understood, by reason."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ops: Mapping[str, int]
    opaque: Mapping[str, int]
    parameters: int
    weight_bytes: int
    opsets: Mapping[str, int]


def summarize(graph: Graph) -> Summary:
    """Counts and interface of a graph."""
    names = getattr(graph.tail.op, "names", ()) if graph.tail is not None else ()
    weights = [n.op.data for n in graph if isinstance(n.op, Const)]
    return Summary(
        inputs=tuple(f"{v.hint}: {v.type}" for v in graph.inputs),
        outputs=tuple(f"{name}: {v.type}" for name, v in zip(names, graph.outputs, strict=True)),
        ops=dict(Counter(n.op.name for n in graph if not isinstance(n.op, Const | Opaque) and not n.op.is_return)),
        opaque=dict(Counter(n.op.op_type for n in graph if isinstance(n.op, Opaque))),
        parameters=sum(data.size for data in weights if data.type.dtype.is_float),
        weight_bytes=sum(data.nbytes for data in weights),
        opsets=dict(graph.opsets),
    )


def optimized_until(source: Path, pipeline: Pipeline, last: str | None, shapes: Shapes | None = None) -> Graph:
    """The graph of a model after the passes of `pipeline`, up to but without the first pass called `last`."""
    graph = load(source, shapes=shapes)
    context = Context(evaluate_opaque=evaluate_opaque)
    steps: list[Pass] = []
    for step in pipeline.steps:
        names = {leaf.name for leaf in _leaves(step)}
        if last is not None and last in names:
            if isinstance(step, Pipeline):
                steps.extend(_before(step, last))
            break
        steps.append(step)
    Pipeline(*steps).run(graph, context)
    return graph


def why(
    rule_name: str, place: str, source: Path, pipeline: Pipeline, shapes: Shapes | None = None
) -> list[tuple[Node, str]]:
    """Nodes at `place` (part of a source node's name) where the rule could start, each with what became of it.

    Raises UsageError for a rule or place that doesn't exist.
    """
    rule, owner = find_rule(rule_name)
    graph = optimized_until(source, pipeline, owner.name, shapes)
    nodes = [node for node in graph if not isinstance(node.op, Const)]
    near = [node for node in nodes if any(place in s for s in (*node.loc.sources, *(r.hint for r in node.results)))]
    if not near:
        known = list(dict.fromkeys(s for node in nodes for s in node.loc.sources))[:5]
        raise UsageError(
            f"no node's name contains {place!r} when {owner.name} starts", remedy=f"names look like {', '.join(known)}"
        )
    starts = [node for node in near if type(node.op) in rule.roots and len(node.results) == 1]
    if not starts:
        kinds = ", ".join(sorted(kind.__name__ for kind in rule.roots))
        return [(node, f"{rule_name} starts at {kinds}; this is {node.op.name}") for node in near[:5]]
    return [(node, explain(rule, node.results[0])) for node in starts]


def find_rule(name: str) -> tuple[Rule, Pass]:
    """A rule by name, and the pass that owns it. Raises UsageError listing the rules otherwise."""
    owners = {r.name: (r, kind()) for kind in PASSES for r in kind().rules}
    if name not in owners:
        raise UsageError(f"there is no rule {name!r}", remedy="known rules: " + ", ".join(sorted(owners)))
    return owners[name]


def dynamic_values(graph: Graph) -> list[str]:
    """Inputs with symbolic dimensions, which --shape can bind."""
    return [v.hint for v in graph.inputs if not (isinstance(v.type, TensorType) and v.type.is_static)]


def _leaves(step: Pass) -> Iterator[Pass]:
    yield from Pipeline(step).leaves()


def _before(step: Pipeline, last: str) -> list[Pass]:
    kept: list[Pass] = []
    for inner in step.steps:
        if last in {leaf.name for leaf in _leaves(inner)}:
            if isinstance(inner, Pipeline):
                kept.extend(_before(inner, last))
            break
        kept.append(inner)
    return kept
