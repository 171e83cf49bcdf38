"""Weights as a sparse core between two block-diagonal matrices, fitted in closed form to second moments.

w[K, N] ~ before @ core @ after: the factors, block-diagonal with blocks of b x b, are dense and cheap, the core has the
structure. The error of the results is tr(E.T @ H @ E) with E = w - before @ core @ after and H the covariance of what
the weights multiply: a quadratic of each factor alone, so that each is solved for while the others stay. No step can
make the error greater. Source: ARMOR (arXiv 2510.05528), which takes the diagonal of H, and gradient steps for the
factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np

from planish.passes.sparse.masks import Structure
from planish.passes.sparse.pruning import block_obs, error_of, refitted

_RIDGE = 1e-9  # of the mean diagonal, in each system of equations; the step gets shorter, never longer
_SWEEPS = 30  # over all factors
_ENOUGH = 3e-3  # share of the error that a sweep has to take off for another one
_CHOSEN_ANEW = 5  # sweeps after which zeros are chosen anew, where that isn't done row by row
_PAIRS = np.array(list(combinations(range(4), 2)))


@dataclass(frozen=True)
class Armor:
    """The factors: before float64[K / b, b, b], core float64[K, N], after float64[N / b, b, b].

    losses: the error after the start and after each step of each sweep: before, after, core.
    """

    before: np.ndarray
    core: np.ndarray
    after: np.ndarray
    losses: Sequence[float]

    @property
    def product(self) -> np.ndarray:
        """The weights that these stand for: float64[K, N]."""
        return across(left(self.before, self.core), self.after)


def extra_share(shape: tuple[int, int], block: int) -> float:
    """Products of numbers that the factors cost, over those of dense weights of that shape."""
    return block * (shape[0] + shape[1]) / (shape[0] * shape[1])


def armored(
    w: np.ndarray, h: np.ndarray, structure: Structure, density: float, block: int, start: np.ndarray | None = None
) -> Armor:
    """Factors for weights [K, N], by a positive definite H [K, K]; b = `block` divides K and N.

    The core starts with `start`, or with block OBS, between factors of 1, and so never errs more than these.
    """
    if start is None:
        start = block_obs(w, h, structure, density)
    fit = _Fit(w, h, structure, density, block, start)
    losses = [fit.loss]
    for sweep in range(_SWEEPS):
        for step in (fit.solve_before, fit.solve_after, partial(fit.solve_core, sweep % _CHOSEN_ANEW == 0)):
            step()
            losses.append(fit.loss)
        if losses[-1] > (1 - _ENOUGH) * losses[-4]:
            break
    return Armor(fit.before, fit.core, fit.after, tuple(losses))


class _Fit:
    """The factors while they are fitted. Columns of `after`'s blocks never meet: they are fitted side by side."""

    def __init__(
        self, w: np.ndarray, h: np.ndarray, structure: Structure, density: float, block: int, start: np.ndarray
    ):
        self.w, self.h, self.structure, self.density, self.block = w, h, structure, density, block
        self.before, self.after = (np.tile(np.eye(block), (size // block, 1, 1)) for size in w.shape)
        self.core = start.copy()

    @property
    def loss(self) -> float:
        return error_of(across(left(self.before, self.core), self.after), self.w, self.h)

    def solve_before(self) -> None:
        """One block after the other: each is the least-squares solution while the others stay."""
        b = self.block
        reads = across(self.core, self.after)
        gram = reads @ reads.T
        wrong = self.h @ (self.w - left(self.before, reads)) @ reads.T
        for i in range(len(self.before)):
            rows = slice(i * b, i * b + b)
            step = np.linalg.solve(self.h[rows, rows], wrong[rows, rows])
            step = np.linalg.solve(_ridged(gram[rows, rows]), step.T).T
            self.before[i] += step
            wrong -= (self.h[:, rows] @ step) @ gram[rows]

    def solve_after(self) -> None:
        """All blocks at once, each the least-squares solution."""
        made = _columns(left(self.before, self.core), self.block)  # [N / b, K, b]
        weighed = np.swapaxes(self.h @ made, 1, 2)
        wrong = _columns(self.w, self.block) - made @ self.after
        self.after += np.linalg.solve(_ridged(weighed @ made), weighed @ wrong)

    def solve_core(self, anew: bool) -> None:
        """Column by column of each block of `after`, or by columns that share their zeros.

        With the rest as it is, what such columns should be is known, and so is what an error there costs: the kept ones
        are fitted. Zeros are chosen before, in 2:4 a pair for each four rows, else by block OBS if `anew`.
        """
        g = blockwise(self.before, self.h)
        inverse, wide = np.linalg.inv(g), self.structure.columns
        squares = self.after @ np.swapaxes(self.after, 1, 2)  # [N / b, b, b]
        core = _columns(self.core, self.block)  # [N / b, K, b]
        residual = _columns(self.w - across(left(self.before, self.core), self.after), self.block)
        slopes = left(np.swapaxes(self.before, 1, 2), self.h @ _joined(residual))
        slope = _columns(slopes, self.block) @ np.swapaxes(self.after, 1, 2)  # [N / b, K, b]
        for first in range(0, self.block, wide):
            place = slice(first, first + wide)
            values, vectors = np.linalg.eigh(_ridged(squares[:, place, place]))
            root = (vectors * np.sqrt(values)[:, None, :]) @ np.swapaxes(vectors, 1, 2)  # [N / b, wide, wide]
            now = core[:, :, place] @ root
            ideal = now + inverse @ (slope[:, :, place] @ np.linalg.inv(root))
            found = self._pruned(now, ideal, g, anew)
            change = found @ np.linalg.inv(root) - core[:, :, place]
            slope -= (g @ change) @ squares[:, place, :]
            core[:, :, place] += change
        self.core = _joined(core)

    def _pruned(self, now: np.ndarray, ideal: np.ndarray, g: np.ndarray, anew: bool) -> np.ndarray:
        """Columns [N / b, K, C] in the structure that are no farther from the ideal ones than `now`."""
        if self.structure.name == "2:4":
            now = _pairs(now[:, :, 0], ideal[:, :, 0], g)[:, :, None]
        options = [refitted(_joined(now), _joined(ideal), g)]
        if anew and self.structure.name != "2:4":
            options.append(block_obs(_joined(ideal), g, self.structure, self.density))
        best = now
        for option in (_columns(option, now.shape[2]) for option in options):
            errors = [np.einsum("jkc,jkc->j", e, g @ e) for e in (option - ideal, best - ideal)]
            best = np.where((errors[0] < errors[1])[:, None, None], option, best)
        return best


def _pairs(now: np.ndarray, ideal: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Columns [J, K] in 2:4, four rows after four: of the six pairs, the one that errs least, at its best values."""
    now, count = now.copy(), np.arange(len(now))[:, None]
    slope = (ideal - now) @ g
    for first in range(0, g.shape[0] - g.shape[0] % 4, 4):
        rows = slice(first, first + 4)
        block, old = g[rows, rows], now[:, rows].copy()
        chosen = (slope[:, rows] + old @ block)[:, _PAIRS]  # [J, 6, 2]
        values = np.einsum("jpa,pab->jpb", chosen, np.linalg.inv(block[_PAIRS[:, :, None], _PAIRS[:, None, :]]))
        best = np.argmax(np.sum(values * chosen, axis=2), axis=1)
        now[:, rows] = 0.0
        now[count, first + _PAIRS[best]] = values[count[:, 0], best]
        slope -= (now[:, rows] - old) @ g[rows]
    return now


def left(blocks: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """diag(blocks) @ matrix, for blocks [K / b, b, b] and a matrix [K, N]."""
    count, b, _ = blocks.shape
    return np.asarray(blocks @ matrix.reshape(count, b, -1)).reshape(matrix.shape)


def across(matrix: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """matrix @ diag(blocks), for a matrix [K, N] and blocks [N / b, b, b]."""
    return _joined(_columns(matrix, blocks.shape[1]) @ blocks)


def blockwise(blocks: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """diag(blocks).T @ matrix @ diag(blocks): the moments of what the core reads."""
    turned = np.swapaxes(blocks, 1, 2)
    found = across(left(turned, matrix), blocks)
    return (found + found.T) / 2


def _columns(matrix: np.ndarray, b: int) -> np.ndarray:
    """[K, N] as [N / b, K, b]."""
    return np.swapaxes(matrix.reshape(len(matrix), -1, b), 0, 1)


def _joined(columns: np.ndarray) -> np.ndarray:
    """[N / b, K, b] as [K, N]."""
    return np.swapaxes(columns, 0, 1).reshape(columns.shape[1], -1)


def _ridged(gram: np.ndarray) -> np.ndarray:
    """Symmetric positive matrices [.., b, b], invertible."""
    size = gram.shape[-1]
    level = np.trace(gram, axis1=-2, axis2=-1)[..., None, None] / size
    return np.asarray(gram + (_RIDGE * level + 1e-30) * np.eye(size))
