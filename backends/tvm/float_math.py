"""Elementary functions of float32 as expressions of TIR that become plain vector instructions on every CPU.

Calls of the C library would be made lane by lane. Errors are stated in units of the last place (ulp) or absolutely;
NaN stays NaN throughout: limits are selections, since the maximum of vector instructions drops it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.lanes import kept
from planish.backends.tvm.scope import Expr

_ROUNDER = 1.5 * 2.0**23  # adding and taking it off rounds to an integer, which then is in the low bits of the sum
_ROUNDER_BITS = 0x4B400000
_LOG2_E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # in two parts: multiples of the first are exact
_EXP_LEAST, _EXP_MOST = -104.0, 89.0  # beyond them e**x is 0 or infinite
_EXP_NORMAL = -87.33654  # e**x is subnormal below
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
# (log(1 + f) - f + f**2 / 2) / f**3 for 1 + f from sqrt(1/2) to sqrt(2), from Cephes, as is _EXP
_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_SQRT_HALF_BITS = 0x3F3504F3
_ERF_END = 3.85  # 1 - erf of it is 5e-8, less than a unit in the last place of 1
# erf(x) / x in powers of 2 (x / _ERF_END)**2 - 1: a least-squares fit on Chebyshev nodes, weighted by x
_ERF = (
    1.224092136e-03, -3.281666309e-03, 2.846486963e-03, -3.514831361e-03, 1.082613873e-02, -2.007622355e-02,
    2.848206395e-02, -4.046954571e-02, 5.635850636e-02, -7.329893722e-02, 9.082613297e-02, -1.103762300e-01,
    1.362111499e-01, -1.833016995e-01, 3.672848224e-01,
)  # fmt: skip
_TANH_END = 7.90531110763549805  # tanh of it rounds to 1
# tanh(x) = x P(x**2) / Q(x**2), the rational minimax approximation that Eigen uses
_TANH_P = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
    6.37261928875436e-04, 4.89352455891786e-03,
)  # fmt: skip
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_GELU_CUBIC = 0.044715


def let(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """`body` of a value that is computed once, however often `body` names it."""
    simple = isinstance(value, tirx.Var | tirx.IntImm | tirx.FloatImm | int | float)
    return body(value if simple else kept(value))


def is_nan(x: Expr) -> Expr:
    """By its bits: TVM takes x != x to be false."""
    return (T.reinterpret("int32", x) & T.int32(0x7FFFFFFF)) > T.int32(0x7F800000)


def real(number: float) -> Expr:
    return T.float32(float(number))


def polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """The value at x, the coefficient of the highest power first."""

    def of(v: Expr) -> Expr:
        total = real(coefficients[0])
        for coefficient in coefficients[1:]:
            total = T.fma(total, v, real(coefficient))
        return total

    return let(x, of)


def exp(x: Expr) -> Expr:
    """e**x to 2 ulp, subnormal results included."""

    def scaled(p: Expr, k: Expr) -> Expr:
        half = T.shift_right(k, T.int32(1))  # a power of 2 in two steps, since one alone may not be a float
        return p * _power_of_2(half) * _power_of_2(k - half)

    return let(x, lambda v: _exp(clip(v, _EXP_LEAST, _EXP_MOST), scaled))


def exp_of_negative(x: Expr) -> Expr:
    """e**x to 2 ulp for x <= 0, with 0 for subnormal results."""

    def of(v: Expr) -> Expr:
        power = _exp(T.Select(v < real(_EXP_NORMAL), real(_EXP_NORMAL), v), lambda p, k: p * _power_of_2(k))
        return T.Select(v < real(_EXP_NORMAL), real(0), power)

    return let(x, of)


def _exp(x: Expr, scaled: Callable[[Expr, Expr], Expr]) -> Expr:
    """scaled(e**r, k) with x = k ln 2 + r and |r| <= ln(2) / 2."""

    def reduced(v: Expr, shifted: Expr) -> Expr:
        k = T.reinterpret("int32", shifted) - T.int32(_ROUNDER_BITS)
        return let(shifted - real(_ROUNDER), lambda n: let(
            T.fma(n, real(-_LN2_LOW), T.fma(n, real(-_LN2_HIGH), v)),
            lambda r: scaled(T.fma(polynomial(r, _EXP), r * r, r + real(1)), k),
        ))  # fmt: skip

    return let(x, lambda v: let(T.fma(v, real(_LOG2_E), real(_ROUNDER)), lambda shifted: reduced(v, shifted)))


def _power_of_2(k: Expr) -> Expr:
    return T.reinterpret("float32", T.shift_left(k + T.int32(127), T.int32(23)))


def log(x: Expr) -> Expr:
    """Natural logarithm to 2 ulp; -infinity of 0, NaN below."""

    def of(v: Expr) -> Expr:
        tiny = v < real(2.0**-126)
        bits = T.reinterpret("int32", T.Select(tiny, v * real(2.0**23), v))
        return let(bits, lambda b: special(v, T.Select(tiny, real(-23), real(0)), b))

    def special(v: Expr, extra: Expr, bits: Expr) -> Expr:
        offset = bits - T.int32(_SQRT_HALF_BITS)
        e = T.cast(T.shift_right(offset, T.int32(23)), "float32") + extra
        mantissa = T.reinterpret("float32", (offset & T.int32(0x7FFFFF)) + T.int32(_SQRT_HALF_BITS))
        found = let(e, lambda n: let(mantissa - real(1), lambda f: let(f * f, lambda s: of_fraction(n, f, s))))
        below = T.Select(v < real(0), real(math.nan), real(-math.inf))
        return T.Select(v <= real(0), below, T.Select(v < real(math.inf), found, v))

    def of_fraction(n: Expr, f: Expr, s: Expr) -> Expr:
        tail = T.fma(n, real(_LN2_LOW), f * s * polynomial(f, _LOG)) - s * real(0.5)
        return T.fma(n, real(_LN2_HIGH), f + tail)

    return let(x, of)


def erf(x: Expr) -> Expr:
    """Error function to 3e-7."""

    def of(v: Expr) -> Expr:
        inner = let(clip(v, -_ERF_END, _ERF_END), lambda c: c * polynomial(
            T.fma(c * c, real(2 / _ERF_END**2), real(-1)), _ERF
        ))  # fmt: skip
        return _saturated(v, inner, _ERF_END)

    return let(x, of)


def tanh(x: Expr) -> Expr:
    """Hyperbolic tangent to 4 ulp; exactly 1 where it rounds to that."""

    def of(c: Expr, square: Expr) -> Expr:
        return c * polynomial(square, _TANH_P) / polynomial(square, _TANH_Q)

    def limited(v: Expr) -> Expr:
        inner = let(clip(v, -_TANH_END, _TANH_END), lambda c: let(c * c, lambda square: of(c, square)))
        return _saturated(v, inner, _TANH_END)

    return let(x, limited)


def _saturated(x: Expr, inner: Expr, end: float) -> Expr:
    """1 from `end` on, -1 up to -`end`, and `inner` between them."""
    return T.Select(x >= real(end), real(1), T.Select(x <= real(-end), real(-1), inner))


def sigmoid(x: Expr) -> Expr:
    return real(1) / (real(1) + exp(real(0) - x))


def gelu(x: Expr, approximate: str) -> Expr:
    """x/2 * (1 + erf(x / sqrt(2))), or with "tanh" its approximation by tanh."""
    if approximate == "tanh":
        factor = math.sqrt(2 / math.pi)
        inner: Callable[[Expr], Expr] = lambda v: tanh(v * T.fma(v * v, real(factor * _GELU_CUBIC), real(factor)))  # noqa: E731
    else:
        inner = lambda v: erf(v * real(math.sqrt(0.5)))  # noqa: E731
    return let(x, lambda v: let(v * real(0.5), lambda half: T.fma(half, inner(v), half)))


def clip(x: Expr, low: float, high: float) -> Expr:
    return let(x, lambda v: T.Select(v < real(low), real(low), T.Select(v > real(high), real(high), v)))
