"""Attention in which each head looks at some of the keys only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.ir import dims
from planish.ir.attention_patterns import Pattern
from planish.ir.data import Data
from planish.ir.graph import Value
from planish.ir.op import Const, Op, need
from planish.ir.ops.attention import Attention
from planish.ir.ops.elementwise import FLOAT, need_kind
from planish.ir.ops.indexing import Concat, Gather, Slice
from planish.ir.ops.shape import Expand, Reshape, Shape, Transpose
from planish.ir.types import TensorType

_BLOCK = 64  # queries of a block, where the pattern leaves it open; the best of 32 to 256 on ONNX Runtime
_LEAST_BLOCK = 16


class SparseAttention(Op):
    """Attention of each head over the keys that its pattern keeps, y = softmax(scale * q @ k.T, over kept keys) @ v.

    scale: factor on the scores. heads: a pattern for each head of q, see `planish.ir.attention_patterns`.
    causal: position n takes part only in positions m <= n.
    q: float[B, H, N, D]    k: as q, [B, Hk, N, D]    v: as q, [B, Hk, N, E]    y: as q, [B, H, N, E].
    mean: as q, [S, E]: what the S heads that are skipped give at each position, in their order.
    Head h of q sees head h // (H / Hk) of k and v. A row that keeps no key is NaN.
    C1 to C6 as Attention.  C7 there is a mean if heads are skipped, of their number.  C8 a pattern per head, each of
    which fits N.  C9 all extents but B are known, and there are as many keys as queries.
    Rounding. Source: Sparse-vDiT (arXiv 2506.03065), section 4; skipped heads keep their mean.
    """

    scale: float
    heads: tuple[str, ...]
    causal: bool = False

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The heads' patterns."""
        return tuple(Pattern.parse(text) for text in self.heads)

    def infer(self, q: TensorType, k: TensorType, v: TensorType, mean: TensorType | None = None) -> TensorType:
        result = Attention(self.scale, self.causal).infer(q, k, v)
        heads, length = result.dims[1:3]
        for type_, known in ((q, q.dims[1:]), (k, k.dims[1:2]), (v, v.dims[3:])):
            need(all(isinstance(dim, int) for dim in known), f"C9: extents of {type_} must be known, but for the batch")
        need(dims.may_equal(length, k.dims[2]), f"C9: {length} queries, but {k.dims[2]} keys")
        need(heads == len(self.heads), f"C8: {len(self.heads)} patterns for {heads} heads")
        patterns = self.patterns
        for pattern in patterns:
            fault = pattern.fault(int(length))
            need(not fault, f"C8: {fault}")
        skipped = sum(pattern.skipped for pattern in patterns)
        need((mean is None) == (skipped == 0), f"C7: {skipped} heads are skipped, and the mean is {mean}")
        if mean is not None:
            need_kind("mean", mean, FLOAT)
            need(mean.dtype == q.dtype, f"C3: mean is {mean.dtype} but q is {q.dtype}")
            fits = len(mean.dims) == 2 and all(map(dims.may_equal, mean.dims, (skipped, v.dims[3])))
            need(fits, f"C7: mean is {mean}, not [{skipped}, {v.dims[3]}]")
        return result

    def evaluate(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, mean: np.ndarray | None = None) -> np.ndarray:
        group, length = q.shape[1] // k.shape[1], q.shape[2]
        result = np.empty((*q.shape[:3], v.shape[3]), q.dtype)
        kept = {text: Pattern.parse(text).kept(length, self.causal) for text in set(self.heads)}
        skipped = iter(()) if mean is None else iter(mean)
        for head, text in enumerate(self.heads):
            if text == "skip":
                result[:, head] = next(skipped)
                continue
            own, other = slice(head, head + 1), slice(head // group, head // group + 1)
            result[:, own] = Attention(self.scale).evaluate(q[:, own], k[:, other], v[:, other], kept[text])
        return result

    def decompose(self, q: Value, k: Value, v: Value, mean: Value | None = None) -> Value | None:
        """Dense attention of blocks of queries to the blocks of keys gathered for them, by pattern."""
        group = len(self.heads) // int(k.tensor.dims[1])
        parts, order = [], list[int]()
        for text in dict.fromkeys(self.heads):
            heads = [head for head, other in enumerate(self.heads) if other == text]
            order += heads
            if mean is not None and text == "skip":
                parts.append(_repeated(mean, q))
                continue
            others = [head // group for head in heads]
            chosen = (_taken(q, heads), _taken(k, others), _taken(v, others))
            parts.append(self._alike(Pattern.parse(text), *chosen))
        joined = parts[0] if len(parts) == 1 else Concat(1)(*parts)
        return _taken(joined, [order.index(head) for head in range(len(order))])

    def _alike(self, pattern: Pattern, q: Value, k: Value, v: Value) -> Value:
        """Attention of heads of one pattern that isn't "skip"."""
        length = int(q.tensor.dims[2])
        if pattern.dense:
            return _attention(self.scale, q, k, v, None, self.causal)
        if pattern.window is None:
            columns = np.flatnonzero(pattern.kept(length).any(axis=0))
            mask = pattern.kept(length, True)[:, columns] if self.causal else None
            return _attention(self.scale, q, _at(k, columns), _at(v, columns), mask)
        return self._blocked(pattern, q, k, v, length)

    def _blocked(self, pattern: Pattern, q: Value, k: Value, v: Value, length: int) -> Value:
        """Attention of blocks of queries, each to as many blocks of keys, one block a "head" of its own."""
        block = pattern.blocks or _block_of(length)
        if not block:
            return _attention(self.scale, q, k, v, pattern.kept(length, self.causal))
        table, order, period = pattern.table(length, block, self.causal), pattern.order(length), pattern.period
        count, most = table.shape
        mask = None
        if self.causal or not pattern.blocks:
            kept = pattern.kept(length, self.causal)[np.ix_(order, order)].reshape(count, block, count, block)
            rows = np.arange(count)[:, None]
            mask = np.swapaxes(kept[rows, :, table], 1, 2).reshape(count, block, most * block)
        heads, width, depth = q.tensor.dims[1], q.tensor.dims[3], v.tensor.dims[3]
        queries = Reshape((-1, count, block, int(width)))(_ordered(q, period))
        keys, values = (
            Reshape((-1, count, most * block, int(extent)))(
                Gather(1)(Reshape((-1, count, block * int(extent)))(_ordered(x, period)), table)
            )
            for x, extent in ((k, width), (v, depth))
        )
        found = Reshape((-1, int(heads), length, int(depth)))(_attention(self.scale, queries, keys, values, mask))
        return _ordered(found, length // period) if period != 1 else found


def _attention(scale: float, q: Value, k: Value, v: Value, mask: np.ndarray | None, causal: bool = False) -> Value:
    """Attention with a mask of kept pairs, as what is added to scores: that is faster than a choice."""
    added = None
    if mask is not None:
        added = Const(Data(np.where(mask, 0, -np.inf).astype(q.tensor.dtype.storage)))()
    result: Value = Attention(scale, causal)(q, k, v, added)
    return result


def _block_of(length: int) -> int:
    """How many queries make a block: a divisor of the length near the best; 0 if there is none that helps."""
    divisors = [block for block in range(_LEAST_BLOCK, 2 * _BLOCK + 1) if length % block == 0]
    return min(divisors, key=lambda block: abs(block - _BLOCK), default=0)


def _ordered(x: Value, period: int) -> Value:
    """Positions i, i + period, .. of x[B, H, N, D] side by side."""
    if period == 1:
        return x
    heads, length, width = (int(dim) for dim in x.tensor.dims[1:])
    frames = Reshape((-1, heads, length // period, period, width))(x)
    result: Value = Reshape((-1, heads, length, width))(Transpose((0, 1, 3, 2, 4))(frames))
    return result


def _at(x: Value, positions: np.ndarray) -> Value:
    """Some positions of x[B, H, N, D]."""
    result: Value = Gather(2)(x, positions)
    return result


def _taken(x: Value, heads: Sequence[int]) -> Value:
    """Some heads of x[B, H, N, D]."""
    if list(heads) == list(range(int(x.tensor.dims[1]))):
        return x
    result: Value
    if list(heads) == list(range(heads[0], heads[-1] + 1)):
        result = Slice((heads[0],), (heads[-1] + 1,), (1,), (1,))(x)
    else:
        result = Gather(1)(x, np.array(heads))
    return result


def _repeated(mean: Value, q: Value) -> Value:
    """mean[S, E] at each position of each sample: [B, S, N, E]."""
    batch, (skipped, depth), length = q.tensor.dims[0], mean.tensor.dims, int(q.tensor.dims[2])
    rows = Reshape((1, int(skipped), 1, int(depth)))(mean)
    inner = np.array([int(skipped), length, int(depth)])
    shape: Value | np.ndarray
    if isinstance(batch, int):
        shape = np.array([batch, *inner])
    else:
        shape = Concat(0)(Gather(0)(Shape()(q), np.array([0])), inner)
    result: Value = Expand()(rows, shape)
    return result
