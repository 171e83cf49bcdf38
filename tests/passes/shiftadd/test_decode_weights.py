"""decode-weights: layers by codes become layers by the numbers that the codes stand for."""

import numpy as np
from rewriting import check_rewrite

from planish.ir.data import Data
from planish.ir.types import Quant
from planish.passes.shiftadd import DecodeWeights

BEFORE = """
def main(x: f32[1, 2, 4, 4]):
    k: q(i8, (0.5, 2.0, 1.0), 0, axis=0, codebook='pot4')[3, 2, 2, 2] = Const('k')
    c: f32[1, 3, 2, 2] = ShiftConv(strides=(2, 2), pads=(0, 0, 0, 0), dilations=(1, 1), group=1)(x, k)
    f: f32[1, 12] = Reshape(shape=(1, 12))(c)
    w: q(i8, 0.25, 0, codebook='apot4')[12, 2] = Const('w')
    b: f32[2] = Const(f32, [1.0, -1.0])
    y: f32[1, 2] = ShiftLinear()(f, w, b)
    return y
"""
AFTER = """
def main(x: f32[1, 2, 4, 4]):
    k: f32[3, 2, 2, 2] = Const('kf')
    c: f32[1, 3, 2, 2] = Conv(strides=(2, 2), pads=(0, 0, 0, 0), dilations=(1, 1), group=1)(x, k)
    f: f32[1, 12] = Reshape(shape=(1, 12))(c)
    w: f32[12, 2] = Const('wf')
    b: f32[2] = Const(f32, [1.0, -1.0])
    y: f32[1, 2] = Linear()(f, w, b)
    return y
"""


def test_codes_become_numbers():
    rng = np.random.default_rng(0)
    k = rng.choice(np.array([0, 1, -2, 4, -8, 64], np.int8), (3, 2, 2, 2))
    w = rng.choice(np.array([0, 1, -3, 10], np.int8), (12, 2))
    constants = {
        "k": Data(k, Quant((0.5, 2.0, 1.0), 0, 0, "pot4")),
        "w": Data(w, Quant((0.25,), 0, None, "apot4")),
        "kf": (k * np.array([0.5, 2, 1]).reshape(3, 1, 1, 1)).astype(np.float32),
        "wf": (w * 0.25).astype(np.float32),
    }
    changes = check_rewrite(DecodeWeights(), BEFORE, AFTER, constants=constants)
    assert changes.rewrites["decode-weights"] == 2
