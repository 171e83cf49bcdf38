"""Rules of fold-batch-norm and fold-scales, and the pass merge-projections."""

import numpy as np
import pytest
from raising_texts import graph
from rewriting import check_rewrite, check_unchanged, read

from planish.passes.base import Context
from planish.passes.raising import FoldBatchNorm, FoldScales, MergeProjections, batch_norm, scales
from planish.passes.rewrite import Fuel

RNG = np.random.default_rng(7)
CONV = "Conv(strides=(1, 1), pads={pads}, dilations=(1, 1), group={group})"
PLAIN = CONV.format(pads=(0, 0, 0, 0), group=1)
NORM = "BatchNorm(eps=0.001)({}, gamma, beta, mean, var)"


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def statistics(count: int) -> tuple[dict[str, np.ndarray], list[str], np.ndarray, np.ndarray]:
    """Constants of a BatchNorm, lines that define them, and its factor and shift."""
    found = {"gamma": normal(count), "beta": normal(count), "mean": normal(count), "var": normal(count) ** 2 + 1}
    lines = [f"{name}: f32[{count}] = Const('{name}')" for name in found]
    factor = found["gamma"].astype(np.float64) / np.sqrt(found["var"].astype(np.float64) + 0.001)
    return found, lines, factor, found["beta"] - found["mean"] * factor


def consts(**arrays: np.ndarray) -> tuple[dict[str, np.ndarray], list[str]]:
    float32 = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    return float32, [f"{name}: f32{list(array.shape)} = Const('{name}')" for name, array in float32.items()]


def check(subject, inputs, constants, before, folded, after):
    """Check the rewrite, the weights of the result given as arrays by name."""
    arrays, lines = consts(**folded)
    taken = {**constants, **{f"new_{name}": array for name, array in arrays.items()}}
    lines = [line.replace("Const('", "Const('new_") for line in lines]
    check_rewrite(subject, graph(inputs, *before), graph(inputs, *lines, *after), constants=taken)


X = "x: f32[n, 4, 5, 5]"


@pytest.mark.parametrize("biased", [True, False])
def test_batch_norm_behind_a_conv_goes_into_its_weights(biased):
    norm, lines, factor, shift = statistics(6)
    arrays, weights = consts(w=normal(6, 4, 3, 3), b=normal(6))
    bias = arrays["b"] if biased else 0
    conv = CONV.format(pads=(1, 1, 1, 1), group=1)
    used = weights if biased else weights[:1]
    before = [*used, *lines, f"z = {conv}(x, w{', b' if biased else ''})", f"y = {NORM.format('z')}"]
    folded = {"w": arrays["w"] * factor[:, None, None, None], "b": bias * factor + shift}
    check(FoldBatchNorm(), X, {**norm, **arrays}, before, folded, [f"y = {conv}(x, w, b)"])


def test_batch_norm_behind_a_conv_that_others_read_stays():
    norm, lines, _, _ = statistics(6)
    arrays, weights = consts(w=normal(6, 4, 3, 3))
    before = graph(X, *weights, *lines, f"z = {PLAIN}(x, w)", f"m = {NORM.format('z')}", "y = Add()(z, m)")
    check_unchanged(FoldBatchNorm(), before, "outside the match", constants={**norm, **arrays})


def test_batch_norm_with_computed_statistics_stays():
    norm, lines, _, _ = statistics(6)
    arrays, weights = consts(w=normal(6, 4, 3, 3))
    lines = [line for line in lines if not line.startswith("var")]
    before = graph(f"{X}, var: f32[6]", *weights, *lines, f"z = {PLAIN}(x, w)", f"y = {NORM.format('z')}")
    check_unchanged(FoldBatchNorm(), before, "var must be a array", constants={**norm, **arrays})


def test_batch_norm_behind_a_linear_goes_into_its_weights():
    norm, lines, factor, shift = statistics(3)
    arrays, weights = consts(w=normal(5, 3), b=normal(3))
    before = [*weights, *lines, "z = Linear()(x, w, b)", f"y = {NORM.format('z')}"]
    folded = {"w": arrays["w"] * factor, "b": arrays["b"] * factor + shift}
    check(
        batch_norm.batch_norm_into_linear, "x: f32[n, 5]", {**norm, **arrays}, before, folded, ["y = Linear()(x, w, b)"]
    )


def test_batch_norm_over_the_tokens_of_a_linear_stays():
    norm, lines, _, _ = statistics(4)
    arrays, weights = consts(w=normal(5, 3))
    before = graph("x: f32[n, 4, 5]", *weights, *lines, "z = Linear()(x, w)", f"y = {NORM.format('z')}")
    check_unchanged(FoldBatchNorm(), before, "the channels of the norm are axis 1", constants={**norm, **arrays})


@pytest.mark.parametrize("group", [1, 2])
def test_batch_norm_before_a_conv_without_padding_goes_into_its_weights(group):
    norm, lines, factor, shift = statistics(4)
    arrays, weights = consts(w=normal(6, 4 // group, 3, 3), b=normal(6))
    conv = CONV.format(pads=(0, 0, 0, 0), group=group)
    before = [*weights, *lines, f"z = {NORM.format('x')}", f"y = {conv}(z, w, b)"]
    seen = np.arange(4).reshape(group, -1)[np.arange(6) * group // 6]  # input channels of each filter
    moved = (arrays["w"].astype(np.float64) * shift[seen][:, :, None, None]).sum(axis=(1, 2, 3))
    folded = {"w": arrays["w"] * factor[seen][:, :, None, None], "b": arrays["b"] + moved}
    check(batch_norm.conv_of_batch_norm, X, {**norm, **arrays}, before, folded, [f"y = {conv}(x, w, b)"])


def test_batch_norm_before_a_padded_conv_stays():
    norm, lines, _, _ = statistics(4)
    arrays, weights = consts(w=normal(6, 4, 3, 3))
    conv = CONV.format(pads=(1, 1, 1, 1), group=1)
    before = graph(X, *weights, *lines, f"z = {NORM.format('x')}", f"y = {conv}(z, w)")
    check_unchanged(FoldBatchNorm(), before, "pads with zeros", constants={**norm, **arrays})


def test_batch_norm_before_a_linear_goes_into_its_weights():
    norm, lines, factor, shift = statistics(5)
    arrays, weights = consts(w=normal(5, 3))
    before = [*weights, *lines, f"z = {NORM.format('x')}", "y = Linear()(z, w)"]
    folded = {"w": arrays["w"] * factor[:, None], "b": shift @ arrays["w"].astype(np.float64)}
    check(FoldBatchNorm(), "x: f32[n, 5]", {**norm, **arrays}, before, folded, ["y = Linear()(x, w, b)"])
    tokens = graph("x: f32[n, 5, 5]", *before)
    check_unchanged(FoldBatchNorm(), tokens, "the channels of the norm are axis 1", constants={**norm, **arrays})


def test_batch_norm_between_transposes_is_a_scale_and_a_shift():
    norm, lines, factor, shift = statistics(4)
    turn = "Transpose(perm=(0, 2, 1))"
    before = [*lines, f"t = {turn}(x)", f"z = {NORM.format('t')}", f"y = {turn}(z)"]
    after = ["m = Mul()(x, f)", "y = Add()(m, s)"]
    check(FoldBatchNorm(), "x: f32[n, 5, 4]", norm, before, {"f": factor, "s": shift}, after)
    other = graph("x: f32[n, 5, 4, 1]", *before).replace("(0, 2, 1)", "(0, 2, 1, 3)")
    check_unchanged(FoldBatchNorm(), other, "does not match Transpose", constants=norm)


def test_image_normalisation_goes_into_the_convolution():
    arrays, weights = consts(w=normal(6, 4, 2, 2), b=normal(6), mean=normal(4, 1, 1), std=normal(1, 4, 1, 1) ** 2 + 1)
    steps = ["c = Const(f32, 255.0)", "a = Div()(x, c)", "d = Sub()(a, mean)", "s = Div()(d, std)"]
    before = [*weights, *steps, f"y = {PLAIN}(s, w, b)"]
    std, mean = (arrays[name].reshape(-1).astype(np.float64) for name in ("std", "mean"))
    w = (arrays["w"] / std[:, None, None]).astype(np.float32)
    b = (arrays["b"] - (w * mean[:, None, None]).sum(axis=(1, 2, 3))).astype(np.float32)
    folded = graph(X, "w: f32[6, 4, 2, 2] = Const('w2')", "b: f32[6] = Const('b2')", f"y = {PLAIN}(x, w, b)")
    graph_ = read(graph(X, *before), arrays)
    assert FoldScales().run(graph_, Context()).rewrites == {"scale_into_next_conv": 3}
    found = [node.op.data.numpy() for node in graph_ if node.op.name == "Const"]
    np.testing.assert_allclose(found[0], w / 255, rtol=1e-6)
    np.testing.assert_allclose(found[1], b, rtol=1e-5, atol=1e-6)
    constants = {**arrays, "w2": found[0], "b2": found[1]}
    check_rewrite(FoldScales(), graph(X, *before), folded, constants=constants)


def test_shift_before_a_padded_conv_stays_and_a_scale_does_not():
    arrays, weights = consts(w=normal(6, 4, 3, 3))
    conv = CONV.format(pads=(1, 1, 1, 1), group=1)
    shifted = graph(X, *weights, "c = Const(f32, 2.0)", "s = Add()(x, c)", f"y = {conv}(s, w)")
    check_unchanged(FoldScales(), shifted, "pads with zeros", constants=arrays)
    scaled = [*weights, "c = Const(f32, 2.0)", "s = Mul()(x, c)", f"y = {conv}(s, w)"]
    check(scales.scale_into_next_conv, X, arrays, scaled, {"w": arrays["w"] * 2}, [f"y = {conv}(x, w)"])


def test_constant_that_makes_channels_stays():
    arrays, weights = consts(w=normal(6, 4, 3, 3), c=normal(4, 1, 1))
    before = graph("x: f32[n, 1, 5, 5]", *weights, "s = Mul()(x, c)", f"y = {PLAIN}(s, w)")
    check_unchanged(FoldScales(), before, "the constant broadcasts", constants=arrays)


def test_division_by_zero_stays():
    arrays, weights = consts(w=normal(5, 3))
    before = graph("x: f32[n, 5]", *weights, "c = Const(f32, 0.0)", "s = Div()(x, c)", "y = Linear()(s, w)")
    check_unchanged(FoldScales(), before, "not finite", constants=arrays)


def test_scale_before_a_linear_goes_into_its_weights():
    arrays, weights = consts(w=normal(5, 3), b=normal(3), c=normal(5))
    before = [*weights, "s = Mul()(x, c)", "y = Linear()(s, w, b)"]
    folded = {"w": arrays["w"] * arrays["c"][:, None], "b": arrays["b"]}
    check(scales.scale_into_next_linear, "x: f32[n, 2, 5]", arrays, before, folded, ["y = Linear()(x, w, b)"])
    tokens = [line.replace("c: f32[5]", "c: f32[2, 1]") for line in before]
    check_unchanged(
        FoldScales(),
        graph("x: f32[n, 2, 5]", *tokens),
        "varies along other axes",
        constants={**arrays, "c": normal(2, 1)},
    )


def test_layer_scale_behind_a_linear_goes_into_its_weights():
    arrays, weights = consts(w=normal(5, 3), b=normal(3), c=normal(3))
    before = [*weights, "s = Linear()(x, w, b)", "y = Mul()(c, s)"]
    folded = {"w": arrays["w"] * arrays["c"], "b": arrays["b"] * arrays["c"]}
    check(scales.scale_into_linear, "x: f32[n, 2, 5]", arrays, before, folded, ["y = Linear()(x, w, b)"])


def test_residual_behind_a_linear_stays():
    arrays, weights = consts(w=normal(5, 5))
    before = graph("x: f32[n, 2, 5]", *weights, "s = Linear()(x, w)", "y = Add()(s, x)")
    check_unchanged(FoldScales(), before, "summand must be a array", constants=arrays)


def test_shift_behind_a_conv_goes_into_its_bias():
    arrays, weights = consts(w=normal(6, 4, 3, 3), c=normal(6, 1, 1))
    before = [*weights, f"s = {PLAIN}(x, w)", "y = Sub()(s, c)"]
    folded = {"w": arrays["w"], "b": -arrays["c"].reshape(-1)}
    check(scales.scale_into_conv, X, arrays, before, folded, [f"y = {PLAIN}(x, w, b)"])
    rows = [line.replace("c: f32[6, 1, 1]", "c: f32[3, 1]") for line in before]
    check_unchanged(FoldScales(), graph(X, *rows), "varies along other axes", constants={**arrays, "c": normal(3, 1)})


def test_linears_of_one_tensor_become_one():
    arrays, weights = consts(w1=normal(5, 3), w2=normal(5, 4), b2=normal(4))
    before = [*weights, "p = Linear()(x, w1)", "q = Linear()(x, w2, b2)", "y = Concat(axis=2)(p, q)"]
    folded = {
        "w": np.concatenate([arrays["w1"], arrays["w2"]], axis=1),
        "b": np.concatenate([np.zeros(3), arrays["b2"]]),
    }
    after = ["r = Linear()(x, w, b)", "p, q = Split(axis=2, sizes=(3, 4))(r)", "y = Concat(axis=2)(p, q)"]
    check(MergeProjections(), "x: f32[n, 2, 5]", arrays, before, folded, after)


def test_linears_of_several_tensors_or_computed_weights_stay():
    arrays, weights = consts(w=normal(5, 3))
    before = graph(
        "x: f32[2, 5], z: f32[2, 5]", *weights, "p = Linear()(x, w)", "q = Linear()(z, w)", "y = Add()(p, q)"
    )
    check_unchanged(MergeProjections(), before, constants=arrays)
    before = graph(
        "x: f32[2, 5], v: f32[5, 3]", *weights, "p = Linear()(x, w)", "q = Linear()(x, v)", "y = Add()(p, q)"
    )
    check_unchanged(MergeProjections(), before, "a weight or bias is computed", constants=arrays)


def test_merging_stops_when_the_fuel_is_spent():
    arrays, weights = consts(w=normal(5, 3))
    before = graph("x: f32[2, 5]", *weights, "p = Linear()(x, w)", "q = Linear()(x, w)", "y = Add()(p, q)")
    check_unchanged(MergeProjections(), before, constants=arrays, context=Context(fuel=Fuel(0)))
