"""Fewer tokens: which to keep, which to merge into which, and the rows moved accordingly.

A choice among N tokens is three index tensors, one choice per sample. `keep`: i64[B, M], tokens that stay, ascending;
`source`: i64[B, R], the N - M others; `into`: i64[B, R], the place in `keep` of the token that takes each one in.
"""

from __future__ import annotations

import numpy as np

from planish.ir import dims, dtypes
from planish.ir.dims import Dim
from planish.ir.op import Op, need
from planish.ir.ops.elementwise import FLOAT, NUMERIC, need_kind
from planish.ir.ops.quantize import per_tensor
from planish.ir.types import TensorType

_SHORTEST = np.float32(1e-12)  # length of a key by which it is still divided


def choice_types(batch: Dim, tokens: Dim, merged: int, protected: int) -> tuple[TensorType, TensorType, TensorType]:
    """Types of keep, source and into of a matching. States constraint C3 of the matchings."""
    need(isinstance(tokens, int), f"C3: the number of tokens, {tokens}, isn't known")
    assert isinstance(tokens, int)
    most = most_merged(tokens, protected)
    need(0 <= merged <= most, f"C3: {merged} of {tokens} tokens can't merge, {most} can, {protected} being protected")
    shapes = ((batch, tokens - merged), (batch, merged), (batch, merged))
    keep, source, into = (TensorType(dtypes.i64, shape) for shape in shapes)
    return keep, source, into


def most_merged(tokens: int, protected: int) -> int:
    """How many tokens bipartite matching can merge: those in even places, if one in an odd place can take them in."""
    free = (tokens + 1) // 2 - (protected + 1) // 2
    return max(free, 0) if tokens // 2 > protected // 2 else 0


def matched(scores: np.ndarray, merged: int, protected: int, lowest: float | int) -> tuple[np.ndarray, ...]:
    """Keep, source and into for the similarities [B, even places, odd places] of N tokens.

    Each token in an even place goes to the most similar one in an odd place, and the `merged` most similar pairs
    merge; of equals the first counts. Protected tokens, the first ones, take no part.
    """
    batch, evens, odds = scores.shape
    scores = scores.copy()
    scores[:, :, : protected // 2] = lowest
    best = np.max(scores, axis=2, initial=lowest)
    partner = np.argmax(scores, axis=2) if odds else np.zeros((batch, evens), np.int64)
    best[:, : (protected + 1) // 2] = lowest
    order = np.argsort(-best.astype(np.float64), axis=1, kind="stable")[:, :merged]
    source = 2 * order
    keep = rest_of(source, evens + odds)
    target = 2 * np.take_along_axis(partner, order, axis=1) + 1
    into = target - np.sum(source[:, None, :] < target[:, :, None], axis=2)
    return keep, source.astype(np.int64), into.reshape(batch, merged).astype(np.int64)


def rest_of(chosen: np.ndarray, tokens: int) -> np.ndarray:
    """The places of 0 .. tokens - 1 that aren't in `chosen` [B, R], ascending: i64[B, tokens - R]."""
    free = np.ones((len(chosen), tokens), np.bool_)
    np.put_along_axis(free, chosen, False, axis=1)
    return np.nonzero(free)[1].reshape(len(chosen), tokens - chosen.shape[1]).astype(np.int64)


class MatchTokens(Op):
    """Which tokens merge into which, by bipartite soft matching of their keys.

    merged: how many tokens vanish. protected: so many at the beginning take no part.
        m = mean of k over heads    u = m / |m|    score = u[even places] @ u[odd places].T
    Each token in an even place has the most similar one in an odd place for a partner; the `merged` most similar pairs
    merge. Of equal ones the first counts. `source` is ordered by similarity, the greatest first.
    k: float[B, H, N, D]    keep: i64[B, N - merged]    source, into: i64[B, merged].
    C1 floats, not quantized.  C2 rank 4.  C3 N is known, and `merged` tokens in even places are free to merge.
    Rounding, so that nearly equal scores may be ordered otherwise. Source: ToMe (arXiv 2210.09461), section 3, with
    the tokens that stay in their order.
    """

    merged: int
    protected: int = 0

    def infer(self, k: TensorType) -> tuple[TensorType, TensorType, TensorType]:
        need_kind("k", k, FLOAT)
        need(len(k.dims) == 4, f"C2: k is {k}; rank 4 is needed")
        return choice_types(k.dims[0], k.dims[2], self.merged, self.protected)

    def evaluate(self, k: np.ndarray) -> tuple[np.ndarray, ...]:
        means = np.mean(k, axis=1, dtype=np.float32)
        units = means / np.maximum(np.sqrt(np.sum(means * means, axis=2, keepdims=True)), _SHORTEST)
        scores = np.matmul(units[:, 0::2], np.swapaxes(units[:, 1::2], 1, 2))
        return matched(scores, self.merged, self.protected, -4.0)


class MergeTokens(Op):
    """Tokens merged into others, each the mean of the original ones that it stands for, weighted by their number.

    y[i] = (size[keep[i]] * x[keep[i]] + sum of size[s] * x[s]) / total[i] over the sources s that go into i, and
    total[i] = size[keep[i]] + sum of size[s].
    x: float[B, N, C]    keep, source, into: a choice among N    size: as x, [B, N], default 1
    y: as x, [B, M, C]    total: as x, [B, M].
    C1 floats, not quantized, of one dtype.  C2 indices are i64.  C3 ranks and extents agree.
    Rounding; where nothing merges and no size is given, y is x exactly. Source: ToMe (arXiv 2210.09461), section 3.
    """

    def infer(
        self, x: TensorType, keep: TensorType, source: TensorType, into: TensorType, size: TensorType | None = None
    ) -> tuple[TensorType, TensorType]:
        need_kind("x", x, FLOAT)
        if size is not None:
            need(size.dtype == x.dtype and size.quant is None, f"C1: size is {size} but x is {x}")
        need_choice(x, keep, source, into, size)
        return TensorType(x.dtype, (x.dims[0], keep.dims[1], x.dims[2])), TensorType(x.dtype, (x.dims[0], keep.dims[1]))

    def evaluate(
        self, x: np.ndarray, keep: np.ndarray, source: np.ndarray, into: np.ndarray, size: np.ndarray | None = None
    ) -> tuple[np.ndarray, ...]:
        sizes = np.ones(x.shape[:2], np.float32) if size is None else size.astype(np.float32)
        sums = gathered_sums(x.astype(np.float32) * sizes[:, :, None], keep, source, into)
        total = gathered_sums(sizes, keep, source, into)
        return (sums / total[:, :, None]).astype(x.dtype), total.astype(x.dtype)


def need_choice(x: TensorType, keep: TensorType, source: TensorType, into: TensorType, size: TensorType | None) -> None:
    """State constraints C2 and C3 of the merges."""
    need(len(x.dims) == 3, f"C3: x is {x}; [B, N, C] is needed")
    for name, index in (("keep", keep), ("source", source), ("into", into)):
        need(index.dtype == dtypes.i64 and len(index.dims) == 2, f"C2: {name} is {index}; i64 of rank 2 is needed")
        need(dims.may_equal(index.dims[0], x.dims[0]), f"C3: {name} is for another batch than x, {x}")
    need(dims.may_equal(source.dims[1], into.dims[1]), f"C3: source is {source} but into {into}")
    whole = dims.add(keep.dims[1], source.dims[1])
    need(dims.may_equal(whole, x.dims[1]), f"C3: {keep} and {source} aren't all of {x}")
    if size is not None:
        need(len(size.dims) == 2, f"C3: size is {size}; [B, N] is needed")
        need(all(map(dims.may_equal, size.dims, x.dims[:2])), f"C3: size is {size}, which doesn't fit x, {x}")


def gathered_sums(x: np.ndarray, keep: np.ndarray, source: np.ndarray, into: np.ndarray) -> np.ndarray:
    """The rows of x [B, N, ...] at `keep`, each with the rows at `source` that go into it added."""
    sums = taken(x, keep).copy()
    np.add.at(sums, (np.arange(len(x))[:, None], into), taken(x, source))
    return sums


def taken(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Rows of x [B, N, ...], for each sample those that its row of `index` [B, M] names."""
    rows: np.ndarray = x[np.arange(len(x))[:, None], index]
    return rows


class TopTokens(Op):
    """The tokens of the highest scores, and the rest; both in their order. Of equal scores the first token is higher.

    count: how many are kept. protected: so many at the beginning are kept whatever their scores.
    score: number[B, N], or codes of one scale    keep: i64[B, count]    rest: i64[B, N - count].
    C1 score is as above.  C2 rank 2.  C3 N is known, and protected <= count <= N.
    Exact. Source: EViT (arXiv 2202.07800), section 3.1; PoWER-BERT (arXiv 2001.08950), section 3.
    """

    count: int
    protected: int = 0

    def infer(self, score: TensorType) -> tuple[TensorType, TensorType]:
        if score.quant is None:
            need_kind("score", score, NUMERIC)
        else:
            per_tensor("score", score)
        need(len(score.dims) == 2, f"C2: score is {score}; rank 2 is needed")
        batch, tokens = score.dims
        fits = isinstance(tokens, int) and self.protected <= self.count <= tokens
        need(fits, f"C3: {self.count} tokens can't be kept of {tokens}, with {self.protected} protected")
        return (
            TensorType(dtypes.i64, (batch, self.count)),
            TensorType(dtypes.i64, (batch, dims.sub(tokens, self.count))),
        )

    def evaluate(self, score: np.ndarray) -> tuple[np.ndarray, ...]:
        free = score[:, self.protected :].astype(np.float64 if dtypes.of(score).is_float else np.int64)
        order = np.argsort(-free, axis=1, kind="stable") + self.protected
        rest = np.sort(order[:, self.count - self.protected :], axis=1).astype(np.int64)
        return rest_of(rest, score.shape[1]), rest


class TakeTokens(Op):
    """Rows of each sample by its own indices, y[b, i] = x[b, index[b, i]].

    x: any[B, N, ...]    index: i64[B, M]    y: as x, [B, M, ...].
    C1 index is i64 of rank 2.  C2 the batches agree.  C3 x isn't quantized along its first two axes.
    Exact; an index outside 0 .. N - 1 isn't allowed. Source: ONNX GatherND-13 with batch_dims = 1.
    """

    def infer(self, x: TensorType, index: TensorType) -> TensorType:
        need(len(x.dims) >= 2, f"C2: x is {x}; [B, N, ...] is needed")
        need(index.dtype == dtypes.i64 and len(index.dims) == 2, f"C1: index is {index}; i64 of rank 2 is needed")
        need(dims.may_equal(index.dims[0], x.dims[0]), f"C2: x is {x} but index {index}")
        axis = None if x.quant is None else x.quant.axis
        need(axis is None or axis > 1, "C3: quantization along the tokens isn't tracked")
        return TensorType(x.dtype, (x.dims[0], index.dims[1], *x.dims[2:]), x.quant)

    def evaluate(self, x: np.ndarray, index: np.ndarray) -> np.ndarray:
        return taken(x, index)


class PlaceTokens(Op):
    """Where each of N tokens is after a choice: y[keep[i]] = i and y[source[j]] = into[j].

    TakeTokens(merged rows, y) gives every original token the row that it has become.
    keep: i64[B, M]    source, into: i64[B, R]    y: i64[B, M + R].
    C1 i64 of rank 2.  C2 batches agree, and source and into.    Exact.
    """

    def infer(self, keep: TensorType, source: TensorType, into: TensorType) -> TensorType:
        for name, index in (("keep", keep), ("source", source), ("into", into)):
            need(index.dtype == dtypes.i64 and len(index.dims) == 2, f"C1: {name} is {index}; i64 of rank 2 is needed")
            need(dims.may_equal(index.dims[0], keep.dims[0]), f"C2: {name} is {index} but keep {keep}")
        need(dims.may_equal(source.dims[1], into.dims[1]), f"C2: source is {source} but into {into}")
        return TensorType(dtypes.i64, (keep.dims[0], dims.add(keep.dims[1], source.dims[1])))

    def evaluate(self, keep: np.ndarray, source: np.ndarray, into: np.ndarray) -> np.ndarray:
        place = np.empty((len(keep), keep.shape[1] + source.shape[1]), np.int64)
        np.put_along_axis(place, keep, np.arange(keep.shape[1])[None], axis=1)
        np.put_along_axis(place, source, into, axis=1)
        return place
