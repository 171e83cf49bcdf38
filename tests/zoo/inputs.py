"""Seeded inputs for zoo models, made from the declared graph inputs alone (onnx and numpy only)."""

from __future__ import annotations

import numpy as np
import onnx

VOCABULARY = 40
"""Size of every embedding table of token ids in the zoo."""


def seeded_inputs(model: onnx.ModelProto, seed: int = 0, symbolic: int = 2) -> dict[str, np.ndarray]:
    """One feed for ``model``: name to array, the same for the same seed.

    Every symbolic dim becomes ``symbolic``. Floating inputs are standard normal; integer inputs are token ids below
    ``VOCABULARY``, except ``attention_mask`` (ones, the last token of the first sample masked) and inputs whose name
    holds ``type`` (zeros and ones).
    """
    rng = np.random.default_rng(seed)
    initializers = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: _seeded_array(value, rng, symbolic) for value in model.graph.input if value.name not in initializers
    }


def _seeded_array(value: onnx.ValueInfoProto, rng: np.random.Generator, symbolic: int) -> np.ndarray:
    tensor = value.type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else symbolic for dim in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if np.issubdtype(dtype, np.floating):
        return rng.standard_normal(shape).astype(dtype)
    if dtype == np.bool_:
        return rng.random(shape) < 0.7
    if value.name == "attention_mask":
        mask = np.ones(shape, dtype)
        mask[0, -1] = 0
        return mask
    return rng.integers(0, 2 if "type" in value.name else VOCABULARY, shape).astype(dtype)
