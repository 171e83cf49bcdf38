"""The encoder in a graph: its residual stream of tokens, the blocks, and who reads the stream in the end.

Found by where data flows, not by names: the stream starts at the first tensor [batch, tokens, channels] that every path
to the keys of an attention passes; a block's cut is the next sum that every path from its attention passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import networkx as nx

from planish.ir import ops
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import Const, constant
from planish.passes.tokens.masks import key_mask, mask_of
from planish.passes.tokens.places import Needs, Place, Reads, place_after, token_axis_of
from planish.passes.tokens.refusal import CONDITIONS, Refusal

_FEW = 16  # leading tokens that heads are taken to read one by one: class tokens, registers
_NORMS = (ops.LayerNorm, ops.RMSNorm, ops.BatchNorm)


@dataclass(frozen=True)
class Block:
    """One encoder block. start: the stream that enters it; cut: after its attention; end: after its MLP.

    Each is [batch, tokens, channels]. With norms behind the sums (post-norm), they are results of norms.
    """

    attention: Node
    start: Value
    cut: Value
    end: Value


@dataclass(frozen=True)
class Encoder:
    """A stream of tokens. places: where tokens are in every value that has them.

    protected: so many tokens at the beginning are read one by one, or aren't patches.
    reads: nodes that read protected tokens. needs: nodes that need all tokens, with the reason. inner: nodes from which
    an attention of the stream can still be reached.
    """

    start: Value
    tokens: int
    protected: int
    blocks: tuple[Block, ...]
    places: Mapping[Value, Place]
    reads: tuple[Node, ...]
    needs: Mapping[Node, Needs]
    inner: frozenset[Node]

    @property
    def has_class_token(self) -> bool:
        """True if a head reads the first token, or something stands before the patches."""
        return self.protected > 0

    @property
    def is_dense(self) -> bool:
        """True if some node needs all tokens."""
        return bool(self.needs)


def find_encoder(graph: Graph) -> Encoder:
    """The longest encoder of the graph. Raises Refusal if there is none, saying why."""
    attentions = graph.nodes(ops.Attention)
    if not attentions:
        raise Refusal("T11", "there is no attention whose keys or scores tell tokens apart", _mixer(graph))
    found: list[Encoder] = []
    why: Refusal | None = None
    above = _dominators(graph)
    for attention in attentions:
        if any(attention is block.attention for encoder in found for block in encoder.blocks):
            continue
        try:
            found.append(_encoder_of(graph, attention, above))
        except Refusal as refusal:
            why = why or refusal
    if not found:
        assert why is not None
        raise why
    return max(found, key=lambda encoder: len(encoder.blocks))


def _encoder_of(graph: Graph, attention: Node, above: Mapping[Node, Node | None]) -> Encoder:
    keys = attention.inputs[1]
    tokens = keys.tensor.dims[2]
    if not isinstance(tokens, int):
        raise Refusal("T1", f"the number of tokens, {tokens}, isn't known; fix it with --shape", attention)
    _check_mask(attention, ("T14",))
    start = _start(keys, tokens, above, attention)
    prefix = _prefix(start, tokens)
    reading = _Tracking(graph, start, tokens, prefix)
    protected = prefix or reading.singles
    if protected != prefix:
        reading = _Tracking(graph, start, tokens, protected)
    blocks = tuple(_blocks(reading, graph.nodes(ops.Attention)))
    if not blocks:
        for node, need in reading.needs.items():
            if need.condition == "T4":
                raise Refusal(need.condition, need.reason, node)
        raise Refusal("T2", "no residual sum of tokens follows it", attention)
    inner = _inner(graph, blocks)
    _check_region(blocks, reading, inner)
    for block in blocks:
        _check_mask(block.attention)
    return Encoder(start, tokens, protected, blocks, reading.places, tuple(reading.reads), reading.needs, inner)


def _mixer(graph: Graph) -> Node | None:
    """A linear layer that mixes tokens, to name one."""
    return next((n for n in graph.nodes(ops.Linear) if isinstance(n.inputs[0].op, ops.Transpose)), None)


def _dominators(graph: Graph) -> dict[Node, Node]:
    """For each node that depends on an input, the nearest one that every path from the inputs passes, if any.

    Constants count for nothing: a linear layer is passed by whatever passes its operand.
    """
    inputs = "inputs"
    flow = nx.DiGraph()
    flow.add_node(inputs)
    for node in graph:
        sources = [inputs if v.node is None else v.node for v in node.inputs]
        flow.add_edges_from((source, node) for source in sources if source in flow)
    found = nx.immediate_dominators(flow, inputs)
    return {node: above for node, above in found.items() if node != inputs and above != inputs}


def _start(keys: Value, tokens: int, above: Mapping[Node, Node | None], attention: Node) -> Value:
    """The first value [batch, tokens, channels] that every path to the keys passes."""
    best: Value | None = None
    node = keys.node
    while node is not None:
        if len(node.results) == 1 and token_axis_of(node.result, tokens) is not None:
            best = node.result
        node = above.get(node)
    sources = _inputs_of(keys)
    if len(sources) == 1 and token_axis_of(sources[0], tokens) is not None:
        best = sources[0]
    if best is None:
        raise Refusal("T1", f"its {tokens} tokens don't come from one tensor [batch, {tokens}, channels]", attention)
    return best


def _inputs_of(value: Value) -> list[Value]:
    """The graph inputs that a value depends on."""
    seen, work, found = {value}, [value], []
    while work:
        here = work.pop()
        if here.node is None:
            found.append(here)
            continue
        fresh = [v for v in here.node.inputs if v not in seen]
        seen.update(fresh)
        work += fresh
    return found


def _prefix(start: Value, tokens: int) -> int:
    """How many tokens were put before the patches. Raises Refusal (T8) if some were put behind them."""
    node = start.node
    while node is not None and node.op.pointwise and len(node.inputs) == 2:  # sums with positions
        node = next((v.node for v in node.inputs if v.node is not None and not isinstance(v.op, Const)), None)
    if node is None or not isinstance(node.op, ops.Concat) or node.op.axis != 1:
        return 0
    extents = [v.tensor.dims[1] for v in node.inputs]
    most = max(range(len(extents)), key=lambda i: extents[i] if isinstance(extents[i], int) else tokens)
    if most != len(extents) - 1:
        raise Refusal("T8", f"tokens are put behind the patches: {extents}", node)
    before = [extent for extent in extents[:-1] if isinstance(extent, int)]
    inner = _prefix(node.inputs[-1], tokens)
    return sum(before) + inner


class _Tracking:
    """Follows tokens from `start` through the graph."""

    def __init__(self, graph: Graph, start: Value, tokens: int, protected: int):
        self.start, self.tokens = start, tokens
        self.places: dict[Value, Place] = {start: Place(1)}
        self.reads: list[Node] = []
        self.needs: dict[Node, Needs] = {}
        self.flow = nx.DiGraph()
        self.flow.add_node(start)
        self.singles = 0
        for node in graph:
            found = {i: self.places[v] for i, v in enumerate(node.operands) if v is not None and v in self.places}
            if not found or start in node.results or isinstance(node.op, (ops.Shape, ops.Size)):
                continue
            try:
                if isinstance(node.op, ops.Return):
                    raise Needs("T10", "it is an output of the model")
                place = place_after(node, found, tokens, protected)
            except Reads:
                self.reads.append(node)
            except Needs as need:
                self.needs[node] = need
                self.singles = max(self.singles, _single(node, found[min(found)], tokens))
            else:
                for result in node.results:
                    self.places[result] = place
                    self.flow.add_edges_from((v, result) for v in node.inputs if v in self.places and v is not result)


def _single(node: Node, place: Place, tokens: int) -> int:
    """1 + the highest index of a node that reads some of the first tokens one by one; 0 for any other node."""
    op = node.op
    last = -1
    if isinstance(op, ops.Gather) and op.axis == place.axis and (data := constant(node.operands[1])) is not None:
        last = max((int(i) % tokens for i in data.numpy().reshape(-1)), default=-1)
    elif isinstance(op, ops.Slice) and place.axis in op.axes:
        i = op.axes.index(place.axis)
        last = op.ends[i] - 1 if op.starts[i] == 0 and op.steps[i] == 1 and op.ends[i] > 0 else -1
    return last + 1 if 0 <= last < min(_FEW, tokens - 1) else 0


def _blocks(found: _Tracking, attentions: list[Node]) -> Iterator[Block]:
    """Of each attention the next two sums of the stream: behind the attention, and behind the MLP."""
    below = _post_dominators(found)
    for attention in attentions:
        if attention.result not in found.places or not all(v in found.places for v in attention.inputs[:3]):
            continue
        first = _next_sum(attention.result, below, found)
        if first is None:
            return
        cut = _settled(first, below)
        second = _next_sum(cut, below, found)
        if second is None:
            return
        end = second if cut is first else _settled(second, below)
        start = _other_operand(first, attention, found)
        if start is None:
            return
        if any(found.places[v] != Place(1) or len(v.tensor.dims) != 3 for v in (start, cut, end)):
            raise Refusal("T1", "the residual stream isn't [batch, tokens, channels]", attention)
        yield Block(attention, start, cut, end)


def _post_dominators(found: _Tracking) -> dict[Value, Value]:
    """For each value with tokens the nearest one that every path from it to a reader passes, where there is one."""
    readers = "readers"
    flow = found.flow.copy()
    for node in (*found.reads, *found.needs):
        flow.add_edges_from((v, readers) for v in node.inputs if v in found.places)
    if readers not in flow:
        return {}
    nearest = nx.immediate_dominators(flow.reverse(copy=False), readers)
    return {value: below for value, below in nearest.items() if value != readers and below != readers}


def _next_sum(value: Value, below: Mapping[Value, Value], found: _Tracking) -> Value | None:
    """The next value that every path passes and that is the sum of two tensors with tokens."""
    here = below.get(value)
    while here is not None:
        node = here.node
        if node is not None and isinstance(node.op, ops.Add) and all(v in found.places for v in node.inputs):
            return here
        here = below.get(here)
    return None


def _settled(total: Value, below: Mapping[Value, Value]) -> Value:
    """The norm of a sum, if nothing else reads the sum: the stream of post-norm encoders."""
    following = below.get(total)
    behind = following is not None and isinstance(following.op, _NORMS) and len(total.uses) == 1
    return following if behind and following is not None else total


def _other_operand(total: Value, attention: Node, found: _Tracking) -> Value | None:
    """The operand of a sum that doesn't come from the attention."""
    assert total.node is not None
    reached = nx.descendants(found.flow, attention.result) | {attention.result}
    apart = [v for v in total.node.inputs if v not in reached]
    return apart[0] if len(apart) == 1 else None


def _check_mask(attention: Node, conditions: tuple[str, ...] = tuple(CONDITIONS)) -> None:
    """Raise Refusal for a mask that breaks one of the conditions."""
    mask = mask_of(attention)
    try:
        if mask is not None:
            key_mask(mask, attention)
    except Refusal as refusal:
        if refusal.condition in conditions:
            raise


def _inner(graph: Graph, blocks: tuple[Block, ...]) -> frozenset[Node]:
    """The nodes from which an attention can be reached."""
    attentions = {block.attention for block in blocks}
    ahead: set[Node] = set()
    for node in reversed(list(graph)):
        if node in attentions or any(user in ahead for result in node.results for user in result.users):
            ahead.add(node)
    return frozenset(ahead)


def _check_region(blocks: tuple[Block, ...], found: _Tracking, inner: frozenset[Node]) -> None:
    """Raise Refusal for a node between blocks that needs all tokens in their places."""
    attentions = {block.attention for block in blocks}
    for node, need in found.needs.items():
        if node in inner and node not in attentions:
            raise Refusal(need.condition, f"{need.reason} between blocks", node)
