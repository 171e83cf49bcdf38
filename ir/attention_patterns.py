"""Which keys each query of an attention head looks at: patterns, as short texts, and the pairs that they keep.

`dense`                      every key
`skip`                       none: the head gives a constant
`window 64`                  keys at most 64 positions away
`stripe 0:16,240:256`        keys of these ranges, whatever the query
`window 64 stripe 0:16`      both
`... blocks 32`              rounded out to whole blocks of 32 queries by 32 keys
`window 4 period 64`         distances in the order that puts positions i, i + 64, i + 128, .. next to each other

Source: the modes of Sparse-vDiT (arXiv 2506.03065), whose multi-diagonal is a window behind a permutation.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from planish.ir.errors import VerifyError

_FAR = 1 << 40


@dataclass(frozen=True)
class Pattern:
    """One head's pattern.

    window: greatest distance of a key, None for no window. stripe: ascending ranges of keys. blocks: 0 keeps the very
    pairs; else a block of queries by keys is kept if one of its pairs is, and each block of queries keeps as many
    blocks of keys as the one that keeps most: those nearest to it besides. period: 1 for the order as it is.
    """

    window: int | None = None
    stripe: tuple[tuple[int, int], ...] = ()
    blocks: int = 0
    period: int = 1
    skipped: bool = False

    @staticmethod
    def parse(text: str) -> Pattern:
        """The pattern that `str` writes. Raises VerifyError for other texts."""
        if text in ("dense", "skip"):
            return Pattern(skipped=text == "skip")
        words, found = text.split(" "), dict[str, str]()
        found.update(zip(words[::2], words[1::2], strict=False))
        try:
            stripe = [tuple(map(int, part.split(":"))) for part in filter(None, found.pop("stripe", "").split(","))]
            window = int(found.pop("window")) if "window" in found else None
            blocks, period = int(found.pop("blocks", "0")), int(found.pop("period", "1"))
            pattern = Pattern(window, tuple((start, end) for start, end in stripe), blocks, period)
        except ValueError:
            raise VerifyError(f"{text!r} is no pattern of attention") from None
        if found or str(pattern) != text:
            raise VerifyError(f"{text!r} is no pattern of attention")
        return pattern

    def __str__(self) -> str:
        if self.skipped or self.dense:
            return "skip" if self.skipped else "dense"
        parts = [] if self.window is None else [f"window {self.window}"]
        parts += ["stripe " + ",".join(f"{start}:{end}" for start, end in self.stripe)] if self.stripe else []
        parts += [f"blocks {self.blocks}"] if self.blocks else []
        return " ".join(parts + ([f"period {self.period}"] if self.period != 1 else []))

    @property
    def dense(self) -> bool:
        """True if every pair is kept."""
        return not self.skipped and self.window is None and not self.stripe

    def fault(self, length: int) -> str:
        """Why the pattern can't be that of so many positions; "" if it can."""
        if self.period < 1 or length % self.period:
            return f"the period of {self} doesn't divide {length}"
        if self.blocks < 0 or (self.blocks and length % self.blocks):
            return f"the blocks of {self} don't divide {length}"
        if self.window is not None and self.window < 0:
            return f"the window of {self} is negative"
        edges = [edge for bounds in self.stripe for edge in bounds]
        ascending = all(a < b if i % 2 == 0 else a <= b for i, (a, b) in enumerate(pairwise(edges)))
        inside = not edges or (edges[0] >= 0 and edges[-1] <= length)
        return "" if ascending and inside else f"the ranges of {self} don't ascend from 0 to {length}"

    def order(self, length: int) -> np.ndarray:
        """int64[length]: the position at each place of the order in which distances count."""
        return np.arange(length).reshape(-1, self.period).T.reshape(-1)

    def in_stripe(self, length: int) -> np.ndarray:
        """bool[length]: positions that the ranges name."""
        found = np.zeros(length, np.bool_)
        for start, end in self.stripe:
            found[start:end] = True
        return found

    def kept(self, length: int, causal: bool = False) -> np.ndarray:
        """bool[length, length]: True where a query (row) looks at a key (column)."""
        if self.dense or self.skipped:
            found = np.full((length, length), not self.skipped)
            return np.tril(found) if causal else found
        found = self._pairs(length, causal)
        if self.blocks:
            whole = np.zeros((length // self.blocks,) * 2, np.bool_)
            np.put_along_axis(whole, self.table(length, self.blocks, causal), True, axis=1)
            found = np.kron(whole, np.ones((self.blocks, self.blocks), np.bool_))
        result, order = np.empty_like(found), self.order(length)
        result[np.ix_(order, order)] = found
        return np.tril(result) if causal else result

    def table(self, length: int, block: int, causal: bool = False) -> np.ndarray:
        """int64[length / block, C]: the blocks of keys that each block of queries needs, ascending, places in order.

        C is the most that one needs; the others have those nearest to them besides.
        """
        count = length // block
        needed = self._pairs(length, causal).reshape(count, block, count, block).any(axis=(1, 3))
        places = np.arange(count)
        distance = 2 * np.abs(places[:, None] - places) + (places > places[:, None])
        most = int(needed.sum(axis=1).max())
        return np.sort(np.argsort(np.where(needed, distance, distance + _FAR), axis=1)[:, :most], axis=1)

    def _pairs(self, length: int, causal: bool) -> np.ndarray:
        """bool[length, length] by places in order, before rounding out."""
        order, places = self.order(length), np.arange(length)
        found = np.broadcast_to(self.in_stripe(length)[order], (length, length))
        if self.window is not None:
            found = found | (np.abs(places[:, None] - places) <= self.window)
        return found & (order <= order[:, None]) if causal else found


DENSE, SKIP = Pattern(), Pattern(skipped=True)
