"""Neurons that a ReLU makes 0 for sure, found with an int8 copy of their weights: bounds that no rounding breaks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LEVELS = 127  # of a weight, to either side
MOST_LEVELS = 32767  # of an input, to either side
MOST_INPUTS = 1 << 15  # of a neuron, so that sums of products have 32 bits, and inputs 8 bits at least
UNIT = 2.0**-24  # by which an operation of float32 is off at most, relative
LEAST, MOST = 1e-15, 1e15  # inputs beyond are not screened: squares would leave the range of float32
_SPARE = 128  # operations of float32 besides those of a sum
_NUDGE = 1 + 64 * UNIT  # for the few operations on a bound itself
_HALF = 0.53  # of a step of the inputs: half of it, and what quantizing in float32 adds


@dataclass(frozen=True)
class Screen:
    """What bounds the sums w_j . x + b_j of F neurons with K inputs from above, for the law and for kernels.

    With w_j = steps_j * codes_j + e_j and x = step * z + d for integers z, the sum is at most
    steps_j * step * (codes_j . z) + b_j + min(||e_j||_2 ||x||_2, ||e_j||_inf ||x||_1) + ||w_j - e_j||_2 ||d||_2,
    by the inequalities of Cauchy-Schwarz and Hoelder. Each term is rounded up, and what float32 may be off by in any
    order of summation is added: for the sum itself, at most (K + 128) * 2**-24 * ||w_j||_2 ||x||_2.

    codes: int8[F, K]. steps, offsets, spreads, worsts, norms: float32[F], of the terms above. levels: z is at most.
    """

    codes: np.ndarray
    steps: np.ndarray
    offsets: np.ndarray
    spreads: np.ndarray
    worsts: np.ndarray
    norms: np.ndarray
    levels: int

    @property
    def rounding(self) -> float:
        """Bound of what a sum in float32 is off by, over ||w_j||_2 ||x||_2."""
        return float(up((self.codes.shape[1] + _SPARE) * UNIT))

    @property
    def slack(self) -> float:
        """By what a norm in float32 is multiplied to be at least the true one."""
        return float(up(1 + (self.codes.shape[1] + _SPARE) * UNIT))

    @property
    def coarse(self) -> float:
        """Bound of ||d||_2 over the step of the inputs."""
        return float(up(_HALF * math.sqrt(self.codes.shape[1])))

    def proves(self, x: np.ndarray) -> np.ndarray:
        """bool[T, F]: neurons whose sum, computed in float32 in any order, is at most 0 for rows x, float32[T, K]."""
        with np.errstate(all="ignore"):
            size = np.abs(x)
            greatest = size.max(axis=1, initial=0)
            two = np.asarray(np.sqrt(np.sum(x * x, axis=1, dtype=np.float32)) * self.slack)
            one = np.asarray(np.sum(size, axis=1, dtype=np.float32) * self.slack)
            step = greatest * np.float32(1 / self.levels)
            usable = (greatest > LEAST) & (two < MOST)
            codes = np.rint(x * (np.float32(self.levels) / greatest)[:, None])
            codes = np.clip(np.nan_to_num(codes), -self.levels, self.levels)
            sums = codes.astype(np.float64) @ self.codes.T.astype(np.float64)  # exact, and fast
            term = (sums.astype(np.float32) * step[:, None]) * self.steps + self.offsets
            radius = np.minimum(self.spreads * two[:, None], self.worsts * one[:, None])
            noise = self.norms * (self.rounding * two + self.coarse * step)[:, None]
            return np.asarray((term + radius + noise <= 0) & usable[:, None])


def screen(weights: np.ndarray, bias: np.ndarray | None) -> Screen:
    """The screen of a layer by float32 weights [F, K], a neuron a row, with bias [F].

    Neurons with numbers beyond the range that is provided for are never proved to be 0.
    """
    count, depth = weights.shape
    w = weights.astype(np.float64)
    b = np.zeros(count) if bias is None else bias.astype(np.float64)
    with np.errstate(all="ignore"):
        fine = (
            (depth <= MOST_INPUTS)
            & np.isfinite(w).all(axis=1)
            & (np.linalg.norm(w, axis=1) < MOST)
            & (np.abs(b) < MOST)
        )
    w, b = np.where(fine[:, None], w, 0.0), np.where(fine, b, 0.0)
    greatest = np.abs(w).max(axis=1, initial=0)
    steps = np.where(greatest > 1e-30, greatest / LEVELS, 0.0).astype(np.float32)
    codes = np.rint(w / np.where(steps > 0, steps, 1.0)[:, None].astype(np.float64))
    codes = np.where(steps[:, None] > 0, np.clip(codes, -LEVELS, LEVELS), 0.0)
    errors = w - codes * steps[:, None].astype(np.float64)
    spreads, norms = np.linalg.norm(errors, axis=1), np.linalg.norm(w, axis=1)
    lost = depth * (1e-22 + 2.0**-120 * greatest)  # by results too small for float32, or taken to be 0
    offsets = np.where(fine, b + np.abs(b) * (_NUDGE - 1) + lost, np.inf)
    return Screen(
        codes.astype(np.int8),
        steps,
        up(offsets),
        up(spreads * _NUDGE),
        up(np.abs(errors).max(axis=1, initial=0) * _NUDGE),
        up((norms + spreads) * _NUDGE),
        min(MOST_LEVELS, (2**31 - 1) // (LEVELS * max(depth, 1)) - 255),  # 255: low bytes are summed for themselves
    )


def up(value: np.ndarray | float) -> np.ndarray:
    """As float32, not less."""
    wide = np.asarray(value, np.float64)
    narrow = wide.astype(np.float32)
    return np.asarray(np.where(narrow < wide, np.nextafter(narrow, np.float32(np.inf)), narrow), np.float32)[()]
