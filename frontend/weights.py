"""A check of the weights for numbers that no training should leave behind."""

from __future__ import annotations

import numpy as np

from planish.ir.errors import FrontendError
from planish.ir.graph import Graph, Node
from planish.ir.op import Const

_CHUNK = 1 << 22  # elements looked at together: bounds the memory that the check takes
_MASKS = frozenset({"Add", "Sub", "Mul", "Where", "Clip", "Max", "Min", "Equal", "Less", "Greater", "Expand", "Concat"})


def check_weights(graph: Graph) -> None:
    """Read all floating-point constants once; raise FrontendError, naming the initializer, for NaN or infinity.

    Infinity is allowed in constants that only elementwise ops and such read: attention masks are made of it.
    """
    for node in graph:
        if isinstance(node.op, Const) and node.op.data.type.dtype.is_float:
            _check(node, node.op)


def _check(node: Node, op: Const) -> None:
    flat = op.data.numpy().reshape(-1)
    infinity_allowed = all(user.op.name in _MASKS or user.op.is_return for user in node.results[0].users)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        chunk = chunk if chunk.dtype in (np.float16, np.float32, np.float64) else chunk.astype(np.float32)
        if np.isfinite(chunk).all():
            continue
        if np.isnan(chunk).any():
            kind = "NaN"
        elif not infinity_allowed:
            kind = "infinity"
        else:
            continue
        name = node.results[0].hint or str(node.loc)
        raise FrontendError(
            f"initializer {name!r} contains {kind}",
            where=str(node.loc),
            remedy="train or export the model again: its results can't be trusted",
        )
