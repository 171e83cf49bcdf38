"""Zeros for weights of trained layers, from second moments of what they multiply, without training.

Weights are [K, N], H the covariance of their rows; the error of a layer's results is tr(E.T @ H @ E) for an error E.
Sources: magnitude; Wanda (arXiv 2306.11695); SparseGPT (arXiv 2301.00774); OBC (arXiv 2208.11580) with an inverse that
the columns of a block share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from planish.passes.sparse.masks import Structure

_BLOCK = 128  # rows that SparseGPT decides on at a time
_DAMPING = 0.01  # of the mean variance
_GREEDY = 1024  # rows up to which blocks are taken out one by one
_COMPACTED = 32  # rows that are gone before they are left out


def damped(covariance: np.ndarray) -> np.ndarray:
    """The covariance with what keeps it invertible where samples show nothing."""
    return covariance + _DAMPING * max(float(np.mean(np.diag(covariance))), 1e-12) * np.eye(len(covariance))


def error_of(found: np.ndarray, w: np.ndarray, covariance: np.ndarray) -> float:
    """Energy of the error of a layer's results per row, beyond their mean."""
    error = found - w
    return float(np.sum(error * (covariance @ error)))


def magnitude(w: np.ndarray, h: np.ndarray, structure: Structure, density: float) -> np.ndarray:
    """The largest weights stay."""
    return np.where(structure.kept(w**2, density), w, 0.0)


def wanda(w: np.ndarray, h: np.ndarray, structure: Structure, density: float) -> np.ndarray:
    """The weights stay whose products are largest: |w| times the norm of what it multiplies."""
    return np.where(structure.kept(w**2 * np.diag(h)[:, None], density), w, 0.0)


def sparse_gpt(w: np.ndarray, h: np.ndarray, structure: Structure, density: float) -> np.ndarray:
    """Row by row; rows still to come make good what vanishes. Each block of rows chooses when it is reached."""
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    rest, result = w.copy(), np.zeros_like(w)
    for start in range(0, len(w), _BLOCK):
        stop = min(start + _BLOCK, len(w))
        kept = structure.kept(rest[start:stop] ** 2 / np.diag(u)[start:stop, None] ** 2, density)
        errors = np.empty((stop - start, w.shape[1]))
        for k in range(start, stop):
            result[k] = np.where(kept[k - start], rest[k], 0.0)
            errors[k - start] = (rest[k] - result[k]) / u[k, k]
            rest[k + 1 : stop] -= u[k, k + 1 : stop, None] * errors[k - start]
        rest[stop:] -= u[start:stop, stop:].T @ errors
    return result


def block_obs(w: np.ndarray, h: np.ndarray, structure: Structure, density: float) -> np.ndarray:
    """The block that harms least vanishes, the others make it good, and so on: exact, and slow where K is large.

    Columns that share their zeros share the inverse. Structures of several rows, 2:4, and layers of more than 1,024
    rows go by SparseGPT and the fit instead.
    """
    return block_obs_path(w, h, structure, (density,))[0]


def block_obs_path(w: np.ndarray, h: np.ndarray, structure: Structure, densities: Sequence[float]) -> list[np.ndarray]:
    """What `block_obs` gives for several densities, met on one way."""
    if structure.fixed or structure.rows > 1 or len(w) > _GREEDY:
        return [refitted(sparse_gpt(w, h, structure, density), w, h) for density in densities]
    inverse, width = np.linalg.inv(h), structure.columns
    away = [len(w) - max(1, round(density * len(w))) for density in densities]
    result = [np.empty_like(w) for _ in densities]
    for start in range(0, w.shape[1], width):
        found = _eliminated(w[:, start : start + width], inverse, set(away))
        for made, count in zip(result, away, strict=True):
            made[:, start : start + width] = found[count]
    return result


def _eliminated(w: np.ndarray, inverse: np.ndarray, counts: set[int]) -> dict[int, np.ndarray]:
    """Columns [K, C] without so many of their rows, the rest fitted; by count.

    Rows that are gone are left out of the arrays now and then: their part of the inverse is 0.
    """
    found: dict[int, np.ndarray] = {}
    rows, v, p = np.arange(len(w)), w.copy(), inverse.copy()
    alive = np.ones(len(w), np.bool_)
    for gone in range(max(counts) + 1):
        if gone in counts:
            found[gone] = np.zeros_like(w)
            found[gone][rows[alive]] = v[alive]
        if len(rows) - np.count_nonzero(alive) >= _COMPACTED:
            rows, v, p, alive = rows[alive], v[alive], p[np.ix_(alive, alive)], alive[alive]
        harm = np.where(alive, np.sum(v**2, axis=1) / np.maximum(np.diag(p), 1e-300), np.inf)
        k = int(np.argmin(harm))
        column = p[:, k] / p[k, k]
        v -= np.outer(column, v[k])
        p -= np.outer(column, p[k])
        alive[k] = False
    return found


def refitted(found: np.ndarray, w: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The weights that err least with zeros where `found` has them: never worse than `found`, by the same H."""
    result = np.zeros_like(w)
    target = h @ w
    masks, columns = np.unique(found != 0, axis=1, return_inverse=True)
    for number in range(masks.shape[1]):
        kept = np.flatnonzero(masks[:, number])
        chosen = np.flatnonzero(columns.reshape(-1) == number)
        if len(kept):
            result[np.ix_(kept, chosen)] = np.linalg.solve(h[np.ix_(kept, kept)], target[np.ix_(kept, chosen)])
    return result


Method = Callable[[np.ndarray, np.ndarray, Structure, float], np.ndarray]

METHODS: Mapping[str, Method] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "sparsegpt": sparse_gpt,
    "obs": block_obs,
}
"""By name, the simplest first. All take weights, damped covariance, structure and the share that stays."""
