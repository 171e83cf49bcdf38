"""Norms that cost less or nothing: exact folds, and replacement by calibrated linear maps."""

from planish.passes.norms.fold_norms import FoldNorms as FoldNorms
from planish.passes.norms.unify_norms import UnifyNorms as UnifyNorms
