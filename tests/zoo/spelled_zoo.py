"""The cases of written-out norms, activations and attention: name, module, inputs and raised operators of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from . import attention_modules as attention
from . import spelled_modules as spelled

Declared = dict[str, tuple[torch.dtype, tuple[int, ...]]]
Row = tuple[str, Callable[[], nn.Module], Declared, dict[str, int]]

TOKENS = {"x": (torch.float32, (2, 6, 32))}
HALF_TOKENS = {"x": (torch.float16, (2, 6, 32))}
IMAGE = {"x": (torch.float32, (2, 8, 8, 8))}
CONDITION = dict.fromkeys(("shift", "scale"), (torch.float32, (2, 32)))
UNOPTIMIZED = ("duplicated_sub",)
"""Modules to be exported without optimization, which would merge what they do twice."""
MASKED = {**TOKENS, "attention_mask": (torch.float32, (2, 6))}


def rows() -> Iterator[Row]:
    """All of them."""
    yield from _norms()
    yield from _rms_norms()
    yield from _activations()
    yield from _attention()


def _norms() -> Iterator[Row]:
    one = {"LayerNorm": 1}
    for formula in (
        spelled.duplicated_sub,
        spelled.square_as_product,
        spelled.inverse_as_rsqrt,
        spelled.inverse_as_power,
        spelled.inverse_as_reciprocal,
        spelled.scale_alone,
        spelled.bias_alone,
        spelled.two_axes,
        spelled.folded_affine,
        spelled.folded_affine_negated,
        spelled.raw_moments,
        spelled.clamped_raw_moments,
        spelled.library_variance,
        spelled.instance_norm,
    ):
        yield formula.__name__, partial(spelled.Written, formula), TOKENS, one
    for formula in (spelled.single_precision, spelled.square_in_single_precision):
        yield formula.__name__, partial(spelled.Written, formula), HALF_TOKENS, one
    for formula in (spelled.modulated, spelled.modulated_written_out):
        yield formula.__name__, partial(spelled.Written, formula), {**TOKENS, **CONDITION}, one
    yield "constant_added", partial(spelled.Written, spelled.constant_added), TOKENS, {**one, "Add": 0}
    yield "residual_added", partial(spelled.Written, spelled.residual_added), TOKENS, {**one, "Add": 1}
    for formula in (spelled.used_statistics, spelled.one_standard_deviation):
        yield formula.__name__, partial(spelled.Written, formula), TOKENS, {"LayerNorm": 0}


def _rms_norms() -> Iterator[Row]:
    one, none = {"RMSNorm": 1, "LayerNorm": 0}, {"RMSNorm": 0, "LayerNorm": 0}
    for formula in (
        spelled.rms_by_root,
        spelled.rms_by_rsqrt,
        spelled.rms_scaled_inverse,
        spelled.rms_by_sum,
        spelled.rms_by_length,
    ):
        yield formula.__name__, partial(spelled.Written, formula), TOKENS, one
    for formula in (spelled.rms_cast_after_scale, spelled.rms_kept_wide):
        yield formula.__name__, partial(spelled.Written, formula), HALF_TOKENS, one
    yield "rms_after_skip", partial(spelled.Written, spelled.rms_after_skip), {**TOKENS, "skip": TOKENS["x"]}, one
    yield "rms_llama", partial(LlamaRMSNorm, 32), HALF_TOKENS, one
    yield "rms_gemma", partial(GemmaRMSNorm, 32), TOKENS, one
    for formula in (spelled.unit_length, spelled.rms_of_deviation):
        yield formula.__name__, partial(spelled.Written, formula), TOKENS, none


def _activations() -> Iterator[Row]:
    for name in ("gelu_new", "gelu_fast", "gelu_python", "gelu_accurate"):
        yield name, partial(ACT2FN.__getitem__, name), TOKENS, {"Gelu": 1}
    for formula in (
        spelled.erf_other_branch,
        spelled.erf_half_inside,
        spelled.erf_computed_root,
        spelled.tanh_half_last,
        spelled.tanh_half_before_x,
        spelled.tanh_factored,
    ):
        yield formula.__name__, partial(spelled.Pointwise, formula), TOKENS, {"Gelu": 1}
    half = spelled.erf_in_single_precision
    yield half.__name__, partial(spelled.Pointwise, half), HALF_TOKENS, {"Gelu": 1}
    for formula in (spelled.hard_swish_of_relu6, spelled.hard_swish_of_clamp):
        yield formula.__name__, partial(spelled.Pointwise, formula), TOKENS, {"HardSwish": 1}


def _attention() -> Iterator[Row]:
    one = {"Attention": 1}
    for core in (
        attention.divided,
        attention.scaled_query,
        attention.scaled_both,
        attention.unscaled,
        attention.by_einsum,
        attention.causal_where,
        attention.guarded,
        attention.merged_batch,
        attention.dropped_out,
    ):
        yield f"attention_{core.__name__}", partial(attention.Attention, core), TOKENS, one
    for core in (attention.added_mask, attention.filled_mask):
        yield f"attention_{core.__name__}", partial(attention.Attention, core), MASKED, one
    half = attention.softmax_in_single_precision
    yield f"attention_{half.__name__}", lambda: attention.Attention(half).half(), HALF_TOKENS, one
    yield "attention_without_biases", partial(attention.Attention, attention.divided, bias=False), TOKENS, one
    for cut in ("chunk", "slice"):
        yield f"attention_packed_{cut}", partial(attention.PackedProjection, cut), TOKENS, one
    yield "attention_key_in_one_transpose", attention.KeyInOneTranspose, TOKENS, one
    yield "attention_einsum_projections", attention.EinsumProjections, TOKENS, one
    yield "attention_flattened_rows", attention.FlattenedRows, TOKENS, one
    yield "attention_convolved_projections", attention.ConvolvedProjections, IMAGE, one
    yield "attention_rotary_halves", attention.RotaryHalves, TOKENS, {**one, "RotaryEmbedding": 2}
