"""A named model of a chip: what an operation costs, and moving a byte. No CPU or GPU saves energy by shifting."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EnergyModel:
    """Energies in pJ: of operations, and of moving a byte to or from memory, the buffer on the chip, and registers."""

    name: str
    fp32_multiply: float
    fp32_add: float
    int8_multiply: float
    int8_shift: float
    int32_add: float
    int32_shift: float
    memory: float
    buffer: float
    register: float


HOROWITZ_45NM = EnergyModel(
    name="45 nm, Horowitz",
    fp32_multiply=3.7,
    fp32_add=0.9,
    int8_multiply=0.2,
    int8_shift=0.024,
    int32_add=0.1,
    int32_shift=0.13,
    memory=100.0,
    buffer=11.1,
    register=1.85,
)
"""Horowitz, ISSCC 2014 (45 nm, 0.9 V); shifts and the ratios of memories as the public code of ShiftAddViT has them."""
