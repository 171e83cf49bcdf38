"""A graph with fewer tokens from given values on: every node behind them is made again for the tokens that are left.

The tokens of a value are described by the steps that led to them, the empty tuple being all tokens. Where values of
different sets meet, the larger one is brought to the smaller; a node that needs all tokens gets them back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from planish.ir import ops
from planish.ir.errors import VerifyError
from planish.ir.graph import Graph, Node, Value
from planish.ir.loc import Loc
from planish.ir.op import constant
from planish.passes.tokens.encoder import Encoder
from planish.passes.tokens.masks import added, key_mask, mask_of
from planish.passes.tokens.places import Place, resized
from planish.passes.tokens.refusal import Refusal
from planish.passes.tokens.steps import Dropping, Merging, Reordering, Step

BY = "compress-tokens"
Steps = tuple[Step, ...]
Cut = Callable[["Following"], tuple[Step, Value]]
"""Makes a step at the value it is put at, and the value's rows after it."""


class RestoreInStream(Exception):
    """A node needs all tokens of a frozen set back, which only the residual stream can give."""


class Following:
    """One rewrite of one graph. cuts: at which values tokens are reduced; restores: at which they all come back.

    proportional: merged tokens count as many times in attention as they stand for.
    """

    def __init__(
        self, graph: Graph, encoder: Encoder, cuts: Mapping[Value, Cut], restores: frozenset[Value], proportional: bool
    ):
        self.graph, self.encoder, self.cuts, self.restores = graph, encoder, cuts, restores
        self.proportional = proportional
        self.held: dict[Value, tuple[Value, Steps]] = {encoder.start: (encoder.start, ())}
        self._ended: set[Steps] = set()  # sets of tokens that the stream has left again
        self._here: tuple[Node | None, Loc] = (None, Loc())
        self._made: dict[tuple[object, ...], Value] = {}

    def run(self) -> None:
        """Rewrite in place. Raises Refusal, or RestoreInStream; the graph is half rewritten then."""
        for node in list(self.graph):
            if any(v in self.held for v in node.inputs):
                self._here = (node, node.loc.made_by(BY))
                self._follow(node)
            for value in node.results:
                if value in self.cuts or value in self.restores:
                    self._here = (node.next, node.loc.made_by(BY))
                    self._act(value)
        self.graph.erase_dead()

    def now(self, value: Value) -> Value:
        """What has become of a value of the stream."""
        return self.held[value][0]

    def steps(self, value: Value) -> Steps:
        """The steps that led to its tokens."""
        return self.held[value][1]

    def _act(self, value: Value) -> None:
        if value in self.restores and self.steps(value):
            self._ended.add(self.steps(value))
            self.held[value] = (self._restored(value), ())
        if value in self.cuts:
            step, rows = self.cuts[value](self)
            rows = self._attach(rows)
            rows.hint = value.hint
            self.held[value] = (rows, (*self.steps(value), step))

    def _follow(self, node: Node) -> None:
        found = {i: v for i, v in enumerate(node.operands) if v is not None and v in self.held}
        if isinstance(node.op, ops.Shape | ops.Size):
            self._reroot(node)
        elif not any(self.steps(v) for v in found.values()):
            for index, value in found.items():
                self.graph.set_operand(node, index, self.now(value))
            for result in node.results:
                if result in self.encoder.places:
                    self.held[result] = (result, ())
        elif node in self.encoder.needs or (node not in self.encoder.inner and self._joins_tokens(node, found)):
            for index, value in found.items():
                self.graph.set_operand(node, index, self._given_back(value))
        elif node in self.encoder.reads:
            for index, value in found.items():
                self.graph.set_operand(node, index, self.now(value))
        else:
            self._rebuild(node, found)

    def _joins_tokens(self, node: Node, found: Mapping[int, Value]) -> bool:
        """True if a tensor from outside the stream that has tokens joins in, element by element."""
        if not node.op.pointwise:
            return False
        place, rank = self.encoder.places[node.results[0]], len(node.results[0].tensor.dims)
        others = [v for i, v in enumerate(node.operands) if v is not None and i not in found]
        axes = [(v, place.axis - rank + len(v.tensor.dims)) for v in others]
        return any(axis >= 0 and v.tensor.dims[axis] != 1 for v, axis in axes)

    def _reroot(self, node: Node) -> None:
        """The shape of the stream as it was: read where it still has all tokens."""
        (value,) = node.inputs
        if not self.steps(value):
            return
        if self.encoder.start.tensor.dims != value.tensor.dims:
            raise Refusal("T7", f"it reads the shape of a tensor with {self.encoder.tokens} tokens", node)
        self.graph.set_operand(node, 0, self.encoder.start)

    def _given_back(self, value: Value) -> Value:
        if any(step.frozen for step in self.steps(value)):
            raise RestoreInStream
        return self._restored(value)

    def _restored(self, value: Value) -> Value:
        """All tokens of a value, each with the row that it has become."""
        key = ("back", value)
        if key not in self._made:
            place = self.encoder.places[value]
            self._made[key] = self._attach(self._in_rows(value, place, self.steps(value)))
            self._made[key].hint = value.hint
        return self._made[key]

    def _in_rows(self, value: Value, place: Place, steps: Steps) -> Value:
        """Steps undone on a value of any layout."""
        rows = self.now(value)
        rank = len(rows.tensor.dims)
        if (place.lead, place.tail) != (1, 1):
            raise Refusal("T7", "tokens of several samples lie along one axis where all are needed", value.node)
        order = [0, place.axis, *(i for i in range(1, rank) if i != place.axis)]
        if place.axis == 0:
            raise Refusal("T7", "tokens lie along the first axis where all are needed", value.node)
        moved = order != list(range(rank))
        rows = ops.Transpose(tuple(order))(rows) if moved else rows
        for step in reversed(steps):
            rows = step.back(rows)
        return ops.Transpose(tuple(int(i) for i in np.argsort(order)))(rows) if moved else rows

    # nodes that keep tokens apart

    def _rebuild(self, node: Node, found: Mapping[int, Value]) -> None:
        steps = max((self.steps(v) for v in found.values()), key=len)
        after = self.encoder.places[node.results[0]]
        operands: list[Value | None] = list(node.operands)
        for index, value in found.items():
            operands[index] = self._brought(value, steps, node)
        index, value = next(iter(found.items()))
        before = self.encoder.places[value]
        op = resized(node, before, after, self.encoder.tokens, steps[-1].count)
        if isinstance(op, ops.Attention):
            self._mask(node, operands, steps, keys=1 in found)
        elif isinstance(op, ops.RotaryEmbedding):
            operands[1:3] = [self._beside(node, v, 1, 1, steps) for v in node.inputs[1:3]]
        elif op.pointwise:
            for i, other in enumerate(operands):
                if other is not None and i not in found:
                    operands[i] = self._broadcast(node, other, after, steps)
        try:
            made: Any = op(*operands)
        except VerifyError as error:
            raise Refusal("T7", f"it can't be made for {steps[-1].count} tokens: {error.what}", node) from None
        results = made if isinstance(made, tuple) else (made,)
        for old, new in zip(node.results, results, strict=True):
            self.held[old] = (self._attach(new), steps)
            new.hint = old.hint

    def _brought(self, value: Value, steps: Steps, node: Node) -> Value:
        """A value for the tokens of `steps`, of which its own are a beginning."""
        here, mine = self.held[value]
        if mine == steps:
            return here
        if steps[: len(mine)] != mine or steps in self._ended or self.encoder.places[value] != Place(1):
            raise Refusal("T2", "it joins values of different sets of tokens", node)
        key = ("carried", value, steps)
        if key not in self._made:
            for step in steps[len(mine) :]:
                here = step.carry(here)
            self._made[key] = self._attach(here)
        return self._made[key]

    def _broadcast(self, node: Node, other: Value, place: Place, steps: Steps) -> Value:
        """An operand from outside the stream, of an op that computes element by element."""
        rank = len(node.results[0].tensor.dims)
        axis = place.axis - rank + len(other.tensor.dims)
        if axis < 0 or other.tensor.dims[axis] == 1:
            return other
        if (place.lead, place.tail) != (1, 1):
            raise Refusal("T12", "it joins tokens of all samples with a tensor of another batch", node)
        return self._beside(node, other, axis, place.axis, steps)

    def _beside(self, node: Node, other: Value, axis: int, target: int, steps: Steps) -> Value:
        """Rows of a tensor outside the stream for the tokens that are left, along `target` of the result.

        other: [1 or B, 1, .., N, ...] with tokens along `axis`.
        """
        key = ("beside", other, steps, target)
        if key in self._made:
            return self._made[key]
        shape = other.tensor.dims
        if any(extent != 1 for extent in shape[1:axis]) or (axis == 0 and len(shape) > 2):
            raise Refusal(
                "T3", f"a tensor of {list(shape)} joins in whose tokens can't be picked for each sample", node
            )
        rest = list(steps)
        data = constant(other)
        if data is not None and (axis == 0 or shape[0] == 1):
            first = rest.pop(0)
            table = data.numpy().reshape(data.numpy().shape[axis:])
            if not isinstance(first, Dropping | Reordering):
                first.aside(other)
            rows: Value = ops.Gather(0)(table, first.keep)  # type: ignore[attr-defined]
        else:
            if axis == 0 or shape[0] != self.encoder.start.tensor.dims[0]:
                raise Refusal("T12", f"a tensor of {list(shape)} joins in, which isn't there for each sample", node)
            rows = ops.Squeeze(tuple(range(1, axis)))(other) if axis > 1 else other
        for step in rest:
            rows = step.aside(rows)
        shaped = ops.Unsqueeze(tuple(range(1, target)))(rows) if target > 1 else rows
        self._made[key] = self._attach(shaped)
        return self._made[key]

    def _mask(self, node: Node, operands: list[Value | None], steps: Steps, keys: bool) -> None:
        """The mask of an attention for the tokens that are left, with what merged tokens count."""
        mask = operands[3] if len(operands) > 3 else None
        if not keys:
            if mask is not None and (1, *mask.tensor.dims)[-2] != 1:
                raise Refusal("T5", "its mask differs from query to query", node)
            return
        mask = None if mask is None else self._key_mask(mask, node)
        if mask is not None:
            try:
                mask = self._beside(node, mask, 3, 3, steps)
            except Refusal as refusal:
                condition = "T5" if refusal.condition == "T3" and refusal.node is None else refusal.condition
                raise Refusal(condition, refusal.reason, node) from None
        bias = self.bias(steps)
        if bias is not None:
            mask = bias if mask is None else added(mask, bias)
        operands[3:] = [] if mask is None else [self._attach(mask)]

    def _key_mask(self, mask: Value, node: Node) -> Value | None:
        key = ("keys", mask)
        if key not in self._made:
            found = key_mask(mask, node)
            if found is None:
                return None
            self._made[key] = self._attach(found)
        return self._made[key]

    def bias(self, steps: Steps) -> Value | None:
        """The logarithm of how many tokens each stands for, [B, 1, 1, M], if that counts."""
        totals = [step.total for step in steps if isinstance(step, Merging)]
        if not totals or not self.proportional:
            return None
        key = ("bias", steps)
        if key not in self._made:
            self._made[key] = self._attach(ops.Unsqueeze((1, 2))(ops.Log()(totals[-1])))
        return self._made[key]

    def mask_of(self, attention: Node) -> Value | None:
        """The mask that an attention has by now, [B or 1, 1, 1, M]."""
        made = self.now(attention.result).node
        assert made is not None
        mask = mask_of(made)
        return None if mask is None else self._key_mask(mask, attention)

    def _attach(self, value: Value) -> Value:
        before, loc = self._here
        self.graph.attach(value, before, loc)
        return value
