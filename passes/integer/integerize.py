"""The pass: float graph and calibration samples in, integer graph out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir import ops
from planish.ir.errors import UnsupportedOp, UsageError
from planish.ir.graph import Graph, Node, Value
from planish.ir.int_ranges import overflows
from planish.ir.op import Const, constant
from planish.passes.base import Context, Pass
from planish.passes.calibration import Request, Statistics, collect
from planish.passes.exactness import Exactness, approximate
from planish.passes.integer.conversions import CONVERSIONS
from planish.passes.integer.driver import Driver, float_values
from planish.passes.integer.plan import Plan, key_of, source_of
from planish.passes.integer.sensitivity import layer_errors
from planish.passes.rewrite import Changes

PROFILES = ("table", "ivit")


@dataclass(frozen=True)
class Integerize(Pass):
    """Whole models in integers: 8-bit products, 16-bit residual stream, norms, softmax and activations in integers.

    profile: "table" takes every function from exact 256-entry tables; "ivit" approximates by I-ViT's shifts.
    calibration: how ranges are found: "minmax", "ema", "percentile:P", "mse", "entropy".
    wide: names of products whose activations get 16 bits instead of 8. wide_below: so do those that 8-bit codes would
    bring below this signal-to-noise ratio (dB; profile "table"). keep: names of nodes that stay in float.
    equalize: how far channels of norms are evened out between activations and weights, 0 to 1.
    correct_bias: take what rounded weights make of mean activations off the biases.
    strict: raise UnsupportedOp (exit code 4) if something can't be rewritten, instead of leaving it in float.
    """

    name: ClassVar[str] = "integerize"
    exactness: ClassVar[Exactness] = approximate(10.0)
    needs_calibration: ClassVar[bool] = True
    profile: str = "table"
    calibration: str = "mse"
    wide: tuple[str, ...] = ()
    wide_below: float = 26.0
    keep: tuple[str, ...] = ()
    equalize: float = 0.5
    correct_bias: bool = True
    strict: bool = False

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph`. Raises UsageError for an unknown profile, UnsupportedOp as `strict` says."""
        if self.profile not in PROFILES:
            raise UsageError(f"there is no profile {self.profile!r}", remedy=f"known: {', '.join(PROFILES)}")
        changes = Changes()
        if self.profile == "ivit":
            spell_out_attention(graph)  # its logits have calibrated codes, so they have to be observed
        statistics = collect(graph, context, requests_of(graph))
        faithful = self.profile == "ivit"
        floor = 0.0 if faithful else self.wide_below
        plan = Plan(statistics, self.profile, self.calibration, frozenset(self.wide), floor, self.correct_bias)
        if self.equalize and not faithful:
            plan.folded.update(equalizing_factors(graph, statistics, self.equalize, plan.wide))
        reference, twins = graph.clone() if context.layer_errors is not None else (graph, {})
        driver = Driver(graph, plan, CONVERSIONS, frozenset(self.keep))
        driver.run()
        if context.layer_errors is not None:
            pairs = [(node, twins[node.result], sums) for node, sums in driver.sums]
            context.layer_errors[:] = layer_errors(reference, graph, pairs, plan, context)
        changes.rewrites = Counter({self.name: driver.converted, "16-bit activations": driver.widened})
        changes.skipped += [(str(node.loc), reason) for node, reason in driver.islands]
        unproved = overflows(graph)
        changes.skipped += [("", f"not proved: {what}") for what in unproved]
        if self.strict and unproved:
            raise UnsupportedOp(
                f"{len(unproved)} sums aren't proved to fit; the first: {unproved[0]}",
                remedy="fix symbolic extents with --shape, or leave --strict out",
            )
        if self.strict and driver.islands:
            node, reason = driver.islands[0]
            raise UnsupportedOp(
                f"{len(driver.islands)} nodes have no integer form; the first: {reason}",
                where=str(node.loc),
                remedy="leave --strict out to keep them in floating point",
            )
        return changes


def spell_out_attention(graph: Graph) -> None:
    """Attention as products and softmax, where it can be said so."""
    for node in graph.nodes(ops.Attention):
        made = node.op.decompose(*node.operands)
        if isinstance(made, Value):
            graph.attach(made, node, node.loc.made_by(Integerize.name))
            made.hint = node.result.hint
            graph.replace(node.result, made)
    graph.erase_dead()


def requests_of(graph: Graph) -> list[Request]:
    """What calibration has to observe: every real value once, inputs of linear layers and norms' results by channel."""
    axes: dict[Value, int | None] = {source_of(v): None for v in float_values(graph)}
    for node in graph:
        match node.op:
            case ops.Linear() | ops.ShiftLinear():
                axes[node.inputs[0]] = len(node.inputs[0].tensor.dims) - 1
            case ops.Conv() | ops.ShiftConv():
                axes[node.inputs[0]] = 1
            case ops.LayerNorm() | ops.RMSNorm():
                axes[node.result] = len(node.result.tensor.dims) - 1
    return [Request(value, axis) for value, axis in axes.items() if not isinstance(value.op, Const)]


def equalizing_factors(
    graph: Graph, statistics: Statistics, strength: float, wide: frozenset[str]
) -> dict[Value, np.ndarray]:
    """Factors per channel that norms give up, and the linear layers that read them take over.

    factor = (largest activation)**strength / (largest weight)**(1 - strength), as SmoothQuant; its mean is 1. A norm's
    requantization has a multiplier per channel anyway, so this costs nothing (RepQ-ViT).
    """
    found: dict[Value, np.ndarray] = {}
    for node in graph.nodes(ops.LayerNorm, ops.RMSNorm):
        readers = [reader for reader in node.result.users if _takes_factor(reader, node.result, wide)]
        if not readers:
            continue
        stats = statistics[node.result]
        if stats.channel_lo is None or stats.channel_hi is None:
            continue
        activation = np.maximum(np.maximum(-stats.channel_lo, stats.channel_hi), 1e-12)
        weight = np.max([np.max(np.abs(_weight(reader)), axis=1) for reader in readers], axis=0)
        factor = activation**strength / np.maximum(weight, 1e-12) ** (1 - strength)
        found[node.result] = factor / np.exp(np.mean(np.log(factor)))
    return found


def _takes_factor(reader: Node, value: Value, wide: frozenset[str]) -> bool:
    return (
        isinstance(reader.op, ops.Linear)
        and reader.operands[0] is value
        and constant(reader.operands[1]) is not None
        and key_of(reader) not in wide
    )


def _weight(reader: Node) -> np.ndarray:
    data = constant(reader.operands[1])
    assert data is not None
    return data.numpy().astype(np.float64)
