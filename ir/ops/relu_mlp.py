"""Feed-forward layers of ReLU networks as one op, so that a kernel may leave out neurons that give 0."""

from __future__ import annotations

import numpy as np

from planish.ir import dims, dtypes
from planish.ir.graph import Value
from planish.ir.op import Op, need
from planish.ir.ops.activation import Relu
from planish.ir.ops.binary import Mul
from planish.ir.ops.elementwise import FLOAT, need_kind
from planish.ir.ops.linalg import Linear
from planish.ir.types import TensorType


class ReluMLP(Op):
    """Two linear layers with a rectifier between, y = h @ w_down + b_down with h = max(x @ w_up + b_up, 0).

    With a gate, h = max(x @ w_gate + b_gate, 0) * (x @ w_up + b_up). NaN stays, as in Relu.
    skip: kernels may look for neurons that give 0 before they read all of their weights; the result is the same.
    x: f32[..., K]    w_up: f32[K, F]    w_down: f32[F, N]    b_up: f32[F], default 0    b_down: f32[N], default 0
    w_gate: f32[K, F], default none    b_gate: f32[F], default 0    y: f32[..., N].
    C1 all f32.  C2 not quantized.  C3 ranks as above.  C4 the K, the F and the N agree.  C5 no b_gate without w_gate.
    Rounding. Source: "ReLU strikes back" (arXiv 2310.04564), section 4; ProSparse (arXiv 2402.13516).
    """

    skip: bool = True

    def infer(
        self,
        x: TensorType,
        w_up: TensorType,
        w_down: TensorType,
        b_up: TensorType | None = None,
        b_down: TensorType | None = None,
        w_gate: TensorType | None = None,
        b_gate: TensorType | None = None,
    ) -> TensorType:
        named = {"x": x, "w_up": w_up, "w_down": w_down, "b_up": b_up, "b_down": b_down, "w_gate": w_gate}
        for name, type_ in {**named, "b_gate": b_gate}.items():
            if type_ is not None:
                need_kind(name, type_, FLOAT)
                need(type_.dtype == dtypes.f32, f"C1: {name} is {type_.dtype}")
        need(len(x.dims) >= 1, f"C3: x is {x}; [..., K] is needed")
        need(w_gate is not None or b_gate is None, "C5: there is a bias of a gate, but no gate")
        wide = w_up.dims[1] if len(w_up.dims) == 2 else 0
        shapes = (("w_up", w_up, (x.dims[-1], wide)), ("w_gate", w_gate, (x.dims[-1], wide)))
        biases = (("b_up", b_up, (wide,)), ("b_gate", b_gate, (wide,)), ("b_down", b_down, w_down.dims[1:]))
        for name, found, wanted in (*shapes, ("w_down", w_down, (wide, *w_down.dims[1:2])), *biases):
            if found is None:
                continue
            rank = 1 if name.startswith("b") else 2
            need(len(found.dims) == rank, f"C3: {name} is {found}; rank {rank} is needed")
            fits = all(dims.may_equal(mine, other) for mine, other in zip(found.dims, wanted, strict=True))
            need(fits, f"C4: {name} is {found}; {list(wanted)} is needed")
        return TensorType(x.dtype, (*x.dims[:-1], w_down.dims[1]))

    def evaluate(
        self,
        x: np.ndarray,
        w_up: np.ndarray,
        w_down: np.ndarray,
        b_up: np.ndarray | None = None,
        b_down: np.ndarray | None = None,
        w_gate: np.ndarray | None = None,
        b_gate: np.ndarray | None = None,
    ) -> np.ndarray:
        up = Linear().evaluate(x, w_up, b_up)
        with np.errstate(all="ignore"):
            if w_gate is None:
                hidden = Relu().evaluate(up)
            else:
                hidden = Relu().evaluate(Linear().evaluate(x, w_gate, b_gate)) * up
        return Linear().evaluate(hidden, w_down, b_down)

    def decompose(
        self,
        x: Value,
        w_up: Value,
        w_down: Value,
        b_up: Value | None = None,
        b_down: Value | None = None,
        w_gate: Value | None = None,
        b_gate: Value | None = None,
    ) -> Value:
        up: Value = Linear()(x, w_up, b_up)
        hidden = Relu()(up) if w_gate is None else Mul()(Relu()(Linear()(x, w_gate, b_gate)), up)
        y: Value = Linear()(hidden, w_down, b_down)
        return y
