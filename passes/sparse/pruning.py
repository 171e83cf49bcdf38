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
_AT_ONCE = 64  # of the rows that are left, one at a time goes
_SHARED = 0.1  # squared correlation from which on two rows stand for each other


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
    """Row by row; rows still to come make good what vanishes. Each block of rows chooses when it is reached.

    In 2:4 that is each four, as they then are.
    """
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    rest, result = w.copy(), np.zeros_like(w)
    block = 4 if structure.fixed else _BLOCK
    for start in range(0, len(w), block):
        stop = min(start + block, len(w))
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

    Columns that share their zeros share the inverse. Layers of more than 1,024 rows take the better one of Wanda's and
    SparseGPT's zeros, and the fit, instead.
    """
    return block_obs_path(w, h, structure, (density,))[0]


def block_obs_path(w: np.ndarray, h: np.ndarray, structure: Structure, densities: Sequence[float]) -> list[np.ndarray]:
    """What `block_obs` gives for several densities, met on one way."""
    if len(w) > _GREEDY:
        return [_better_of_two(w, h, structure, density) for density in densities]
    missing = -len(w) % structure.rows
    v = np.pad(w, ((0, missing), (0, 0)))
    inverse = np.eye(len(v))
    inverse[: len(w), : len(w)] = np.linalg.inv(h)
    count = len(v) // structure.rows
    away = [len(w) if structure.fixed else count - max(1, round(density * count)) for density in densities]
    result = [np.empty_like(w) for _ in densities]
    for start in range(0, w.shape[1], structure.columns):
        columns = slice(start, start + structure.columns)
        found = _without(v[:, columns], inverse, set(away), structure.rows, most=2 if structure.fixed else 4)
        for made, number in zip(result, away, strict=True):
            made[:, columns] = found[number][: len(w)]
    return result


def _better_of_two(w: np.ndarray, h: np.ndarray, structure: Structure, density: float) -> np.ndarray:
    found = [refitted(method(w, h, structure, density), w, h) for method in (wanda, sparse_gpt)]
    return min(found, key=lambda one: error_of(one, w, h))


def _without(v: np.ndarray, inverse: np.ndarray, counts: set[int], rows: int, most: int) -> dict[int, np.ndarray]:
    """Columns [K, C] without so many blocks of so many rows, the rest fitted, by count.

    No four rows lose more than `most`: counts that can't be reached get what is left then. Where many rows are left,
    some vanish in one step: those of the least harm that hardly stand for each other.
    """
    found: dict[int, np.ndarray] = {}
    shape, alive, v, p, gone = v.shape, np.arange(len(v)), v.copy(), inverse.copy(), 0
    lost = np.zeros(-(-len(v) // 4), np.int64)
    lost[-1] += -len(v) % 4  # rows that a last, shorter four doesn't have
    for count in sorted(counts):
        while gone < count:
            harm = _harm(v, p, rows)
            if most < 4:
                harm[lost[alive // 4] >= most] = np.inf
            at_once = min(count - gone, len(v) // _AT_ONCE if rows == 1 else 1)
            blocks = (
                _least(harm, p, at_once, alive // 4 if most < 4 else alive) if at_once > 1 else [int(np.argmin(harm))]
            )
            if np.isinf(harm[blocks[0]]):
                break
            out = np.concatenate([np.arange(k * rows, k * rows + rows) for k in blocks])
            step = p[out] / p[out, out] if len(out) == 1 else np.linalg.solve(p[np.ix_(out, out)], p[out])
            v -= step.T @ v[out]
            p -= step.T @ p[out]
            lost[alive[out] // 4] += 1
            gone += len(blocks)
            for k in sorted(blocks, reverse=True):  # the last block moves to where one vanished
                here, last = slice(k * rows, k * rows + rows), slice(len(v) - rows, len(v))
                v[here], alive[here], p[here], p[:, here] = v[last], alive[last], p[last], p[:, last]
                v, alive, p = v[: last.start], alive[: last.start], p[: last.start, : last.start]
        found[count] = np.zeros(shape)
        found[count][alive] = v
    return found


def _harm(v: np.ndarray, p: np.ndarray, rows: int) -> np.ndarray:
    """By how much the error grows without each block of rows, if the others make it good."""
    if rows == 1:
        return np.asarray(np.sum(v * v, axis=1) / np.diag(p))
    count = len(v) // rows
    squares = p.reshape(count, rows, count, rows)[np.arange(count), :, np.arange(count)]
    parts = v.reshape(count, rows, -1)
    return np.asarray(np.sum(parts * np.linalg.solve(squares, parts), axis=(1, 2)))


def _least(harm: np.ndarray, p: np.ndarray, count: int, family: np.ndarray) -> list[int]:
    """Up to `count` rows of the least harm, without those that share much, or their family, with one before them."""
    order = np.argsort(harm, kind="stable")[:count]
    shared = p[np.ix_(order, order)] ** 2 / np.outer(np.diag(p)[order], np.diag(p)[order])
    shared[np.equal.outer(family[order], family[order]) | np.isinf(harm[order])] = 1.0
    return [int(order[0]), *(int(k) for k in order[1:][np.max(np.tril(shared, -1), axis=1)[1:] < _SHARED])]


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
