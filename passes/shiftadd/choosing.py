"""Which codebook each layer gets: what costs least at a given error, or errs least at a given cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir import signed_digits
from planish.passes.allocation import Option, tradeoffs
from planish.passes.layers import Layer
from planish.passes.shiftadd.energy_model import HOROWITZ_45NM
from planish.passes.shiftadd.layers import Coded

FLOAT_BITS = 32
DIGIT_PJ = HOROWITZ_45NM.int8_shift + HOROWITZ_45NM.int32_add
INT8_PJ = HOROWITZ_45NM.int8_multiply + HOROWITZ_45NM.int32_add
FLOAT_PJ = HOROWITZ_45NM.fp32_multiply + HOROWITZ_45NM.fp32_add

Choice = tuple["Coded | None", ...]
"""For each layer its codes, or None if it keeps its floats."""


@dataclass(frozen=True)
class Cost:
    """bits: stored, per weight on average. energy: of the products' operations, over those of int8."""

    bits: float
    energy: float


def cost_of(layers: Sequence[Layer], choice: Choice) -> Cost:
    """What a choice costs."""
    elements = sum(layer.weights.size for layer in layers)
    energy = sum(_energy(layer, found) for layer, found in zip(layers, choice, strict=True))
    bits = sum(_bits(layer, found) for layer, found in zip(layers, choice, strict=True))
    return Cost(bits / elements, energy / (INT8_PJ * sum(layer.products for layer in layers)))


def _bits(layer: Layer, found: Coded | None) -> float:
    return FLOAT_BITS * layer.weights.size if found is None else found.bits


def _energy(layer: Layer, found: Coded | None) -> float:
    each = FLOAT_PJ if found is None else float(np.mean(signed_digits.count(found.codes))) * DIGIT_PJ
    return layer.products * each


def choices(
    layers: Sequence[Layer],
    options: Sequence[Mapping[str, Coded]],
    harm: Sequence[float],
    by_energy: bool,
    keep: bool,
) -> list[Choice]:
    """The best trade-offs, the cheapest first: what minimises cost + multiplier * error for growing multipliers.

    options: codes of each layer, by codebook. harm: error of the outputs per noise of each layer; errors add up.
    by_energy: cost is energy, otherwise stored bits. keep: a layer may keep its floats.
    """
    price: Callable[[Layer, Coded | None], float] = _energy if by_energy else _bits
    table: list[list[Option[Coded | None]]] = []
    for layer, found, weight in zip(layers, options, harm, strict=True):
        rows: list[Option[Coded | None]] = [
            (price(layer, coded), weight * coded.noise, coded) for coded in found.values()
        ]
        table.append(rows + ([(price(layer, None), 0.0, None)] if keep else []))
    return tradeoffs(table)
