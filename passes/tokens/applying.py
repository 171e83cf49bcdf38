"""A choice applied to a graph or to a copy of it, and the dynamic proof that order doesn't matter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planish.ir.errors import PlanishError
from planish.ir.graph import Graph
from planish.passes.base import Context, FeedSource
from planish.passes.judging import tapped
from planish.passes.tokens.encoder import Encoder, find_encoder
from planish.passes.tokens.following import RestoreInStream
from planish.passes.tokens.methods import Choice, apply_choice, apply_reordering
from planish.passes.tokens.refusal import Refusal

SAME = 1e-3  # relative error of the outputs that another order of summation may cause
_FEEDS = 2  # that the proof runs on


def compressed(graph: Graph, choice: Choice) -> Graph:
    """A copy of `graph` with the choice applied. Raises Refusal."""
    return _on_copy(graph, lambda copy, encoder, restore: apply_choice(copy, encoder, choice, restore))


def compress(graph: Graph, choice: Choice) -> None:
    """Apply a choice in place. Raises Refusal before anything has changed."""
    restore = _needs_restoring(graph, choice)
    apply_choice(graph, find_encoder(graph), choice, restore)


def prove_order_free(graph: Graph, context: Context, feeds: FeedSource) -> float | None:
    """Reorder the tokens behind the first attention: the outputs must stay the same. Returns their relative error.

    None if the runtime can't run the graph. Raises Refusal (T3) where the error shows that positions matter after all,
    and whatever refusal reordering meets.
    """
    encoder = find_encoder(graph)
    order = np.arange(encoder.tokens)
    free = order[encoder.protected :]
    order[encoder.protected :] = np.random.default_rng(context.seed).permutation(free)
    copy = _on_copy(graph, lambda g, found, restore: apply_reordering(g, found, order, restore))
    before, after = (tapped(context, g, list(g.outputs)) for g in (graph, copy))
    worst = 0.0
    for feed, _ in zip(feeds, range(_FEEDS), strict=False):
        for old, new in zip(before(feed), after(feed), strict=True):
            if old.dtype.kind == "f":
                size = float(np.linalg.norm(old.astype(np.float64)))
                error = float(np.linalg.norm(new.astype(np.float64) - old.astype(np.float64)))
                worst = max(worst, error / max(size, 1e-30))
    if not worst <= SAME:
        raise Refusal(
            "T3",
            f"outputs change by {100 * worst:.2g} % when tokens are reordered: something depends on their positions",
            encoder.blocks[0].attention,
        )
    return worst


def _on_copy(graph: Graph, rewrite: Callable[[Graph, Encoder, bool], None]) -> Graph:
    """The copy that is left when all tokens come back where they are needed: lazily, or else in the stream."""
    for restore in (False, True):
        copy, _ = graph.clone()
        try:
            rewrite(copy, find_encoder(copy), restore)
        except RestoreInStream:
            continue
        return copy
    raise PlanishError("tokens couldn't be given back even in the residual stream")


def _needs_restoring(graph: Graph, choice: Choice) -> bool:
    copy, _ = graph.clone()
    try:
        apply_choice(copy, find_encoder(copy), choice)
    except RestoreInStream:
        return True
    return False
