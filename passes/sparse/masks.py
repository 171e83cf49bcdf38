"""Which weights stay: the ones of the greatest score, in the structure that is asked for.

Weights are [K, N], as a linear layer has them. Every column, or group of columns that share their zeros, keeps as many,
so that no thread has more to do than another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.ir.sparsity import blocks


@dataclass(frozen=True)
class Structure:
    """A structure of zeros by name ("unstructured", "ob4", "ob16", "ib4", "2:4"): its zeros come in rows x columns.

    rows, columns: of the blocks that vanish as one.
    """

    name: str

    @property
    def rows(self) -> int:
        return 4 if self.name == "ib4" else 1

    @property
    def columns(self) -> int:
        return {"ob4": 4, "ob16": 16}.get(self.name, 1)

    @property
    def fixed(self) -> bool:
        """True if the structure itself says how many stay: half of them."""
        return self.name == "2:4"

    def scores(self, weights: np.ndarray) -> np.ndarray:
        """Scores of single weights [K, N], summed up over the blocks: [block rows, block columns]."""
        found = blocks(weights, self.columns, 1).sum(axis=-1)
        return np.asarray(np.moveaxis(blocks(found, self.rows, 0).sum(axis=-1), 0, -1))

    def spread(self, kept: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """A choice of blocks as one of weights: bool[K, N]."""
        wide = np.repeat(np.repeat(kept, self.rows, axis=0), self.columns, axis=1)
        return wide[: shape[0], : shape[1]]

    def kept(self, scores: np.ndarray, density: float) -> np.ndarray:
        """Which weights stay, by scores of single weights [K, N]: bool[K, N]."""
        if self.fixed:
            return _two_of_four(scores)
        summed = self.scores(scores)
        count = max(1, round(density * len(summed)))
        order = np.argsort(-summed, axis=0, kind="stable")
        chosen = np.zeros(summed.shape, np.bool_)
        np.put_along_axis(chosen, order[:count], True, axis=0)
        return self.spread(chosen, scores.shape)


def _two_of_four(scores: np.ndarray) -> np.ndarray:
    """The two greatest of each four rows in a row."""
    found = blocks(scores, 4, 0)  # [N, fours, 4]
    order = np.argsort(-found, axis=-1, kind="stable")
    chosen = np.zeros(found.shape, np.bool_)
    np.put_along_axis(chosen, order[..., :2], True, axis=-1)
    return np.asarray(chosen.reshape(len(found), -1).T[: len(scores)])
