"""Sparse attention: what it computes, its types, its text, and its decomposition into gathers and dense attention."""

import numpy as np
import pytest
from check_op import check_decompose, check_op, evaluate_value

from planish.ir import dtypes
from planish.ir.errors import VerifyError
from planish.ir.graph import Graph, Value
from planish.ir.ops import Attention, Gather, SparseAttention, Where
from planish.ir.text import parse_graph, print_graph
from planish.ir.types import tensor

RNG = np.random.default_rng(6)
N, D, E = 48, 5, 7
HEADS = {
    "all kinds": ("dense", "skip", "window 3", "stripe 0:2,40:48"),
    "alike, apart": ("window 8 blocks 8", "skip", "window 8 blocks 8", "skip"),
    "permuted": ("window 3 period 12", "window 4 blocks 4 period 12", "window 3 stripe 0:4 period 6", "dense"),
    "blocks": ("window 0 blocks 16", "window 16 stripe 0:16 blocks 16", "stripe 5:9 blocks 8", "window 2 blocks 4"),
    "skipped": ("skip", "skip", "skip", "skip"),
}


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def operands(heads: tuple[str, ...], shared: int, causal: bool) -> list[np.ndarray | None]:
    skipped = heads.count("skip")
    return [
        normal(2, 4, N, D),
        normal(2, shared, N, D),
        normal(2, shared, N, E),
        normal(skipped, E) if skipped else None,
    ]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shared", [4, 2, 1])
@pytest.mark.parametrize("name", HEADS)
def test_each_head_attends_to_what_its_pattern_keeps(name, shared, causal):
    heads = HEADS[name]
    q, k, v, mean = operands(heads, shared, causal)
    op = SparseAttention(0.3, heads, causal)
    (y,) = check_op(op, q, k, v, mean, fixed=(4, shared, N, D, E, heads.count("skip")))
    skipped = iter(()) if mean is None else iter(mean)
    for head, pattern in enumerate(op.patterns):
        if pattern.skipped:
            np.testing.assert_array_equal(y[:, head], np.broadcast_to(next(skipped), (2, N, E)))
            continue
        other = head * shared // 4
        scores = np.where(pattern.kept(N, causal), 0.3 * q[:, head] @ np.swapaxes(k[:, other], 1, 2), -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        expected = weights @ v[:, other] / weights.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(y[:, head], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shared", [4, 2])
@pytest.mark.parametrize("name", HEADS)
def test_sparse_attention_equals_its_decomposition(name, shared, causal):
    heads = HEADS[name]
    check_decompose(SparseAttention(0.3, heads, causal), *operands(heads, shared, causal), atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_it_equals_its_decomposition_for_any_batch(name):
    heads = HEADS[name]
    arrays, graph = operands(heads, 4, False), Graph()
    shapes = [("b", *array.shape[1:]) if array.ndim == 4 else array.shape for array in arrays if array is not None]
    values = [graph.add_input(f"x{i}", tensor(dtypes.f32, *shape)) for i, shape in enumerate(shapes)]
    op, present = SparseAttention(0.3, heads), [array for array in arrays if array is not None]
    y = op.decompose(*values)
    assert y.type == op(*values).type
    found = evaluate_value(y, dict(zip(values, present, strict=True)))
    np.testing.assert_allclose(found, op.evaluate(*present), rtol=1e-5, atol=1e-5)


def inside(value: Value) -> list[Value]:
    return [value, *(v for operand in (value.node.inputs if value.node else []) for v in inside(operand))]


def test_whole_blocks_need_no_mask_and_no_matrix_of_all_scores():
    graph = Graph()
    q, k, v = (graph.add_input(name, tensor(dtypes.f32, "b", 4, 1024, 8)) for name in "qkv")
    found = inside(SparseAttention(0.3, ("window 64 blocks 64",) * 4).decompose(q, k, v))
    attentions = [value.node for value in found if isinstance(value.op, Attention)]
    assert {len(node.inputs) for node in attentions} == {3}
    assert {node.inputs[1].tensor.dims[2] for node in attentions} == {3 * 64}
    assert not any(isinstance(value.op, Where) for value in found)
    assert sum(isinstance(value.op, Gather) for value in found) == 2


def test_rows_that_keep_no_key_are_nan():
    x = normal(1, 1, 4, 2)
    y = SparseAttention(1.0, ("stripe 2:3",), True).evaluate(x, x, x)
    assert np.isnan(y[0, 0, :2]).all()
    assert np.isfinite(y[0, 0, 2:]).all()


def test_the_text_says_what_each_head_looks_at_and_parses_back():
    text = """
def main(q: f32[batch, 3, 64, 8], m: f32[1, 8]):
    y: f32[batch, 3, 64, 8] = SparseAttention(scale=0.125, heads=('window 8', 'stripe 0:4', 'skip'), \
causal=False)(q, q, q, m)
    return y
"""
    graph = parse_graph(text)
    assert print_graph(graph).strip() == text.strip()


def test_violated_constraints_are_named():
    q, short = tensor(dtypes.f32, "b", 2, 16, 8), tensor(dtypes.f32, "b", 2, 12, 8)
    mean = tensor(dtypes.f32, 1, 8)
    for heads, operands_, fault in (
        (("dense",), (q, q, q), "C8"),
        (("dense", "window 1 blocks 5"), (q, q, q), "C8"),
        (("dense", "dense"), (q, short, short), "C9"),
        (("dense", "dense"), (tensor(dtypes.f32, "b", 2, "n", 8),) * 3, "C9"),
        (("dense", "skip"), (q, q, q), "C7"),
        (("dense", "dense"), (q, q, q, mean), "C7"),
        (("skip", "skip"), (q, q, q, mean), "C7"),
    ):
        with pytest.raises(VerifyError, match=fault):
            SparseAttention(1.0, heads).infer(*operands_)
