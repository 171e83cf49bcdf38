"""Which units a layer can do without, and what makes them good: from second moments of what it reads.

Weights are [K, N]; a unit is some of the rows. Source: OBC (arXiv 2208.11580) with blocks as large as units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir.graph import Node
from planish.passes.calibration.gram import Gram
from planish.passes.sparse.bundles import Bundle, Seed
from planish.passes.sparse.pruning import damped, error_of

_ROUNDS = 128  # in which units vanish, after each of which harm is estimated anew
_WIDTH = 16  # kernels compute so many units at a time


@dataclass(frozen=True)
class Part:
    """Units of one bundle, and the layer that sums them up.

    weights: float64[K, N] of that layer. rows: int[units, rows of one]. fit, rank: moments of what it reads, of the
    samples to fit on and of others to judge by. products: of numbers for one sample that go with a unit.
    """

    seed: Seed
    sink: Node
    weights: np.ndarray
    rows: np.ndarray
    heads: bool
    products: float
    fit: Gram
    rank: Gram

    @property
    def units(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Weights float64[K, N] with zeros for units that vanish.

    noise: energy of the error of the results over that of the results, on samples that nothing was fitted on; masked:
    the same without a fit of what stays.
    """

    weights: np.ndarray
    kept: int
    noise: float
    masked: float


def rows_of(bundle: Bundle, sink: Node) -> np.ndarray:
    """The rows of the weight that each unit has: int[units, rows of one]."""
    place = bundle.slots[sink][1]
    places = np.arange(place.outer * bundle.units * place.inner)
    return np.moveaxis(places.reshape(place.outer, bundle.units, place.inner), 1, 0).reshape(bundle.units, -1)


def elimination(w: np.ndarray, h: np.ndarray, rows: np.ndarray) -> list[int]:
    """All units but one in the order in which they vanish, those first that harm least once the others make them good.

    h: damped covariance [K, K].
    """
    p, v = np.linalg.inv(h), w.copy()
    alive, order = np.ones(len(rows), np.bool_), list[int]()
    many = max(1, len(rows) // _ROUNDS)
    while len(order) < len(rows) - 1:
        left = np.flatnonzero(alive)
        blocks = p[rows[left][:, :, None], rows[left][:, None, :]]  # [left, rows of one, rows of one]
        own = v[rows[left]]
        harm = np.einsum("urn,urn->u", own, np.linalg.solve(blocks, own))
        taken = left[np.argsort(harm, kind="stable")[: min(many, len(left) - 1)]]
        gone = rows[taken].reshape(-1)
        share = np.linalg.solve(p[np.ix_(gone, gone)], np.concatenate([v[gone], p[gone]], axis=1))
        across = p[:, gone]
        v -= across @ share[:, : v.shape[1]]
        p -= across @ share[:, v.shape[1] :]
        alive[taken] = False
        v[gone] = 0.0
        dead = rows[~alive].reshape(-1)
        p[dead], p[:, dead] = 0.0, 0.0
        order += [int(unit) for unit in taken]
    return order


def fitted(part: Part, order: Sequence[int], kept: int, refit: bool) -> Fitted:
    """The weights without the first units of an order; those that stay are fitted where that errs less unseen."""
    w, unseen = part.weights, part.rank.covariance[0]
    if kept >= part.units:
        return Fitted(w, part.units, 0.0, 0.0)
    gone = part.rows[list(order[: part.units - kept])].reshape(-1)
    stays = np.setdiff1d(np.arange(len(w)), gone)
    masked = w.copy()
    masked[gone] = 0.0
    energy = max(float(np.sum(w * (unseen @ w))), 1e-300)
    without = error_of(masked, w, unseen) / energy
    if not refit:
        return Fitted(masked, kept, without, without)
    h = damped(part.fit.covariance[0])
    found = np.zeros_like(w)
    found[stays] = np.linalg.solve(h[np.ix_(stays, stays)], h[stays] @ w)
    noise = error_of(found, w, unseen) / energy
    return Fitted(found, kept, noise, without) if noise <= without else Fitted(masked, kept, without, without)


def widths(units: int, shares: Sequence[float], heads: bool) -> list[int]:
    """Numbers of units that may stay: all, any number of heads, and multiples of 16 where more than 16 stay."""
    if heads or units <= _WIDTH:
        return list(range(1, units + 1))
    found = {units}
    for share in shares:
        count = _WIDTH * round(share * units / _WIDTH)
        found.add(min(units, max(_WIDTH, count)))
    return sorted(found)
