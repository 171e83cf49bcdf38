"""Second moments of what products read: how an error of weights becomes an error of results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir import ops
from planish.ir.errors import CalibrationError
from planish.ir.graph import Graph, Node
from planish.passes.base import Context, Feeds
from planish.passes.calibration.collect import numpy_taps

ROOM = 1 << 29  # bytes of moments that are collected at a time; more layers take several runs over the samples
_ROWS = 1 << 12  # rows that are summed at a time


@dataclass
class Gram:
    """Sums over the rows x that a product reads, for each of its G groups of channels.

    squares: float64[G, K, K], sums of x.T @ x. sums: float64[G, K]. count: of rows.
    """

    squares: np.ndarray
    sums: np.ndarray
    count: int = 0

    @property
    def mean(self) -> np.ndarray:
        """float64[G, K]."""
        return self.sums / max(self.count, 1)

    @property
    def covariance(self) -> np.ndarray:
        """float64[G, K, K]: what is left to a product whose bias takes the mean."""
        return self.squares / max(self.count, 1) - self.mean[:, :, None] * self.mean[:, None, :]

    def add(self, rows: np.ndarray) -> None:
        """Count rows [R, G, K] in. Products of some rows are summed in their own precision, all of them in float64."""
        groups = np.moveaxis(rows, 1, 0)
        self.squares += np.swapaxes(groups, 1, 2) @ groups
        self.sums += groups.sum(axis=1, dtype=np.float64)
        self.count += rows.shape[0]


def collect_grams(graph: Graph, context: Context, nodes: Sequence[Node], feeds: Sequence[Feeds]) -> list[Gram]:
    """Moments of what linear layers and convolutions read, over all feeds, one of them in memory at a time.

    Linear layers that read one value share its moments. Raises CalibrationError for NaN or infinity in a value.
    """
    first: dict[object, Node] = {}
    for node in nodes:
        first.setdefault(_reading(node), node)
    grams = {key: _empty(node) for key, node in first.items()}
    batches, room = [[]], ROOM  # type: list[list[object]], int
    for key, gram in grams.items():
        if batches[-1] and gram.squares.nbytes > room:
            batches.append([])
            room = ROOM
        batches[-1].append(key)
        room -= gram.squares.nbytes
    done = 0
    for batch in batches:
        run = (context.taps or numpy_taps)(graph, [first[key].inputs[0] for key in batch])
        for feed in feeds:
            for key, array in zip(batch, run(feed), strict=True):
                if not np.isfinite(array).all():
                    where = str(first[key].loc)
                    raise CalibrationError(
                        "a sample makes NaN or infinity", where=where, remedy="repair it or the model"
                    )
                for rows in _rows(first[key], array):
                    grams[key].add(rows)
            done += 1
            context.progressed("second moments", done, len(batches) * len(feeds))
    return [grams[_reading(node)] for node in nodes]


def _reading(node: Node) -> object:
    """What nodes have in common whose rows are the same."""
    return node if isinstance(node.op, ops.Conv) else node.inputs[0]


def _empty(node: Node) -> Gram:
    shape = tuple(int(dim) for dim in node.inputs[1].tensor.dims)
    group, depth = (node.op.group, math.prod(shape[1:])) if isinstance(node.op, ops.Conv) else (1, shape[0])
    return Gram(np.zeros((group, depth, depth)), np.zeros((group, depth)))


def _rows(node: Node, x: np.ndarray) -> Iterator[np.ndarray]:
    """The rows [R, G, K] that a product's weights multiply, some at a time."""
    op = node.op
    if not isinstance(op, ops.Conv):
        flat = x.reshape(-1, 1, x.shape[-1])
    else:
        windows = op.windows(x, tuple(int(dim) for dim in node.inputs[1].tensor.dims[2:]))  # [N, C, Y1..Ys, K1..Ks]
        spatial = x.ndim - 2
        moved = np.moveaxis(windows, 1, 1 + spatial)  # [N, Y1..Ys, C, K1..Ks]
        flat = moved.reshape(math.prod(moved.shape[: 1 + spatial]), op.group, -1)
    for start in range(0, len(flat), _ROWS):
        yield flat[start : start + _ROWS]
