"""Checks for rewrite rules and passes, on graphs written as text. Import as `from rewriting import check_rewrite`."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from planish.ir import dims, dtypes
from planish.ir.data import Data
from planish.ir.graph import Graph, Node, Value
from planish.ir.interpret import interpret
from planish.ir.text import parse_graph, print_graph
from planish.ir.types import TensorType, substitute
from planish.ir.verify import verify
from planish.passes.base import Context, OpaqueEvaluator, Pass, pipeline_exactness
from planish.passes.exactness import EXACT, Exactness, weakest
from planish.passes.observers import difference
from planish.passes.rewrite import Changes, Rule, apply_rules, explain

Subject = Rule | Sequence[Rule] | Pass
Constants = Mapping[str, np.ndarray | Data]


def check_rewrite(
    subject: Subject,
    before: str,
    after: str,
    *,
    constants: Constants | None = None,
    sizes: Mapping[str, int] | None = None,
    feeds: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    context: Context | None = None,
    opaque: OpaqueEvaluator | None = None,
) -> Changes:
    """Assert that `subject` (rule, rules or pass) turns the graph `before` into `after`, and means no harm.

    Both graphs verify and, on seeded inputs with `sizes` (default: 2, 3, ..) for the symbols, compute the same within
    the declared exactness; texts agree up to names and order; new nodes have a provenance; a second run does nothing.
    constants: payloads that the texts refer to. feeds: inputs to use in place of random ones.
    """
    graph = read(before, constants)
    inputs = {**random_feeds(graph, sizes, seed, signed_zeros=exactness(subject) is EXACT), **(feeds or {})}
    expected, present = interpret(graph, inputs, opaque=opaque), set(graph)
    changes = run(subject, graph, context)
    verify(graph)
    assert changes, "nothing was rewritten" + _reasons(subject, graph, changes)
    assert_same_text(graph, read(after, constants))
    _assert_same_results(expected, interpret(graph, inputs, opaque=opaque), exactness(subject))
    orphans = [node for node in graph if node not in present and not node.loc.via]
    assert not orphans, f"new nodes don't say which rule made them: {orphans}"
    _assert_settled(subject, graph, context)
    return changes


def check_unchanged(
    subject: Subject,
    before: str,
    because: str = "",
    *,
    constants: Constants | None = None,
    context: Context | None = None,
) -> Changes:
    """Assert that `subject` leaves the graph alone, and that a reason it gives for some node contains `because`."""
    graph = read(before, constants)
    text = print_graph(graph)
    changes = run(subject, graph, context)
    assert not changes, f"rewritten by {dict(changes.rewrites)}:\n{print_graph(graph)}"
    assert print_graph(graph) == text, f"changed without saying so:\n{print_graph(graph)}"
    reasons = _reasons(subject, graph, changes)
    assert because in reasons, f"{because!r} isn't among the reasons:{reasons}"
    return changes


def read(text: str, constants: Constants | None = None) -> Graph:
    """The verified graph that `text` describes; `constants` may be arrays."""
    payloads = {name: c if isinstance(c, Data) else Data(c) for name, c in (constants or {}).items()}
    graph = parse_graph(textwrap.dedent(text), constants=payloads)
    verify(graph)
    return graph


def run(subject: Subject, graph: Graph, context: Context | None = None) -> Changes:
    """Apply a rule, rules or a pass."""
    if isinstance(subject, Pass):
        return subject.run(graph, context or Context())
    return apply_rules(graph, rules_of(subject))


def rules_of(subject: Subject) -> Sequence[Rule]:
    """The rules that `subject` consists of."""
    if isinstance(subject, Rule):
        return (subject,)
    return subject.rules if isinstance(subject, Pass) else subject


def exactness(subject: Subject) -> Exactness:
    """How close to the original `subject` promises to stay."""
    if isinstance(subject, Pass):
        return pipeline_exactness(subject)
    return weakest(*(rule.exactness for rule in rules_of(subject)))


def random_feeds(
    graph: Graph, sizes: Mapping[str, int] | None = None, seed: int = 0, signed_zeros: bool = False
) -> dict[str, np.ndarray]:
    """Inputs of the declared types: floats normal, integers 0 to 2; `signed_zeros` mixes in 0.0 and -0.0."""
    names = {s for value in graph.inputs for dim in value.tensor.dims for s in dims.symbols(dim)}
    binding = {name: size for size, name in enumerate(sorted(names), start=2)} | dict(sizes or {})
    rng = np.random.default_rng(seed)
    return {value.hint: _random(substitute(value.type, binding), rng, signed_zeros) for value in graph.inputs}


def _random(type_: object, rng: np.random.Generator, signed_zeros: bool) -> np.ndarray:
    assert isinstance(type_, TensorType), f"give feeds for an input of type {type_}"
    assert type_.is_static, f"give sizes for {type_}"
    shape, storage = type_.dims, type_.dtype.storage
    if type_.dtype == dtypes.string:
        return rng.integers(0, 3, shape).astype(str).astype(object)
    if type_.dtype == dtypes.boolean or type_.dtype.is_integer:
        return rng.integers(0, 2 if type_.dtype == dtypes.boolean else 3, shape).astype(storage)
    array = np.asarray(rng.standard_normal(shape))
    if signed_zeros and array.size > 4:
        array.reshape(-1)[[1, 3]] = 0.0, -0.0
    return array.astype(storage)


def _assert_same_results(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], bar: Exactness) -> None:
    assert list(expected) == list(found)
    for name, old in expected.items():
        fault = difference(old, found[name], bar)
        assert not fault, f"output {name!r}: {fault}"
        if bar is EXACT and old.dtype.kind == "f":
            numbers = ~np.isnan(old)
            same = np.array_equal(np.signbit(old[numbers]), np.signbit(found[name][numbers]))
            assert same, f"output {name!r}: zeros of another sign"


def assert_same_text(found: Graph, wanted: Graph) -> None:
    new, old = _canonical_text(found), _canonical_text(wanted)
    shown = "\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), "wanted", "found", lineterm="", n=99))
    assert new == old, f"the result is not what was wanted:\n{shown}\n\nwith names:\n{print_graph(found)}"


def _canonical_text(graph: Graph) -> str:
    """Text with nodes in depth-first order from the outputs, then dead ones, and values named by number."""
    order: dict[Node, None] = {}
    for start in [graph.tail, *graph]:
        stack = [(start, False)] if start is not None and start not in order else []
        while stack:
            node, ready = stack.pop()
            if ready:
                order[node] = None
            elif node not in order:
                stack.append((node, True))
                stack.extend((v.node, False) for v in reversed(node.inputs) if v.node is not None)
    copy = Graph(graph.name)
    twins: dict[Value, Value] = {value: copy.add_input(value.hint, value.type) for value in graph.inputs}
    end = graph.tail
    for node in [*(n for n in order if n is not end), *([end] if end is not None else [])]:
        twin = Node(node.op, (None if v is None else twins[v] for v in node.operands), node.loc)
        copy.insert(twin)
        twins.update(zip(node.results, twin.results, strict=True))
    return print_graph(copy)


def _assert_settled(subject: Subject, graph: Graph, context: Context | None) -> None:
    text = print_graph(graph)
    again = run(subject, graph, context)
    assert not again, f"a second run rewrote more: {dict(again.rewrites)}"
    assert print_graph(graph) == text, "a second run changed the graph without saying so"


def _reasons(subject: Subject, graph: Graph, changes: Changes) -> str:
    """Why each rule doesn't apply at each node that could be its root, and what the pass skipped."""
    found = [f"{node}: {reason}" for node, reason in changes.skipped]
    for candidate in rules_of(subject):
        for node in graph:
            if type(node.op) in candidate.roots and len(node.results) == 1:
                found.append(f"{candidate.name} at {node!r}: {explain(candidate, node.results[0])}")
    return "".join(f"\n  {reason}" for reason in dict.fromkeys(found))
