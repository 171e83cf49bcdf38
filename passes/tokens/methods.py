"""What happens to tokens at a cut: merged, fused, eliminated, or sent around the blocks that follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from planish.ir import dtypes, ops
from planish.ir.graph import Graph, Value
from planish.ir.ops.tokens import most_merged
from planish.ir.types import TensorType
from planish.passes.tokens.encoder import Block, Encoder
from planish.passes.tokens.following import Cut, Following
from planish.passes.tokens.refusal import Refusal
from planish.passes.tokens.signals import class_score, energy_score, received_score
from planish.passes.tokens.steps import Dropping, Fusing, Merging, Reordering, Routing, Step

PRIOR = "token_prior"
"""The input that `prior` adds: float[batch, tokens], higher for tokens that matter more; of a frame before, say."""

METHODS = ("merge", "fuse", "eliminate", "route")


@dataclass(frozen=True)
class Choice:
    """One way to compress an encoder.

    removed: how many tokens go in each block, behind its attention. signal: see `signals`; "auto" takes the attention
    of the class token where there is one. proportional: in attention, each merged token counts for all its members.
    """

    method: str
    removed: tuple[int, ...]
    signal: str = "auto"
    proportional: bool = True

    def counts(self, tokens: int) -> list[int]:
        """Tokens in the MLP of each block."""
        return [after for _, after in self.tokens_by_block(tokens)]

    def tokens_by_block(self, tokens: int) -> list[tuple[int, int]]:
        """Tokens in the attention and in the MLP of each block."""
        left, found = tokens, []
        for removed in self.removed:
            if self.method == "route" and removed:
                left = tokens  # attention sees all of them again before others are chosen
            found.append((left, left - removed))
            left -= removed
        return found


def apply_choice(graph: Graph, encoder: Encoder, choice: Choice, restore: bool = False) -> None:
    """Rewrite `graph`, the encoder's own, in place. restore: give all tokens back at the end of the last block.

    Raises Refusal, and RestoreInStream where `restore` is needed.
    """
    cuts: dict[Value, Cut] = {}
    restores = set()
    for number, (block, removed) in enumerate(zip(encoder.blocks, choice.removed, strict=True)):
        if not removed:
            continue
        if choice.method == "route" and number and any(choice.removed[:number]):
            restores.add(block.start)  # attention sees all tokens again before others are chosen
        cuts[block.cut] = _cut(encoder, block, removed, choice)
    if restore:
        restores.add(encoder.blocks[-1].end)
    Following(graph, encoder, cuts, frozenset(restores), choice.proportional).run()


def apply_reordering(graph: Graph, encoder: Encoder, order: np.ndarray, restore: bool) -> None:
    """Put the tokens in another order behind the first attention: i64[N], protected ones in their places."""
    cut = encoder.blocks[0].cut

    def reorder(now: Following) -> tuple[Step, Value]:
        rows = now.now(cut)
        zeros = ops.Cast(dtypes.i64)(ops.Mul()(_column(rows), np.asarray(0, rows.tensor.dtype.storage)))  # [B, 1]
        keep, undo = (ops.Add()(zeros, index.astype(np.int64)) for index in (order, np.argsort(order)))
        step = Reordering(len(order), keep, undo)
        return step, step.carry(rows)

    restores = frozenset({encoder.blocks[-1].end} if restore else ())
    Following(graph, encoder, {cut: reorder}, restores, False).run()


def _cut(encoder: Encoder, block: Block, removed: int, choice: Choice) -> Cut:
    made = _METHODS[choice.method]

    def cut(now: Following) -> tuple[Step, Value]:
        rows = now.now(block.cut)
        tokens = rows.tensor.dims[1]
        assert isinstance(tokens, int)
        if removed >= tokens - encoder.protected:
            raise Refusal("T9", f"{removed} of {tokens} tokens can't go", block.attention)
        return made(now, encoder, block, removed, choice)

    return cut


def _merge(now: Following, encoder: Encoder, block: Block, removed: int, choice: Choice) -> tuple[Step, Value]:
    rows, steps = now.now(block.cut), now.steps(block.cut)
    most = most_merged(int(rows.tensor.dims[1]), encoder.protected)
    if removed > most:
        raise Refusal("T9", f"{removed} tokens can't merge at once, {most} can", block.attention)
    size = next((step.total for step in reversed(steps) if isinstance(step, Merging)), None)
    keep, source, into = ops.MatchTokens(removed, encoder.protected)(now.now(block.attention.inputs[1]))
    merged, total = ops.MergeTokens()(rows, keep, source, into, size)
    return Merging(int(rows.tensor.dims[1]) - removed, keep, source, into, size, total), merged


def _fuse(now: Following, encoder: Encoder, block: Block, removed: int, choice: Choice) -> tuple[Step, Value]:
    rows = now.now(block.cut)
    score = _score(now, encoder, block, choice)
    count = int(rows.tensor.dims[1]) - removed
    keep, rest = ops.TopTokens(count - 1, encoder.protected)(score)
    weight = ops.Unsqueeze((1,))(ops.TakeTokens()(score, rest))
    step = Fusing(count, keep, rest, weight)
    return step, step.carry(rows)


def _eliminate(now: Following, encoder: Encoder, block: Block, removed: int, choice: Choice) -> tuple[Step, Value]:
    rows = now.now(block.cut)
    count = int(rows.tensor.dims[1]) - removed
    keep, rest = ops.TopTokens(count, encoder.protected)(_score(now, encoder, block, choice))
    step = Dropping(count, keep, rest, ops.TakeTokens()(rows, rest))
    return step, step.carry(rows)


def _route(now: Following, encoder: Encoder, block: Block, removed: int, choice: Choice) -> tuple[Step, Value]:
    rows = now.now(block.cut)
    count = int(rows.tensor.dims[1]) - removed  # with the bridge
    keep, rest = ops.TopTokens(count - 1, encoder.protected)(_score(now, encoder, block, choice))
    left = ops.TakeTokens()(rows, rest)
    bridge = ops.ReduceMean((-2,), True)(left)
    step = Routing(count, keep, rest, left, bridge)
    joined: Value = ops.Concat(1)(ops.TakeTokens()(rows, keep), bridge)
    return step, joined


_METHODS: Mapping[str, Callable[[Following, Encoder, Block, int, Choice], tuple[Step, Value]]] = {
    "merge": _merge,
    "fuse": _fuse,
    "eliminate": _eliminate,
    "route": _route,
}


def _score(now: Following, encoder: Encoder, block: Block, choice: Choice) -> Value:
    """The importance of each token that the attention of a block has seen, [B, N]."""
    op = block.attention.op
    assert isinstance(op, ops.Attention)
    q, k = (now.now(v) for v in block.attention.inputs[:2])
    if q.tensor.dims[1] != k.tensor.dims[1]:
        raise Refusal("T11", "its heads are grouped, so that scores aren't there for each", block.attention)
    mask = now.mask_of(block.attention)
    signal = choice.signal
    if signal == "prior":
        return _prior(now, encoder, block)
    if signal == "auto":
        signal = "class" if encoder.has_class_token else "received"
    if signal == "class":
        return class_score(q, k, op.scale, mask)
    return received_score(q, k, op.scale, mask) if signal == "received" else energy_score(k)


def _prior(now: Following, encoder: Encoder, block: Block) -> Value:
    """What the caller says of each original token, brought along to those that are left: an input that is added."""
    given = next((value for value in now.graph.inputs if value.hint == PRIOR), None)
    if given is None:
        start = encoder.start.tensor
        given = now.graph.add_input(PRIOR, TensorType(start.dtype, (start.dims[0], encoder.tokens)))
    rows = given
    for step in now.steps(block.cut):
        rows = step.aside(rows)
    return rows


def _column(rows: Value) -> Value:
    """[B, 1] of the rows [B, N, C]."""
    first = ops.Slice((0, 0), (1, 1), (1, 2), (1, 1))(rows)
    flat: Value = ops.Squeeze((2,))(first)
    return flat
