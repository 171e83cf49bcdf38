"""Raising passes: what exporters spelled out, recognised as the high-level op that it is. Run them in this order."""

from planish.passes.base import Pass
from planish.passes.raising.activations import RaiseActivations as RaiseActivations
from planish.passes.raising.attention import RaiseAttention as RaiseAttention
from planish.passes.raising.linear import RaiseLinear as RaiseLinear
from planish.passes.raising.norms import RaiseNorms as RaiseNorms
from planish.passes.raising.rotary import RaiseRotary as RaiseRotary

RAISING: tuple[type[Pass], ...] = (RaiseLinear, RaiseNorms, RaiseActivations, RaiseRotary, RaiseAttention)
"""The raising passes in a good order."""
