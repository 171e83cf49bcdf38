"""Linear maps that stand for a norm: least squares from its input to its result, over tokens of sample inputs.

Any map that is the same for all tokens misses what tokens differ in: with s the deviation of a token's channels, the
least relative error is about the squared coefficient of variation of s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.passes.raising.weights import Affine

RIDGE = 1e-2  # of the mean variance of a channel, added to every one: 1e-3 errs more on tokens not fitted on


@dataclass(frozen=True)
class Deviations:
    """How the tokens that a norm reads differ, which predicts how well a linear map can stand for it.

    variation: standard deviation over mean of the tokens' deviations. peak: largest over median. drift: deviation of
    the tokens' means over their mean deviation.
    """

    variation: float
    peak: float
    drift: float

    def warning(self) -> str:
        """What makes this norm hard to replace, "" if nothing does."""
        if self.peak > 3:
            return f"some tokens deviate {self.peak:.1f} times as much as the median one"
        return f"deviations of tokens vary by {100 * self.variation:.0f} %" if self.variation > 0.2 else ""


class Fit:
    """Sums over tokens for the least squares of y[C] on x[C], in float64."""

    def __init__(self, channels: int):
        self.count = 0
        self.x, self.y, self.yy = np.zeros(channels), np.zeros(channels), np.zeros(channels)
        self.xx, self.xy = np.zeros((channels, channels)), np.zeros((channels, channels))
        self._deviations: list[np.ndarray] = []
        self._means: list[np.ndarray] = []

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take in tokens x[..., C] and what the norm makes of them, y[..., C]."""
        x, y = (a.reshape(-1, a.shape[-1]).astype(np.float64) for a in (x, y))
        self.count += len(x)
        self.x += x.sum(axis=0)
        self.y += y.sum(axis=0)
        self.yy += np.einsum("nc,nc->c", y, y)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self._deviations.append(x.std(axis=1))
        self._means.append(x.mean(axis=1))

    def deviations(self) -> Deviations:
        """What the tokens are like."""
        s, m = np.concatenate(self._deviations), np.concatenate(self._means)
        mean = max(float(s.mean()), 1e-30)
        return Deviations(
            float(s.std()) / mean, float(s.max()) / max(float(np.median(s)), 1e-30), float(m.std()) / mean
        )

    def diagonal(self) -> Affine:
        """a * x + d, channel by channel: a = cov(x, y) / var(x), d = mean(y) - a mean(x)."""
        mean_x, mean_y = self.x / self.count, self.y / self.count
        variance = np.diag(self.xx) / self.count - mean_x**2
        covariance = np.diag(self.xy) / self.count - mean_x * mean_y
        factor = covariance / np.maximum(variance, 1e-12 * max(float(variance.mean()), 1e-30))
        return Affine(factor, mean_y - factor * mean_x)

    def full(self) -> Affine:
        """x A + d: A = (Sxx + lambda I)^-1 Sxy. Best for every linear layer behind it at once, which takes it in."""
        mean_x, mean_y = self.x / self.count, self.y / self.count
        sxx = self.xx / self.count - np.outer(mean_x, mean_x)
        sxy = self.xy / self.count - np.outer(mean_x, mean_y)
        ridge = RIDGE * float(np.trace(sxx)) / len(sxx)
        matrix = np.linalg.solve(sxx + max(ridge, 1e-30) * np.eye(len(sxx)), sxy)
        return Affine(matrix, mean_y - mean_x @ matrix)

    def error(self, affine: Affine) -> float:
        """Energy of y - affine(x) over the variance of y, on the tokens seen."""
        mean_x, mean_y = self.x / self.count, self.y / self.count
        matrix = np.diag(affine.factor) if affine.factor.ndim == 1 else affine.factor
        sxx = self.xx / self.count - np.outer(mean_x, mean_x)
        sxy = self.xy / self.count - np.outer(mean_x, mean_y)
        variance = self.yy / self.count - mean_y**2
        offset = mean_y - mean_x @ matrix - affine.shift
        rest = variance - 2 * np.einsum("ij,ij->j", matrix, sxy) + np.einsum("ij,ik,kj->j", matrix, sxx, matrix)
        return float(np.sum(rest + offset**2)) / max(float(np.sum(variance)), 1e-30)
