"""Attention from its parts: softmax(scale * q @ k.T + mask) @ v, with heads of rank 4, or merged into the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planish.ir.graph import Value
from planish.ir.ops import Attention, MatMul, Reshape, Squeeze, Transpose, Unsqueeze, Where
from planish.passes.base import RulePass
from planish.passes.exactness import ROUNDING
from planish.passes.pattern import Maybe, Pattern, Scalar, attr, either
from planish.passes.raising.attention_mask import Mask, additive, chosen, need_no_empty_row, needs_nothing
from planish.passes.raising.attention_operands import EXCHANGE, keys, need_same_heads, split_heads, ungrouped, without_factor
from planish.passes.raising.attention_windows import attention_in_windows
from planish.passes.raising.attention_weights import weights
from planish.passes.raising.parameters import keeping, shortest
from planish.passes.rewrite import Rule, reject, rule
