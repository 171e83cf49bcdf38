"""Structures of zeros in weights: what each is called, whether an array has it, and how much of it is left.

"4x1" means two things in the literature, so structures have names here that say along what zeros come together. For a
linear layer with weights [K, N]: OB4, four neighbouring outputs that skip the same input; IB4, four neighbouring inputs
of one output; OB16; 2:4, of four neighbouring inputs at most two aren't skipped. Convolutions [F, C, ..] likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from planish.ir.types import Sparsity

Layout = Literal["linear", "conv"]
_OUTPUT: Mapping[Layout, int] = {"linear": 1, "conv": 0}
_INPUT: Mapping[Layout, int] = {"linear": 0, "conv": 1}

PATTERNS = ("unstructured", "ob4", "ob16", "ib4", "2:4")
"""Names of structures, the freest first."""


def pattern(name: str, layout: Layout = "linear", density: float = 1.0) -> Sparsity:
    """The structure of that name for weights of a layout. Raises KeyError for others than `PATTERNS`."""
    found = {
        "unstructured": Sparsity("unstructured"),
        "ob4": Sparsity("block", (4,), _OUTPUT[layout]),
        "ob16": Sparsity("block", (16,), _OUTPUT[layout]),
        "ib4": Sparsity("block", (4,), _INPUT[layout]),
        "2:4": Sparsity("n:m", (2, 4), _INPUT[layout]),
    }[name]
    return replace(found, density=density)


def name_of(sparsity: Sparsity, layout: Layout = "linear") -> str:
    """The name of a structure; "" if it has none."""
    plain = replace(sparsity, density=1.0)
    return next((name for name in PATTERNS if pattern(name, layout) == plain), "")


def blocks(array: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Aligned runs of `length` along an axis, as the last axis of [.., runs, length]; the end is filled with zeros."""
    moved = np.moveaxis(array, axis, -1)
    missing = -moved.shape[-1] % length
    if missing:
        moved = np.concatenate([moved, np.zeros((*moved.shape[:-1], missing), array.dtype)], axis=-1)
    return moved.reshape(*moved.shape[:-1], -1, length)


def kept(array: np.ndarray, sparsity: Sparsity) -> np.ndarray:
    """Which elements may have any value without one more block in the structure: bool, of the array's shape.

    In structures of single elements these are the ones that aren't 0.
    """
    if sparsity.kind != "block":
        return np.asarray(array != 0)
    (length,), axis = sparsity.block, sparsity.axis
    assert axis is not None
    found = np.repeat(np.any(blocks(array, length, axis) != 0, axis=-1), length, axis=-1)
    return np.moveaxis(found[..., : array.shape[axis]], -1, axis)


def density(array: np.ndarray, sparsity: Sparsity) -> float:
    """The share of elements, or of blocks, that isn't 0; 0 of nothing."""
    if sparsity.kind != "block":
        return float(np.count_nonzero(array)) / max(array.size, 1)
    assert sparsity.axis is not None
    kept = np.any(blocks(array, sparsity.block[0], sparsity.axis) != 0, axis=-1)
    return float(np.count_nonzero(kept)) / max(kept.size, 1)


def fault(array: np.ndarray, sparsity: Sparsity) -> str:
    """What of the structure an array doesn't have, "" if it has all of it."""
    if sparsity.kind not in ("unstructured", "block", "n:m"):
        return f"there is no structure of zeros {sparsity.kind!r}"
    sizes = {"unstructured": 0, "block": 1, "n:m": 2}[sparsity.kind]
    if len(sparsity.block) != sizes or (sizes and (sparsity.axis is None or not 0 <= sparsity.axis < array.ndim)):
        return f"{sparsity} doesn't fit an array of shape {list(array.shape)}"
    if sparsity.kind == "n:m":
        most, length = sparsity.block
        assert sparsity.axis is not None
        found = int(np.max(np.count_nonzero(blocks(array, length, sparsity.axis), axis=-1), initial=0))
        if found > most:
            return f"{found} of {length} neighbours along axis {sparsity.axis} aren't 0, more than {most}"
    share = density(array, sparsity)
    if share > sparsity.density + 1e-9:
        return f"{100 * share:.2f} % isn't 0, more than {100 * sparsity.density:.2f} %"
    return ""
