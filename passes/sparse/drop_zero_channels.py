"""The pass that takes out what is constant or never read: channels of layers, units of MLPs, heads of attention."""

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
from planish.passes.sparse.bundles import Bundle, Seed, bundle_of, narrow, seeds
from planish.passes.sparse.known_units import removable
from planish.passes.sparse.unit_rules import CONVOLUTIONS, PRODUCTS, Entangled, Place

BY = "drop-zero-channels"


@dataclass(frozen=True)
class DropZeroChannels(Pass):
    """Channels and heads that are constant, or that no reader has weights for, vanish from all layers they go through.

    A channel of zero weights is its bias, and a known constant after the functions behind it, which the readers' biases
    take. Results are the same up to rounding for inputs that cause no infinity. At least one of each stays.
    """

    name: ClassVar[str] = BY
    exactness: ClassVar[Exactness] = ROUNDING

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph`."""
        changes, reasons = Changes(), dict[str, str]()
        before = -1
        while changes.count != before and context.fuelled:
            before = changes.count
            reasons = {}
            _once(graph, context, changes, reasons)
        changes.skipped += reasons.items()
        return changes


def _once(graph: Graph, context: Context, changes: Changes, reasons: dict[str, str]) -> None:
    """Look at each bundle once."""
    seen: set[tuple[Value, Place, int]] = set()
    for seed in seeds(graph):
        if not context.fuelled:
            return
        if seed.units < 2 or (seed.value, seed.place, seed.units) in seen or seed.node.graph is not graph:
            continue
        try:
            bundle = bundle_of(seed)
            found = dropped(graph, bundle)
        except Entangled as why:
            if _has_zeros(seed):
                reasons.setdefault(str(seed.node.loc), f"its zero channels stay: {why}")
            continue
        if found:
            changes.rewrites["heads" if bundle.are_heads else "channels"] += found
            context.burn()
        else:
            seen |= {(value, place, bundle.units) for value, place in bundle.places.items()}


def dropped(graph: Graph, bundle: Bundle) -> int:
    """Take out of a bundle what can be taken out, all but one unit at most; the number of units that vanished."""
    free, constants = removable(bundle)
    if free.all():
        free[0] = False
        for sink, values in constants.items():
            values[bundle.slots[sink][1].indices(bundle.units, np.array([0]))] = 0
    if free.any():
        narrow(graph, bundle, ~free, constants, BY)
    return int(np.count_nonzero(free))


def _has_zeros(seed: Seed) -> bool:
    """True if a layer has channels of zero weights where the seed is."""
    node = seed.node
    if not isinstance(node.op, PRODUCTS) or (data := constant(node.operands[1])) is None:
        return False
    made = seed.value is node.result
    axis = (0 if made else 1) if isinstance(node.op, CONVOLUTIONS) else (1 if made else 0)
    if isinstance(node.op, ops.Conv | ops.IntConv) and node.op.group > 1 and not made:
        return False
    others = tuple(i for i in range(len(data.type.dims)) if i != axis)
    return not bool(np.all(np.any(data.numpy(), axis=others)))
