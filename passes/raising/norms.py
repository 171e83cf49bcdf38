"""The pass that recognises norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planish.passes.base import RulePass
from planish.passes.raising.layer_norm import LAYER_NORM_RULES
from planish.passes.raising.norm_affine import NORM_AFFINE_RULES
from planish.passes.raising.rms_norm import RMS_NORM_RULES
from planish.passes.rewrite import Rule


@dataclass(frozen=True)
class RaiseNorms(RulePass):
    """Norms spelled as means, squares and roots as LayerNorm and RMSNorm, with their constant scale and shift."""

    name: ClassVar[str] = "raise-norms"
    rule_set: ClassVar[tuple[Rule, ...]] = (*LAYER_NORM_RULES, *RMS_NORM_RULES, *NORM_AFFINE_RULES)
