"""Binary coding: a few weights as sums of +-a_1 +- a_2 .., with levels of their own.

Source: BCQ as in ShiftAddLLM (arXiv 2406.05981), section 4.1: greedy start, then levels by least squares and signs by
the nearest sum in turn; levels are sums of at most three powers of two (APoT).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

from planish.ir import signed_digits

_ROUNDS = 12
_TERMS = 3  # powers of two in a level: with one, 2 to 7 dB are lost
_LEVELS = np.flatnonzero(signed_digits.count(np.arange(128)) <= _TERMS)
_NEAREST = _LEVELS[np.searchsorted((_LEVELS[1:] + _LEVELS[:-1]) / 2, np.arange(128))]
_MOST = 127


def levels_of(x: np.ndarray, planes: int) -> np.ndarray:
    """Levels for each column of x [R, N]: int64[planes, N], at least 0, with a sum of at most 127."""
    signs, alphas = _greedy(x, planes)
    choices = _choices(planes)
    for _ in range(_ROUNDS):
        sums = choices @ alphas  # [2**planes, N]
        signs = choices[np.argmin(np.abs(x[None] - sums[:, None]), axis=0)]  # [R, N, planes]
        square = np.einsum("rnp,rnq->npq", signs, signs) + 1e-6 * np.eye(planes)
        alphas = np.abs(np.linalg.solve(square, np.einsum("rnp,rn->np", signs, x)[..., None])[..., 0]).T
    alphas = -np.sort(-alphas, axis=0)
    alphas = alphas * np.minimum(1, _MOST / np.maximum(alphas.sum(axis=0), 1e-12))
    whole = _NEAREST[np.clip(np.rint(alphas), 0, _MOST).astype(np.int64)]
    while np.any(above := whole.sum(axis=0) > _MOST):
        whole[0, above] = _LEVELS[np.searchsorted(_LEVELS, whole[0, above]) - 1]
    return np.asarray(whole)


def nearest_level(alphas: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What rounds a row x [N] to the nearest sums of +-alphas [planes, N]: int8[N]."""
    sums = (_choices(len(alphas)) @ alphas).astype(np.int64)  # [2**planes, N]
    columns = np.arange(sums.shape[1])

    def rounded(x: np.ndarray) -> np.ndarray:
        return sums[np.argmin(np.abs(x[None] - sums), axis=0), columns].astype(np.int8)

    return rounded


def _choices(planes: int) -> np.ndarray:
    return np.array(list(product((1, -1), repeat=planes)), np.float64)


def _greedy(x: np.ndarray, planes: int) -> tuple[np.ndarray, np.ndarray]:
    rest, signs, alphas = x.copy(), [], []
    for _ in range(planes):
        signs.append(np.where(rest < 0, -1.0, 1.0))
        alphas.append(np.mean(np.abs(rest), axis=0))
        rest = rest - signs[-1] * alphas[-1]
    return np.stack(signs, axis=-1), np.stack(alphas)
