"""Where an artifact first goes wrong: its inner values beside the original ones, traced back from the outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from planish.backends.ort.session import run_with_taps
from planish.ir.errors import FrontendError, LoweringError
from planish.tools.comparison import ROUNDING, Difference, Tolerance

SOURCES = "planish.sources"
_VALUES_AT_ONCE = 128


@dataclass(frozen=True)
class Divergence:
    """The first value of the artifact that differs from its counterpart, with no differing value before it on the way.

    node: name and op of the artifact's node; sources: names of the original nodes it stands for.
    """

    value: str
    original_value: str
    node: str
    sources: tuple[str, ...]
    max_abs: float
    max_rel: float
    over_tolerance: int
    elements: int
    problem: str = ""

    def __str__(self) -> str:
        wrong = self.problem or f"max abs {self.max_abs:.3g}, {self.over_tolerance} of {self.elements} elements differ"
        source = ", ".join(self.sources) or "unknown"
        return f"first diverging value: '{self.value}' of {self.node} ({wrong}); source: {source}"


def correspondence(original: Path, artifact: Path) -> dict[str, str]:
    """Artifact value -> original value, from the sources that planish writes on every node.

    A node of one output stands for the last (in the original's order) of its source nodes that has one output. Graph
    outputs keep their names.
    """
    before, after = _graph(original), _graph(artifact)
    order = {node.name: (index, node) for index, node in enumerate(before.node) if node.name}
    values = {name for node in before.node for name in node.output if name}
    pairs: dict[str, str] = {}
    for node in after.node:
        produced = [name for name in node.output if name]
        known = [order[source] for source in _sources(node) if source in order]
        if known and len(produced) == 1:
            last = max(known, key=lambda item: item[0])[1]
            if len([name for name in last.output if name]) == 1:
                pairs[produced[0]] = last.output[0]
        elif len(produced) == 1 and (named := [source for source in _sources(node) if source in values]):
            pairs[produced[0]] = named[-1]
    pairs |= {output.name: output.name for output in after.output if output.name in values}
    return pairs


def first_divergence(
    original: Path,
    artifact: Path,
    feeds: Mapping[str, np.ndarray],
    pairs: Mapping[str, str] | None = None,
    *,
    tolerance: Tolerance = ROUNDING,
    threads: int = 0,
) -> Divergence | None:
    """The first value of the artifact, in topological order, that makes an output differ on this one feed.

    pairs: artifact value -> original value, by default `correspondence`. A pair whose dtypes or shapes differ says
      nothing. Values that differ but are followed by equal ones (a scale that moved) aren't blamed.
    Returns None where no output differs.
    Raises FrontendError or LoweringError where a model can't be read or run.
    """
    graph = _graph(artifact)
    outputs = [output.name for output in graph.output]
    producer = {name: node for node in graph.node for name in node.output if name}
    inner = {name for node in _graph(original).node for name in node.output if name}
    chosen = correspondence(original, artifact) if pairs is None else pairs
    order = [name for name in producer if chosen.get(name) in inner]
    differences: dict[str, Difference] = {}
    for names in _chunks(order):
        needed = list(dict.fromkeys(chosen[name] for name in names))
        expected = run_with_taps(
            original, feeds, needed, threads=threads, what="the original model", error=FrontendError
        )
        found = run_with_taps(artifact, feeds, names, threads=threads, what="the artifact", error=LoweringError)
        for name in names:
            if name in outputs or _comparable(expected[chosen[name]], found[name]):
                differences[name] = Difference(tolerance)
                differences[name].add(expected[chosen[name]], found[name])
    blamed = _blamed(outputs, producer, differences)
    first = next((name for name in order if name in blamed), None)
    return None if first is None else _report(first, chosen[first], producer[first], differences[first])


def _blamed(
    outputs: Sequence[str], producer: Mapping[str, onnx.NodeProto], differences: Mapping[str, Difference]
) -> set[str]:
    """Differing values from which a differing output is reached without passing through an equal value."""
    stack = [name for name in outputs if name in differences and not differences[name].passed]
    seen: set[str] = set()
    while stack:
        name = stack.pop()
        if name in seen or name not in producer:
            continue
        seen.add(name)
        for operand in _operands(producer[name]):
            if operand not in differences or not differences[operand].passed:
                stack.append(operand)
    return {name for name in seen if name in differences and not differences[name].passed}


def _operands(node: onnx.NodeProto) -> Iterator[str]:
    """Values a node reads, also from inside its subgraphs."""
    yield from node.input
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
            for inner in graph.node:
                yield from _operands(inner)


def _report(name: str, original: str, node: onnx.NodeProto, found: Difference) -> Divergence:
    return Divergence(
        value=name,
        original_value=original,
        node=f"{node.op_type} '{node.name}'" if node.name else node.op_type,
        sources=tuple(_sources(node)),
        max_abs=found.max_abs,
        max_rel=found.max_rel,
        over_tolerance=found.over_tolerance + found.nan_mismatches,
        elements=found.elements,
        problem=found.problem,
    )


def _comparable(original: Any, artifact: Any) -> bool:
    if isinstance(original, np.ndarray) and isinstance(artifact, np.ndarray):
        return bool(original.dtype == artifact.dtype and original.shape == artifact.shape)
    return isinstance(artifact, type(original))


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """A few values at a time, so that memory doesn't grow with the depth of the model."""
    for start in range(0, len(names), _VALUES_AT_ONCE):
        yield names[start : start + _VALUES_AT_ONCE]


def _sources(node: onnx.NodeProto) -> list[str]:
    text = next((entry.value for entry in node.metadata_props if entry.key == SOURCES), "")
    return [source.strip() for source in text.split(",") if source.strip()]


def _graph(path: Path) -> onnx.GraphProto:
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError) as fault:
        raise FrontendError(f"can't read the model: {fault}", where=str(path), remedy="give an ONNX file") from fault
