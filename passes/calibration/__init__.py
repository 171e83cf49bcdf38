"""Calibration: statistics of activations over sample inputs, and the ranges that follow from them."""

from planish.passes.calibration.collect import collect as collect
from planish.passes.calibration.statistics import Request as Request
from planish.passes.calibration.statistics import Statistics as Statistics
from planish.passes.calibration.statistics import ValueStatistics as ValueStatistics
from planish.passes.calibration.value_range import value_range as value_range
