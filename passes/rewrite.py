"""Rules and the driver that applies them.

A rule is a pattern and a pure function from what it matched to a new expression; only the driver changes the graph. On
writing rules:

- directional: the result is never worse, and never contains its own left side;
- the formula stands in the pattern, arithmetic in the body, policy in the pass;
- no general commuting or associating: the matcher knows commutative ops;
- what the pattern can't say is said by `reject("reason")`, and the reason reaches the user.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from planish.ir.errors import PlanishError, RewriteError, VerifyError
from planish.ir.graph import Graph, Node, Value
from planish.ir.loc import Loc
from planish.ir.op import Op, as_value
from planish.passes.exactness import EXACT, Exactness
from planish.passes.pattern import Apply, Either, Match, Miss, Pattern, Var, matches, trace

GROWTH_LIMIT = 20  # rewrites per node of the graph, after which rules are taken not to terminate
FEW_USES = 16  # of a value that lost one; with more left, no match holds them all, so none was freed


class Rejection(Exception):
    """A rule body's way to say that its match must be left alone."""


def reject(reason: str) -> NoReturn:
    """Leave the match alone, and tell the user why."""
    raise Rejection(reason)


@dataclass(frozen=True, eq=False)
class Rule:
    """A named rewrite: where `pattern` matches, `build` makes the replacement of the matched root."""

    name: str
    pattern: Pattern
    variables: tuple[Var, ...]
    build: Callable[..., object]
    exactness: Exactness
    shared: bool
    wants_root: bool

    @property
    def doc(self) -> str:
        """First line of the docstring of the rule's body."""
        return (inspect.getdoc(self.build) or "").partition("\n")[0]

    @property
    def roots(self) -> frozenset[type[Op]]:
        """Op classes at which the pattern can match."""
        return frozenset(_roots(self.pattern))

    def expression(self, value: Value, miss: Miss | None = None) -> tuple[Value, Match] | None:
        """The replacement of `value` and the match it stems from, or None. The graph isn't changed."""
        match = Match(miss=miss)
        for found in matches(self.pattern, value, match):
            foreign = None if self.shared else found.foreign_use()
            if foreign is not None:
                if miss is not None:
                    reason = f"it is also read by {foreign[1].op.name} ({foreign[1].loc}), outside the match"
                    miss.note(len(found.nodes), foreign[0], reason)
                continue
            try:
                built = self.build(**self._arguments(found, value))
            except (Rejection, VerifyError) as reason:
                if miss is not None:
                    text = reason.what if isinstance(reason, VerifyError) else str(reason)
                    miss.note(len(found.nodes) + 1, value, text)
                continue
            if built is not None:
                new = as_value(built)  # type: ignore[arg-type]
                if new is not None:
                    return new, Match(dict(found.values), dict(found.attributes), list(found.nodes))
        return None

    def _arguments(self, match: Match, root: Value) -> dict[str, object]:
        arguments = match.arguments(self.variables)
        if self.wants_root:
            arguments["root"] = root
        return arguments


def rule(
    pattern: Callable[..., object], *, exactness: Exactness = EXACT, shared: bool = False
) -> Callable[[Callable[..., object]], Rule]:
    """Make a rule from a pattern function and the decorated body.

    The body's parameters are the pattern's parameters and captured attributes, and `root` (the matched value) if it
    asks for it. It returns a new expression, an existing value or an array; None or `reject(...)` leaves the match.

    exactness: how far the result may be from the original.
    shared: also match if interior values have readers outside; they are then computed for those readers as before.
    """

    def decorate(body: Callable[..., object]) -> Rule:
        traced, variables = trace(pattern)
        wants_root = "root" in inspect.signature(body).parameters
        return Rule(body.__name__, traced, variables, body, exactness, shared, wants_root)

    return decorate


@dataclass
class Changes:
    """What a pass did: rewrites by name, and what it left alone and why."""

    rewrites: Counter[str] = field(default_factory=Counter)
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (source node, reason)

    @property
    def count(self) -> int:
        return sum(self.rewrites.values())

    def __bool__(self) -> bool:
        return self.count > 0

    def update(self, other: Changes) -> None:
        self.rewrites.update(other.rewrites)
        self.skipped.extend(other.skipped)


OnRewrite = Callable[[str, Value, Value], None]


def apply_rules(
    graph: Graph,
    rules: Sequence[Rule],
    *,
    fuel: Fuel | None = None,
    on_rewrite: OnRewrite | None = None,
    nodes: Iterable[Node] | None = None,
) -> Changes:
    """Apply rules until none matches; return what was done.

    nodes: where to start (default: everywhere). fuel: stop after that many rewrites.
    Raises RewriteError if a rule changes a type, or if the rules don't come to an end.
    """
    index: dict[type[Op], list[Rule]] = defaultdict(list)
    for candidate in rules:
        for kind in candidate.roots:
            index[kind].append(candidate)
    start = [node for node in (nodes if nodes is not None else graph) if type(node.op) in index]
    queue, waiting = deque(start), set(start)
    limit = GROWTH_LIMIT * (len(graph) + 10)
    changes = Changes()

    def enqueue(more: Iterable[Node]) -> None:
        for node in more:
            if type(node.op) in index and node not in waiting and node.graph is graph:
                waiting.add(node)
                queue.append(node)

    while queue and (fuel is None or fuel.left > 0):
        node = queue.popleft()
        waiting.discard(node)
        if node.graph is not graph or len(node.results) != 1:
            continue
        root = node.results[0]
        for candidate in index[type(node.op)]:
            found = candidate.expression(root)
            if found is None:
                continue
            new, match = found
            producers = [v.node for matched in match.nodes for v in matched.inputs if v.node is not None]
            readers = root.users
            added = substitute(graph, root, new, candidate.name, match.nodes)
            changes.rewrites[candidate.name] += 1
            if fuel is not None:
                fuel.burn()
            if on_rewrite is not None:
                on_rewrite(candidate.name, root, new)
            if changes.count > limit:
                raise RewriteError(
                    f"rule {candidate.name} doesn't come to an end: {changes.count} rewrites in {len(graph)} nodes",
                    where=str(match.nodes[0].loc),
                    remedy="a rule must not produce its own left side",
                )
            around = [p for p in producers if p.graph is graph]
            freed = [u for p in around for r in p.results if len(r.uses) <= FEW_USES for u in r.users]
            second = [u for n in readers for r in n.results for u in r.users]
            enqueue([*added, *readers, *around, *freed, *second])
            break
    return changes


def substitute(graph: Graph, root: Value, new: Value, by: str, matched: Sequence[Node]) -> list[Node]:
    """Put expression `new` in the place of `root`, check its type, fuse provenance, drop what died.

    Returns the nodes added. Raises RewriteError if the new type contradicts the old one.
    """
    if root.node is None:
        raise RewriteError("a graph input can't be replaced", where=root.hint, who=by)
    if new is root:
        raise RewriteError(f"{by} returned the value that it matched", where=str(root.node.loc), who=by)
    if not root.type.accepts(new.type):
        raise RewriteError(
            f"{by} replaced a value of type {root.type} by one of type {new.type}", where=str(root.node.loc), who=by
        )
    loc = Loc.fuse(node.loc for node in matched).made_by(by)
    fresh = new.node is not None and new.node.graph is None
    added = graph.attach(new, root.node, loc)
    if fresh:
        new.hint = root.hint
    graph.replace(root, new)
    graph.erase_dead(list(matched))
    return added


class Fuel:
    """A budget of rewrites, shared by a whole pipeline: the tool to find the first rewrite that does harm."""

    def __init__(self, amount: int):
        self.left = amount

    def burn(self) -> None:
        self.left -= 1


def explain(candidate: Rule, value: Value) -> str:
    """Why `candidate` doesn't apply at `value`, from the attempt that came furthest; "it matches" if it does."""
    miss = Miss()
    try:
        if candidate.expression(value, miss) is not None:
            return "it matches"
    except PlanishError as error:
        return error.what
    if miss.value is None and not miss.reason:
        return f"{value.op.name if value.op else 'a graph input'} can't be the root of this rule"
    place = "" if miss.value is None else f" at {miss.value.node.loc if miss.value.node else miss.value.hint}"
    return f"after {max(miss.matched, 0)} matching nodes{place}: {miss.reason}"


def array_like(number: float, value: Value) -> np.ndarray:
    """A scalar constant of the dtype of `value`."""
    return np.asarray(number, value.tensor.dtype.storage)


def _roots(pattern: Pattern) -> Iterable[type[Op]]:
    if isinstance(pattern, Apply):
        yield type(pattern.op)
    elif isinstance(pattern, Either):
        for alternative in pattern.alternatives:
            yield from _roots(alternative)
    else:
        raise TypeError("the root of a pattern must be an op")
