"""quantize-products: channels are evened out with the norm's own parameters, or with new ones."""

from __future__ import annotations

import numpy as np
import pytest
from rewriting import read

from planish.ir import ops
from planish.ir.interpret import interpret
from planish.passes.base import Context
from planish.passes.integer import QuantizeProducts


@pytest.mark.parametrize(
    ("norm", "parameters"), [("LayerNorm", 0), ("LayerNorm", 1), ("LayerNorm", 2), ("RMSNorm", 0), ("RMSNorm", 1)]
)
def test_norms_without_parameters_are_evened_out_too(norm: str, parameters: int):
    rng = np.random.default_rng(0)
    spread = np.exp(rng.normal(0, 1.5, (16, 1)))
    constants = {
        "g": rng.uniform(0.5, 2, 16).astype(np.float32),
        "b": rng.standard_normal(16).astype(np.float32),
        "w": (rng.standard_normal((16, 8)) * spread).astype(np.float32),
    }
    names = "gb"[:parameters]
    lines = "".join(f"    {name}: f32[16] = Const('{name}')\n" for name in names)
    graph = read(
        f"def main(x: f32[4, 16]):\n{lines}    n: f32[4, 16] = {norm}(axis=-1, eps=1e-05)({', '.join(['x', *names])})\n"
        "    w: f32[16, 8] = Const('w')\n    y: f32[4, 8] = Linear()(n, w)\n    return y\n",
        constants,
    )
    feeds = [{"x": rng.standard_normal((4, 16)).astype(np.float32)} for _ in range(16)]
    (before,) = interpret(graph, feeds[0]).values()
    QuantizeProducts().run(graph, Context(calibration=feeds))
    (after,) = interpret(graph, feeds[0]).values()
    assert graph.nodes(ops.IntLinearDequantize)
    assert 10 * np.log10(np.sum(before**2) / np.sum((after - before) ** 2)) > 30
