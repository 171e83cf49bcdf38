"""Attention and rotary embedding: evaluation against the ONNX reference, types, decompositions."""

import numpy as np
import pytest
from check_op import check_decompose, check_op, evaluate_value, run_onnx

from planish.ir import dtypes
from planish.ir.errors import VerifyError
from planish.ir.graph import Graph
from planish.ir.ops.attention import Attention, RotaryEmbedding
from planish.ir.types import tensor

RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


Q, K, V = normal(2, 4, 5, 8), normal(2, 4, 7, 8), normal(2, 4, 7, 6)
MASKS = {"none": None, "float": normal(2, 1, 5, 7), "bool": np.tri(5, 7, 3, dtype=np.bool_)}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shared", [4, 2, 1])
def test_attention_agrees_with_the_onnx_reference(shared, mask, causal):
    operands = [Q, K[:, :shared], V[:, :shared], *([] if mask == "none" else [MASKS[mask]])]
    (y,) = check_op(Attention(0.3, causal), *operands)
    expected = run_onnx("Attention", *operands, opset=23, reference=True, scale=0.3, is_causal=int(causal))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shared", [4, 2])
def test_attention_equals_its_decomposition(shared, mask, causal):
    check_decompose(Attention(0.3, causal), Q, K[:, :shared], V[:, :shared], MASKS[mask], atol=1e-5)


def test_causal_attention_of_symbolic_length_equals_its_decomposition():
    graph, op = Graph(), Attention(0.3, True)
    values = [graph.add_input(name, tensor(dtypes.f32, "b", 4, name, 8)) for name in ("n", "m", "m")]
    arrays = [Q, K, K]
    y = evaluate_value(op.decompose(*values), dict(zip(values, arrays, strict=True)))
    np.testing.assert_allclose(y, op.evaluate(*arrays), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_embedding_agrees_with_the_onnx_reference_and_its_decomposition(interleaved, batch):
    angle = normal(batch, 5, 4)
    cos, sin = np.cos(angle), np.sin(angle)
    op = RotaryEmbedding(interleaved)
    (y,) = check_op(op, Q, cos, sin)
    tables = (np.repeat(table, 2 // batch, axis=0) for table in (cos, sin))
    expected = run_onnx("RotaryEmbedding", Q, *tables, opset=23, reference=True, interleaved=int(interleaved))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    check_decompose(op, Q, cos, sin)


def test_grouped_attention_with_symbolic_heads_has_no_decomposition():
    graph = Graph()
    q, k = (graph.add_input(name, tensor(dtypes.f32, 1, name, 5, 8)) for name in ("h", "g"))
    assert Attention(1.0).decompose(q, k, k) is None


def test_violated_constraints_are_named():
    q, k = tensor(dtypes.f32, "b", 4, "n", 8), tensor(dtypes.f32, "b", 3, "n", 8)
    with pytest.raises(VerifyError, match="C6"):
        Attention(1.0).infer(q, k, k)
    with pytest.raises(VerifyError, match="C7"):
        Attention(1.0).infer(q, q, q, tensor(dtypes.i64, 1, 1, 1, "n"))
    with pytest.raises(VerifyError, match="C5"):
        RotaryEmbedding().infer(q, tensor(dtypes.f32, 1, "n", 8), tensor(dtypes.f32, 1, "n", 4))
