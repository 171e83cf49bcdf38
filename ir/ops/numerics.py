"""Arithmetic that `evaluate` of the ops shares: 16-bit floats by way of float32, erf, truncating division."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from planish.ir import dtypes
from planish.ir.dtypes import DType

_ERF_STEP = 1 / 64
_ERF_END = 6.0  # 1 - erf(6) is 2e-17, less than half a unit in the last place of 1.0
_ERF_DEGREE = 7


def widen(array: np.ndarray) -> np.ndarray:
    """The array, as float32 if it is a float of fewer than 32 bits."""
    dtype = dtypes.of(array)
    return array.astype(np.float32) if dtype.is_float and dtype.bits < 32 else array


def rounded(result: np.ndarray, dtype: np.dtype[np.generic]) -> np.ndarray:
    """The result as an array of the given dtype: numpy returns scalars for rank 0."""
    return np.asarray(result).astype(dtype, copy=False)


def scalar(value: float, dtype: DType) -> np.ndarray:
    """A constant of rank 0."""
    return np.asarray(value, dtype=dtype.storage)


def truncated_divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integer a / b, rounded toward zero as in C; 0 where b is 0. The dtypes must be equal."""
    quotient = np.floor_divide(a, b)
    if quotient.dtype.kind == "u":
        return np.asarray(quotient)
    inexact = quotient * b != a
    return np.asarray(quotient + (inexact & ((a < 0) != (b < 0)) & (b != 0)), dtype=quotient.dtype)


def erf(x: np.ndarray) -> np.ndarray:
    """Error function of a float32 or float64 array, in float64, with an absolute error below 1e-15.

    Taylor expansion of degree 7 about the nearest of the nodes 0, 1/64, .. 6: the distance is at most 1/128, so the
    first term left out is below 1e-18. The one about 0 has no constant term, so small x keep their relative precision.
    """
    size = np.minimum(np.abs(x.astype(np.float64)), _ERF_END)
    node = np.nan_to_num(np.rint(size / _ERF_STEP)).astype(np.intp)
    offset = size - node * _ERF_STEP
    table = _erf_table()
    result = table[_ERF_DEGREE][node]
    for power in range(_ERF_DEGREE - 1, -1, -1):
        result = result * offset + table[power][node]
    return np.asarray(np.copysign(result, x))


@lru_cache(maxsize=1)
def _erf_table() -> np.ndarray:
    """Taylor coefficients of erf [power, node]: the n-th derivative of exp(-x**2) is (-1)**n H_n(x) exp(-x**2)."""
    nodes = np.arange(round(_ERF_END / _ERF_STEP) + 1) * _ERF_STEP
    slope = 2 / math.sqrt(math.pi) * np.exp(-nodes * nodes)
    rows = [np.array([math.erf(node) for node in nodes])]
    previous, hermite = np.zeros_like(nodes), np.ones_like(nodes)
    for n in range(_ERF_DEGREE):
        rows.append((-1) ** n * slope * hermite / math.factorial(n + 1))
        previous, hermite = hermite, 2 * nodes * hermite - 2 * n * previous
    return np.stack(rows)
