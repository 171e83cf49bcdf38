"""Attention and rotary position embedding. 16-bit floats are computed in float32 and rounded once."""

from __future__ import annotations

import numpy as np

from planish.ir import dims, dtypes
from planish.ir.data import Data
from planish.ir.graph import Value
from planish.ir.op import Const, Op, need
from planish.ir.ops import numerics
from planish.ir.ops.binary import Add, LessOrEqual, Mul, Sub, Where, broadcast_shape
from planish.ir.ops.elementwise import FLOAT, need_kind
from planish.ir.ops.indexing import Concat, Gather, Slice
from planish.ir.ops.linalg import MatMul
from planish.ir.ops.norm import Softmax
from planish.ir.ops.shape import Range, Reshape, Shape, Transpose, Unsqueeze
from planish.ir.types import TensorType


class Attention(Op):
    """Scaled dot product attention, y = softmax(scale * q @ k.T + mask) @ v over the positions m.

    scale: factor on the scores. causal: position n takes part only in positions m <= n.
    q: float[B, H, N, D]    k: as q, [B, Hk, M, D]    v: as q, [B, Hk, M, E]    y: as q, [B, H, N, E].
    mask: as q, added to the scores, or bool, True = take part; broadcasts to [B, H, N, M].
    Head h of q sees head h // (H / Hk) of k and v. A row without any position that takes part is NaN.
    C1 floats.  C2 not quantized.  C3 same dtype.  C4 rank 4.  C5 the B, D, M, Hk agree.  C6 Hk divides H.
    C7 the mask has the dtype of q or bool, and broadcasts to the scores.
    Rounding. Source: ONNX Attention-23, 4-D form without past and softcap; Ainslie et al. 2023 for groups.
    """

    scale: float
    causal: bool = False

    def infer(self, q: TensorType, k: TensorType, v: TensorType, mask: TensorType | None = None) -> TensorType:
        for name, type_ in (("q", q), ("k", k), ("v", v)):
            need_kind(name, type_, FLOAT)
            need(type_.dtype == q.dtype, f"C3: {name} is {type_.dtype} but q is {q.dtype}")
            need(len(type_.dims) == 4, f"C4: {name} is {type_}; rank 4 is needed")
        batch, heads, queries, width = q.dims
        for name, a, b in (
            ("batch of q and k", batch, k.dims[0]),
            ("batch of q and v", batch, v.dims[0]),
            ("width of q and k", width, k.dims[3]),
            ("length of k and v", k.dims[2], v.dims[2]),
            ("heads of k and v", k.dims[1], v.dims[1]),
        ):
            need(dims.may_equal(a, b), f"C5: {name} differ: {a} and {b}")
        if isinstance(heads, int) and isinstance(k.dims[1], int):
            divides = k.dims[1] > 0 and heads % k.dims[1] == 0
            need(divides, f"C6: {k.dims[1]} heads of k don't divide {heads} heads of q")
        if mask is not None:
            need(mask.dtype in (q.dtype, dtypes.boolean), f"C7: mask is {mask.dtype}; {q.dtype} or bool is needed")
            scores = TensorType(q.dtype, (batch, heads, queries, k.dims[2]))
            seen = broadcast_shape(mask, scores)
            fits = len(seen) == 4 and all(map(dims.may_equal, seen, scores.dims))
            need(fits, f"C7: mask is {mask}, which doesn't broadcast to {list(scores.dims)}")
        return TensorType(q.dtype, (batch, heads, queries, v.dims[3]))

    def evaluate(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        queries, keys, values = (numerics.widen(x) for x in (q, k, v))
        if (group := q.shape[1] // k.shape[1]) > 1:
            keys, values = np.repeat(keys, group, axis=1), np.repeat(values, group, axis=1)
        with np.errstate(all="ignore"):
            scores = np.matmul(queries * queries.dtype.type(self.scale), np.swapaxes(keys, 2, 3))  # [B, H, N, M]
            if mask is not None:
                scores = np.where(mask, scores, -np.inf) if mask.dtype == np.bool_ else scores + numerics.widen(mask)
            if self.causal:
                scores = np.where(np.tri(q.shape[2], k.shape[2], dtype=np.bool_), scores, -np.inf)
            weights = Softmax(-1).evaluate(scores.astype(queries.dtype, copy=False))
            return numerics.rounded(np.matmul(weights, values), q.dtype)

    def decompose(self, q: Value, k: Value, v: Value, mask: Value | None = None) -> Value | None:
        """MatMul, Softmax, MatMul. None if the heads are symbolic and so may be grouped."""
        heads, shared = q.tensor.dims[1], k.tensor.dims[1]
        if heads != shared:
            if not isinstance(heads, int) or not isinstance(shared, int):
                return None
            head_of = np.repeat(np.arange(shared), heads // shared)
            k, v = Gather(1)(k, head_of), Gather(1)(v, head_of)
        scaled = Mul()(q, numerics.scalar(self.scale, q.tensor.dtype))
        scores = MatMul()(scaled, Transpose((0, 1, 3, 2))(k))
        if mask is not None:
            masked = mask.tensor.dtype == dtypes.boolean
            scores = _only(mask, scores) if masked else Add()(scores, mask)
        if self.causal:
            scores = _only(_lower_triangle(q, k), scores)
        result: Value = MatMul()(Softmax(-1)(scores), v)
        return result


class RotaryEmbedding(Op):
    """Rotary position embedding: pairs (a, b) of x turn to (a * cos - b * sin, a * sin + b * cos).

    interleaved: the pairs are (x[2i], x[2i + 1]); otherwise (x[i], x[i + D / 2]).
    x: float[B, H, N, D]    cos, sin: as x, [B or 1, N, D / 2]    y: as x.
    C1 floats.  C2 not quantized.  C3 same dtype.  C4 x has rank 4; cos and sin have rank 3.  C5 D is even, and the
    shapes agree.
    Rounding. Source: ONNX RotaryEmbedding-23 without position_ids; Su et al. 2021.
    """

    interleaved: bool = False

    def infer(self, x: TensorType, cos: TensorType, sin: TensorType) -> TensorType:
        for name, type_, rank in (("x", x, 4), ("cos", cos, 3), ("sin", sin, 3)):
            need_kind(name, type_, FLOAT)
            need(type_.dtype == x.dtype, f"C3: {name} is {type_.dtype} but x is {x.dtype}")
            need(len(type_.dims) == rank, f"C4: {name} is {type_}; rank {rank} is needed")
        batch, _, length, width = x.dims
        need(not isinstance(width, int) or width % 2 == 0, f"C5: {width} elements of x don't pair up")
        for name, table in (("cos", cos), ("sin", sin)):
            rows, places, pairs = table.dims
            fits = rows == 1 or dims.may_equal(rows, batch)
            fits = fits and dims.may_equal(places, length) and dims.may_equal(dims.mul(pairs, 2), width)
            need(fits, f"C5: {name} is {table}, which doesn't fit x, {x}")
        return TensorType(x.dtype, x.shape)

    def evaluate(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        wide, half = numerics.widen(x), x.shape[3] // 2
        cosines, sines = (numerics.widen(table)[:, None] for table in (cos, sin))  # [B, 1, N, D / 2]
        first, second = (slice(0, None, 2), slice(1, None, 2)) if self.interleaved else (slice(half), slice(half, None))
        a, b = wide[..., first], wide[..., second]
        result = np.empty_like(wide)
        with np.errstate(all="ignore"):
            result[..., first] = a * cosines - b * sines
            result[..., second] = a * sines + b * cosines
            return numerics.rounded(result, x.dtype)

    def decompose(self, x: Value, cos: Value, sin: Value) -> Value | None:
        """Slice, Mul, Add, Concat. None if the width of x is symbolic."""
        width = x.tensor.dims[3]
        if not isinstance(width, int):
            return None
        half = width // 2
        bounds = ((0, width, 2), (1, width, 2)) if self.interleaved else ((0, half, 1), (half, width, 1))
        a, b = (Slice((start,), (end,), (3,), (step,))(x) for start, end, step in bounds)
        cosines, sines = Unsqueeze((1,))(cos), Unsqueeze((1,))(sin)  # [B, 1, N, D / 2]
        turned = Sub()(Mul()(a, cosines), Mul()(b, sines)), Add()(Mul()(a, sines), Mul()(b, cosines))
        result: Value
        if self.interleaved:
            pairs = Concat(4)(*(Unsqueeze((4,))(part) for part in turned))  # [B, H, N, D / 2, 2]
            result = Reshape((0, 0, 0, width))(pairs)
        else:
            result = Concat(3)(*turned)
        return result


def _only(condition: Value, scores: Value) -> Value:
    result: Value = Where()(condition, scores, numerics.scalar(-np.inf, scores.tensor.dtype))
    return result


def _lower_triangle(q: Value, k: Value) -> Value:
    """bool[N, M], True where m <= n: a constant, or computed from the shapes if they are symbolic."""
    n, m = q.tensor.dims[2], k.tensor.dims[2]
    if isinstance(n, int) and isinstance(m, int):
        triangle: Value = Const(Data(np.tri(n, m, dtype=np.bool_)))()
    else:
        triangle = LessOrEqual()(Unsqueeze((0,))(_positions(k)), Unsqueeze((1,))(_positions(q)))
    return triangle


def _positions(x: Value) -> Value:
    """i64[x.shape[2]] 0, 1, .."""
    length = Gather(0)(Shape()(x), np.array(2))
    result: Value = Range()(np.array(0), length, np.array(1))
    return result
