"""Rules of raise-attention. Further spellings are in the zoo."""

import numpy as np
import pytest
from raising_texts import graph
from rewriting import check_rewrite, check_unchanged

from planish.passes.raising import RaiseAttention, attention, attention_absorb, attention_windows

QKV = "q: f32[b, 2, 5, 4], k: f32[b, 2, 3, 4], v: f32[b, 2, 3, 6]"
TURNED = "t = Transpose(perm=(0, 1, 3, 2))(k)"
PRODUCT = (TURNED, "s = MatMul()(q, t)")
END = ("w = Softmax(axis=-1)(l)", "y = MatMul()(w, v)")


def raised(op: str = "scale=1.0, causal=False", operands: str = "q, k, v", inputs: str = QKV, *lines: str) -> str:
    return graph(inputs, *lines, f"y = Attention({op})({operands})")


@pytest.mark.parametrize(
    ("scale", "factor"),
    [(("c = Const(f32, 0.5)", "l = Mul()(s, c)"), 0.5), (("c = Const(f32, [4.0])", "l = Div()(s, c)"), 0.25)],
)
def test_softmax_between_products_is_attention(scale, factor):
    before = graph(QKV, *PRODUCT, *scale, *END)
    check_rewrite(attention.attention, before, raised(f"scale={factor}, causal=False"))


def test_softmax_over_queries_is_no_attention():
    before = graph(QKV, *PRODUCT, "w = Softmax(axis=-2)(s)", "y = MatMul()(w, v)")
    check_unchanged(attention.attention, before, "does not match Softmax(axis=-2)")


def test_scale_on_queries_and_keys_is_multiplied():
    lines = ("c = Const(f32, 0.5)", "a = Mul()(q, c)", TURNED, "d = Mul()(t, c)", "l = MatMul()(a, d)")
    check_rewrite(attention.attention, graph(QKV, *lines, *END), raised("scale=0.25, causal=False"))


def test_keys_transposed_once_from_their_projection_keep_one_transpose():
    inputs = QKV.replace("k: f32[b, 2, 3, 4]", "k: f32[b, 3, 2, 4]")
    before = graph(inputs, "t = Transpose(perm=(0, 2, 3, 1))(k)", "l = MatMul()(q, t)", *END)
    moved = "u = Transpose(perm=(0, 2, 1, 3))(k)"
    check_rewrite(attention.attention, before, raised("scale=1.0, causal=False", "q, u, v", inputs, moved))


def test_keys_transposed_between_reshapes_are_seen_through():
    lines = (
        "m = Reshape(shape=(-1, 3, 4))(k)",
        "u = Transpose(perm=(0, 2, 1))(m)",
        "t = Reshape(shape=(-1, 2, 4, 3))(u)",
        "l = MatMul()(q, t)",
    )
    check_rewrite(attention.attention, graph(QKV, *lines, *END), raised())


def test_keys_that_are_computed_transposed_are_transposed_back():
    inputs = QKV.replace("k: f32[b, 2, 3, 4]", "t: f32[b, 2, 4, 3]")
    after = raised("scale=1.0, causal=False", "q, k, v", inputs, "k = Transpose(perm=(0, 1, 3, 2))(t)")
    check_rewrite(attention.attention, graph(inputs, "l = MatMul()(q, t)", *END), after)


def test_keys_shared_by_broadcasting_are_left():
    inputs = QKV.replace("k: f32[b, 2, 3, 4]", "k: f32[1, 2, 3, 4]")
    check_unchanged(attention.attention, graph(inputs, TURNED, "l = MatMul()(q, t)", *END), "batch and heads of q")


def test_product_of_rank_five_is_left():
    inputs = "q: f32[2, 3, 2, 5, 4], t: f32[2, 3, 2, 4, 3], v: f32[2, 3, 2, 3, 6]"
    check_unchanged(attention.attention, graph(inputs, "l = MatMul()(q, t)", *END), "of rank 5, not 4")


def test_values_times_transposed_weights_are_attention():
    inputs = QKV.replace("v: f32[b, 2, 3, 6]", "v: f32[b, 2, 6, 3]")
    lines = ("w = Softmax(axis=-1)(s)", "u = Transpose(perm=(0, 1, 3, 2))(w)", "y = MatMul()(v, u)")
    turned = ("t = Transpose(perm=(0, 1, 3, 2))(v)", "r = Attention(scale=1.0, causal=False)(q, k, t)")
    after = graph(inputs, *turned, "y = Transpose(perm=(0, 1, 3, 2))(r)")
    check_rewrite(attention.attention_by_columns, graph(inputs, *PRODUCT, *lines), after)
    square = "q: f32[2, 2, 3, 4], k: f32[2, 2, 3, 4], v: f32[2, 2, 6, 3]"
    heads = graph(square, *PRODUCT, *lines).replace(
        "u = Transpose(perm=(0, 1, 3, 2))", "u = Transpose(perm=(1, 0, 2, 3))"
    )
    check_unchanged(attention.attention_by_columns, heads, "not transposed")


MASKED = f"{QKV}, m: f32[b, 1, 1, 3]"


def test_summand_of_the_scores_is_the_mask():
    before = graph(MASKED, *PRODUCT, "l = Add()(m, s)", *END)
    check_rewrite(attention.attention, before, raised("scale=1.0, causal=False", "q, k, v, m", MASKED))


def test_two_summands_are_added_to_one_mask():
    inputs = f"{MASKED}, r: f32[1, 2, 5, 3]"
    before = graph(inputs, *PRODUCT, "a = Add()(s, r)", "l = Add()(a, m)", *END)
    after = raised("scale=1.0, causal=False", "q, k, v, t", inputs, "t = Add()(r, m)")
    check_rewrite(attention.attention, before, after)


def test_summand_that_broadcasts_the_scores_is_left():
    inputs = f"{QKV.replace('b,', '1,')}, m: f32[7, 1, 1, 3]"
    check_unchanged(attention.attention, graph(inputs, *PRODUCT, "l = Add()(s, m)", *END), "broadcast to scores")


BOOLEAN = f"{QKV}, m: bool[b, 1, 1, 3]"


@pytest.mark.parametrize(("operands", "after"), [("m, s, c", "m, z, c"), ("m, c, s", "m, c, z")])
def test_selection_against_a_low_number_is_an_added_mask(operands, after):
    before = graph(BOOLEAN, *PRODUCT, "c = Const(f32, -1e9)", f"l = Where()({operands})", *END)
    constants = ("z = Const(f32, 0.0)", "c = Const(f32, -1e9)", f"n = Where()({after})")
    check_rewrite(attention.attention, before, raised("scale=1.0, causal=False", "q, k, v, n", BOOLEAN, *constants))


def test_selection_against_minus_infinity_is_a_boolean_mask():
    some = {"m": np.array([True, False, True]).reshape(1, 1, 1, 3)}
    before = graph(BOOLEAN, *PRODUCT, "c = Const(f32, -inf)", "l = Where()(m, s, c)", *END)
    after = raised("scale=1.0, causal=False", "q, k, v, m", BOOLEAN)
    check_rewrite(attention.attention, before, after, feeds=some, sizes={"b": 1})
    dropped = graph(BOOLEAN, *PRODUCT, "c = Const(f32, -inf)", "l = Where()(m, c, s)", *END)
    after = raised("scale=1.0, causal=False", "q, k, v, n", BOOLEAN, "n = Not()(m)")
    check_rewrite(attention.attention, dropped, after, feeds=some, sizes={"b": 1})


def test_selection_against_a_middling_number_is_left():
    before = graph(BOOLEAN, *PRODUCT, "c = Const(f32, -100.0)", "l = Where()(m, s, c)", *END)
    check_unchanged(attention.attention, before, "set to -100, which is not below")


SQUARE = "q: f32[b, 2, 3, 4], k: f32[b, 2, 3, 4], v: f32[b, 2, 3, 6]"


@pytest.mark.parametrize("low", ["-inf", "-1e9"])
def test_constant_triangle_is_causal(low):
    triangle = f"m = Const(f32, [[[[0.0, {low}, {low}], [0.0, 0.0, {low}], [0.0, 0.0, 0.0]]]])"
    before = graph(SQUARE, *PRODUCT, triangle, "l = Add()(s, m)", *END)
    check_rewrite(attention.attention, before, raised("scale=1.0, causal=True", "q, k, v", SQUARE))


def test_other_constant_masks_stay_masks():
    mask = "m = Const(f32, [[[[0.0, -1e9, 0.0], [0.0, 0.0, -1e9], [0.0, 0.0, 0.0]]]])"
    before = graph(SQUARE, *PRODUCT, mask, "l = Add()(s, m)", *END)
    check_rewrite(attention.attention, before, raised("scale=1.0, causal=False", "q, k, v, m", SQUARE, mask))


GUARD = (
    "w = Softmax(axis=-1)(l)",
    "n = IsNaN()(w)",
    "z = Const(f32, 0.0)",
    "u = Where()(n, z, w)",
    "y = MatMul()(u, v)",
)


def test_guard_against_nan_is_dropped_where_no_row_is_masked_whole():
    before = graph(MASKED, *PRODUCT, "l = Add()(s, m)", *GUARD)
    check_rewrite(attention.attention, before, raised("scale=1.0, causal=False", "q, k, v, m", MASKED))


def test_guard_against_nan_moves_behind_where_a_row_may_be_masked_whole():
    mask = ("zero = Const(f32, 0.0)", "c = Const(f32, -inf)", "a = Where()(m, zero, c)")
    before = graph(BOOLEAN, *PRODUCT, *mask, "l = Add()(s, a)", *GUARD)
    guarded = ("r = Attention(scale=1.0, causal=False)(q, k, v, a)", "o = Const(f32, 0.0)", "n = IsNaN()(r)")
    after = graph(BOOLEAN, *mask, *guarded, "y = Where()(n, o, r)")
    hidden = {"m": np.array([[True, False, True], [False, False, False]]).reshape(2, 1, 1, 3)}
    check_rewrite(attention.attention, before, after, feeds=hidden, sizes={"b": 2})


ROWS = (
    "m1 = ReduceMax(axes=(-1,), keepdims=True)(m)",
    "c = Const(f32, -inf)",
    "h = Equal()(m1, c)",
    "z = Const(f32, 0.0)",
)
HIDDEN = (*PRODUCT, "l = Add()(s, m)", "w = Softmax(axis=-1)(l)", *ROWS, "u = Where()(h, z, w)", "y = MatMul()(u, v)")


def test_weights_of_hidden_rows_are_zero_behind_the_attention():
    guarded = ("r = Attention(scale=1.0, causal=False)(q, k, v, m)", *ROWS, "y = Where()(h, z, r)")
    hidden = {"m": np.where([[True, False, True], [False, False, False]], 0, -np.inf).reshape(2, 1, 1, 3)}
    feeds = {"m": hidden["m"].astype(np.float32)}
    before = graph(MASKED, *HIDDEN)
    check_rewrite(attention.attention_without_hidden_rows, before, graph(MASKED, *guarded), feeds=feeds, sizes={"b": 2})
    check_unchanged(attention.attention_without_hidden_rows, before.replace("-inf", "-1e9"), "not minus infinity")
    other = graph(f"{MASKED}, o: f32[b, 1, 1, 3]", *HIDDEN).replace("keepdims=True)(m)", "keepdims=True)(o)")
    check_unchanged(attention.attention_without_hidden_rows, other, "the same value as elsewhere")


def test_guard_of_rows_is_dropped_where_a_constant_mask_hides_none():
    mask = "m = Const(f32, [[[[0.0, -inf, 0.0]]]])"
    after = raised("scale=1.0, causal=False", "q, k, v, m", QKV, mask)
    check_rewrite(attention.attention_without_hidden_rows, graph(QKV, mask, *HIDDEN), after)


def test_guard_with_another_number_is_left():
    mask = ("z = Const(f32, 1.0)", "c = Const(f32, -inf)", "a = Where()(m, z, c)")
    lines = ["n = IsNaN()(w)", "u = Where()(n, z, w)", "y = MatMul()(u, v)"]
    before = graph(BOOLEAN, *PRODUCT, *mask, "l = Add()(s, a)", "w = Softmax(axis=-1)(l)", *lines)
    check_unchanged(attention.attention, before, "becomes 1, not 0")


MERGED = (
    "a = Reshape(shape=(-1, 5, 4))(q)",
    "c = Reshape(shape=(-1, 3, 4))(k)",
    "d = Reshape(shape=(-1, 3, 6))(v)",
    "t = Transpose(perm=(0, 2, 1))(c)",
    "l = MatMul()(a, t)",
    "w = Softmax(axis=-1)(l)",
)


def test_heads_merged_into_the_batch_are_found_again():
    before = graph(QKV, *MERGED, "y = MatMul()(w, d)")
    after = graph(QKV, "r = Attention(scale=1.0, causal=False)(q, k, v)", "y = Reshape(shape=(-1, 5, 6))(r)")
    check_rewrite(attention.attention, before, after)


def test_batch_of_matrices_is_attention_with_one_head():
    inputs = "q: f32[b, 5, 4], t: f32[b, 4, 3], v: f32[b, 3, 6]"
    before = graph(inputs, "l = MatMul()(q, t)", *END)
    lines = (
        "k = Transpose(perm=(0, 2, 1))(t)",
        "q1 = Unsqueeze(axes=(1,))(q)",
        "k1 = Unsqueeze(axes=(1,))(k)",
        "v1 = Unsqueeze(axes=(1,))(v)",
        "r = Attention(scale=1.0, causal=False)(q1, k1, v1)",
        "y = Squeeze(axes=(1,))(r)",
    )
    check_rewrite(attention.attention, before, graph(inputs, *lines))


def test_mask_in_windows_makes_heads_of_the_windows():
    inputs = "q: f32[4*b, 2, 3, 4], k: f32[4*b, 2, 3, 4], v: f32[4*b, 2, 3, 6]"
    rng = np.random.default_rng(0)
    bias = rng.standard_normal((1, 2, 3, 3)).astype(np.float32)
    mask = rng.standard_normal((1, 4, 1, 3, 3)).astype(np.float32)
    total = (mask + bias[:, None]).reshape(1, 8, 3, 3)
    lines = (
        *PRODUCT,
        "bias: f32[1, 2, 3, 3] = Const('bias')",
        "mask: f32[1, 4, 1, 3, 3] = Const('mask')",
        "a = Add()(s, bias)",
        "c = Reshape(shape=(-1, 4, 2, 3, 3))(a)",
        "d = Add()(c, mask)",
        "l = Reshape(shape=(-1, 2, 3, 3))(d)",
    )
    after = graph(
        inputs,
        "a = Reshape(shape=(-1, 8, 3, 4))(q)",
        "c = Reshape(shape=(-1, 8, 3, 4))(k)",
        "d = Reshape(shape=(-1, 8, 3, 6))(v)",
        "total: f32[1, 8, 3, 3] = Const('total')",
        "r = Attention(scale=1.0, causal=False)(a, c, d, total)",
        "y = Reshape(shape=(-1, 2, 3, 6))(r)",
    )
    constants = {"bias": bias, "mask": mask, "total": total}
    check_rewrite(attention_windows.attention_in_windows, graph(inputs, *lines, *END), after, constants=constants)


def test_scores_split_for_the_softmax_make_heads():
    inputs = "q: f32[2*b, 3, 4], k: f32[2*b, 3, 4], v: f32[2*b, 3, 6], m: f32[b, 1, 1, 3]"
    lines = (
        "t = Transpose(perm=(0, 2, 1))(k)",
        "p = MatMul()(q, t)",
        "s = Reshape(shape=(-1, 2, 3, 3))(p)",
        "c = Const(f32, 0.5)",
        "l = Mul()(s, c)",
        "a = Add()(l, m)",
        "w = Softmax(axis=-1)(a)",
        "w1 = Reshape(shape=(-1, 3, 3))(w)",
        "y = MatMul()(w1, v)",
    )
    after = graph(
        inputs,
        "q1 = Reshape(shape=(-1, 2, 3, 4))(q)",
        "k1 = Reshape(shape=(-1, 2, 3, 4))(k)",
        "v1 = Reshape(shape=(-1, 2, 3, 6))(v)",
        "r = Attention(scale=0.5, causal=False)(q1, k1, v1, m)",
        "y = Reshape(shape=(-1, 3, 6))(r)",
    )
    before = graph(inputs, *lines)
    check_rewrite(attention_windows.attention_of_split_scores, before, after)
    five = before.replace("(-1, 2, 3, 3)", "(-1, 1, 2, 3, 3)")
    check_unchanged(attention_windows.attention_of_split_scores, five, "have no batch and heads")


def test_scores_of_keys_by_queries_are_turned():
    inputs = "q: f32[2*b, 5, 4], k: f32[2*b, 3, 4], v: f32[2*b, 3, 6]"
    lines = (
        "t = Transpose(perm=(0, 2, 1))(q)",
        "p = MatMul()(k, t)",
        "s = Reshape(shape=(-1, 2, 3, 5))(p)",
        "w = Softmax(axis=-2)(s)",
        "w1 = Unsqueeze(axes=(2,))(w)",
        "w2 = Transpose(perm=(0, 1, 4, 2, 3))(w1)",
        "w3 = Reshape(shape=(-1, 5, 3))(w2)",
        "y = MatMul()(w3, v)",
    )
    after = graph(
        inputs,
        "q1 = Reshape(shape=(-1, 2, 5, 4))(q)",
        "k1 = Reshape(shape=(-1, 2, 3, 4))(k)",
        "v1 = Reshape(shape=(-1, 2, 3, 6))(v)",
        "r = Attention(scale=1.0, causal=False)(q1, k1, v1)",
        "y = Reshape(shape=(-1, 5, 6))(r)",
    )
    before = graph(inputs, *lines)
    check_rewrite(attention_windows.attention_of_turned_scores, before, after)
    queries = before.replace("Softmax(axis=-2)", "Softmax(axis=-1)")
    check_unchanged(attention_windows.attention_of_turned_scores, queries, "does not match Softmax(axis=-1)")
    straight = before.replace("(0, 1, 4, 2, 3)", "(0, 1, 3, 2, 4)")
    check_unchanged(attention_windows.attention_of_turned_scores, straight, "not transposed")


def test_computed_mask_in_windows_is_left():
    inputs = "q: f32[4*b, 2, 3, 4], k: f32[4*b, 2, 3, 4], v: f32[4*b, 2, 3, 6], mask: f32[1, 4, 1, 3, 3]"
    lines = ("c = Reshape(shape=(-1, 4, 2, 3, 3))(s)", "d = Add()(c, mask)", "l = Reshape(shape=(-1, 2, 3, 3))(d)")
    before = graph(inputs, *PRODUCT, *lines, *END)
    check_unchanged(attention_windows.attention_in_windows, before, "the mask of the windows is not constant")


ATTENTION = "y = Attention(scale=0.5, causal=False)({})"


@pytest.mark.parametrize(("name", "operands"), [("q", "t, k, v"), ("k", "q, t, v")])
def test_factor_of_an_operand_goes_into_the_scale(name, operands):
    lines = ("c = Const(f32, 4.0)", f"t = Div()({name}, c)", ATTENTION.format(operands))
    check_rewrite(RaiseAttention(), graph(QKV, *lines), raised("scale=0.125, causal=False"))


@pytest.mark.parametrize(("name", "operands"), [("q", "t, k, v"), ("k", "q, t, v")])
def test_vector_of_factors_stays_outside(name, operands):
    lines = ("c = Const(f32, [1.0, 2.0, 3.0, 4.0])", f"t = Mul()({name}, c)", ATTENTION.format(operands))
    check_unchanged(RaiseAttention(), graph(QKV, *lines), "factor must be a scalar")


def test_factor_before_the_split_into_heads_goes_into_the_scale():
    inputs = "x: f32[b, 5, 8], k: f32[b, 2, 3, 4], v: f32[b, 2, 3, 6]"
    split = ("r = Reshape(shape=(0, 5, 2, 4))({})", "q = Transpose(perm=(0, 2, 1, 3))(r)")
    lines = ("c = Const(f32, 0.25)", "t = Mul()(x, c)", split[0].format("t"), split[1], ATTENTION.format("q, k, v"))
    after = raised("scale=0.125, causal=False", "q, k, v", inputs, split[0].format("x"), split[1])
    check_rewrite(attention_absorb.query_factor_into_scale, graph(inputs, *lines), after)


GROUPED = "q: f32[b, 6, 5, 4], k: f32[b, 2, 3, 4], v: f32[b, 2, 3, 4]"


def repeated(name: str, shape: str) -> tuple[str, ...]:
    return (
        f"u{name} = Unsqueeze(axes=(2,))({name})",
        f"c{name} = Const(i64, {shape})",
        f"e{name} = Expand()(u{name}, c{name})",
        f"r{name} = Reshape(shape=(0, 6, 3, 4))(e{name})",
    )


def test_repeated_heads_are_groups():
    shape = "[1, 2, 3, 3, 4]"
    before = graph(GROUPED, *repeated("k", shape), *repeated("v", shape), ATTENTION.format("q, rk, rv"))
    check_rewrite(
        attention_absorb.repeated_heads_as_groups, before, raised("scale=0.5, causal=False", "q, k, v", GROUPED)
    )


def test_heads_repeated_as_a_whole_are_left():
    inputs = GROUPED.replace("b, 2, 3, 4", "b, 2, 1, 4")
    lines = [line.replace("(2,)", "(1,)") for name in "kv" for line in repeated(name, "[1, 3, 2, 3, 4]")]
    before = graph(inputs, *lines, ATTENTION.format("q, rk, rv"))
    check_unchanged(attention_absorb.repeated_heads_as_groups, before, "doesn't hold heads that are repeated")
