"""Arithmetic that does nothing, undoes itself, or can be done on constants beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir import dtypes
from planish.ir.dtypes import DType
from planish.ir.graph import Value
from planish.ir.op import constant
from planish.ir.ops import (
    Abs,
    Add,
    And,
    Cast,
    Ceil,
    Clip,
    Div,
    Floor,
    Identity,
    Max,
    Min,
    Mul,
    Neg,
    Not,
    Or,
    Pow,
    Relu,
    Round,
    Sub,
    Where,
)
from planish.passes.base import RulePass
from planish.passes.cleanup.numbers import is_number, is_zero, merged, operand_of, power_of_two, same_shape
from planish.passes.exactness import ROUNDING
from planish.passes.pattern import Const, attr, either
from planish.passes.rewrite import Rule, reject, rule

_SIGNIFICAND = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}  # bits, the hidden one included
_WIDER = {"f16": ("f32", "f64"), "bf16": ("f32", "f64"), "f32": ("f64",)}


@rule(lambda x: Identity()(x))
def remove_identity(x: Value) -> object:
    """Identity(x) -> x"""
    return x


def plus_constant(x: Value, c: Const) -> object:
    return Add()(x, c)


@rule(plus_constant)
def add_zero(x: Value, c: Value, root: Value) -> object:
    """x + 0 -> x, where 0 is an integer or -0.0"""
    same_shape(x, root)
    if not is_zero(c, negative=True):
        reject("the constant isn't zero, or is +0.0, which turns -0.0 into +0.0")
    return x


@rule(plus_constant, exactness=ROUNDING)
def add_positive_zero(x: Value, c: Value, root: Value) -> object:
    """x + 0.0 -> x, but for the sign of zero"""
    same_shape(x, root)
    if not is_zero(c, negative=False):
        reject("the constant isn't zero")
    return x


def minus_constant(x: Value, c: Const) -> object:
    return Sub()(x, c)


@rule(minus_constant)
def subtract_zero(x: Value, c: Value, root: Value) -> object:
    """x - 0 -> x, where 0 is an integer or +0.0"""
    same_shape(x, root)
    if not is_zero(c, negative=False):
        reject("the constant isn't zero, or is -0.0, which turns -0.0 into +0.0")
    return x


@rule(minus_constant, exactness=ROUNDING)
def subtract_negative_zero(x: Value, c: Value, root: Value) -> object:
    """x - (-0.0) -> x, but for the sign of zero"""
    same_shape(x, root)
    if not is_zero(c, negative=True):
        reject("the constant isn't zero")
    return x


def by_constant(x: Value, c: Const) -> object:
    return either(Mul()(x, c), Div()(x, c), Pow()(x, c))


@rule(by_constant)
def multiply_by_one(x: Value, c: Value, root: Value) -> object:
    """x * 1 -> x, x / 1 -> x, x ** 1 -> x"""
    same_shape(x, root)
    if not is_number(c, 1):
        reject("the constant isn't 1")
    return x


@rule(lambda x: either(Neg()(Neg()(x)), Not()(Not()(x))), shared=True)
def cancel_negation(x: Value) -> object:
    """-(-x) -> x, not not x -> x"""
    return x


def twice(x: Value) -> object:
    return either(*(op(op(x)) for op in (Relu(), Abs(), Floor(), Ceil(), Round())))


@rule(twice, shared=True)
def drop_repetition(x: Value, root: Value) -> object:
    """f(f(x)) -> f(x) for Relu, Abs, Floor, Ceil and Round"""
    return operand_of(root)


@rule(lambda x: Cast(to=attr("to"))(x))
def drop_cast(x: Value, to: DType) -> object:
    """Cast(to=dtype of x)(x) -> x"""
    if x.tensor.dtype != to:
        reject(f"it changes {x.tensor.dtype} to {to}")
    return x


@rule(lambda x: Cast(to=attr("to"))(Cast(to=attr("between"))(x)), shared=True)
def merge_casts(x: Value, to: DType, between: DType) -> object:
    """Cast(to=b)(Cast(to=a)(x)) -> Cast(to=b)(x), where `a` holds every number of the dtype of x"""
    start = x.tensor.dtype
    if not _holds(between, start):
        reject(f"{between} doesn't hold every number of {start}")
    if between.is_float and start.is_integer and to.is_integer and not _holds(to, start):
        reject(f"numbers of {start} may be out of the range of {to}, where casts from integers and floats differ")
    return Cast(to=to)(x)


@rule(lambda c, x, y: Where()(c, x, y))
def decide_where(c: Value, x: Value, y: Value, root: Value) -> object:
    """Where(True, x, y) -> x, Where(False, x, y) -> y, Where(c, x, x) -> x"""
    chosen: Value | None = x if x is y else None
    data = constant(c)
    if chosen is None and data is not None:
        flags = data.numpy()
        chosen = x if flags.all() else y if not flags.any() else None
    if chosen is None:
        reject("the condition isn't the same constant everywhere")
    same_shape(chosen, root)
    return chosen


@rule(lambda x: either(Max()(x, x), Min()(x, x), And()(x, x), Or()(x, x)))
def drop_self(x: Value) -> object:
    """max(x, x) -> x; so for min, and, or"""
    return x


@rule(lambda x: Clip(lo=attr("lo"), hi=attr("hi"))(Clip(lo=attr("low"), hi=attr("high"))(x)), shared=True)
def merge_clips(x: Value, lo: float | None, hi: float | None, low: float | None, high: float | None) -> object:
    """clip(clip(x, a, b), c, d) -> clip(x, clip(a, c, d), clip(b, c, d))"""
    for least, most in ((lo, hi), (low, high)):
        if least is not None and most is not None and least > most:
            reject(f"the bounds {least} and {most} are the wrong way round")

    def outer(bound: float) -> float:
        bound = bound if lo is None else max(bound, lo)
        return bound if hi is None else min(bound, hi)

    return Clip(lo=lo if low is None else outer(low), hi=hi if high is None else outer(high))(x)


@rule(lambda x: Clip(lo=None, hi=None)(x))
def drop_clip(x: Value) -> object:
    """Clip without bounds(x) -> x"""
    return x


def divided(x: Value, c: Const) -> object:
    return Div()(x, c)


@rule(divided)
def multiply_by_reciprocal(x: Value, c: Value) -> object:
    """x / 2**k -> x * 2**-k"""
    return Mul()(x, power_of_two(c))


def scaled_twice(x: Value, c: Const, d: Const) -> object:
    return either(Mul()(Mul()(x, c), d), Mul()(Div()(x, c), d), Div()(Mul()(x, c), d), Div()(Div()(x, c), d))


@rule(scaled_twice, exactness=ROUNDING)
def merge_scales(x: Value, c: Value, d: Value, root: Value) -> object:
    """x * c * d -> x * (c * d), x / c / d -> x / (c * d), x * c / d -> x * (c / d), x / c * d -> x * (d / c)"""
    inner, outer = type(operand_of(root, Mul, Div).op), type(root.op)
    if not x.tensor.dtype.is_float and (inner, outer) != (Mul, Mul):
        reject("integer division rounds")
    if inner is Div and outer is Div:
        return Div()(x, merged(np.multiply, c, d))
    if inner is outer:
        return Mul()(x, merged(np.multiply, c, d))
    factor = merged(np.divide, c, d) if outer is Div else merged(np.divide, d, c)
    return Mul()(x, factor)


def shifted_twice(x: Value, c: Const, d: Const) -> object:
    return either(Add()(Add()(x, c), d), Add()(Sub()(x, c), d), Sub()(Add()(x, c), d), Sub()(Sub()(x, c), d))


@rule(shifted_twice, exactness=ROUNDING)
def merge_shifts(x: Value, c: Value, d: Value, root: Value) -> object:
    """x + c + d -> x + (c + d), x + c - d -> x + (c - d), x - c + d -> x + (d - c), x - c - d -> x - (c + d)"""
    inner, outer = type(operand_of(root, Add, Sub).op), type(root.op)
    if inner is outer:
        return (Add() if outer is Add else Sub())(x, merged(np.add, c, d))
    return Add()(x, merged(np.subtract, c, d) if outer is Sub else merged(np.subtract, d, c))


def _holds(wide: DType, narrow: DType) -> bool:
    """True if `wide` represents every number of `narrow`."""
    if wide == narrow or narrow == dtypes.boolean:
        return wide.is_float or wide.is_integer or wide == narrow
    if narrow.is_integer and wide.is_integer:
        return wide.min <= narrow.min and narrow.max <= wide.max
    if narrow.is_integer:
        return narrow.bits <= _SIGNIFICAND.get(wide.name, 0)
    return wide.name in _WIDER.get(narrow.name, ())


_RULES: tuple[Rule, ...] = (
    remove_identity,
    add_zero,
    add_positive_zero,
    subtract_zero,
    subtract_negative_zero,
    multiply_by_one,
    cancel_negation,
    drop_repetition,
    drop_cast,
    merge_casts,
    decide_where,
    drop_self,
    merge_clips,
    drop_clip,
    multiply_by_reciprocal,
    merge_scales,
    merge_shifts,
)


@dataclass(frozen=True)
class SimplifyArithmetic(RulePass):
    """Drop arithmetic that does nothing or undoes itself; merge chains of constants."""

    name: ClassVar[str] = "simplify-arithmetic"
    rule_set: ClassVar[tuple[Rule, ...]] = _RULES
