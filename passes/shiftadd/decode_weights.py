"""Layers by codes of a codebook as plain layers again, for targets whose float kernels know no codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir import ops
from planish.ir.graph import Graph, Value
from planish.ir.op import constant
from planish.passes.base import Context, Pass
from planish.passes.exactness import ROUNDING, Exactness
from planish.passes.rewrite import Changes


@dataclass(frozen=True)
class DecodeWeights(Pass):
    """Codes of codebooks to the floats that they stand for: fewer bits are lost, results stay.

    ShiftLinear(x, w, b) -> Linear(x, scale * w, b), and ShiftConv likewise.
    """

    name: ClassVar[str] = "decode-weights"
    exactness: ClassVar[Exactness] = ROUNDING

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph`."""
        changes = Changes()
        for node in graph.nodes(ops.ShiftLinear, ops.ShiftConv):
            op, data = node.op, constant(node.operands[1])
            if data is None:
                changes.skipped.append((str(node.loc), "its codes are computed"))
                continue
            w: np.ndarray = ops.Dequantize().evaluate(data.numpy(), types=[data.type])
            plain = (
                ops.Conv(op.strides, op.pads, op.dilations, op.group) if isinstance(op, ops.ShiftConv) else ops.Linear()
            )
            result: Value = plain(node.inputs[0], w, *node.operands[2:])
            graph.attach(result, node, node.loc.made_by(self.name))
            result.hint = node.result.hint
            graph.replace(node.result, result)
            changes.rewrites[self.name] += 1
        graph.erase_dead()
        return changes
