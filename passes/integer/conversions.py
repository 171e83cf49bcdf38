"""Which conversion takes which op."""

from __future__ import annotations

from collections.abc import Mapping

from planish.ir import ops
from planish.ir.op import Op
from planish.passes.integer.conversion import Conversion
from planish.passes.integer.hamming import AddMatMulConversion, BinarizeConversion
from planish.passes.integer.movement import CastConversion, GatherConversion, Movement, PadMovement
from planish.passes.integer.norms import AttentionConversion, NormConversion, SoftmaxConversion
from planish.passes.integer.pointwise import (
    FUNCTIONS,
    AddConversion,
    ArgMaxConversion,
    ClipConversion,
    GeluConversion,
    MeanConversion,
    SubConversion,
    TableConversion,
)
from planish.passes.integer.pooling import DivConversion
from planish.passes.integer.products import ConvConversion, LinearConversion, MatMulConversion, MulConversion
from planish.passes.integer.shift_products import ShiftConvConversion, ShiftLinearConversion
from planish.passes.integer.tokens import MatchConversion, MergeConversion, TopConversion

CONVERSIONS: Mapping[type[Op], Conversion] = {
    ops.Linear: LinearConversion(),
    ops.Conv: ConvConversion(),
    ops.ShiftLinear: ShiftLinearConversion(),
    ops.ShiftConv: ShiftConvConversion(),
    ops.MatMul: MatMulConversion(),
    ops.Binarize: BinarizeConversion(),
    ops.AddMatMul: AddMatMulConversion(),
    ops.Mul: MulConversion(),
    ops.Div: DivConversion(),
    ops.Add: AddConversion(),
    **dict.fromkeys((ops.LayerNorm, ops.RMSNorm), NormConversion()),
    ops.Softmax: SoftmaxConversion(),
    ops.Attention: AttentionConversion(),
    ops.Gelu: GeluConversion(),
    **dict.fromkeys((ops.Relu, ops.Clip), ClipConversion()),
    **dict.fromkeys(FUNCTIONS, TableConversion()),
    ops.Sub: SubConversion(),
    **dict.fromkeys((ops.ReduceMean, ops.ReduceSum), MeanConversion()),
    ops.ArgMax: ArgMaxConversion(),
    ops.Cast: CastConversion(),
    ops.Gather: GatherConversion(),
    ops.Pad: PadMovement(),
    ops.MatchTokens: MatchConversion(),
    ops.MergeTokens: MergeConversion(),
    ops.TopTokens: TopConversion(),
    **dict.fromkeys(
        (ops.Reshape, ops.DynamicReshape, ops.Transpose, ops.Squeeze, ops.Unsqueeze, ops.Expand, ops.Tile)
        + (ops.Identity, ops.Slice, ops.Split, ops.Concat, ops.Where, ops.MaxPool, ops.TakeTokens),
        Movement(),
    ),
}
