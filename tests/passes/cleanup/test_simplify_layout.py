"""Rules of simplify-layout: each with graphs that it rewrites and one that it leaves."""

import pytest
from rewriting import check_rewrite, check_unchanged

from planish.passes.cleanup import SimplifyLayout
from planish.passes.cleanup import simplify_layout as rules

FAR = "9223372036854775807"


def graph(x: str, *lines: str, y: str = "y") -> str:
    """A graph of the input x that returns y."""
    return "\n".join([f"def g(x: {x}):", *(f"    {line}" for line in lines), f"    return {{'y': {y}}}"])


def test_identity_transpose_is_dropped():
    check_rewrite(rules.drop_transpose, graph("f32[n, 3]", "y = Transpose(perm=(0, 1))(x)"), graph("f32[n, 3]", y="x"))


def test_transpose_that_moves_axes_stays():
    check_unchanged(rules.drop_transpose, graph("f32[n, 3]", "y = Transpose(perm=(1, 0))(x)"), "moves axes")


def test_transposes_are_merged():
    before = graph("f32[n, 3, 5]", "a = Transpose(perm=(1, 2, 0))(x)", "y = Transpose(perm=(0, 2, 1))(a)")
    check_rewrite(rules.merge_transposes, before, graph("f32[n, 3, 5]", "y = Transpose(perm=(1, 0, 2))(x)"))


def test_transposes_cancel():
    before = graph("f32[n, 3, 5]", "a = Transpose(perm=(1, 2, 0))(x)", "y = Transpose(perm=(2, 0, 1))(a)")
    check_rewrite(rules.merge_transposes, before, graph("f32[n, 3, 5]", y="x"))


def test_transposes_with_an_op_between_stay():
    before = graph("f32[3, 5]", "a = Transpose(perm=(1, 0))(x)", "b = Neg()(a)", "y = Transpose(perm=(1, 0))(b)")
    check_unchanged(rules.merge_transposes, before, "Transpose is expected here, not Neg")


def test_transpose_apart_from_merged_axes_goes_without_reshapes():
    before = graph(
        "f32[n, 2, 5, 3]",
        "a = Reshape(shape=(-1, 5, 3))(x)",
        "b = Transpose(perm=(0, 2, 1))(a)",
        "y = Reshape(shape=(-1, 2, 3, 5))(b)",
    )
    after = graph("f32[n, 2, 5, 3]", "y = Transpose(perm=(0, 1, 3, 2))(x)")
    check_rewrite(rules.transpose_unmerged, before, after)


def test_transpose_apart_from_merged_axes_keeps_the_reshape_that_splits_them_otherwise():
    before = graph(
        "f32[1, n, 2, 5, 3]",
        "a = Reshape(shape=(-1, 5, 3))(x)",
        "b = Transpose(perm=(0, 2, 1))(a)",
        "y = Reshape(shape=(-1, 2, 3, 5))(b)",
    )
    after = graph("f32[1, n, 2, 5, 3]", "a = Reshape(shape=(-1, 2, 5, 3))(x)", "y = Transpose(perm=(0, 1, 3, 2))(a)")
    check_rewrite(rules.transpose_unmerged, before, after)


@pytest.mark.parametrize(
    ("merge", "perm", "split", "because"),
    [
        ("(8, 5, 3)", "(1, 0, 2)", "(5, 4, 2, 3)", "no leading axes"),
        ("(8, 5, 3)", "(0, 2, 1)", "(4, 2, 5, 3)", "other axes too"),
        ("(8, 5, 3)", "(0, 2, 1)", "(8, 15)", "no leading axes"),
        ("(8, 3, 5)", "(0, 2, 1)", "(4, 2, 5, 3)", "other axes too"),
        ("(4, 2, 5, 3)", "(0, 1, 3, 2)", "(4, 2, 3, 5)", "no leading axes"),
    ],
)
def test_transpose_between_other_reshapes_stays(merge, perm, split, because):
    before = graph(
        "f32[4, 2, 5, 3]",
        f"a = Reshape(shape={merge})(x)",
        f"b = Transpose(perm={perm})(a)",
        f"y = Reshape(shape={split})(b)",
    )
    check_unchanged(rules.transpose_unmerged, before, because)


def test_transpose_of_unit_axes_beside_a_reshape_becomes_one():
    before = graph("f32[1, 5, 6]", "a = Transpose(perm=(1, 0, 2))(x)", "y = Reshape(shape=(5, 2, 3))(a)")
    after = graph("f32[1, 5, 6]", "a = Reshape(shape=(5, 1, 6))(x)", "y = Reshape(shape=(5, 2, 3))(a)")
    check_rewrite(rules.reshape_instead_of_transpose, before, after)


@pytest.mark.parametrize(
    ("x", "because"), [("f32[1, 5, 6]", "no reshape before or after"), ("f32[2, 5, 6]", "longer than 1")]
)
def test_other_transposes_stay(x, because):
    before = graph(x, "y = Transpose(perm=(1, 0, 2))(x)")
    check_unchanged(rules.reshape_instead_of_transpose, before, because)


@pytest.mark.parametrize("op", ["Reshape(shape=(0, -1))", "Squeeze(axes=())"])
def test_reshape_to_the_same_shape_is_dropped(op):
    check_rewrite(rules.drop_reshape, graph("f32[n, 3]", f"y = {op}(x)"), graph("f32[n, 3]", y="x"))


def test_reshape_to_another_shape_stays():
    check_unchanged(rules.drop_reshape, graph("f32[n, 3]", "y = Reshape(shape=(3, -1))(x)"), "another shape")


def test_computed_shape_is_spelled_in_numbers():
    before = graph(
        "f32[n, 12]",
        "s = Shape()(x)",
        "n = Slice(starts=(0,), ends=(1,), axes=(0,), steps=(1,))(s)",
        "c = Const(i64, [3, 4])",
        "t = Concat(axis=0)(n, c)",
        "y = DynamicReshape(allow_zero=False)(x, t)",
    )
    check_rewrite(rules.fix_reshape, before, graph("f32[n, 12]", "y = Reshape(shape=(0, 3, 4))(x)"))


def test_shape_with_two_computed_dimensions_stays():
    before = graph(
        "f32[n, m]",
        "s = Shape()(x)",
        "i = Const(i64, [1, 0])",
        "t = Gather(axis=0)(s, i)",
        "y = DynamicReshape(allow_zero=False)(x, t)",
    )
    check_unchanged(rules.fix_reshape, before, "can't be said by one Reshape with constants")


def test_reshape_is_spelled_with_numbers():
    before = graph("f32[2, 12]", "y = Reshape(shape=(0, -1, 4))(x)")
    check_rewrite(rules.spell_reshape, before, graph("f32[2, 12]", "y = Reshape(shape=(2, 3, 4))(x)"))


def test_reshape_that_is_spelled_well_stays():
    check_unchanged(rules.spell_reshape, graph("f32[n, 12]", "y = Reshape(shape=(0, 3, 4))(x)"), "as it should be")


def test_reshapes_are_merged():
    before = graph("f32[n, 6, 4]", "a = Reshape(shape=(-1, 4))(x)", "y = Reshape(shape=(-1, 6, 2, 2))(a)")
    check_rewrite(rules.merge_reshapes, before, graph("f32[n, 6, 4]", "y = Reshape(shape=(0, 6, 2, 2))(x)"))


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        ("Reshape(shape=(-1, 1))", "Reshape(shape=(-1, 6))"),
        ("Unsqueeze(axes=(0, 3))", "Squeeze(axes=(0, 3))"),
        ("Unsqueeze(axes=(1,))", "Reshape(shape=(-1, 6))"),
    ],
)
def test_reshapes_cancel(inner, outer):
    check_rewrite(
        rules.merge_reshapes, graph("f32[n, 6]", f"a = {inner}(x)", f"y = {outer}(a)"), graph("f32[n, 6]", y="x")
    )


def test_unsqueezes_are_merged():
    before = graph("f32[n, 6]", "a = Unsqueeze(axes=(1,))(x)", "y = Unsqueeze(axes=(0, 4))(a)")
    check_rewrite(rules.merge_reshapes, before, graph("f32[n, 6]", "y = Unsqueeze(axes=(0, 2, 4))(x)"))


def test_squeezes_are_merged():
    before = graph("f32[1, n, 1, 6, 1]", "a = Squeeze(axes=(0,))(x)", "y = Squeeze(axes=(1, 3))(a)")
    check_rewrite(rules.merge_reshapes, before, graph("f32[1, n, 1, 6, 1]", "y = Squeeze(axes=(0, 2, 4))(x)"))


def test_reshapes_that_one_cannot_say_stay():
    before = graph("f32[n, m, 4]", "a = Reshape(shape=(0, -1))(x)", "y = Unsqueeze(axes=(0,))(a)")
    check_unchanged(rules.merge_reshapes, before, "can't be said by one Reshape")


def test_expand_to_the_same_shape_is_dropped():
    before = graph("f32[2, 3]", "s = Const(i64, [1, 3])", "y = Expand()(x, s)")
    check_rewrite(rules.drop_expand, before, graph("f32[2, 3]", y="x"))


def test_expand_to_a_larger_shape_stays():
    before = graph("f32[1, 3]", "s = Const(i64, [2, 3])", "y = Expand()(x, s)")
    check_unchanged(rules.drop_expand, before, "another shape")


@pytest.mark.parametrize("op", ["Add()", "Sub()", "Less()", "Mod(fmod=True)", "Pow()"])
def test_expand_is_left_to_broadcasting(op):
    lines = ("r = Const(f32, [1.0, 2.0, 3.0])", "s = Const(i64, [2, 3])", "a = Expand()(r, s)", f"y = {op}(x, a)")
    check_rewrite(rules.let_broadcast, graph("f32[2, 3]", *lines), graph("f32[2, 3]", lines[0], f"y = {op}(x, r)"))


def test_expand_of_a_condition_is_left_to_broadcasting():
    before = """
        def g(c: bool[1, 1], x: f32[n, 3], z: f32[n, 3]):
            s = Shape()(x)
            a = Expand()(c, s)
            y = Where()(a, x, z)
            return y
    """
    after = """
        def g(c: bool[1, 1], x: f32[n, 3], z: f32[n, 3]):
            y = Where()(c, x, z)
            return y
    """
    check_rewrite(rules.let_broadcast, before, after)


def test_expand_that_sets_the_shape_stays():
    before = graph("f32[1, 3]", "s = Const(i64, [2, 3])", "a = Expand()(x, s)", "y = Mul()(x, a)")
    check_unchanged(rules.let_broadcast, before, "no operand is an Expand that broadcasting could do as well")


def test_slice_of_everything_is_dropped():
    before = graph("f32[n, 3]", f"y = Slice(starts=(0, -3), ends=({FAR}, 7), axes=(0, 1), steps=(1, 1))(x)")
    check_rewrite(rules.drop_slice, before, graph("f32[n, 3]", y="x"))


def test_slice_backwards_stays():
    before = graph("f32[n, 3]", "y = Slice(starts=(-1,), ends=(-9223372036854775807,), axes=(1,), steps=(-1,))(x)")
    check_unchanged(rules.drop_slice, before, "step -1 along axis 1")


def test_slice_is_spelled_with_positions():
    before = graph("f32[n, 8]", f"y = Slice(starts=(0, -6), ends=({FAR}, 99), axes=(0, 1), steps=(1, 2))(x)")
    after = graph("f32[n, 8]", "y = Slice(starts=(2,), ends=(7,), axes=(1,), steps=(2,))(x)")
    check_rewrite(rules.spell_slice, before, after)


def test_slice_from_the_end_of_a_symbolic_axis_stays():
    before = graph("f32[n, 8]", "y = Slice(starts=(0,), ends=(-1,), axes=(0,), steps=(1,))(x)")
    check_unchanged(rules.spell_slice, before, "as it should be")


def test_slices_are_merged():
    before = graph(
        "f32[n, 20]",
        "a = Slice(starts=(2,), ends=(-1,), axes=(1,), steps=(3,))(x)",
        "y = Slice(starts=(1, 1), ends=(9223372036854775807, -1), axes=(0, 1), steps=(1, 2))(a)",
    )
    after = graph(
        "f32[n, 20]", "y = Slice(starts=(1, 5), ends=(9223372036854775807, 12), axes=(0, 1), steps=(1, 6))(x)"
    )
    check_rewrite(rules.merge_slices, before, after)


@pytest.mark.parametrize(
    ("axis", "step", "because"), [(1, -1, "a step along axis 1 is negative"), (0, 1, "the symbolic extent n")]
)
def test_slices_that_cannot_be_counted_stay(axis, step, because):
    start, end = ("-1", f"-{FAR}") if step < 0 else ("0", FAR)
    cut = f"Slice(starts=({start},), ends=({end},), axes=({axis},), steps=({step},))"
    rest = f"Slice(starts=(1,), ends=({FAR},), axes=({axis},), steps=(1,))"
    check_unchanged(rules.merge_slices, graph("f32[n, 8]", f"a = {cut}(x)", f"y = {rest}(a)"), because)


def test_gather_of_everything_in_order_is_dropped():
    before = graph("f32[n, 3]", "i = Const(i64, [0, 1, 2])", "y = Gather(axis=1)(x, i)")
    check_rewrite(rules.drop_gather, before, graph("f32[n, 3]", y="x"))


def test_gather_in_another_order_stays():
    before = graph("f32[n, 3]", "i = Const(i64, [0, 2, 1])", "y = Gather(axis=1)(x, i)")
    check_unchanged(rules.drop_gather, before, "aren't 0, 1, .. in order")


def test_tile_by_ones_is_dropped():
    check_rewrite(rules.drop_tile, graph("f32[n, 3]", "y = Tile(repeats=(1, 1))(x)"), graph("f32[n, 3]", y="x"))


def test_tile_by_two_stays():
    check_unchanged(rules.drop_tile, graph("f32[n, 3]", "y = Tile(repeats=(1, 2))(x)"), "aren't all 1")


def test_pad_by_nothing_is_dropped():
    before = graph("f32[n, 3]", "y = Pad(pads=(0, 0, 0, 0), mode='constant', value=0.0)(x)")
    check_rewrite(rules.drop_pad, before, graph("f32[n, 3]", y="x"))


def test_pad_that_moves_stays():
    before = graph("f32[n, 3]", "y = Pad(pads=(0, 1, 0, -1), mode='constant', value=0.0)(x)")
    check_unchanged(rules.drop_pad, before, "aren't all 0")


def test_a_batch_first_detour_vanishes():
    before = graph(
        "f32[1, 5, 6]",
        "a = Transpose(perm=(1, 0, 2))(x)",
        "b = Reshape(shape=(5, 1, 6))(a)",
        "c = Transpose(perm=(1, 0, 2))(b)",
        "d = Unsqueeze(axes=(0,))(c)",
        "y = Squeeze(axes=(0,))(d)",
    )
    check_rewrite(SimplifyLayout(), before, graph("f32[1, 5, 6]", y="x"))
