"""What a head's attention costs with a pattern, over what it costs with all keys: a line through measured times.

Measured once with `python -m planish.tools.bench.sparse_attention --costs`: 2,048 positions, heads of width 64, one
thread, medians of interleaved runs on a Zen 5 core with ONNX Runtime 1.32 and TVM 0.27.
"""

from __future__ import annotations

from dataclasses import dataclass

from planish.ir.attention_patterns import Pattern


@dataclass(frozen=True)
class Line:
    """share of the time = fixed + slope * share of the pairs that are computed."""

    fixed: float
    slope: float

    def at(self, density: float) -> float:
        return self.fixed + self.slope * density


@dataclass(frozen=True)
class Costs:
    """Of a target. gathered: one set of keys for all queries. blocked: a list of blocks for each block of queries.
    causal: that with a mask, over causal attention to all keys.
    """

    gathered: Line
    blocked: Line
    causal: Line

    def of(self, pattern: Pattern, length: int, causal: bool) -> float:
        """The cost of a pattern; 1 of a dense head, 0 of a skipped one."""
        if pattern.dense or pattern.skipped:
            return float(pattern.dense)
        if pattern.window is None:
            line = self.causal if causal else self.gathered
            return min(1.0, line.at(float(pattern.kept(length).any(axis=0).mean())))
        table = pattern.table(length, pattern.blocks or 1, causal)
        density = table.shape[1] / (length // (pattern.blocks or 1))
        return 1.0 if density == 1 else min(1.0, (self.causal if causal else self.blocked).at(density))


ORT = Costs(Line(0.0, 1.0), Line(0.03, 1.55), Line(0.015, 0.8))
TVM = Costs(Line(0.07, 0.8), Line(0.06, 0.95), Line(0.05, 0.75))


def costs_of(target: str) -> Costs:
    """Of a target by its name."""
    return TVM if target.startswith("tvm") else ORT
