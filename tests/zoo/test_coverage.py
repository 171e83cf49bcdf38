"""Every variant of the zoo has a file that a real exporter wrote, or is among ONNX's expansions."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import onnx
import pytest

from .spellings import SPELLINGS

FOLDER = Path(__file__).parent
EXPECTED = {
    name: counts
    for table in ("expected.json", "foreign.json")
    for name, counts in json.loads((FOLDER / table).read_text()).items()
}

LAYER_NORM = {
    "L1 canonical": ("layer_norm_ts11", "layer_norm_ts14", "layer_norm_paddle13"),
    "L2 duplicated Sub": ("duplicated_sub_dyn18", "library_variance_ts14"),
    "L3 square as product": ("square_as_product_ts14", "layer_norm_keras3"),
    "L4 reciprocal, one over, power": ("inverse_as_rsqrt_ts14", "inverse_as_reciprocal_dyn18", "inverse_as_power_ts14"),
    "L5 casts": ("single_precision_ts14", "square_in_single_precision_dyn18"),
    "L6 scale or bias missing": ("layer_norm_plain_ts14", "scale_alone_ts14", "bias_alone_dyn18"),
    "L6 axis counted from the front": ("layer_norm_paddle17",),
    "L7 axes as operand, several axes": ("square_as_product_dyn18", "two_axes_ts14", "layer_norm_two_axes_keras3"),
    "L8 scale and shift folded": ("folded_affine_ts14", "folded_affine_negated_dyn18", "layer_norm_image_keras3"),
    "L9 raw moments": ("raw_moments_ts14", "clamped_raw_moments_dyn18"),
    "L10 instance norm": ("instance_norm_ts14", "instance_norm_dyn18"),
    "L11 training batch norm": ("layer_norm_keras2", "layer_norm_image_keras2", "layer_norm_two_axes_keras2"),
    "L12 channel first": ("layer_norm_channel_first_ts14", "layer_norm_channel_first_dyn18"),
    "L13 modulation": ("modulated_ts14", "modulated_written_out_dyn18"),
    "L15 Add behind": ("constant_added_dyn18", "residual_added_dyn18"),
    "L16 contrib forms, quantized": ("skip_norm_ort", "layer_norm_quantized_ort"),
    "L17 functions": ("layer_norm_function_onnxscript",),
}
RMS_NORM = {
    "R1 division by the root": ("rms_by_root_ts14", "rms_by_root_dyn18"),
    "R2 one over the root": ("rms_by_rsqrt_ts14", "llama_ts17"),
    "R3 reciprocal": ("rms_by_rsqrt_dyn18", "rms_norm_dyn18"),
    "R4 order of gamma, 1 + w": ("rms_gemma_ts14", "rms_gemma_dyn18", "rms_scaled_inverse_dyn18", "rms_norm_keras3"),
    "R5 casts": ("rms_llama_ts14", "rms_cast_after_scale_dyn18", "rms_kept_wide_ts14"),
    "R6 sum, length": ("rms_by_sum_ts14", "rms_by_length_dyn18"),
    "R7 skip": ("rms_after_skip_ts14", "skip_rms_norm_ort"),
}
GELU = {
    "G1 canonical": ("gelu_erf_ts14", "gelu_erf_paddle13"),
    "G2 half on the other branch": ("gelu_python_ts14", "erf_other_branch_dyn18"),
    "G3 product with the inverse root": ("erf_other_branch_ts14",),
    "G4 half before x": ("erf_half_inside_ts14", "erf_half_inside_dyn18"),
    "G5 root computed": ("gelu_erf_keras3", "erf_computed_root_dyn18"),
    "G6 casts": ("erf_in_single_precision_ts14", "erf_in_single_precision_dyn18"),
    "G7 behind a biased linear": ("vit_ts11", "bert_dyn18"),
    "T1 cube as power": ("gelu_tanh_dyn18", "gelu_new_ts14"),
    "T2 half last": ("tanh_half_last_ts14", "tanh_half_before_x_dyn18", "gelu_tanh_keras3"),
    "T3 factored": ("gelu_fast_ts14", "tanh_factored_dyn18"),
    "T4 cube as products": ("gelu_tanh_ts14",),
}
SWISH = {"Q": ("quick_gelu_ts17", "quick_gelu_dyn18"), "S": ("silu_ts17", "silu_keras3", "silu_paddle13")}
HARD_SWISH = {"S": ("hard_swish_ts11", "hard_swish_of_relu6_ts14", "hard_swish_of_clamp_dyn18", "hard_swish_keras3")}
ATTENTION = {
    "separate projections": ("bert_ts14", "attention_divided_dyn18", "attention_paddle13"),
    "packed: Split, Slice, Gather": (
        "attention_packed_chunk_dyn18",
        "attention_packed_slice_dyn18",
        "swin_ts17",
    ),
    "rows [B * N, C]": ("attention_flattened_rows_ts14", "attention_keras2"),
    "einsum": ("attention_einsum_projections_ts14", "attention_by_einsum_dyn18", "attention_keras3"),
    "no biases": ("attention_without_biases_ts14", "llama_ts17"),
    "1 x 1 convolutions": ("attention_convolved_projections_ts14", "attention_convolved_projections_dyn18"),
    "heads in the batch": ("multihead_merged_ts14", "attention_merged_batch_ts14", "attention_keras3"),
    "key in one transpose": ("attention_key_in_one_transpose_ts14", "attention_key_in_one_transpose_dyn18"),
    "key transposed between reshapes": ("vit_sdpa_dyn18",),
    "scale: division, query, both, none": (
        "attention_divided_ts14",
        "attention_scaled_query_dyn18",
        "attention_scaled_both_ts14",
        "attention_unscaled_dyn18",
    ),
    "scale computed": ("vit_sdpa_ts17", "multihead_ts17"),
    "mask added, put in": ("attention_added_mask_ts14", "attention_filled_mask_ts14", "attention_filled_mask_dyn18"),
    "relative position bias": ("swin_ts17", "swin_dyn18"),
    "causal": ("attention_causal_where_ts14", "attention_causal_where_dyn18", "attention_merged_batch_dyn18"),
    "NaN guard": ("attention_guarded_dyn18", "bert_sdpa_dyn18"),
    "softmax: axis 3, casts, dropout": (
        "attention_scaled_query_ts14",
        "attention_softmax_in_single_precision_ts14",
        "attention_dropped_out_ts14",
    ),
    "groups of heads": ("llama_ts17", "llama_dyn18"),
    "rotary embedding": ("llama_sdpa_ts17", "attention_rotary_halves_dyn18"),
    "operator": ("vit_sdpa_dyn23",),
}
COVERED = {
    "LayerNorm": LAYER_NORM,
    "RMSNorm": RMS_NORM,
    "Gelu": GELU,
    "Swish": SWISH,
    "HardSwish": HARD_SWISH,
    "Attention": ATTENTION,
}
"""Raised operator, variant, files."""

NEGATIVE = {
    "L14 statistics used": ("used_statistics_ts14", "used_statistics_dyn18"),
    "R6 bounded length": ("unit_length_ts14", "unit_length_dyn18"),
    "R8 standard deviation": ("rms_of_deviation_ts14", "rms_scaling_keras3"),
    "LX epsilon beside the root": ("one_standard_deviation_ts14", "one_standard_deviation_dyn18"),
}
"""Variants that must not be raised; L14 is all expansions of LayerNormalization besides."""


SIGNS = {
    "duplicated_sub_dyn18": ("Sub", "Sub"),
    "library_variance_ts14": ("Sub", "Sub"),
    "square_as_product_ts14": ("Mul", "Mul"),
    "layer_norm_keras3": ("GlobalAveragePool", "Reciprocal", "Neg"),
    "inverse_as_rsqrt_ts14": ("Div", "Sqrt"),
    "inverse_as_reciprocal_dyn18": ("Reciprocal",),
    "inverse_as_power_ts14": ("Pow", "Pow"),
    "single_precision_ts14": ("Cast", "Cast"),
    "square_in_single_precision_ts14": ("Cast", "Cast"),
    "folded_affine_negated_dyn18": ("Neg",),
    "clamped_raw_moments_dyn18": ("Clip",),
    "instance_norm_dyn18": ("InstanceNormalization",),
    "layer_norm_keras2": ("BatchNormalization", "ReduceSumSquare"),
    "skip_norm_ort": ("SkipLayerNormalization",) * 3,
    "skip_rms_norm_ort": ("SkipSimplifiedLayerNormalization",) * 4,
    "layer_norm_quantized_ort": ("QuantizeLinear", "DequantizeLinear", "LayerNormalization"),
    "layer_norm_function_onnxscript": ("written_norm", "written_norm"),
    "rms_by_sum_ts14": ("ReduceSum",),
    "rms_by_length_dyn18": ("ReduceL2",),
    "rms_llama_ts14": ("Cast", "Cast"),
    "erf_in_single_precision_dyn18": ("Cast", "Cast"),
    "attention_packed_chunk_dyn18": ("Split",),
    "attention_packed_slice_dyn18": ("Slice", "Slice", "Slice"),
    "swin_ts17": ("Gather", "Gather", "Gather"),
    "attention_einsum_projections_ts14": ("Einsum",) * 5,
    "attention_flattened_rows_ts14": ("Gemm",) * 3,
    "attention_filled_mask_ts14": ("Where",),
    "attention_causal_where_ts14": ("Where",),
    "attention_guarded_dyn18": ("IsNaN",),
    "attention_softmax_in_single_precision_ts14": ("Cast", "Cast"),
    "vit_sdpa_dyn23": ("Attention",) * 2,
    "library_variance_dyn18": ("ReduceMean", "Reshape"),
}
"""Operators that make a file what it is covered as, so that no exporter has optimized them away."""


@pytest.mark.parametrize("file", SIGNS)
def test_file_holds_what_it_is_named_for(file: str) -> None:
    found = Counter(node.op_type for node in onnx.load(FOLDER / f"{file}.onnx").graph.node)
    assert not Counter(SIGNS[file]) - found


@pytest.mark.parametrize("op", COVERED)
def test_files_of_each_variant_hold_the_raised_operator(op: str) -> None:
    missing = [
        (variant, file)
        for variant, files in COVERED[op].items()
        for file in files
        if not EXPECTED.get(f"{file}.onnx", {}).get(op)
    ]
    assert not missing


def test_files_of_look_alikes_hold_none() -> None:
    assert not [f for files in NEGATIVE.values() for f in files if any(EXPECTED[f"{f}.onnx"].values())]


def test_every_variant_of_the_spellings_has_a_file() -> None:
    named = [variant for op in COVERED.values() for variant in op] + [*NEGATIVE]
    variants = {name.split("_")[0] for name in SPELLINGS} - {"AX", "GX", "TX", "SX", "RX"}
    assert {v for v in variants if v[0] != "A"} - {variant.split()[0] for variant in named} == set()
    assert {variant.split()[0] for variant in LAYER_NORM} | {"L14"} == {f"L{place}" for place in range(1, 18)}
