"""ONNX's expansions of its own functions: norms, activations, attention and rotary embedding spelled out are raised.

The `_expanded` cases of `onnx.backend.test.case.node` hold the bodies of the functions, inlined. Those that mustn't be
raised are listed with the reason.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.case.node as node_cases
import pytest

from planish.backends.ort.evaluate import evaluate_opaque
from planish.frontend.reader import from_proto
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.passes.base import Context, Pipeline, Repeat
from planish.passes.observers import VerifyEach
from planish.passes.pipelines import cleanup
from planish.passes.raising import RAISING

FAMILIES = {
    "layer_normalization": "LayerNorm",
    "group_normalization": "LayerNorm",  # of each group; the scale of channels stays outside
    "rms_normalization": "RMSNorm",
    "gelu": "Gelu",
    "hardswish": "HardSwish",
    "swish": "Swish",
    "swiglu": "Swish",
    "attention": "Attention",
    "flexattention": "Attention",
    "rotary_embedding": "RotaryEmbedding",
}
"""Family of cases to the op that each of its cases holds once."""

USED_INSIDES = ("Mean", "InvStdDev", "qk_matmul_output")
"""Names of outputs that are results of inner nodes: they keep a case from being raised, and it is without them."""

CAPPED = "Attention has no softcap: the scores go through tanh"
UNRAISED = {
    "test_attention_3d_diff_heads_sizes_softcap_expanded": CAPPED,
    "test_attention_3d_gqa_softcap_expanded": CAPPED,
    "test_attention_3d_softcap_expanded": CAPPED,
    "test_attention_3d_with_past_and_present_qk_matmul_softcap_expanded": CAPPED,
    "test_attention_4d_diff_heads_sizes_softcap_expanded": CAPPED,
    "test_attention_4d_gqa_softcap_expanded": CAPPED,
    "test_attention_4d_softcap_expanded": CAPPED,
    "test_attention_4d_softcap_neginf_mask_expanded": CAPPED,
    "test_attention_4d_softcap_neginf_mask_poison_expanded": CAPPED,
    "test_attention_4d_with_qk_matmul_softcap_expanded": CAPPED,
    "test_attention_local_window_gqa_rank4_mask_expanded": CAPPED,
    "test_flexattention_soft_cap_expanded_ver26": CAPPED,
    "test_flexattention_prob_mod_expanded_ver26": "the weights are changed after the softmax",
    "test_flexattention_fp16_expanded_ver26": "the values are cast up: the weights are not rounded to float16",
}
"""Cases that are not raised even without `USED_INSIDES`, and why."""


@cache
def cases() -> dict[str, tuple[Any, str]]:
    """Name to case and the op that it holds, for every expanded case of the families."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sorted(node_cases.collect_testcases(None), key=lambda case: case.name)
    families = re.compile(f"test_({'|'.join(FAMILIES)})_(.*_)?expanded")
    matches = ((case, families.match(case.name)) for case in found)
    return {case.name: (case, FAMILIES[match[1]]) for case, match in matches if match}


def raised(model: onnx.ModelProto) -> Graph:
    graph = from_proto(model)
    pipeline = Pipeline(Repeat(cleanup), *(kind() for kind in RAISING), Repeat(cleanup))
    pipeline.run(graph, Context(observers=(VerifyEach(),), evaluate_opaque=evaluate_opaque))
    return graph


def count(graph: Graph, op: str) -> int:
    return Counter(node.op.name for node in graph)[op]


def without_insides(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the outputs that are results of inner nodes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(output for output in model.graph.output if output.name not in USED_INSIDES)
    return copy


def assert_expected_results(case: Any, graph: Graph) -> None:
    """The graph computes what the case says; not for bfloat16, whose Expand ONNX Runtime lacks."""
    inputs, outputs = case.data_sets[0]
    if any(np.asarray(array).dtype.kind == "V" for array in inputs):
        return
    feed = {value.name: np.asarray(array) for value, array in zip(case.model.graph.input, inputs, strict=True)}
    found = interpret(graph, feed, opaque=evaluate_opaque)
    for value, wanted in zip(case.model.graph.output, outputs, strict=True):
        if value.name in found:
            wanted, got = np.asarray(wanted), found[value.name]
            assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
            # 16-bit expansions round every step, the raised op rounds once.
            tolerance = {2: 2e-2}.get(wanted.dtype.itemsize, 1e-4)
            pair = got.astype(np.float64), wanted.astype(np.float64)
            np.testing.assert_allclose(*pair, rtol=tolerance, atol=tolerance, err_msg=case.name)


@pytest.mark.parametrize("family", FAMILIES)
def test_expanded_case_is_raised_and_keeps_its_result(family: str) -> None:
    members = {name: pair for name, pair in cases().items() if re.match(f"test_{family}_(.*_)?expanded", name)}
    assert members
    wrong = []
    for name, (case, op) in members.items():
        graph = raised(without_insides(case.model))
        assert_expected_results(case, graph)
        if count(graph, op) != (0 if name in UNRAISED else 1):
            wrong.append(name)
    assert not wrong, f"{len(wrong)} of {len(members)} cases are not as expected: {wrong}"


def test_case_whose_insides_are_outputs_is_left() -> None:
    used = {
        name: pair for name, pair in cases().items() if {o.name for o in pair[0].model.graph.output} & {*USED_INSIDES}
    }
    assert {op for _, op in used.values()} == {"LayerNorm", "Attention"}
    for name, (case, op) in used.items():
        assert count(raised(case.model), op) == 0, name


def test_list_of_unraised_cases_names_cases() -> None:
    assert set(UNRAISED) <= set(cases())
