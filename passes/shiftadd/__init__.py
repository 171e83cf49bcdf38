"""Weights as sums of signed powers of two: products become shifts and additions."""

from planish.passes.shiftadd.shift_add import ShiftAdd as ShiftAdd
