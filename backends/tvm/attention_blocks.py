"""What each block of queries of a sparse attention multiplies: lists of blocks of keys, in the order of the pattern."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.ir.attention_patterns import Pattern


@dataclass(frozen=True)
class Blocks:
    """The plan of all heads, for blocks of `size` queries by `size` keys.

    queries: int32[H, N], the position of each query in the order of its head. keys: int32[H, M], the positions of keys
    that the head needs, in order; -1 where there is none. starts: int32[H * N / size + 1], for each block of queries
    its first in `columns`: numbers of blocks of keys. masks: as columns, 0 where a block is kept in full, else 1 and
    more: the place in `kept`, uint8[masks, size, size], less 1. skipped: int32[H], -1 or the number of a skipped head.
    """

    size: int
    queries: np.ndarray
    keys: np.ndarray
    starts: np.ndarray
    columns: np.ndarray
    masks: np.ndarray
    kept: np.ndarray
    skipped: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """int32[H, N / size]: blocks of keys of each block of queries."""
        return np.diff(self.starts).reshape(len(self.queries), -1)


def plan(patterns: tuple[Pattern, ...], length: int, causal: bool, size: int) -> Blocks:
    """The blocks of heads with these patterns over so many positions, which need not be whole blocks."""
    rows = -(-length // size)
    known: dict[bytes, int] = {}
    every_query, every_key = [], []
    columns, masks, counts = list[int](), list[int](), list[int]()
    for pattern in patterns:
        order, pairs = pattern.order(length), pattern.kept(length, causal)
        keys = order if pattern.window is not None else np.flatnonzero(pairs.any(axis=0))
        across = -(-len(keys) // size)
        packed = np.zeros((rows * size, across * size), np.bool_)
        packed[:length, : len(keys)] = pairs[np.ix_(order, keys)]
        blocks = packed.reshape(rows, size, across, size)
        needed = blocks.any(axis=(1, 3))
        packed[length:] = True  # nobody computes rows behind the last
        whole: np.ndarray = np.asarray(blocks.all(axis=(1, 3)))
        for row, column in np.argwhere(needed).tolist():
            columns.append(column)
            block = blocks[row, :, column].tobytes()
            masks.append(0 if whole[row, column] else known.setdefault(block, len(known) + 1))
        counts += needed.sum(axis=1).tolist()
        every_query.append(order)
        every_key.append(np.append(keys, np.full(across * size - len(keys), -1)))
    most = max(size, *(len(keys) for keys in every_key))
    padded = [np.append(keys, np.full(most - len(keys), -1)) for keys in every_key]
    skips = np.array([pattern.skipped for pattern in patterns])
    return Blocks(
        size,
        np.array(every_query, np.int32),
        np.array(padded, np.int32),
        np.cumsum([0, *counts], dtype=np.int32),
        np.array(columns or [0], np.int32),
        np.array(masks or [0], np.int32),
        np.frombuffer(b"".join(known) or bytes(size * size), np.uint8).reshape(-1, size, size),
        np.where(skips, np.cumsum(skips) - 1, -1).astype(np.int32),
    )
