"""Integers at the border of a graph too: quantized inputs are taken, and codes returned, as plain integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from planish.ir import dtypes, ops
from planish.ir.graph import Graph, Node, Value
from planish.ir.loc import Loc
from planish.ir.ops.quantize import per_tensor, quant_of
from planish.ir.types import TensorType
from planish.passes.base import Context, Pass
from planish.passes.exactness import EXACT, Exactness
from planish.passes.rewrite import Changes

_ROOM = 2.0**4  # of the 2**31 codes that an output has beyond its accumulator, so that no channel saturates


@dataclass(frozen=True)
class IntegerBoundary(Pass):
    """Float inputs that are only quantized become integer inputs, dequantized outputs become integer outputs.

    This changes the interface: scale and zero point of each such tensor are written to the model's metadata, as
    planish.scale.NAME and planish.zero.NAME, and into the manifest.
    """

    name: ClassVar[str] = "integer-boundary"
    exactness: ClassVar[Exactness] = EXACT

    def run(self, graph: Graph, context: Context) -> Changes:
        changes = Changes()
        for value in list(graph.inputs):
            if isinstance(value.type, TensorType) and value.type.dtype.is_float:
                self._open(graph, value, changes)
        tail = graph.tail
        for index, output in enumerate(tail.operands if tail is not None else ()):
            if output is not None and isinstance(output.op, ops.Dequantize) and tail is not None:
                self._close(graph, tail, index, output, changes)
        graph.erase_dead()
        return changes

    def _open(self, graph: Graph, value: Value, changes: Changes) -> None:
        readers = [user for user in value.users if not isinstance(user.op, ops.Shape | ops.Size)]
        if not readers or not all(isinstance(user.op, ops.Quantize) for user in readers):
            changes.skipped.append((value.hint, "it is read as float"))
            return
        widest = max(readers, key=lambda user: user.result.tensor.dtype.bits).result
        scale, zero = per_tensor("input", widest.tensor)
        value.type = TensorType(widest.tensor.dtype, value.tensor.dims)
        loc = Loc((value.hint,)).made_by(self.name)
        codes = graph.add(ops.FromCodes(scale, zero), value, loc=loc, hint=value.hint, before=graph.head).result
        for reader in readers:
            target: Value = codes
            if reader.result.type != codes.type:
                option = cast(Any, reader.op)
                narrower = ops.Requantize(option.scale, option.zero, option.to)
                target = graph.add(narrower, codes, loc=reader.loc.made_by(self.name), before=reader).result
            graph.replace(reader.result, target)
            graph.erase(reader)
        _record(graph, value.hint, scale, zero)
        changes.rewrites[self.name] += 1

    def _close(self, graph: Graph, tail: Node, index: int, value: Value, changes: Changes) -> None:
        assert value.node is not None
        name, codes, loc = tail.op.names[index], value.node.inputs[0], value.node.loc.made_by(self.name)  # type: ignore[attr-defined]
        quant = quant_of(name, codes.type)
        if quant.axis is not None:  # channels of several scales can't be compared: bring them to one
            scale = float(np.max(quant.scales)) / _ROOM
            codes = graph.add(ops.Requantize(scale, 0, dtypes.i32), codes, loc=loc, hint=name, before=tail).result
        scale, zero = per_tensor(name, codes.type)
        plain = graph.add(ops.ToCodes(), codes, loc=loc, hint=name, before=tail).result
        graph.set_operand(tail, index, plain)
        _record(graph, name, scale, zero)
        changes.rewrites[self.name] += 1


def _record(graph: Graph, name: str, scale: float, zero: int) -> None:
    """Note what the integers of an input or output stand for, and forget the float type that the source declared."""
    extras = graph.extras
    metadata = dict(cast("dict[str, str]", extras.get("metadata") or {}))
    metadata |= {f"planish.scale.{name}": repr(scale), f"planish.zero.{name}": str(zero)}
    declared = dict(cast("dict[str, object]", extras.get("declared") or {}))
    declared.pop(name, None)
    extras["metadata"], extras["declared"] = metadata, declared
