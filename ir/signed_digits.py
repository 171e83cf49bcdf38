"""Integers of any size as sums of signed powers of two, with as few of them as can be: canonical signed digits.

What is multiplied by such a number is shifted and added instead. Source: Avizienis 1961; Hacker's Delight, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def bit_masks(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers |n| < 2**61 as the difference of two numbers (uint64): bits of powers that add, and that subtract.

    No two neighbouring powers occur together, and no other form has fewer. With m = |n|, a digit differs from 0 where
    3 m and m differ, which is one place too high: 3 m = m + 2 m carries where bits are in a row.
    """
    size = np.abs(numbers.astype(np.int64)).astype(np.uint64)
    triple = size * np.uint64(3)
    rising, falling = (triple & ~size) >> np.uint64(1), (size & ~triple) >> np.uint64(1)
    below = np.asarray(numbers) < 0
    return np.where(below, falling, rising), np.where(below, rising, falling)


def count(numbers: np.ndarray) -> np.ndarray:
    """How many signed powers of two each integer is the sum of, int64."""
    rising, falling = bit_masks(numbers)
    return np.bitwise_count(rising | falling).astype(np.int64)


def planes(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Integers as sum of 2**p * digits: each p of which a digit differs from 0, ascending, with int8 of -1, 0, 1."""
    rising, falling = bit_masks(numbers)
    for p in range(int(np.max(rising | falling, initial=np.uint64(0))).bit_length()):
        bit = np.uint64(1 << p)
        plane = ((rising & bit) != 0).astype(np.int8) - ((falling & bit) != 0).astype(np.int8)
        if plane.any():
            yield p, plane


def terms(mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The bits of each mask (uint64) one by one, the lowest first: shifts (uint64), and where there is one (bool).

    As many terms as the fullest mask has bits; a shift is 0 where there is none.
    """
    rest = mask.copy()
    while rest.any():
        lowest = rest & (~rest + np.uint64(1))
        present = rest != 0
        yield np.where(present, np.bitwise_count(lowest - np.uint64(1)), 0).astype(np.uint64), present
        rest &= ~lowest
