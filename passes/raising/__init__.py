"""Raising passes: from the spellings of exporters to high-level ops, and constants folded into weights."""

from planish.passes.base import Pass
from planish.passes.raising.activations import RaiseActivations as RaiseActivations
from planish.passes.raising.attention import RaiseAttention as RaiseAttention
from planish.passes.raising.batch_norm import FoldBatchNorm as FoldBatchNorm
from planish.passes.raising.hamming import RaiseHamming as RaiseHamming
from planish.passes.raising.linear import RaiseLinear as RaiseLinear
from planish.passes.raising.norms import RaiseNorms as RaiseNorms
from planish.passes.raising.projections import MergeProjections as MergeProjections
from planish.passes.raising.rotary import RaiseRotary as RaiseRotary
from planish.passes.raising.scales import FoldScales as FoldScales

RAISING: tuple[type[Pass], ...] = (
    RaiseLinear,
    RaiseNorms,
    RaiseActivations,
    RaiseRotary,
    RaiseAttention,
    RaiseHamming,
    FoldBatchNorm,
    FoldScales,
)
"""The raising passes in order: products first, since attention and folding build on them; folding last."""

OPTIONAL: tuple[type[Pass], ...] = (MergeProjections,)
"""Passes that are no part of the default order."""
