"""Multiplications become shifts and additions: weights as sums of signed powers of two, attention as signed sums."""

from planish.passes.shiftadd.add_attention import AddAttention as AddAttention
from planish.passes.shiftadd.decode_weights import DecodeWeights as DecodeWeights
from planish.passes.shiftadd.mix_experts import MixExperts as MixExperts
from planish.passes.shiftadd.shift_add import ShiftAdd as ShiftAdd
