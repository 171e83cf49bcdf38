"""Codebooks: the integers that weights may be, so that a product with one is a few shifts and additions.

A codebook is named in the quantization of a tensor of dtype i8 (`Quant.codebook`). It says which codes occur, in how
many bits they can be stored, and of how many signed powers of two each one is the sum. It changes no result: the
product of codes is that of any other 8-bit codes, so that every backend computes it as it always does.

Sources: APoT (Li et al. 2020, arXiv 1909.13144), section 2; DeepShift (arXiv 1905.13298) for one power of two;
binary-coded weights as in ShiftAddLLM (arXiv 2406.05981), section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from planish.ir import signed_digits

GROUP = 32
"""Rows of a column that share the levels of a binary-coded book."""


@dataclass(frozen=True)
class Codebook:
    """Codes that weights may have.

    bits: of a stored code. magnitudes: absolute values of the codes, ascending, 0 among them; every sign of them occurs
    but for -0. Empty for a binary-coded book, in which each group of `GROUP` rows of a column has 2**(bits - 1)
    magnitudes of its own, those of all sums of +-a with `bits` integers a; they are stored in a byte each.
    summary: for people who choose one.
    """

    name: str
    bits: int
    magnitudes: tuple[int, ...]
    summary: str

    @property
    def is_binary_coded(self) -> bool:
        return not self.magnitudes

    @cached_property
    def values(self) -> tuple[int, ...] | None:
        """All codes, ascending; None for a binary-coded book."""
        if self.is_binary_coded:
            return None
        return (*(-m for m in reversed(self.magnitudes) if m), *self.magnitudes)

    @property
    def terms(self) -> int:
        """The most signed powers of two that one code is the sum of."""
        return int(np.max(signed_digits.count(np.asarray(self.values or (_WIDEST,)))))

    def fault(self, codes: np.ndarray, axis: int | None) -> str:
        """What is wrong with codes that should be of this book, "" if nothing. axis: of the scales, or None.

        A binary-coded book is held to the number of different magnitudes in each group, 2**(bits - 1).
        """
        if self.values is not None:
            strange = np.setdiff1d(codes, np.asarray(self.values))
            return f"{int(strange[0])} isn't in codebook {self.name}" if strange.size else ""
        for group in groups(codes, 0 if axis is None else axis):
            ordered = np.sort(np.abs(group.astype(np.int64)), axis=1)
            levels = 1 + np.max(np.sum(np.diff(ordered, axis=1) > 0, axis=1), initial=0)
            if levels > self.levels:
                return f"a group has {levels} different magnitudes; {self.name} has {self.levels}"
        return ""

    def stored_bits(self, shape: tuple[int, ...], axis: int | None) -> int:
        """Bits that codes of this shape take, with the levels of groups, without scales."""
        count = int(np.prod(shape))
        if not self.is_binary_coded:
            return count * self.bits
        channels = 1 if axis is None else shape[axis]
        return count * self.bits + channels * -(-count // channels // GROUP) * self.levels * 8

    @property
    def levels(self) -> int:
        """Magnitudes of a group of a binary-coded book."""
        return 1 << (self.bits - 1)


def groups(codes: np.ndarray, axis: int) -> Iterator[np.ndarray]:
    """The groups of a binary-coded book: [channels, at most GROUP] each, in order."""
    rows = np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)
    for start in range(0, rows.shape[1], GROUP):
        yield rows[:, start : start + GROUP]


_WIDEST = 85  # 1010101b: four digits, as many as any


def _sums(*terms: tuple[int, ...]) -> tuple[int, ...]:
    """All sums of one number of each term."""
    return tuple(sorted({sum(chosen) for chosen in product(*terms)}))


CODEBOOKS: Mapping[str, Codebook] = {
    book.name: book
    for book in (
        Codebook(
            "csd2", 8, tuple(int(m) for m in np.flatnonzero(signed_digits.count(np.arange(128)) <= 2)),
            "8-bit integers of at most two signed digits: nearly lossless",
        ),
        Codebook("apot6", 6, _sums((0, 2, 16, 64), (0, 1, 8, 32), (0, 4)), "6 bits, three powers of two"),
        Codebook("apot5", 5, _sums((0, 2, 8, 32), (0, 1, 4, 16)), "5 bits, two powers of two"),
        Codebook("apot4", 4, _sums((0, 1, 4, 8), (0, 2)), "4 bits, two powers of two"),
        Codebook("int4", 4, tuple(range(8)), "4 bits, evenly spaced: what ONNX Runtime's MatMulNBits takes"),
        Codebook("pot4", 4, (0, 1, 2, 4, 8, 16, 32, 64), "4 bits, a single power of two: a shift is all it takes"),
        Codebook("ternary", 2, (0, 1), "2 bits, -1, 0 or 1: needs training"),
        Codebook("bcq4", 4, (), f"4 bits, binary-coded: own levels for each group of {GROUP} rows"),
        Codebook("bcq3", 3, (), f"3 bits, binary-coded: own levels for each group of {GROUP} rows"),
        Codebook("bcq2", 2, (), f"2 bits, binary-coded: own levels for each group of {GROUP} rows"),
    )
}  # fmt: skip
"""By name, the most exact of each kind first."""
