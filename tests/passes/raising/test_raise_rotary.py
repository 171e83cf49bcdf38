"""The rule of raise-rotary."""

import numpy as np
from raising_texts import graph
from rewriting import check_rewrite, check_unchanged

from planish.passes.raising import RaiseRotary

INPUTS = "x: f32[b, 2, 5, 4], f: f32[b, 5, 2]"
HALVES = (
    "x1 = Slice(starts=(0,), ends=(2,), axes=(3,), steps=(1,))(x)",
    "x2 = Slice(starts=(2,), ends=(9223372036854775807,), axes=(3,), steps=(1,))(x)",
    "m = Neg()(x2)",
    "r = Concat(axis=3)(m, x1)",
)
TURNED = ("xc = Mul()(x, c)", "rs = Mul()(r, s)", "y = Add()(xc, rs)")
TABLES = ("ff = Concat(axis=2)(f, f)", "c0 = Cos()(ff)", "s0 = Sin()(ff)")
UNSQUEEZED = ("c = Unsqueeze(axes=(1,))(c0)", "s = Unsqueeze(axes=(1,))(s0)")
ROTARY = "y = RotaryEmbedding(interleaved=False)(x, c, s)"


def test_rotated_halves_are_rotary_embedding():
    before = graph(INPUTS, *HALVES, *TABLES, *UNSQUEEZED, *TURNED)
    check_rewrite(RaiseRotary(), before, graph(INPUTS, "c = Cos()(f)", "s = Sin()(f)", ROTARY))


def test_scaled_tables_are_scaled_after_the_cut():
    tables = ("ff = Concat(axis=2)(f, f)", "k = Const(f32, 1.5)", "c1 = Cos()(ff)", "c0 = Mul()(c1, k)")
    before = graph(INPUTS, *HALVES, *tables, "s1 = Sin()(ff)", "s0 = Mul()(k, s1)", *UNSQUEEZED, *TURNED)
    after = ("k = Const(f32, 1.5)", "c1 = Cos()(f)", "c = Mul()(c1, k)", "s1 = Sin()(f)", "s = Mul()(k, s1)")
    check_rewrite(RaiseRotary(), before, graph(INPUTS, *after, ROTARY))


def test_constant_tables_are_cut():
    angles = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    cos, sin = np.cos(angles), np.sin(angles)
    tables = ("c: f32[5, 4] = Const('cc')", "s: f32[5, 4] = Const('ss')")
    halves = ("c0: f32[5, 2] = Const('cos')", "s0: f32[5, 2] = Const('sin')")
    places = ("c = Unsqueeze(axes=(0,))(c0)", "s = Unsqueeze(axes=(0,))(s0)")
    constants = {"cc": np.tile(cos, 2), "ss": np.tile(sin, 2), "cos": cos, "sin": sin}
    x = "x: f32[b, 2, 5, 4]"
    check_rewrite(
        RaiseRotary(), graph(x, *HALVES, *tables, *TURNED), graph(x, *halves, *places, ROTARY), constants=constants
    )
    constants["cc"] = np.concatenate([cos, -cos], axis=1)
    check_unchanged(RaiseRotary(), graph(x, *HALVES, *tables, *TURNED), "cos is not provably", constants=constants)


def test_tables_of_different_halves_are_left():
    inputs = f"{INPUTS}, h: f32[b, 5, 2]"
    before = graph(inputs, *HALVES, *TABLES, *UNSQUEEZED, *TURNED).replace("(f, f)", "(f, h)")
    check_unchanged(RaiseRotary(), before, "cos is not provably the same in both halves")


def test_tables_that_differ_between_heads_are_left():
    inputs = INPUTS.replace("f: f32[b, 5, 2]", "f: f32[b, 2, 5, 2]")
    lines = [line.replace("axis=2", "axis=3") for line in TABLES]
    before = graph(inputs, *HALVES, *lines, *TURNED).replace("c0", "c").replace("s0", "s")
    check_unchanged(RaiseRotary(), before, "differs between heads")


def test_quarter_turns_are_left():
    cut = [line.replace("ends=(2,)", "ends=(1,)").replace("starts=(2,)", "starts=(1,)") for line in HALVES]
    before = graph(INPUTS, *cut, *TABLES, *UNSQUEEZED, *TURNED)
    check_unchanged(RaiseRotary(), before, "not cut into halves")


def test_heads_without_batch_are_left():
    inputs = "x: f32[2, 5, 4], f: f32[5, 2]"
    lines = [line.replace("(3,)", "(2,)").replace("axis=3", "axis=2") for line in HALVES]
    tables = [line.replace("axis=2", "axis=1") for line in TABLES]
    unsqueezed = [line.replace("(1,)", "(0,)") for line in UNSQUEEZED]
    check_unchanged(RaiseRotary(), graph(inputs, *lines, *tables, *unsqueezed, *TURNED), "of rank 3, not 4")


TABLE = "c: f32[1, 1, 5, 2], s: f32[1, 1, 5, 2]"
PARTS = (
    "ac = Mul()(p, c)",
    "bs = Mul()(q, s)",
    "u = Sub()(ac, bs)",
    "as1 = Mul()(s, p)",
    "bc = Mul()(q, c)",
    "w = Add()(as1, bc)",
)
SPLIT = "p, q = Split(axis=3, sizes=(2, 2))(x)"
SQUEEZED = ("c1 = Squeeze(axes=(1,))(c)", "s1 = Squeeze(axes=(1,))(s)")


def test_turned_halves_joined_again_are_rotary_embedding():
    inputs = f"x: f32[b, 2, 5, 4], {TABLE}"
    before = graph(inputs, SPLIT, *PARTS, "y = Concat(axis=3)(u, w)")
    after = graph(inputs, *SQUEEZED, ROTARY.replace("c, s", "c1, s1"))
    check_rewrite(RaiseRotary(), before, after)
    check_unchanged(RaiseRotary(), before.replace("p, q = Split", "q, p = Split"), "are not the halves of")
    check_unchanged(RaiseRotary(), before.replace("Sub()", "Add()"), "Sub is expected here")
    uneven = before.replace("Mul()(q, s)", "Mul()(q, s2)").replace(TABLE, f"{TABLE}, s2: f32[1, 1, 5, 2]")
    check_unchanged(RaiseRotary(), uneven, "the same value as elsewhere")


def test_heads_behind_the_tokens_are_moved():
    inputs = f"x: f32[b, 5, 2, 4], {TABLE}".replace("1, 1, 5, 2", "1, 5, 1, 2")
    squeezed = tuple(line.replace("(1,)", "(2,)") for line in SQUEEZED)
    moved = "t = Transpose(perm=(0, 2, 1, 3))(x)"
    rotary = "r = RotaryEmbedding(interleaved=False)(t, c1, s1)"
    after = graph(inputs, *squeezed, moved, rotary, "y = Transpose(perm=(0, 2, 1, 3))(r)")
    check_rewrite(RaiseRotary(), graph(inputs, SPLIT, *PARTS, "y = Concat(axis=3)(u, w)"), after)


def test_tables_without_batch_and_heads_fit_all_of_them():
    inputs = "x: f32[b, 2, 5, 4], c: f32[5, 2], s: f32[5, 2]"
    filled = ("c1 = Unsqueeze(axes=(0,))(c)", "s1 = Unsqueeze(axes=(0,))(s)")
    after = graph(inputs, *filled, ROTARY.replace("c, s", "c1, s1"))
    check_rewrite(RaiseRotary(), graph(inputs, SPLIT, *PARTS, "y = Concat(axis=3)(u, w)"), after)


def test_turned_halves_with_tables_of_each_head_are_left():
    inputs = f"x: f32[b, 2, 5, 4], {TABLE}".replace("1, 1, 5, 2", "1, 2, 5, 2")
    check_unchanged(RaiseRotary(), graph(inputs, SPLIT, *PARTS, "y = Concat(axis=3)(u, w)"), "differ between heads")


def test_part_that_is_not_rotated_stays_joined():
    inputs = f"x: f32[b, 2, 5, 4], z: f32[b, 2, 5, 3], {TABLE}"
    rotary = "r = RotaryEmbedding(interleaved=False)(x, c1, s1)"
    after = graph(inputs, *SQUEEZED, rotary, "y = Concat(axis=3)(r, z)")
    check_rewrite(RaiseRotary(), graph(inputs, SPLIT, *PARTS, "y = Concat(axis=3)(u, w, z)"), after)


def test_turned_neighbours_are_interleaved_rotary_embedding():
    inputs = f"x: f32[b, 2, 5, 4], {TABLE}"
    cut = (
        "p = Slice(starts=(0,), ends=(4,), axes=(3,), steps=(2,))(x)",
        "q = Slice(starts=(1,), ends=(4,), axes=(3,), steps=(2,))(x)",
    )
    joined = ("u1 = Unsqueeze(axes=(4,))(u)", "w1 = Unsqueeze(axes=(4,))(w)", "z = Concat(axis=4)(u1, w1)")
    before = graph(inputs, *cut, *PARTS, *joined, "y = Reshape(shape=(0, 2, 5, 4))(z)")
    rotary = "y = RotaryEmbedding(interleaved=True)(x, c1, s1)"
    check_rewrite(RaiseRotary(), before, graph(inputs, *SQUEEZED, rotary))
    halves = before.replace("(0,), ends=(4,)", "(0,), ends=(2,)").replace("(1,), ends=(4,)", "(2,), ends=(4,)")
    check_unchanged(RaiseRotary(), halves.replace("steps=(2,)", "steps=(1,)"), "not every second element")
