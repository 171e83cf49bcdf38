"""Cleanup passes: fold, simplify, share, drop. Run them in the order of CLEANUP, repeated until nothing changes."""

from planish.passes.base import Pass
from planish.passes.cleanup.eliminate_dead_code import EliminateDeadCode as EliminateDeadCode
from planish.passes.cleanup.fold_constants import FoldConstants as FoldConstants
from planish.passes.cleanup.share_common_values import ShareCommonValues as ShareCommonValues
from planish.passes.cleanup.simplify_arithmetic import SimplifyArithmetic as SimplifyArithmetic
from planish.passes.cleanup.simplify_joins import SimplifyJoins as SimplifyJoins
from planish.passes.cleanup.simplify_layout import SimplifyLayout as SimplifyLayout

CLEANUP: tuple[type[Pass], ...] = (
    FoldConstants,
    SimplifyArithmetic,
    SimplifyLayout,
    SimplifyJoins,
    ShareCommonValues,
    EliminateDeadCode,
)
"""The cleanup passes in a good order: what folds uncovers what can be simplified, then shared; the rest is dead."""
