"""Choices among tokens: against independent spellings, with ties, and on ONNX Runtime; no token is lost or doubled."""

import numpy as np
import pytest
from check_op import check_op

from planish.backends.ort.taps import taps
from planish.ir import dtypes, ops
from planish.ir.errors import VerifyError
from planish.ir.graph import Graph
from planish.ir.ops.tokens import most_merged
from planish.ir.types import Quant, tensor

RNG = np.random.default_rng(6)
SIZED = (Quant((0.1,), 3), None, None, None, Quant((1.0,)))
SHAPES = [
    (1, 3, 197, 32, 13, 1),
    (2, 3, 17, 8, 8, 1),
    (3, 1, 16, 16, 7, 1),
    (2, 4, 4, 4, 1, 2),
    (2, 2, 12, 12, 3, 5),
    (1, 2, 9, 4, 5, 0),
    (2, 6, 6, 6, 0, 1),
    (2, 2, 2, 3, 1, 0),
]


def keys(kind: str, *shape: int) -> np.ndarray:
    if kind == "normal":
        return RNG.normal(size=shape).astype(np.float32)
    if kind == "equal":
        return np.ones(shape, np.float32)
    return RNG.integers(-1, 2, shape).astype(np.float32)  # few different ones: many ties, some zero keys


def slowly_matched(k: np.ndarray, merged: int, protected: int):
    """Matching as the paper tells it, token by token."""
    m = k.astype(np.float64).mean(axis=0)
    u = m / np.maximum(np.linalg.norm(m, axis=1, keepdims=True), 1e-12)
    pairs = []
    for a in range(0, len(u), 2):
        if a >= protected:
            best = max(
                (b for b in range(1, len(u), 2) if b >= protected), key=lambda b: (round(float(u[a] @ u[b]), 6), -b)
            )
            pairs.append((-round(float(u[a] @ u[best]), 6), a, best))
    chosen = sorted(pairs)[:merged]
    keep = [i for i in range(len(u)) if i not in {a for _, a, _ in chosen}]
    return keep, [a for _, a, _ in chosen], [keep.index(b) for _, _, b in chosen]


@pytest.mark.parametrize("kind", ["normal", "few", "equal"])
@pytest.mark.parametrize(("batch", "heads", "tokens", "width", "merged", "protected"), SHAPES)
def test_matching_is_that_of_the_paper(batch, heads, tokens, width, merged, protected, kind):
    k = keys(kind, batch, heads, tokens, width)
    keep, source, into = check_op(ops.MatchTokens(merged, protected), k, fixed={tokens})
    for b in range(batch):
        expected = slowly_matched(k[b], merged, protected)
        # products are rounded: where they are nearly equal, scores decide that differ in their last bits
        if kind != "few":
            assert [keep[b].tolist(), source[b].tolist(), into[b].tolist()] == list(expected)
        assert sorted([*keep[b], *source[b]]) == list(range(tokens))
        assert keep[b][:protected].tolist() == list(range(protected))


@pytest.mark.parametrize("kind", ["few", "equal"])
@pytest.mark.parametrize(("batch", "heads", "tokens", "width", "merged", "protected"), SHAPES)
def test_matching_of_codes_is_that_of_the_paper(batch, heads, tokens, width, merged, protected, kind):
    k = keys(kind, batch, heads, tokens, width).astype(np.int8)
    keep, source, _ = check_op(ops.IntMatchTokens(merged, protected), k, quants=(Quant((0.1,)),), fixed={tokens, heads})
    for b in range(batch):
        assert sorted([*keep[b], *source[b]]) == list(range(tokens))


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(("batch", "heads", "tokens", "width", "merged", "protected"), SHAPES)
def test_merging_keeps_the_weighted_sum(batch, heads, tokens, width, merged, protected, sized):
    choice = ops.MatchTokens(merged, protected).evaluate(keys("few", batch, heads, tokens, width))
    x = RNG.normal(size=(batch, tokens, 5)).astype(np.float32)
    size = RNG.integers(1, 5, (batch, tokens)).astype(np.float32) if sized else None
    y, total = check_op(ops.MergeTokens(), x, *choice, size, fixed={tokens, merged, tokens - merged})
    sizes = np.ones((batch, tokens)) if size is None else size
    np.testing.assert_allclose((y * total[:, :, None]).sum(1), (x * sizes[:, :, None]).sum(1), atol=1e-4)
    np.testing.assert_array_equal(total.sum(1), sizes.sum(1))
    if size is None:
        untouched = total == 1
        np.testing.assert_array_equal(y[untouched], ops.TakeTokens().evaluate(x, choice[0])[untouched])


def test_merging_of_codes_rounds_the_exact_mean_half_up():
    x = np.array([[[-3], [-2], [32767], [32766], [-32768], [7]]], np.int16)
    keep, source, into = np.array([[1, 3, 5]]), np.array([[0, 2, 4]]), np.array([[0, 1, 2]])
    y, total = check_op(ops.IntMergeTokens(6), x, keep, source, into, quants=(Quant((0.5,)),), fixed={6, 3})
    assert y[0, :, 0].tolist() == [-2, 32767, -16380]  # -2.5, 32766.5, -16380.5
    size = np.array([[2, 1, 1, 1, 1, 1]], np.int32)
    y, total = check_op(ops.IntMergeTokens(7), x, keep, source, into, size, quants=SIZED, fixed={6, 3})
    assert y[0, :, 0].tolist() == [-3, 32767, -16380]  # -8 / 3
    assert total.tolist() == [[3, 2, 2]]


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.int32])
@pytest.mark.parametrize(("count", "protected"), [(1, 1), (4, 1), (5, 0), (7, 3), (9, 2), (0, 0)])
def test_the_highest_scores_stay_and_of_equals_the_first(dtype, count, protected):
    score = RNG.integers(-2, 3, (3, 9)).astype(dtype)
    keep, rest = check_op(ops.TopTokens(count, protected), score, fixed={9})
    for b in range(3):
        free = sorted(range(protected, 9), key=lambda i: (-int(score[b, i]), i))[: count - protected]
        assert keep[b].tolist() == [*range(protected), *sorted(free)]
        assert sorted([*keep[b], *rest[b]]) == list(range(9))
        assert rest[b].tolist() == sorted(rest[b])


def test_places_undo_a_choice():
    keep, source, into = ops.MatchTokens(6, 1).evaluate(keys("normal", 3, 2, 15, 4))
    place = check_op(ops.PlaceTokens(), keep, source, into, fixed={9, 6})[0]
    x = RNG.normal(size=(3, 15, 4)).astype(np.float32)
    merged, _ = ops.MergeTokens().evaluate(x, keep, source, into)
    restored = check_op(ops.TakeTokens(), merged, place, fixed={9, 15})[0]
    for b in range(3):
        for i in range(9):
            members = [keep[b, i], *source[b, into[b] == i]]
            np.testing.assert_array_equal(restored[b, members], np.repeat(merged[b, i][None], len(members), 0))


def test_nested_choices_compose():
    k = keys("normal", 2, 2, 14, 4)
    first = ops.MatchTokens(4, 1).evaluate(k)
    second = ops.MatchTokens(4, 1).evaluate(ops.TakeTokens().evaluate(k.swapaxes(1, 2), first[0]).swapaxes(1, 2))
    place1, place2 = (ops.PlaceTokens().evaluate(*choice) for choice in (first, second))
    place = ops.TakeTokens().evaluate(place2, place1)
    x = np.arange(28.0, dtype=np.float32).reshape(2, 14, 1)
    y1, s1 = ops.MergeTokens().evaluate(x, *first)
    y2, s2 = ops.MergeTokens().evaluate(y1, *second, s1)
    for b in range(2):
        for i in range(6):
            np.testing.assert_allclose(y2[b, i, 0], x[b, place[b] == i, 0].mean(), rtol=1e-6)
            assert s2[b, i] == np.sum(place[b] == i)


@pytest.mark.parametrize(
    ("op", "types", "reason"),
    [
        (ops.MatchTokens(9, 1), (tensor(dtypes.f32, 1, 3, 17, 8),), "C3"),
        (ops.MatchTokens(1, 1), (tensor(dtypes.f32, 1, 3, "n", 8),), "C3"),
        (ops.MatchTokens(1, 1), (tensor(dtypes.f32, 1, 17, 8),), "C2"),
        (ops.TopTokens(1, 2), (tensor(dtypes.f32, 1, 17),), "C3"),
        (ops.TopTokens(18), (tensor(dtypes.f32, 1, 17),), "C3"),
        (ops.TakeTokens(), (tensor(dtypes.f32, 1, 17), tensor(dtypes.i32, 1, 3)), "C1"),
        (ops.TakeTokens(), (tensor(dtypes.f32, 2, 17), tensor(dtypes.i64, 1, 3)), "C2"),
        (ops.IntMatchTokens(1), (tensor(dtypes.i8, 1, 1, 9, 9),), "scale"),
    ],
)
def test_what_does_not_fit_is_refused(op, types, reason):
    with pytest.raises(VerifyError, match=reason):
        op.infer(*types)


@pytest.mark.parametrize(("tokens", "protected", "most"), [(197, 1, 98), (197, 0, 99), (4, 2, 1), (2, 1, 0), (1, 0, 0)])
def test_so_many_can_merge(tokens, protected, most):
    assert most_merged(tokens, protected) == most


def on_ort(op, *arrays, quants=()):
    """Results of ONNX Runtime with a symbolic batch, and those of the law."""
    graph = Graph("one")
    values, feed = [], {}
    for i, array in enumerate(arrays):
        if array is None:
            values.append(None)
            continue
        feed[f"x{i}"] = array
        value = graph.add_input(f"x{i}", tensor(dtypes.of(array), "n", *array.shape[1:]))
        if i < len(quants) and quants[i] is not None:
            value = graph.add(ops.FromCodes(quants[i].scale[0], quants[i].zero), value).result
        values.append(value)
    node = graph.add(op, *values)
    graph.add(ops.Return(tuple(f"y{i}" for i in range(len(node.results)))), *node.results)
    expected = op.compute(arrays, [None if v is None else v.type for v in values])
    return taps(graph, list(node.results))(feed), expected if isinstance(expected, tuple) else (expected,)


@pytest.mark.parametrize("kind", ["normal", "few", "equal"])
@pytest.mark.parametrize(("batch", "heads", "tokens", "width", "merged", "protected"), SHAPES)
def test_floats_on_onnx_runtime(batch, heads, tokens, width, merged, protected, kind):
    k = keys(kind, batch, heads, tokens, width)
    found, choice = on_ort(ops.MatchTokens(merged, protected), k)
    for mine, law in zip(found, choice, strict=True):
        if kind == "few":
            assert np.sort(np.concatenate(found[:2], 1), 1).tolist() == [list(range(tokens))] * batch
        else:
            np.testing.assert_array_equal(mine, law)
    x = RNG.normal(size=(batch, tokens, 7)).astype(np.float32)
    size = RNG.integers(1, 9, (batch, tokens)).astype(np.float32)
    for sizes in (None, size):
        found, expected = on_ort(ops.MergeTokens(), x, *choice, sizes)
        np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
        np.testing.assert_array_equal(found[1], expected[1])
    found, expected = on_ort(ops.PlaceTokens(), *choice)
    np.testing.assert_array_equal(found[0], expected[0])
    found, expected = on_ort(ops.TakeTokens(), x, expected[0])
    np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8, np.int16, np.int32])
@pytest.mark.parametrize(("count", "protected"), [(1, 1), (4, 1), (5, 0), (7, 3)])
def test_top_tokens_on_onnx_runtime(dtype, count, protected):
    score = RNG.integers(0, 4, (3, 9)).astype(dtype)
    quant = () if dtype == np.float32 else (Quant((0.5,)),)
    for mine, law in zip(*on_ort(ops.TopTokens(count, protected), score, quants=quant), strict=True):
        np.testing.assert_array_equal(mine, law)


@pytest.mark.parametrize("kind", ["codes", "few", "equal"])
@pytest.mark.parametrize(("batch", "heads", "tokens", "width", "merged", "protected"), SHAPES)
def test_codes_on_onnx_runtime(batch, heads, tokens, width, merged, protected, kind):
    shape = (batch, heads, tokens, width)
    k = RNG.integers(-128, 128, shape).astype(np.int8) if kind == "codes" else keys(kind, *shape).astype(np.int8)
    found, choice = on_ort(ops.IntMatchTokens(merged, protected), k, quants=(Quant((0.1,)),))
    for mine, law in zip(found, choice, strict=True):
        np.testing.assert_array_equal(mine, law)
    size = RNG.integers(1, 9, (batch, tokens)).astype(np.int32)
    for dtype in (np.int8, np.int16):
        x = RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, (batch, tokens, 7)).astype(dtype)
        for sizes in (None, size):
            op = ops.IntMergeTokens(9 * tokens)
            for mine, law in zip(*on_ort(op, x, *choice, sizes, quants=SIZED), strict=True):
                np.testing.assert_array_equal(mine, law)
