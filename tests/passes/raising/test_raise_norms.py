"""Rules of raise-norms. Further spellings are in the zoo."""

import numpy as np
import pytest
from raising_texts import graph
from rewriting import check_rewrite, check_unchanged

from planish.passes.raising import RaiseNorms, layer_norm, norm_affine, rms_norm

X = "x: f32[n, 5, 4]"
EPS = "e = Const(f32, 1e-05)"
GAMMA = "g = Const(f32, [0.5, 1.0, 2.0, -1.0])"
BETA = "b = Const(f32, [1.0, 0.0, 2.0, 3.0])"
PARTS = (
    EPS,
    "mean = ReduceMean(axes=(-1,), keepdims=True)(x)",
    "d = Sub()(x, mean)",
    "s = Mul()(d, d)",
    "v = ReduceMean(axes=(-1,), keepdims=True)(s)",
    "r = Add()(v, e)",
    "q = Sqrt()(r)",
)


def test_centred_over_deviation_is_layer_norm():
    before = graph(X, *PARTS, "y = Div()(d, q)")
    check_rewrite(layer_norm.layer_norm, before, graph(X, "y = LayerNorm(axis=-1, eps=1e-05)(x)"))


def test_scale_and_shift_become_parameters():
    before = graph(X, *PARTS, GAMMA, BETA, "z = Div()(d, q)", "m = Mul()(g, z)", "y = Add()(b, m)")
    check_rewrite(RaiseNorms(), before, graph(X, GAMMA, BETA, "y = LayerNorm(axis=-1, eps=1e-05)(x, g, b)"))


def test_variance_over_another_axis_is_no_layer_norm():
    lines = [line.replace("(-1,)", "(-2,)") if line.startswith("v") else line for line in PARTS]
    check_unchanged(layer_norm.layer_norm, graph(X, *lines, "y = Div()(d, q)"), "attributes differ")


def test_several_last_axes_are_normalised_together():
    lines = [line.replace("(-1,)", "(-2, -1)") for line in PARTS]
    after = graph(X, "y = LayerNorm(axis=-2, eps=1e-05)(x)")
    check_rewrite(layer_norm.layer_norm, graph(X, *lines, "y = Div()(d, q)"), after)


def test_channel_first_norm_is_moved_to_the_last_axis():
    lines = [line.replace("(-1,)", "(-3,)") for line in PARTS]
    x = "x: f32[n, 2, 5, 4]"
    gamma, beta = "g = Const(f32, [[[2.0]], [[3.0]]])", "b = Const(f32, [[[1.0]], [[0.5]]])"
    before = graph(x, *lines, gamma, beta, "z = Div()(d, q)", "m = Mul()(z, g)", "y = Add()(m, b)")
    after = graph(
        x,
        "g = Const(f32, [2.0, 3.0])",
        "b = Const(f32, [1.0, 0.5])",
        "t = Transpose(perm=(0, 2, 3, 1))(x)",
        "l = LayerNorm(axis=-1, eps=1e-05)(t, g, b)",
        "y = Transpose(perm=(0, 3, 1, 2))(l)",
    )
    check_rewrite(RaiseNorms(), before, after)


def test_two_inner_axes_are_left():
    lines = [line.replace("(-1,)", "(-3, -2)") for line in PARTS]
    before = graph("x: f32[n, 2, 5, 4]", *lines, "y = Div()(d, q)")
    check_unchanged(layer_norm.layer_norm, before, "axes (-3, -2) are not the last ones")


def test_epsilon_keeps_its_decimal_spelling():
    before = graph(X, *PARTS, "y = Div()(d, q)").replace("1e-05", "1e-12")
    check_rewrite(layer_norm.layer_norm, before, graph(X, "y = LayerNorm(axis=-1, eps=1e-12)(x)"))


def test_negative_epsilon_is_left():
    before = graph(X, *PARTS, "y = Div()(d, q)").replace("1e-05", "-0.5")
    check_unchanged(layer_norm.layer_norm, before, "epsilon -0.5 is negative")


def test_centred_values_that_others_read_block_the_match():
    before = graph(X, *PARTS, "z = Div()(d, q)", "y = Add()(z, d)")
    check_unchanged(layer_norm.layer_norm, before, "outside the match")


def test_mean_with_its_axis_put_back_keeps_it():
    lines = ("v = ReduceMean(axes=(-1,), keepdims=False)(x)", "y = Reshape(shape=(0, 5, 1))(v)")
    after = graph(X, "y = ReduceMean(axes=(-1,), keepdims=True)(x)")
    check_rewrite(layer_norm.kept_mean, graph(X, *lines), after)
    check_rewrite(layer_norm.kept_mean, graph(X, lines[0], "y = Unsqueeze(axes=(2,))(v)"), after)
    other = graph(X, lines[0], "y = Unsqueeze(axes=(1,))(v)")
    check_unchanged(layer_norm.kept_mean, other, "with axes (-1,) of extent 1")


RAW = (
    EPS,
    "mean = ReduceMean(axes=(-1,), keepdims=True)(x)",
    "s = Mul()(x, x)",
    "p = ReduceMean(axes=(-1,), keepdims=True)(s)",
    "m2 = Mul()(mean, mean)",
    "v = Sub()(p, m2)",
    "r = Add()(v, e)",
)


def test_raw_moments_are_the_same_norm():
    before = graph(X, *RAW, "q = Sqrt()(r)", "d = Sub()(x, mean)", "y = Div()(d, q)")
    check_rewrite(layer_norm.layer_norm_of_raw_moments, before, graph(X, "y = LayerNorm(axis=-1, eps=1e-05)(x)"))


def test_raw_moments_of_two_tensors_are_left():
    lines = [line.replace("Mul()(mean, mean)", "Mul()(mean, w)") for line in RAW]
    before = graph(f"{X}, w: f32[n, 5, 1]", *lines, "q = Sqrt()(r)", "d = Sub()(x, mean)", "y = Div()(d, q)")
    check_unchanged(layer_norm.layer_norm_of_raw_moments, before, "the same value as elsewhere")


FOLDED = ("q = Sqrt()(r)", "i = Reciprocal()(q)", "k = Mul()(i, g)", "xk = Mul()(x, k)")


@pytest.mark.parametrize(
    "shift",
    [
        ("mk = Mul()(mean, k)", "t = Sub()(b, mk)"),
        ("n1 = Neg()(mean)", "mk = Mul()(n1, k)", "t = Add()(b, mk)"),
        ("mk = Mul()(mean, k)", "n1 = Neg()(mk)", "t = Add()(n1, b)"),
    ],
)
def test_folded_scale_and_shift_are_layer_norm(shift):
    before = graph(X, *RAW, GAMMA, BETA, *FOLDED, *shift, "y = Add()(xk, t)")
    after = graph(X, GAMMA, BETA, "y = LayerNorm(axis=-1, eps=1e-05)(x, g, b)")
    check_rewrite(layer_norm.layer_norm_of_scale_and_shift, before, after)


def test_folded_scale_without_shift_is_layer_norm():
    before = graph(X, *RAW, GAMMA, *FOLDED, "mk = Mul()(mean, k)", "y = Sub()(xk, mk)")
    after = graph(X, GAMMA, "y = LayerNorm(axis=-1, eps=1e-05)(x, g)")
    check_rewrite(layer_norm.layer_norm_of_scale_and_shift, before, after)


def test_folded_scale_with_negated_mean_is_layer_norm():
    lines = (*RAW, GAMMA, *FOLDED, "n1 = Neg()(mean)", "mk = Mul()(n1, k)", "y = Add()(xk, mk)")
    after = graph(X, GAMMA, "y = LayerNorm(axis=-1, eps=1e-05)(x, g)")
    check_rewrite(layer_norm.layer_norm_of_scale_and_shift, graph(X, *lines), after)
    other = graph(f"{X}, o: f32[n, 5, 1]", *lines).replace("Neg()(mean)", "Neg()(o)")
    check_unchanged(layer_norm.layer_norm_of_scale_and_shift, other, "the same value as elsewhere")


def test_folded_shift_by_another_mean_is_left():
    lines = (*RAW, GAMMA, BETA, *FOLDED, "mk = Mul()(o, k)", "t = Sub()(b, mk)", "y = Add()(xk, t)")
    before = graph(f"{X}, o: f32[n, 5, 1]", *lines)
    check_unchanged(layer_norm.layer_norm_of_scale_and_shift, before, "the same value as elsewhere")


def test_gamma_in_the_inverse_root_is_the_scale():
    lines = (*PARTS, GAMMA, "i = Reciprocal()(q)", "k = Mul()(i, g)", "y = Mul()(d, k)")
    after = graph(X, GAMMA, "y = LayerNorm(axis=-1, eps=1e-05)(x, g)")
    check_rewrite(layer_norm.layer_norm_of_scaled_inverse, graph(X, *lines), after)


def test_gamma_of_tokens_in_the_inverse_root_is_left():
    gamma = "g = Const(f32, [[1.0], [2.0], [3.0], [4.0], [5.0]])"
    lines = (*PARTS, gamma, "i = Reciprocal()(q)", "k = Mul()(i, g)", "y = Mul()(d, k)")
    check_unchanged(layer_norm.layer_norm_of_scaled_inverse, graph(X, *lines), "varies along other axes")


ONES, ZEROS = "o = Const(f32, [1.0, 1.0, 1.0, 1.0, 1.0])", "z = Const(f32, [0.0, 0.0, 0.0, 0.0, 0.0])"


def test_instance_norm_of_tokens_is_layer_norm():
    before = graph(X, ONES, ZEROS, GAMMA, "i = InstanceNorm(eps=1e-05)(x, o, z)", "y = Mul()(i, g)")
    after = graph(X, GAMMA, "y = LayerNorm(axis=-1, eps=1e-05)(x, g)")
    check_rewrite(layer_norm.layer_norm_of_instance_norm, before, after)


def test_instance_norm_of_images_is_left():
    scale = "g = Const(f32, [[[2.0]], [[3.0]], [[1.0]], [[0.5]], [[4.0]]])"
    before = graph("x: f32[n, 5, 4, 4]", ONES, ZEROS, scale, "i = InstanceNorm(eps=1e-05)(x, o, z)", "y = Mul()(i, g)")
    check_unchanged(layer_norm.layer_norm_of_instance_norm, before, "rank 4, not 3")


def test_batch_norm_with_its_own_moments_over_the_batch_is_left():
    lines = (
        "rows = Reshape(shape=(1, 10, 4, 1))(x)",
        "mean = ReduceMean(axes=(-4, -2, -1), keepdims=True)(rows)",
        "d = Sub()(rows, mean)",
        "total = ReduceSumSquare(axes=(-4, -2, -1), keepdims=True)(d)",
        "count = Const(f32, 3.0)",
        "v = Div()(total, count)",
        "m1 = Squeeze(axes=(0, 2, 3))(mean)",
        "v1 = Squeeze(axes=(0, 2, 3))(v)",
        f"o = Const(f32, {[1.0] * 10})",
        f"z = Const(f32, {[0.0] * 10})",
        "i = BatchNorm(eps=1e-05)(rows, o, z, m1, v1)",
        "y = Reshape(shape=(2, 5, 4))(i)",
    )
    check_unchanged(layer_norm.layer_norm_of_batch_norm, graph("x: f32[2, 5, 4]", *lines), "divided by 3.0")
    before = graph("x: f32[2, 5, 4]", *lines).replace("f32, 3.0", "f32, 4.0")
    after = graph("x: f32[2, 5, 4]", "y = LayerNorm(axis=-1, eps=1e-05)(x)")
    check_rewrite(layer_norm.layer_norm_of_batch_norm, before, after)


def test_batch_norm_with_its_own_moments_of_a_free_batch_is_layer_norm():
    lines = (
        "rows = Reshape(shape=(1, -1, 20, 1))(x)",
        "mean = ReduceMean(axes=(-4, -2, -1), keepdims=True)(rows)",
        "d = Sub()(rows, mean)",
        "total = ReduceSumSquare(axes=(-4, -2, -1), keepdims=False)(d)",
        "count = Const(f32, 20.0)",
        "v = Div()(total, count)",
        "m1 = Squeeze(axes=(0, 2, 3))(mean)",
        "sizes = Shape()(x)",
        "shape = Slice(starts=(0,), ends=(1,), axes=(0,), steps=(1,))(sizes)",
        "one = Const(f32, 1.0)",
        "zero = Const(f32, 0.0)",
        "o = Expand()(one, shape)",
        "z = Expand()(zero, shape)",
        "i = BatchNorm(eps=1e-05)(rows, o, z, m1, v)",
        "y = Reshape(shape=(-1, 5, 4))(i)",
    )
    before = graph(X, *lines)
    check_rewrite(layer_norm.layer_norm_of_batch_norm, before, graph(X, "y = LayerNorm(axis=-2, eps=1e-05)(x)"))
    halves = before.replace("(1, -1, 20, 1)", "(1, -1, 10, 1)").replace("20.0", "10.0")
    check_unchanged(layer_norm.layer_norm_of_batch_norm, halves, "not one channel per token")


def test_mean_square_norm_is_rms_norm():
    lines = (EPS, "s = Mul()(x, x)", "v = ReduceMean(axes=(-1,), keepdims=True)(s)", "r = Add()(v, e)", "q = Sqrt()(r)")
    before = graph(X, *lines, "i = Reciprocal()(q)", "y = Mul()(x, i)")
    check_rewrite(rms_norm.rms_norm, before, graph(X, "y = RMSNorm(axis=-1, eps=1e-05)(x)"))
    other = graph(f"{X}, o: f32[n, 5, 4]", *lines, "y = Div()(o, q)")
    check_unchanged(rms_norm.rms_norm, other, "the same value as elsewhere")
    tokens = graph(X, *lines, "y = Div()(x, q)").replace("(-1,)", "(-2,)")
    check_unchanged(rms_norm.rms_norm, tokens, "axes (-2,) are not the last ones")


def test_gamma_in_the_inverse_root_is_the_scale_of_rms_norm():
    lines = (EPS, "s = Mul()(x, x)", "v = ReduceMean(axes=(-1,), keepdims=True)(s)", "r = Add()(v, e)", "q = Sqrt()(r)")
    before = graph(X, *lines, GAMMA, "i = Reciprocal()(q)", "k = Mul()(i, g)", "y = Mul()(x, k)")
    after = graph(X, GAMMA, "y = RMSNorm(axis=-1, eps=1e-05)(x, g)")
    check_rewrite(rms_norm.rms_norm_of_scaled_inverse, before, after)
    tokens = "g = Const(f32, [[1.0], [2.0], [3.0], [4.0], [5.0]])"
    check_unchanged(rms_norm.rms_norm_of_scaled_inverse, before.replace(GAMMA, tokens), "varies along other axes")
    deviation = before.replace("Mul()(x, x)", "Mul()(o, o)").replace(X, f"{X}, o: f32[n, 5, 4]")
    check_unchanged(rms_norm.rms_norm_of_scaled_inverse, deviation, "the same value as elsewhere")


def test_sum_of_squares_over_the_count_is_rms_norm():
    lines = (EPS, "t = ReduceSumSquare(axes=(-1,), keepdims=True)(x)", "c = Const(f32, 0.25)", "v = Mul()(t, c)")
    before = graph(X, *lines, "r = Add()(v, e)", "q = Sqrt()(r)", "y = Div()(x, q)")
    check_rewrite(rms_norm.rms_norm_of_sum, before, graph(X, "y = RMSNorm(axis=-1, eps=1e-05)(x)"))
    check_unchanged(rms_norm.rms_norm_of_sum, before.replace("0.25", "0.2"), "scaled by 0.2")


def test_length_over_the_root_of_the_count_is_rms_norm():
    lines = ("l = ReduceL2(axes=(-1,), keepdims=True)(x)", "c = Const(f32, 2.0)", "q = Div()(l, c)", "y = Div()(x, q)")
    before = graph(X, *lines)
    check_rewrite(rms_norm.rms_norm_of_length, before, graph(X, "y = RMSNorm(axis=-1, eps=0.0)(x)"))
    check_unchanged(rms_norm.rms_norm_of_length, before.replace("2.0", "3.0"), "not by 0.5")


NORM = "z = LayerNorm(axis=-1, eps=1e-05)(x, g, b)"


def test_second_scale_multiplies_gamma_and_beta():
    before = graph(X, GAMMA, BETA, NORM, "s = Const(f32, 2.0)", "y = Mul()(z, s)")
    scaled = ("g = Const(f32, [1.0, 2.0, 4.0, -2.0])", "b = Const(f32, [2.0, 0.0, 4.0, 6.0])")
    check_rewrite(norm_affine.scale_into_layer_norm, before, graph(X, *scaled, NORM.replace("z", "y", 1)))


@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_computed_modulation_stays_outside(op):
    before = graph(f"{X}, s: f32[n, 1, 4]", GAMMA, BETA, NORM, f"y = {op}()(z, s)")
    check_unchanged(RaiseNorms(), before, "must be a array")


def test_constant_per_token_stays_outside():
    shift = "s = Const(f32, [[1.0], [2.0], [3.0], [4.0], [5.0]])"
    for op, one in (("Mul", norm_affine.scale_into_layer_norm), ("Add", norm_affine.shift_into_layer_norm)):
        check_unchanged(one, graph(X, GAMMA, BETA, NORM, shift, f"y = {op}()(z, s)"), "varies along other axes")


def test_constant_shift_is_added_to_beta():
    before = graph(X, GAMMA, BETA, NORM, "s = Const(f32, [1.0, 1.0, 1.0, 2.0])", "y = Add()(s, z)")
    after = graph(X, GAMMA, "b = Const(f32, [2.0, 1.0, 3.0, 5.0])", NORM.replace("z", "y", 1))
    check_rewrite(norm_affine.shift_into_layer_norm, before, after)


MOVED = ("z = LayerNorm(axis=-1, eps=1e-05)(x)", "t = Transpose(perm=(0, 2, 1))(z)")


@pytest.mark.parametrize(("op", "operands"), [("Mul", "x, c"), ("Add", "x, None, c")])
def test_constant_along_the_moved_axis_goes_through_the_transpose(op, operands):
    constant = "c = Const(f32, [[1.0], [2.0], [3.0], [4.0]])"
    before = graph(X, *MOVED, constant, f"y = {op}()(t, c)")
    flat = "c = Const(f32, [1.0, 2.0, 3.0, 4.0])"
    after = graph(X, flat, f"z = LayerNorm(axis=-1, eps=1e-05)({operands})", "y = Transpose(perm=(0, 2, 1))(z)")
    check_rewrite(RaiseNorms(), before, after)


@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_constant_along_another_axis_stays_behind_the_transpose(op):
    constant = "c = Const(f32, [1.0, 2.0, 3.0, 4.0, 5.0])"
    check_unchanged(RaiseNorms(), graph(X, *MOVED, constant, f"y = {op}()(t, c)"), "varies along other axes than 1")


HALF = "x: f16[n, 5, 4]"


@pytest.mark.parametrize("norm", ["LayerNorm", "RMSNorm"])
def test_float32_between_casts_is_how_half_precision_norms_compute(norm):
    op = f"{norm}(axis=-1, eps=1e-05)"
    before = graph(HALF, GAMMA, "w = Cast(to=f32)(x)", f"z = {op}(w, g)", "y = Cast(to=f16)(z)")
    after = graph(HALF, GAMMA.replace("f32", "f16"), f"y = {op}(x, g)")
    check_rewrite(RaiseNorms(), before, after)
    wide = graph(X, GAMMA, f"z = {op}(x, g)", "y = Cast(to=f16)(z)")
    check_unchanged(RaiseNorms(), wide, "Cast is expected here")


@pytest.mark.parametrize("norm", ["LayerNorm", "RMSNorm"])
def test_parameter_that_overflows_half_precision_keeps_the_casts(norm):
    lines = ("g = Const(f32, [1e6, 1.0, 1.0, 1.0])", "w = Cast(to=f32)(x)", f"z = {norm}(axis=-1, eps=1e-05)(w, g)")
    check_unchanged(RaiseNorms(), graph(HALF, *lines, "y = Cast(to=f16)(z)"), "overflows f16")


def test_unit_scale_and_zero_shift_are_dropped():
    ones, zeros = "g = Const(f32, [1.0, 1.0, 1.0, 1.0])", "b = Const(f32, [0.0, 0.0, 0.0, 0.0])"
    before = graph(X, ones, zeros, NORM.replace("z", "y", 1))
    check_rewrite(RaiseNorms(), before, graph(X, "y = LayerNorm(axis=-1, eps=1e-05)(x)"))
    check_unchanged(RaiseNorms(), graph(X, GAMMA, BETA, NORM.replace("z", "y", 1)), "the constant 1 is expected")
    rms = graph(X, ones, "y = RMSNorm(axis=-1, eps=1e-05)(x, g)")
    check_rewrite(norm_affine.drop_unit_rms_scale, rms, graph(X, "y = RMSNorm(axis=-1, eps=1e-05)(x)"))
    rms = graph(X, GAMMA, "y = RMSNorm(axis=-1, eps=1e-05)(x, g)")
    check_unchanged(norm_affine.drop_unit_rms_scale, rms, "the constant 1 is expected")


def test_scale_behind_an_rms_norm_is_its_gamma():
    before = graph(X, GAMMA, "z = RMSNorm(axis=-1, eps=1e-05)(x)", "y = Mul()(g, z)")
    after = graph(X, GAMMA, "y = RMSNorm(axis=-1, eps=1e-05)(x, g)")
    check_rewrite(norm_affine.scale_into_rms_norm, before, after)
    wide = np.ones((1, 1, 1, 4), np.float32)
    before = graph(X, "g: f32[1, 1, 1, 4] = Const('g')", "z = RMSNorm(axis=-1, eps=1e-05)(x)", "y = Mul()(g, z)")
    check_unchanged(norm_affine.scale_into_rms_norm, before, "a constant broadcasts", constants={"g": wide})
