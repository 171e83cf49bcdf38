"""Zeros for weights of trained layers, from second moments of what they multiply, without training.

Weights are [K, N], H the covariance of their rows; the error of a layer's results is tr(E.T @ H @ E) for an error E.
Sources: magnitude; Wanda (arXiv 2306.11695); SparseGPT (arXiv 2301.00774); OBC (arXiv 2208.11580) with an inverse that
the columns of a block share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from planish.passes.sparse.masks import Structure

_BLOCK = 128  # rows that SparseGPT decides on at a time
_DAMPING = 0.01  # of the mean variance
_GREEDY = 1024  # rows up to which blocks are taken out one by one


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
    if structure.fixed or structure.rows > 1 or len(w) > _GREEDY:
        return refitted(sparse_gpt(w, h, structure, density), w, h)
    inverse, result = np.linalg.inv(h), np.empty_like(w)
    away = len(w) - max(1, round(density * len(w)))
    for start in range(0, w.shape[1], structure.columns):
        result[:, start : start + structure.columns] = _without(w[:, start : start + structure.columns], inverse, away)
    return result


def _without(v: np.ndarray, inverse: np.ndarray, away: int) -> np.ndarray:
    """Columns [K, C] without `away` of their rows, the rest fitted."""
    v, p = v.copy(), inverse.copy()
    gone = np.zeros(len(v), np.bool_)
    for _ in range(away):
        harm = np.where(gone, np.inf, np.sum(v**2, axis=1) / np.maximum(np.diag(p), 1e-300))
        k = int(np.argmin(harm))
        v -= np.outer(p[:, k] / p[k, k], v[k])
        p -= np.outer(p[:, k] / p[k, k], p[k])
        gone[k] = True
        v[gone] = 0.0
    return v


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
