"""Rules of simplify-arithmetic: each with graphs that it rewrites and one that it leaves."""

import pytest
from rewriting import check_rewrite, check_unchanged

from planish.passes.cleanup import SimplifyArithmetic
from planish.passes.cleanup import simplify_arithmetic as rules

F = "f32[n, 4]"


def graph(expression: str, result: str = F, x: str = F, **constants: str) -> str:
    """A graph of one input; `expression` is what stands behind `y: result =`, with a name per line before it."""
    lines = [f"    {name} = {text}" for name, text in constants.items()]
    return "\n".join([f"def g(x: {x}):", *lines, f"    y: {result} = {expression}", "    return y"])


def returns(operand: str = "x", x: str = F, **constants: str) -> str:
    lines = [f"    {name} = {text}" for name, text in constants.items()]
    return "\n".join([f"def g(x: {x}):", *lines, f"    return {{'y': {operand}}}"])


def test_identity_is_removed():
    check_rewrite(rules.remove_identity, graph("Identity()(x)"), returns())


def test_other_ops_are_no_identity():
    check_unchanged(rules.remove_identity, graph("Neg()(x)"))


def test_adding_minus_zero_is_dropped():
    check_rewrite(rules.add_zero, graph("Add()(c, x)", c="Const(f32, [-0.0])"), returns())


def test_adding_integer_zero_is_dropped():
    check_rewrite(
        rules.add_zero, graph("Add()(x, c)", "i32[n, 4]", "i32[n, 4]", c="Const(i32, 0)"), returns(x="i32[n, 4]")
    )


def test_adding_zero_that_broadcasts_is_kept():
    text = graph("Add()(x, c)", "f32[2, 4]", "f32[1, 4]", c="Const(f32, [[-0.0], [-0.0]])")
    check_unchanged(rules.add_zero, text, "has another shape")


def test_adding_plus_zero_is_kept_where_bits_count():
    check_unchanged(rules.add_zero, graph("Add()(x, c)", c="Const(f32, 0.0)"), "+0.0, which turns -0.0 into +0.0")


def test_adding_plus_zero_is_dropped():
    check_rewrite(rules.add_positive_zero, graph("Add()(x, c)", c="Const(f32, 0.0)"), returns())


def test_adding_a_small_number_is_kept():
    check_unchanged(rules.add_positive_zero, graph("Add()(x, c)", c="Const(f32, 1e-30)"), "isn't zero")


def test_subtracting_plus_zero_is_dropped():
    check_rewrite(rules.subtract_zero, graph("Sub()(x, c)", c="Const(f32, 0.0)"), returns())


def test_subtracting_minus_zero_is_kept_where_bits_count():
    check_unchanged(rules.subtract_zero, graph("Sub()(x, c)", c="Const(f32, -0.0)"), "or is -0.0")


def test_subtracting_minus_zero_is_dropped():
    check_rewrite(rules.subtract_negative_zero, graph("Sub()(x, c)", c="Const(f32, -0.0)"), returns())


def test_subtracting_from_zero_is_kept():
    check_unchanged(rules.subtract_negative_zero, graph("Sub()(c, x)", c="Const(f32, -0.0)"), "c must be a const")


@pytest.mark.parametrize("op", ["Mul", "Div", "Pow"])
def test_one_is_neutral(op):
    check_rewrite(rules.multiply_by_one, graph(f"{op}()(x, c)", c="Const(f32, [1.0, 1.0, 1.0, 1.0])"), returns())


def test_power_of_integer_one_is_dropped():
    check_rewrite(rules.multiply_by_one, graph("Pow()(x, c)", c="Const(i64, 1)"), returns())


def test_almost_one_is_kept():
    check_unchanged(rules.multiply_by_one, graph("Mul()(x, c)", c="Const(f32, 1.00001)"), "the constant isn't 1")


def test_one_that_broadcasts_is_kept():
    text = graph("Mul()(x, c)", "f32[2, 4]", "f32[1, 4]", c="Const(f32, [[1.0], [1.0]])")
    check_unchanged(rules.multiply_by_one, text, "has another shape")


def test_double_negation_cancels():
    check_rewrite(rules.cancel_negation, graph("Neg()(a)", a="Neg()(x)"), returns())


def test_double_not_cancels():
    check_rewrite(rules.cancel_negation, graph("Not()(a)", "bool[3]", "bool[3]", a="Not()(x)"), returns(x="bool[3]"))


def test_negated_absolute_value_stays():
    check_unchanged(rules.cancel_negation, graph("Neg()(a)", a="Abs()(x)"), "Neg is expected here, not Abs")


@pytest.mark.parametrize("op", ["Relu", "Abs", "Floor", "Ceil", "Round"])
def test_repetition_is_dropped(op):
    check_rewrite(rules.drop_repetition, graph(f"{op}()(a)", a=f"{op}()(x)"), graph(f"{op}()(x)"))


def test_two_different_roundings_stay():
    check_unchanged(rules.drop_repetition, graph("Floor()(a)", a="Relu()(x)"), "Floor is expected here, not Relu")


def test_cast_to_own_dtype_is_dropped():
    check_rewrite(rules.drop_cast, graph("Cast(to=f32)(x)"), returns())


def test_cast_to_other_dtype_stays():
    check_unchanged(rules.drop_cast, graph("Cast(to=f64)(x)", "f64[n, 4]"), "it changes f32 to f64")


@pytest.mark.parametrize(
    ("start", "between", "to"),
    [("f16", "f32", "f16"), ("i32", "i64", "i8"), ("i32", "f64", "f32"), ("bool", "i64", "f32"), ("u8", "bf16", "i32")],
)
def test_cast_by_way_of_a_wider_dtype_is_merged(start, between, to):
    before = graph(f"Cast(to={to})(a)", f"{to}[n]", f"{start}[n]", a=f"Cast(to={between})(x)")
    check_rewrite(rules.merge_casts, before, graph(f"Cast(to={to})(x)", f"{to}[n]", f"{start}[n]"))


@pytest.mark.parametrize(
    ("start", "between", "to"),
    [
        ("f32", "f16", "f32"),
        ("i32", "f32", "i32"),
        ("f32", "i32", "f32"),
        ("i64", "bool", "i64"),
        ("f16", "bf16", "f32"),
    ],
)
def test_cast_by_way_of_a_narrower_dtype_stays(start, between, to):
    before = graph(f"Cast(to={to})(a)", f"{to}[n]", f"{start}[n]", a=f"Cast(to={between})(x)")
    check_unchanged(rules.merge_casts, before, "doesn't hold every number")


def test_cast_by_way_of_floats_to_a_narrow_integer_stays():
    before = graph("Cast(to=i8)(a)", "i8[n]", "i32[n]", a="Cast(to=f64)(x)")
    check_unchanged(rules.merge_casts, before, "out of the range of i8")


def where(condition: str) -> str:
    return f"""
        def g(x: f32[2, 3], z: f32[2, 3]):
            c = Const(bool, {condition})
            y = Where()(c, x, z)
            return y
    """


def test_where_of_a_constant_condition_is_decided():
    after = "def g(x: f32[2, 3], z: f32[2, 3]):\n    return {'y': x}"
    check_rewrite(rules.decide_where, where("[True, True, True]"), after)
    check_rewrite(rules.decide_where, where("False"), after.replace(": x}", ": z}"))


def test_where_of_equal_choices_is_decided():
    check_rewrite(rules.decide_where, graph("Where()(c, x, x)", c="IsNaN()(x)"), returns())


def test_where_of_a_mixed_condition_stays():
    check_unchanged(rules.decide_where, where("[True, False, True]"), "isn't the same constant everywhere")


def test_where_that_broadcasts_the_choice_stays():
    check_unchanged(rules.decide_where, where("[[[True]], [[True]]]"), "has another shape")


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_extremum_with_itself_is_dropped(op):
    check_rewrite(rules.drop_self, graph(f"{op}()(x, x)"), returns())


def test_extremum_with_another_value_stays():
    check_unchanged(rules.drop_self, graph("Max()(x, a)", a="Neg()(x)"), "same value as elsewhere")


@pytest.mark.parametrize(
    ("inner", "outer", "both"),
    [
        ("lo=-1.0, hi=0.5", "lo=0.0, hi=6.0", "lo=0.0, hi=0.5"),
        ("lo=None, hi=0.5", "lo=0.0, hi=None", "lo=0.0, hi=0.5"),
        ("lo=0.7, hi=1.0", "lo=-1.0, hi=0.5", "lo=0.5, hi=0.5"),
        ("lo=0.7, hi=None", "lo=None, hi=None", "lo=0.7, hi=None"),
    ],
)
def test_clips_are_merged(inner, outer, both):
    before = graph(f"Clip({outer})(a)", a=f"Clip({inner})(x)")
    check_rewrite(rules.merge_clips, before, graph(f"Clip({both})(x)"))


def test_clips_with_crossed_bounds_stay():
    before = graph("Clip(lo=1.0, hi=0.0)(a)", a="Clip(lo=0.0, hi=6.0)(x)")
    check_unchanged(rules.merge_clips, before, "the wrong way round")


def test_clip_without_bounds_is_dropped():
    check_rewrite(rules.drop_clip, graph("Clip(lo=None, hi=None)(x)"), returns())


def test_clip_with_a_bound_stays():
    check_unchanged(rules.drop_clip, graph("Clip(lo=None, hi=1.0)(x)"), "does not match")


def test_division_by_a_power_of_two_becomes_multiplication():
    after = graph("Mul()(x, c)", c="Const(f32, [0.125, -4.0, 1.0, 0.5])")
    check_rewrite(rules.multiply_by_reciprocal, graph("Div()(x, c)", c="Const(f32, [8.0, -0.25, 1.0, 2.0])"), after)


@pytest.mark.parametrize("divisor", ["3.0", "0.0", "inf"])
def test_division_by_other_numbers_stays(divisor):
    text = graph("Div()(x, c)", c=f"Const(f32, {divisor})")
    check_unchanged(rules.multiply_by_reciprocal, text, "isn't a power of two")


def test_division_by_a_power_of_two_without_normal_reciprocal_stays():
    text = graph("Div()(x, c)", c="Const(f32, 1.7014118346046923e+38)")
    check_unchanged(rules.multiply_by_reciprocal, text, "isn't a normal number")


@pytest.mark.parametrize(
    ("inner", "outer", "both", "number"),
    [
        ("Mul", "Mul", "Mul", "12.0"),
        ("Mul", "Div", "Mul", "1.5"),
        ("Div", "Mul", "Mul", "0.6666667"),
        ("Div", "Div", "Div", "12.0"),
    ],
)
def test_scales_are_merged(inner, outer, both, number):
    c, d = ("3.0", "2.0") if number != "12.0" else ("3.0", "4.0")
    before = graph(f"{outer}()(a, d)", c=f"Const(f32, {c})", a=f"{inner}()(x, c)", d=f"Const(f32, {d})")
    check_rewrite(rules.merge_scales, before, graph(f"{both}()(x, c)", c=f"Const(f32, {number})"))


def test_scales_of_integers_are_not_divided():
    before = graph("Div()(a, c)", "i32[n]", "i32[n]", c="Const(i32, 2)", a="Mul()(x, c)")
    check_unchanged(rules.merge_scales, before, "integer division rounds")


def test_scales_that_overflow_together_stay():
    before = graph("Mul()(a, c)", c="Const(f32, 1e+30)", a="Mul()(x, c)")
    check_unchanged(rules.merge_scales, before, "out of the range")


def test_scales_that_are_larger_together_stay():
    before = graph(
        "Mul()(a, d)",
        "f32[2, 2]",
        "f32[2, 2]",
        c="Const(f32, [[2.0], [3.0]])",
        a="Mul()(x, c)",
        d="Const(f32, [2.0, 3.0])",
    )
    check_unchanged(rules.merge_scales, before, "larger than each")


def test_scales_with_a_reader_in_between_stay():
    before = """
        def g(x: f32[4]):
            c = Const(f32, 3.0)
            a = Mul()(x, c)
            y = Mul()(a, c)
            return {'y': y, 'a': a}
    """
    check_unchanged(rules.merge_scales, before, "it is also read by Return")


@pytest.mark.parametrize(
    ("inner", "outer", "c", "d", "both"),
    [
        ("Add", "Add", "3.0", "1.0", "Add()(x, e)"),
        ("Add", "Sub", "3.0", "-1.0", "Add()(x, e)"),
        ("Sub", "Add", "-3.0", "1.0", "Add()(x, e)"),
        ("Sub", "Sub", "3.0", "1.0", "Sub()(x, e)"),
    ],
)
def test_shifts_are_merged(inner, outer, c, d, both):
    before = graph(f"{outer}()(a, d)", c=f"Const(f32, {c})", a=f"{inner}()(x, c)", d=f"Const(f32, {d})")
    check_rewrite(rules.merge_shifts, before, graph(both, e="Const(f32, 4.0)"))


def test_shifts_that_round_stay():
    before = graph("Sub()(a, c)", c="Const(f32, 8388608.0)", a="Add()(x, c)")
    check_unchanged(rules.merge_shifts, before, "cancel each other")


def test_a_chain_is_simplified_to_the_end():
    before = graph(
        "Identity()(e)",
        one="Const(f32, 1.0)",
        two="Const(f32, 2.0)",
        a="Mul()(x, one)",
        b="Neg()(a)",
        c="Neg()(b)",
        d="Div()(c, two)",
        e="Mul()(d, two)",
    )
    changes = check_rewrite(SimplifyArithmetic(), before, returns())
    assert changes.rewrites["cancel_negation"] == 1
