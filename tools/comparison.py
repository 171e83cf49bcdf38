"""How far two values are apart: statistics that add up over a stream of feeds, and the verdict on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tolerance:
    """What counts as equal for floats; integers, booleans and strings must always be the same.

    Without `min_sqnr_db`, for each element: |difference| <= atol * max(1, RMS of the original) + rtol * |original|;
    both zero means the same bits (a NaN equals a NaN). With it, the SQNR over all feeds decides instead.
    """

    atol: float = 0.0
    rtol: float = 0.0
    min_sqnr_db: float | None = None

    def __str__(self) -> str:
        if self.min_sqnr_db is not None:
            return f"SQNR {self.min_sqnr_db:g} dB"
        return f"atol {self.atol:.3g}, rtol {self.rtol:.3g}" if self.atol or self.rtol else "bit for bit"


EXACT = Tolerance()
ROUNDING = Tolerance(atol=1e-4, rtol=1e-4)


@dataclass
class Difference:
    """Running statistics of one output over all feeds; changed only by `add`."""

    tolerance: Tolerance
    dtype: str = ""
    shape: tuple[int, ...] = ()
    problem: str = ""
    elements: int = 0
    over_tolerance: int = 0
    nan_mismatches: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    needed_atol: float = 0.0
    is_float: bool = False
    rows: int = 0
    same_top1: int = 0
    hits: list[int] = field(default_factory=lambda: [0, 0])
    _sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])

    def add(self, original: Any, artifact: Any, labels: np.ndarray | None = None) -> float:
        """Take in one pair of values; returns how bad it is (0 = same), to find the worst feed.

        Values are arrays, lists of values (sequences), dicts (maps), or None (absent optionals).
        """
        if isinstance(original, (list, tuple)) and isinstance(artifact, (list, tuple)):
            if len(original) != len(artifact):
                return self._mismatch(f"a sequence of {len(artifact)} instead of {len(original)} elements")
            return max((self.add(a, b) for a, b in zip(original, artifact, strict=True)), default=0.0)
        if isinstance(original, np.ndarray) and isinstance(artifact, np.ndarray):
            return self._add_arrays(original, artifact, labels)
        if type(original) is not type(artifact):
            return self._mismatch(f"{type(artifact).__name__} instead of {type(original).__name__}")
        self.elements += 1
        if isinstance(original, dict):
            if list(original) != list(artifact):
                return self._mismatch("a map with other keys")
            return self.add([np.asarray(v) for v in original.values()], [np.asarray(v) for v in artifact.values()])
        return 0.0 if original == artifact else self._mismatch(f"{artifact!r} instead of {original!r}")

    @property
    def cosine(self) -> float:
        """Cosine of the angle between all values; 1 where both are zero."""
        _, original, artifact, product = self._sums
        if original == 0 or artifact == 0:
            return 1.0 if original == artifact else 0.0
        return product / math.sqrt(original * artifact)

    @property
    def sqnr_db(self) -> float:
        """10 log10(energy of the original / energy of the difference); infinite where they are equal."""
        error, original = self._sums[:2]
        if error == 0:
            return math.inf
        return 10 * math.log10(original / error) if original else -math.inf

    @property
    def passed(self) -> bool:
        if self.problem or self.nan_mismatches:
            return False
        if self.is_float and self.tolerance.min_sqnr_db is not None:
            return self.sqnr_db >= self.tolerance.min_sqnr_db
        return self.over_tolerance == 0

    def _mismatch(self, problem: str) -> float:
        self.problem = self.problem or problem
        return math.inf

    def _add_arrays(self, original: np.ndarray, artifact: np.ndarray, labels: np.ndarray | None) -> float:
        self.dtype, self.shape = original.dtype.name, self.shape or original.shape
        if original.dtype != artifact.dtype:
            return self._mismatch(f"dtype {artifact.dtype} instead of {original.dtype}")
        if original.shape != artifact.shape:
            return self._mismatch(f"shape {artifact.shape} instead of {original.shape}")
        self.elements += original.size
        self.is_float = is_inexact(original.dtype)
        if not self.is_float:
            different = int(np.count_nonzero(original != artifact))
            self.over_tolerance += different
            return float(different)
        self._count_top1(original, artifact, labels)
        return self._add_floats(original, artifact)

    def _add_floats(self, original: np.ndarray, artifact: np.ndarray) -> float:
        wide = np.complex128 if original.dtype.kind == "c" else np.float64
        a, b = original.astype(wide).ravel(), artifact.astype(wide).ravel()
        nans = np.isnan(a) != np.isnan(b)
        infinite = ~nans & ~np.isnan(a) & (np.isinf(a) | np.isinf(b))
        wrong_infinity = infinite & (a != b)
        self.nan_mismatches += int(nans.sum() + wrong_infinity.sum())
        finite = np.isfinite(a) & np.isfinite(b)
        a, b = a[finite], b[finite]
        error, size = np.abs(b - a), np.abs(a)
        energy = float(np.sum(size * size))
        rms = math.sqrt(energy / size.size) if size.size else 0.0
        scale = max(1.0, rms)
        allowed = self.tolerance.atol * scale + self.tolerance.rtol * size
        bitwise = self.tolerance.atol == self.tolerance.rtol == 0
        wrong = _other_bits(a, b) if bitwise else error > allowed
        self.over_tolerance += int(np.count_nonzero(wrong))
        if size.size:
            self.max_abs = max(self.max_abs, float(error.max()))
            floor = np.maximum(size, max(rms, np.finfo(np.float64).tiny))
            self.max_rel = max(self.max_rel, float((error / floor).max()))
            self.needed_atol = max(self.needed_atol, float((error - self.tolerance.rtol * size).max()) / scale)
        product = float(np.sum((np.conj(a) * b).real))
        step = (float(np.sum(error * error)), energy, float(np.sum(np.abs(b) ** 2)), product)
        self._sums = [old + new for old, new in zip(self._sums, step, strict=True)]
        worst = float(error.max()) / scale if size.size else 0.0
        return math.inf if nans.any() or wrong_infinity.any() else worst

    def _count_top1(self, original: np.ndarray, artifact: np.ndarray, labels: np.ndarray | None) -> None:
        if original.ndim != 2 or original.shape[1] < 2 or original.dtype.kind == "c":
            return
        first, second = original.argmax(axis=1), artifact.argmax(axis=1)
        self.rows += len(first)
        self.same_top1 += int(np.count_nonzero(first == second))
        if labels is not None and len(labels) == len(first):
            self.hits[0] += int(np.count_nonzero(first == labels))
            self.hits[1] += int(np.count_nonzero(second == labels))


def is_inexact(dtype: np.dtype) -> bool:
    """Whether values of this dtype are rounded: floats, complex numbers, bfloat16 and the smaller floats."""
    return dtype.kind in "fc" or dtype.name.startswith(("bfloat", "float"))


def _other_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "c":
        return (a != b) | (np.signbit(a.real) != np.signbit(b.real)) | (np.signbit(a.imag) != np.signbit(b.imag))
    return (a != b) | (np.signbit(a) != np.signbit(b))
