"""Choosing, merging and moving tokens: compiled code against the ops' reference, ties and empty choices included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from planish.backends.tvm.build import Executable, assembly
from planish.backends.tvm.isa import ISAS, Isa
from planish.backends.tvm.program import lower
from planish.backends.tvm.regions import regions
from planish.ir import dtypes, ops
from planish.ir.graph import Graph, Value
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.ops.tokens import most_merged
from planish.ir.types import Quant, TensorType
from tests.backends.tvm.floats import assert_close, both, float_isas
from tests.backends.tvm.running import assert_exact, name_values, runnable_isas

RNG = np.random.default_rng(23)
RUNNABLE, FLOATS = runnable_isas(), float_isas()
Feed = tuple[TensorType, np.ndarray]

PLAIN = {ops.MatchTokens, ops.MergeTokens, ops.TopTokens, ops.TakeTokens, ops.PlaceTokens}
"""Ops that take plain numbers, all of which are tested here."""

# batch, heads, tokens, width, merged (None: all that can), protected
CHOICES = [
    (1, 3, 197, 32, 13, 1),
    (1, 6, 197, 64, None, 1),
    (2, 2, 33, 9, 5, 2),
    (3, 1, 8, 8, 3, 0),
    (1, 5, 5, 5, 1, 0),
    (2, 3, 16, 1, None, 0),
    (1, 2, 18, 33, None, 5),
    (1, 1, 2, 4, 1, 0),
    (2, 2, 7, 3, 0, 1),
    (1, 2, 129, 16, 40, 0),
    (1, 2, 1, 3, 0, 0),
]


def counted(array: np.ndarray) -> Feed:
    """Numbers of tokens, as codes of scale 1."""
    return TensorType(dtypes.i32, array.shape, Quant((1.0,))), array.astype(np.int32)


def coded(array: np.ndarray, dtype: dtypes.DType, zero: int = 0) -> Feed:
    return TensorType(dtype, array.shape, Quant((0.05,), zero)), array.astype(dtype.storage)


def plain(array: np.ndarray) -> Feed:
    return TensorType(dtypes.of(array), array.shape), array


def made(build: Callable[..., object], *feeds: Feed) -> tuple[Graph, dict[str, np.ndarray]]:
    """A graph of all results of `build`, y0, y1, .., and what to feed it."""
    graph = Graph()
    found = build(*(graph.add_input(f"x{i}", type_) for i, (type_, _) in enumerate(feeds)))
    results = found if isinstance(found, tuple) else (found,)
    for value in results:
        graph.attach(value, None, Loc(("made",)))
    graph.add(Return(tuple(f"y{i}" for i in range(len(results)))), *results)
    return graph, {f"x{i}": array for i, (_, array) in enumerate(feeds)}


def choice(batch: int, tokens: int, merged: int) -> list[np.ndarray]:
    """Any choice, with several sources going into one token."""
    keep, source = [], []
    for _ in range(batch):
        order = RNG.permutation(tokens)
        source.append(order[:merged])
        keep.append(np.sort(order[merged:]))
    into = RNG.integers(0, max(1, (tokens - merged) // 3), (batch, merged))
    return [np.array(keep, np.int64), np.array(source, np.int64).reshape(batch, merged), into]


def runs(
    graph: Graph, kinds: Sequence[np.ndarray], isa: Isa
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Outputs of the interpreter and of code compiled once, for several arrays to feed."""
    name_values(graph)
    executable = Executable(lower(graph, isa), isa.target())
    for array in kinds:
        yield interpret(graph, {"x0": array}), executable(x0=array)


def keys(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Small integers: any, few distinct ones, or all alike."""
    if kind == "any":
        return RNG.integers(-127, 128, shape)
    if kind == "zero":
        return np.zeros(shape, np.int64)
    batch, heads, tokens, width = shape
    few = RNG.integers(-127, 128, (3, heads, width))
    return few[RNG.integers(0, 3, (batch, tokens))].swapaxes(1, 2)


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize(("batch", "heads", "tokens", "width", "merged", "protected"), CHOICES)
def test_matching_of_codes(isa, batch, heads, tokens, width, merged, protected):
    merged = most_merged(tokens, protected) if merged is None else merged
    kinds = [coded(keys(kind, (batch, heads, tokens, width)), dtypes.i8) for kind in ("any", "few", "zero")]
    graph, _ = made(lambda k: ops.IntMatchTokens(merged, protected)(k), kinds[0])
    for wanted, found in runs(graph, [k for _, k in kinds], isa):
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("isa", RUNNABLE)
def test_matching_of_the_largest_codes(isa):
    k = np.full((1, 300, 9, 6), -128)
    k[:, :, ::2, 1:] = RNG.integers(-128, 128, (1, 1, 5, 5))
    assert_exact(*made(lambda k: ops.IntMatchTokens(3)(k), coded(k, dtypes.i8)), isa)


def exact_keys(batch: int, heads: int, tokens: int, width: int) -> np.ndarray:
    """Keys of length 2, 4, 6, ..: cosines are quarters, and no sum of products rounds."""
    k = np.zeros((batch, heads, tokens, width), np.float32)
    for b in range(batch):
        for n in range(tokens):
            count = 4 if width >= 4 else 1
            places = RNG.permutation(min(width, 6))[:count]
            k[b, :, n, places] = (RNG.choice([-1, 1], count) * RNG.integers(1, 3))[:, None]
    return k


@pytest.mark.parametrize("isa", FLOATS)
@pytest.mark.parametrize(("batch", "heads", "tokens", "width", "merged", "protected"), CHOICES)
def test_matching_of_floats(isa, batch, heads, tokens, width, merged, protected):
    merged = most_merged(tokens, protected) if merged is None else merged
    shape = batch, heads, tokens, width
    kinds = [exact_keys(*shape), np.zeros(shape, np.float32)]
    if width > 1:  # cosines of one element are 1 or -1, but for rounding
        kinds.append(RNG.standard_normal(shape).astype(np.float32))
    graph, _ = made(lambda k: ops.MatchTokens(merged, protected)(k), plain(kinds[0]))
    for wanted, found in runs(graph, kinds, isa):
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("isa", FLOATS)
def test_equal_keys_have_equal_scores_wherever_they_are(isa):
    """The first ones merge into the first one, and no token is lost or doubled, though no cosine is exact."""
    tokens, merged = 197, 60
    k = np.broadcast_to(RNG.standard_normal((1, 3, 1, 37)).astype(np.float32), (1, 3, tokens, 37)).copy()
    found, _ = both(*made(lambda k: ops.MatchTokens(merged, 1)(k), plain(k)), isa)
    np.testing.assert_array_equal(found["y1"][0], 2 + 2 * np.arange(merged))
    np.testing.assert_array_equal(np.sort(np.concatenate([found["y0"], found["y1"]], 1))[0], np.arange(tokens))
    assert not np.any(found["y2"] - 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 1e-40])
def test_keys_without_a_length_lose_no_token(value):
    k = RNG.standard_normal((1, 2, 19, 5)).astype(np.float32)
    k[0, :, 3:9] = value
    found, _ = both(*made(lambda k: ops.MatchTokens(6, 3)(k), plain(k)))
    np.testing.assert_array_equal(np.sort(np.concatenate([found["y0"], found["y1"]], 1))[0], np.arange(19))
    assert np.all(found["y1"] >= 3)
    assert np.all((found["y2"] >= 0) & (found["y2"] < 13))


MERGES = [(1, 197, 96, 26), (1, 197, 384, 13), (2, 9, 7, 4), (3, 8, 8, 0), (1, 7, 1, 6), (2, 33, 70, 20)]


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(("dtype", "zero"), [(dtypes.i16, 0), (dtypes.i8, -7)])
@pytest.mark.parametrize(("batch", "tokens", "channels", "merged"), MERGES)
def test_merging_of_codes(isa, sized, dtype, zero, batch, tokens, channels, merged):
    x = RNG.integers(dtype.min, dtype.max, (batch, tokens, channels), endpoint=True)
    x[0, :, 0] = dtype.min
    size = [counted(RNG.integers(1, 40, (batch, tokens)))] if sized else []
    feeds = [coded(x, dtype, zero), *map(plain, choice(batch, tokens, merged)), *size]
    assert_exact(*made(lambda *xs: ops.IntMergeTokens(40 * 197)(*xs), *feeds), isa)


@pytest.mark.parametrize("isa", RUNNABLE)
def test_means_of_codes_are_exact_where_they_nearly_round_up(isa):
    """Means of each size from 2 to 2**14 - 1 that lie as closely below a half as can be, and on it."""
    sizes = np.repeat(np.array([2, 3, 5, 12, 1001, 4097, 8191, 16382, 16383]) - 1, 4)
    count = len(sizes)
    size = np.concatenate([sizes, np.ones(count, np.int64)]).astype(np.int32)[None]
    total = sizes + 1
    sums = total * np.tile([24000, -24001, 5, -6], count // 4) + (total - 1) // 2 + np.arange(count) % 2
    first = sums // total
    x = np.stack([first, sums - first * sizes]).reshape(1, 2 * count, 1)
    assert np.all(np.abs(x) < 2**15)
    places = np.arange(count)
    feeds = [coded(x, dtypes.i16), *(plain(a[None]) for a in (places, count + places, places)), counted(size)]
    assert_exact(*made(lambda *xs: ops.IntMergeTokens(16383)(*xs), *feeds), isa)


@pytest.mark.parametrize("isa", FLOATS)
@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(("batch", "tokens", "channels", "merged"), MERGES)
def test_merging_of_floats(isa, sized, batch, tokens, channels, merged):
    x = RNG.standard_normal((batch, tokens, channels)).astype(np.float32)
    size = [plain(RNG.integers(1, 40, (batch, tokens)).astype(np.float32))] if sized else []
    feeds = [plain(x), *map(plain, choice(batch, tokens, merged)), *size]
    found, wanted = both(*made(lambda *xs: ops.MergeTokens()(*xs), *feeds), isa)
    for name, array in wanted.items():
        assert_close(found[name], array, 1e-5, name)


def scores(dtype: dtypes.DType, *shape: int) -> Feed:
    if dtype.is_float:
        x = np.round(RNG.standard_normal(shape) * 4).astype(np.float32) / 2
        x[0, :7] = (0.0, -0.0, np.inf, np.nan, -np.inf, np.nan, -1e-40)
        return plain(x)
    x = RNG.integers(dtype.min // 2, dtype.max // 2, shape, endpoint=True, dtype=dtype.storage)
    x[:, 1::3] = x[:, :1]
    return coded(x, dtype) if dtype.bits <= 32 else plain(x)


HIGHEST = [(1, 197, 98, 1), (2, 33, 7, 0), (1, 9, 9, 2), (2, 12, 5, 5), (1, 7, 0, 0)]  # batch, tokens, count, protected


@pytest.mark.parametrize("isa", RUNNABLE)
def test_the_highest_scores(isa):
    kinds = dtypes.f32, dtypes.i8, dtypes.u8, dtypes.i16, dtypes.i32, dtypes.u32, dtypes.i64, dtypes.u64
    feeds = [scores(dtype, *shape[:2]) for dtype in kinds for shape in HIGHEST]

    def build(*xs: Value) -> tuple[Value, ...]:
        chosen = [ops.TopTokens(*shape[2:])(x) for x, shape in zip(xs, HIGHEST * len(kinds), strict=True)]
        return tuple(value for results in chosen for value in results)

    assert_exact(*made(build, *feeds), isa)


@pytest.mark.parametrize("isa", FLOATS)
def test_rows_are_taken_by_index(isa):
    arrays = [
        RNG.standard_normal((2, 19, 100)).astype(np.float32),
        RNG.integers(-99, 99, (2, 19, 7)).astype(np.int8),
        RNG.integers(-99, 99, (2, 19)),
        RNG.random((2, 19, 3, 5)) < 0.5,
        RNG.standard_normal((1, 197, 384)).astype(np.float32),
    ]
    feeds = []
    for array in arrays:
        feeds += [plain(array), plain(RNG.integers(0, array.shape[1], (len(array), 23)))]
        feeds += [plain(array), plain(np.zeros((len(array), 0), np.int64))]

    def build(*xs: Value) -> tuple[object, ...]:
        return tuple(ops.TakeTokens()(*pair) for pair in zip(xs[::2], xs[1::2], strict=True))

    found, wanted = both(*made(build, *feeds), isa)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("isa", FLOATS)
@pytest.mark.parametrize(("batch", "tokens", "merged"), [(1, 197, 13), (2, 9, 8), (3, 5, 0)])
def test_places_after_a_choice(isa, batch, tokens, merged):
    feeds = [plain(array) for array in choice(batch, tokens, merged)]
    graph, arrays = made(lambda *xs: ops.Cast(dtypes.i32)(ops.PlaceTokens()(*xs)), *feeds)
    assert len(regions(graph)[0]) == 1
    assert_exact(graph, arrays, isa)


def merge_step(k: Value, x: Value, **options: int) -> tuple[Value, ...]:
    keep, source, into = ops.IntMatchTokens(4, 1)(k)
    return ops.IntMergeTokens(197)(x, keep, source, into)


@pytest.mark.parametrize("isa", RUNNABLE)
def test_results_that_nobody_reads_are_not_stored(isa):
    """Of one op with several results a kernel is made, and what follows it has kernels of its own."""

    def build(k: Value, x: Value) -> Value:
        keys = ops.Transpose((0, 2, 1, 3))(ops.Requantize(0.06, 0, dtypes.i8)(k))
        y, _ = merge_step(keys, ops.Requantize(0.03, 0, dtypes.i16)(x))
        result: Value = ops.Requantize(0.1, 3, dtypes.u8)(y)
        return result

    k = coded(keys("any", (2, 17, 3, 8)), dtypes.i16)
    x = coded(RNG.integers(-9999, 9999, (2, 17, 40)), dtypes.i16)
    graph, feeds = made(build, k, x)
    found, stored = regions(graph)
    assert [region.anchor.op.name for region in found if region.anchor] == ["IntMatchTokens", "IntMergeTokens"]
    assert [len(region.results) for region in found if region.anchor] == [3, 1]
    assert sum(value.op.name == "IntMergeTokens" for value in stored if value.op) == 1
    assert_exact(graph, feeds, isa)


@pytest.mark.parametrize("read", range(3))
@pytest.mark.parametrize("merged", [0, 4])
def test_each_result_of_a_matching_may_be_the_only_one_that_is_read(read, merged):
    k = coded(keys("any", (2, 2, 13, 8)), dtypes.i8)
    assert_exact(*made(lambda k: ops.IntMatchTokens(merged, 1)(k)[read], k))


@pytest.mark.parametrize("read", range(2))
def test_each_result_of_a_merge_and_of_the_highest_may_be_the_only_one_that_is_read(read):
    x = coded(RNG.integers(-9999, 9999, (2, 17, 40)), dtypes.i16)
    feeds = [x, *map(plain, choice(2, 17, 5))]
    assert_exact(*made(lambda *xs: ops.IntMergeTokens(17)(*xs)[read], *feeds))
    assert_exact(*made(lambda s: ops.TopTokens(5, 2)(s)[read], scores(dtypes.i16, 2, 33)))


@pytest.mark.parametrize("name", list(ISAS))
def test_code_is_generated_for_every_instruction_set(name):
    k = coded(keys("any", (1, 2, 13, 8)), dtypes.i8)
    x = coded(RNG.integers(-9999, 9999, (1, 13, 40)), dtypes.i16)
    graph, _ = made(merge_step, k, x)
    assert assembly(lower(graph, ISAS[name]), ISAS[name].target())
