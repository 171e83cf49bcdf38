"""Where the tokens of one sample go: which are merged, left out or led around, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planish.backends.ort.evaluate import evaluate_opaque
from planish.backends.ort.taps import taps
from planish.frontend import load
from planish.ir import ops
from planish.ir.errors import UnsupportedOp
from planish.ir.graph import Graph, Node, Value
from planish.passes.base import Context
from planish.passes.pipelines import recipe
from planish.passes.tokens import CompressTokens
from planish.passes.tokens.report import CompressReport
from planish.passes.tokens.schedule import Schedule
from planish.tools.bars import split_after
from planish.tools.token_screen import Refused, refusals

GONE = -1


@dataclass(frozen=True)
class BlockTokens:
    """Tokens behind the attention of one block, the first being block 1.

    places: i64[N], for each token of the model the one that it has become, `GONE` for one that is left out or led
    around the blocks that follow. own: bool[N], True for tokens that still have a row of their own, with others merged
    into it or not.
    """

    block: int
    name: str
    count: int
    places: np.ndarray
    own: np.ndarray


@dataclass(frozen=True)
class Trace:
    """The way of the tokens through the blocks in which some go. protected: so many at the beginning always stay."""

    method: str
    tokens: int
    protected: int
    blocks: tuple[BlockTokens, ...]

    def gone_at(self) -> list[int | None]:
        """For each token the first block at which it lost its row; None for one that has it at the end."""
        return [next((here.block for here in self.blocks if not here.own[t]), None) for t in range(self.tokens)]


def compressed_for_tracing(
    source: Path, shapes: Mapping[str, tuple[int | str, ...]] | None, method: str, schedule: Schedule
) -> tuple[Graph, CompressReport]:
    """The graph of a model behind `compress-tokens`, and what that did. Raises UnsupportedOp where it refuses."""
    graph = load(source, shapes=shapes)
    before, _ = split_after(recipe("compress"), CompressTokens)
    context = Context(evaluate_opaque=evaluate_opaque)
    before.with_options(CompressTokens.name, method=method, schedule=schedule).run(graph, context)
    reports = [report for report in context.reports if isinstance(report, CompressReport)]
    if not reports:
        found: Refused = refusals(context.records)[0]
        raise UnsupportedOp(f"tokens can't be compressed. {found.reason}", where=found.where)
    return graph, reports[0]


def trace(graph: Graph, report: CompressReport, sample: Mapping[str, np.ndarray]) -> Trace:
    """Follow the tokens of one sample, a feed with batch 1, through a compressed graph."""
    chosen = [node for node in graph if isinstance(node.op, ops.MatchTokens | ops.TopTokens)]
    cuts = [number for number, removed in enumerate(report.choice.removed) if removed]
    protected = int(getattr(chosen[0].op, "protected", 0)) if chosen else 0
    values: list[Value] = [value for node in chosen for value in node.results]
    found = iter(taps(graph, values)(sample) if values else [])
    places, own = np.arange(report.tokens), np.ones(report.tokens, np.bool_)
    blocks = []
    for number, node in zip(cuts, chosen, strict=True):
        if report.choice.method == "route":
            places, own = np.arange(report.tokens), np.ones_like(own)  # all come back before others are chosen
        choice = [next(found)[:1] for _ in node.results]
        own = own & np.isin(places, choice[0])
        places = np.where(places == GONE, GONE, _step(node, report.choice.method, choice)[places])
        blocks.append(BlockTokens(number + 1, report.blocks[number], report.counts[number], places, own))
    return Trace(report.choice.method, report.tokens, protected, tuple(blocks))


def _step(node: Node, method: str, choice: Sequence[np.ndarray]) -> np.ndarray:
    """For each token before a choice its place after it, or `GONE`."""
    if isinstance(node.op, ops.MatchTokens):
        keep, source, into = choice
    else:
        keep, source = choice
        fused = method == "fuse"  # in one token behind the others
        into = np.full_like(source, keep.shape[1] if fused else GONE)
    placed: np.ndarray = ops.PlaceTokens().evaluate(keep, source, into)[0]
    return placed
