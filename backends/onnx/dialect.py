"""How a target wants ops spelled: operator-set version, and the choice where ONNX has several spellings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from planish.ir import ops
from planish.ir.op import Op

BASE_OPSET = 13  # first with axes and splits as inputs and a sane Softmax; models are raised to it where they allow it


Choice = Literal["standard", "primitives"]


@dataclass(frozen=True, slots=True)
class Spellings:
    """One choice per op that has several spellings.

    "standard" is the ONNX op of that name: it raises the operator set of the model to the op's own version where the
    rest of the model allows it, and where it doesn't, the op is written in primitives after all. "primitives" is a
    chain of basic ops, in the order that ONNX Runtime knows how to fuse.
    contrib: ONNX Runtime's own ops may stand in where the operator set lacks the standard one.
    unskipped: a sum that a layer normalisation alone reads is a Sum of two operands, which ONNX Runtime leaves alone;
    it makes one SkipLayerNormalization of an Add and the normalisation.
    compact: weights with zeros are stored without them, for runtimes that fold constants as they load a model.
    multiply: False writes integer ops in shifts, additions, comparisons and look-ups only, and refuses all others.
    """

    attention: Choice = "standard"
    gelu: Choice = "standard"
    gelu_tanh: Choice = "standard"
    swish: Choice = "standard"
    layer_norm: Choice = "standard"
    rms_norm: Choice = "standard"
    rotary: Choice = "standard"
    contrib: bool = False
    unskipped: bool = False
    compact: bool = False
    multiply: bool = True


STANDARD = Spellings(swish="primitives")
"""Portable: every op as the newest ONNX says it, but for Swish: ONNX Runtime 1.32 loads it in operator set 24 only."""

ORT_CPU = Spellings(
    attention="primitives", gelu="primitives", swish="primitives", rms_norm="primitives", contrib=True, unskipped=True
)
"""ONNX Runtime on CPU, by measurement (one thread, ViT-S shapes, all graph optimizations on).

Primitives are as fast as the contrib ops for attention, erf-GELU and RMSNorm, because the runtime fuses them, and
2.6 times as fast as Swish-24. The standard op is 3.5 times as fast as the tanh-GELU chain and twice as fast as the
rotary chain.
Sum and LayerNormalization are 1.3 to 12 times as fast as SkipLayerNormalization (widths 96 to 1,024, rows 1 to 512;
0.9 times for one row of 96), which the runtime makes of Add and LayerNormalization: its kernel isn't vectorized.
BERT-base as a whole is 1.04 to 1.14 times as fast, BERT-mini 1.10 to 1.21 times.
Asking for the op itself, with the sum as its fourth result, would take 1.1 to 14 times as long as the two (0.95 times
for one row of 96). SkipSimplifiedLayerNormalization, which the runtime doesn't make of Add and an RMSNorm here, takes
0.8 to 1.1 times as long as the two for one row, 1 to 2 times from 64 rows on.
"""

NO_MULTIPLY = replace(ORT_CPU, multiply=False)
"""The certificate: the same integers, by shifts, additions, comparisons and look-ups."""

_LIFTED = (
    *(ops.IntLinear, ops.IntLinearDequantize, ops.IntMatMul, ops.IntAddMatMul, ops.IntBinaryMatMul),
    *(ops.IntConv, ops.IntWeightedMean),
)
_PACKED = (ops.ShiftLinear, ops.ShiftConv)
_TOKENS = (
    *(ops.MatchTokens, ops.IntMatchTokens, ops.MergeTokens, ops.IntMergeTokens),
    *(ops.TopTokens, ops.TakeTokens, ops.PlaceTokens),
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What lowering functions need to know: the operator set written, and the spellings preferred."""

    opset: int
    spellings: Spellings = field(default=ORT_CPU)


def preferred_opset(op: Op, spellings: Spellings) -> int:
    """The operator set in which the preferred spelling of `op` exists; BASE_OPSET for ops that were always there."""
    choices: dict[type[Op], tuple[str, int]] = {
        ops.Attention: (spellings.attention, 23),
        ops.RotaryEmbedding: (spellings.rotary, 23),
        ops.RMSNorm: (spellings.rms_norm, 23),
        ops.LayerNorm: (spellings.layer_norm, 17),
        ops.Gelu: (spellings.gelu_tanh if getattr(op, "approximate", "") == "tanh" else spellings.gelu, 20),
        ops.Swish: (spellings.swish, 24),
        ops.HardSwish: ("standard", 14),
    }
    if isinstance(op, _TOKENS):
        return 13  # as of 11 there are TopK and ScatterElements, as of 12 GatherND of batches
    if isinstance(op, (*_LIFTED, *_PACKED)):
        return 14  # first in which Add takes bytes and words
    choice, version = choices.get(type(op), ("", BASE_OPSET))
    return version if choice == "standard" else BASE_OPSET
