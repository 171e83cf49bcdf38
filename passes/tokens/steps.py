"""Steps from one set of tokens to a smaller one: how rows get there, and how they get back.

A step knows the choice that it made, as values of the graph; `carry` takes other tensors along, `back` gives every
token of the larger set its row again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir import dtypes, ops
from planish.ir.graph import Value
from planish.passes.tokens.refusal import Refusal


@dataclass(frozen=True)
class Step:
    """Base of steps. count: tokens after it.

    frozen: going back needs the rows that were left behind, so that it has to happen in the residual stream itself.
    """

    frozen: ClassVar[bool] = False
    count: int

    def carry(self, rows: Value) -> Value:
        """Rows [B, N, ...] of another tensor with the tokens of the stream, for the tokens that are left."""
        raise NotImplementedError

    def aside(self, rows: Value) -> Value:
        """Rows [B, N, ...] of a tensor from outside the stream: masks, positions. Raises Refusal if there are none."""
        raise NotImplementedError

    def back(self, rows: Value) -> Value:
        """Rows [B, M, ...] after the step, for the tokens before it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Merging(Step):
    """Tokens merged into others. size: of the tokens before; total: of those after, f32[B, M]."""

    keep: Value
    source: Value
    into: Value
    size: Value | None
    total: Value

    def carry(self, rows: Value) -> Value:
        merged: Value = ops.MergeTokens()(rows, self.keep, self.source, self.into, self.size)[0]
        return merged

    def aside(self, rows: Value) -> Value:
        raise Refusal("T3", "merged tokens have no single position, nor one mask")

    def back(self, rows: Value) -> Value:
        place = ops.PlaceTokens()(self.keep, self.source, self.into)
        restored: Value = ops.TakeTokens()(rows, place)
        return restored


@dataclass(frozen=True)
class Fusing(Step):
    """The tokens of low scores replaced by their sum, weighted by the scores `weight` [B, 1, R], as the last token."""

    keep: Value
    rest: Value
    weight: Value

    def carry(self, rows: Value) -> Value:
        fused = ops.MatMul()(self.weight, ops.TakeTokens()(rows, self.rest))
        joined: Value = ops.Concat(1)(ops.TakeTokens()(rows, self.keep), fused)
        return joined

    def aside(self, rows: Value) -> Value:
        raise Refusal("T3", "the fused token has no single position, nor one mask")

    def back(self, rows: Value) -> Value:
        last = _for_each_sample(self.rest, np.asarray(self.count - 1))
        restored: Value = ops.TakeTokens()(rows, ops.PlaceTokens()(self.keep, self.rest, last))
        return restored


@dataclass(frozen=True)
class Dropping(Step):
    """Tokens of low scores left out; `left` [B, R, C] are their rows of the stream, which no longer change."""

    frozen: ClassVar[bool] = True
    keep: Value
    rest: Value
    left: Value

    def carry(self, rows: Value) -> Value:
        return self.aside(rows)

    def aside(self, rows: Value) -> Value:
        kept: Value = ops.TakeTokens()(rows, self.keep)
        return kept

    def back(self, rows: Value) -> Value:
        return _scattered(rows, self.left, self.keep, self.rest)


@dataclass(frozen=True)
class Routing(Step):
    """Tokens of low scores take the free path: what a bridge token, their mean, gains in the stream is added to them.

    bridge: f32[B, 1, C], appended to the tokens that are kept. left: rows of the others, [B, R, C].
    """

    frozen: ClassVar[bool] = True
    keep: Value
    rest: Value
    left: Value
    bridge: Value

    def carry(self, rows: Value) -> Value:
        mean = ops.ReduceMean((-2,), True)(ops.TakeTokens()(rows, self.rest))
        joined: Value = ops.Concat(1)(ops.TakeTokens()(rows, self.keep), mean)
        return joined

    def aside(self, rows: Value) -> Value:
        """The bridge takes part in attention as long as one of its tokens does."""
        kept, others = (ops.TakeTokens()(rows, index) for index in (self.keep, self.rest))
        boolean = rows.tensor.dtype == dtypes.boolean
        if len(rows.tensor.dims) != 2 or not (boolean or rows.tensor.dtype.is_float):
            raise Refusal("T3", "the bridge token has no single position")
        most = ops.ReduceMax((-1,), True)(others)
        joined: Value = ops.Concat(1)(kept, most)
        return joined

    def back(self, rows: Value) -> Value:
        kept = self.count - 1
        gained = ops.Sub()(ops.Slice((kept,), (self.count,), (1,), (1,))(rows), self.bridge)
        moved = ops.Add()(self.left, gained)
        return _scattered(ops.Slice((0,), (kept,), (1,), (1,))(rows), moved, self.keep, self.rest)


@dataclass(frozen=True)
class Reordering(Step):
    """All tokens in another order: no compression, but what shows whether anything depends on their order."""

    keep: Value
    undo: Value

    def carry(self, rows: Value) -> Value:
        return self.aside(rows)

    def aside(self, rows: Value) -> Value:
        moved: Value = ops.TakeTokens()(rows, self.keep)
        return moved

    def back(self, rows: Value) -> Value:
        restored: Value = ops.TakeTokens()(rows, self.undo)
        return restored


def _scattered(kept: Value, left: Value, keep: Value, rest: Value) -> Value:
    """Rows of kept tokens and of the others, each in its place."""
    first = keep.tensor.dims[1]
    count = rest.tensor.dims[1]
    assert isinstance(first, int)
    assert isinstance(count, int)
    places = _for_each_sample(rest, np.arange(first, first + count))
    place = ops.PlaceTokens()(keep, rest, places)
    restored: Value = ops.TakeTokens()(ops.Concat(1)(kept, left), place)
    return restored


def _for_each_sample(like: Value, index: np.ndarray) -> Value:
    """Constant indices, broadcast to the shape of `like`, i64[B, R], whose batch may be symbolic."""
    repeated: Value = ops.Add()(ops.Mul()(like, np.asarray(0, np.int64)), index.astype(np.int64))
    return repeated
