"""The pass that sends each token of a linear layer either through products or through shifts and additions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir import ops
from planish.ir.codebooks import CODEBOOKS
from planish.ir.data import Data
from planish.ir.errors import UsageError
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import constant
from planish.ir.types import Quant, TensorType
from planish.passes.base import Clock, Context, Feeds, Pass, PreparedTaps
from planish.passes.exactness import Exactness, approximate
from planish.passes.judging import ThreeSets, tapped, three_sets
from planish.passes.layers import alone, refusal
from planish.passes.rewrite import Changes
from planish.passes.shiftadd.encoding import encode

BY = "mix-experts"
_RIDGE = 1e-3  # of the mean variance of a channel
_FEEDS = 16  # of a set, that tokens are rated on


@dataclass(frozen=True)
class Routing:
    """Two experts of one linear layer, and which of its N tokens goes to which.

    weight: f32[K], bias: a token x has the margin x @ weight + bias. count: so many tokens of the greatest margins go
    to the layer itself, the others to `codes`, q(i8, scales, axis 1, codebook)[K, N], and the same bias.
    """

    weight: np.ndarray
    bias: float
    count: int
    codes: Data


def share_of(latencies: Sequence[float]) -> float:
    """The share of tokens for the first of two experts, such that both take as long: n_i in proportion to 1 / Lat_i.

    Raises UsageError unless both are positive.
    """
    if len(latencies) != 2 or not all(latency > 0 for latency in latencies):
        raise UsageError(f"latencies {list(latencies)} aren't two positive numbers", remedy="measure both experts")
    first, second = latencies
    return second / (first + second)


def capacity(tokens: int, share: float) -> int:
    """How many of the tokens that is: at least one of each kind. There must be two."""
    return min(max(round(share * tokens), 1), tokens - 1)


def coded_weight(w: np.ndarray, codebook: str) -> Data:
    """Weights [K, N] as the nearest codes of a codebook, each column with the scale that errs least."""
    found = encode(w.astype(np.float64), CODEBOOKS[codebook], np.eye(len(w)), feedback=False)
    return Data(found.codes, Quant(tuple(found.scales.tolist()), 0, 1, codebook))


def route_experts(graph: Graph, node: Node, routing: Routing, by: str = BY) -> Value:
    """Replace a Linear on x[B, N, K] by its two experts, in place. Shapes are static, since the numbers of tokens are.

    y = the rows of x of the greatest margins through the layer, the others through its codes, each back in its place.
    """
    x, w, *b = node.inputs
    tokens = int(x.tensor.dims[1])
    margin = ops.Linear()(x, routing.weight[:, None].astype(np.float32), np.array([routing.bias], np.float32))
    multiplied, shifted = ops.TopTokens(routing.count)(ops.Reshape((0, tokens))(margin))
    first = ops.Linear()(ops.TakeTokens()(x, multiplied), w, *b)
    second = ops.ShiftLinear()(ops.TakeTokens()(x, shifted), routing.codes, *b)
    behind = np.arange(routing.count, tokens, dtype=np.int64)[None]
    into = ops.Add()(ops.Sub()(shifted, shifted), behind)  # i64[B, R]: the same places for each sample
    place = ops.PlaceTokens()(multiplied, shifted, into)
    made: Value = ops.TakeTokens()(ops.Concat(1)(first, second), place)
    graph.attach(made, node, node.loc.made_by(by))
    made.hint = node.result.hint
    graph.replace(node.result, made)
    graph.erase_dead([node])
    return made


def fault_of(node: Node) -> str:
    """Why a Linear can't have two experts; "" if it can."""
    x = node.inputs[0].type
    if not isinstance(x, TensorType) or x.rank != 3:
        return "its input isn't [samples, tokens, channels]"
    if not isinstance(x.dims[1], int) or x.dims[1] < 2:
        return "the number of its tokens isn't known, or is 1"
    return refusal(node)


@dataclass(frozen=True)
class MixExperts(Pass):
    """Linear layers with two experts, products and shifts, and the tokens shared out between them by a fitted router.

    Tokens that the shift expert errs most on, as a linear function of the token predicts, go to the multiplication
    expert; how many do is fixed by the latencies of both, so that shapes stay static. A layer whose router doesn't
    beat chance by `gain` on samples of their own stays as it is.
    codebook: of the shift expert. share: of the tokens that products get; None measures both experts on the target.
    names: of the layers to convert; None for all that can be.
    Source: ShiftAddViT (arXiv 2306.06446), section 4.3; the router is fitted instead of trained.
    """

    name: ClassVar[str] = BY
    exactness: ClassVar[Exactness] = approximate(3.0)
    needs_calibration: ClassVar[bool] = True
    codebook: str = "apot4"
    share: float | None = None
    gain: float = 0.02
    names: tuple[str, ...] | None = None

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph`. Raises UsageError for bad options, CalibrationError for too few or shared samples."""
        if self.codebook not in CODEBOOKS:
            raise UsageError(f"there is no codebook {self.codebook!r}", remedy=f"known: {', '.join(CODEBOOKS)}")
        if self.share is not None and not 0 < self.share < 1:
            raise UsageError(f"a share of {self.share:g} leaves an expert idle", remedy="give a number between 0 and 1")
        changes, nodes = Changes(), []
        for node in graph.nodes(ops.Linear):
            if self.names is not None and not set(self.names) & set(map(str, node.loc.sources)):
                continue
            if fault := fault_of(node):
                changes.skipped.append((str(node.loc), fault))
            elif self.share is None and context.clock is None:
                changes.skipped.append((str(node.loc), "nothing can measure its experts, and no share is given"))
            else:
                nodes.append(node)
        if not nodes:
            return changes
        sets = three_sets(context)
        for node, (routing, ratio) in zip(nodes, self._routings(graph, nodes, sets, context), strict=True):
            if not context.fuelled:
                break
            if ratio > 1 - self.gain:
                reason = f"its router leaves {100 * ratio:.0f} % of the error that chance does"
                changes.skipped.append((str(node.loc), reason))
                continue
            route_experts(graph, node, routing)
            changes.rewrites[BY] += 1
            context.burn()
        return changes

    def _routings(
        self, graph: Graph, nodes: Sequence[Node], sets: ThreeSets, context: Context
    ) -> list[tuple[Routing, float]]:
        """The experts of each layer, and the error of routed tokens over that of tokens chosen by chance."""
        run = tapped(context, graph, [node.inputs[0] for node in nodes])
        fit, rank = (_rows(run, samples.feeds) for samples in (sets.fit, sets.rank))
        found = []
        for i, node in enumerate(nodes):
            data = constant(node.operands[1])
            assert data is not None
            w = data.numpy()
            codes = coded_weight(w, self.codebook)
            lost = w - codes.numpy() * codes.type.quant.scales  # type: ignore[union-attr]
            if self.share is not None:
                share = self.share
            else:
                assert context.clock is not None
                share = share_of(latencies(node, codes, context.clock))
            x, held_out = fit[i], rank[i]
            weight, bias = _router(x.reshape(-1, x.shape[2]), lost)
            routing = Routing(weight, bias, capacity(x.shape[1], share), codes)
            found.append((routing, _ratio(held_out, lost, routing)))
        return found


def latencies(node: Node, codes: Data, clock: Clock) -> tuple[float, float]:
    """Seconds of the multiplication expert and of the shift expert on all tokens of the layer, measured in turns."""
    plain = constant(node.operands[1])
    assert plain is not None
    multiply, shift = clock([alone(node, ops.Linear(), plain), alone(node, ops.ShiftLinear(), codes)])
    return multiply, shift


def _rows(run: PreparedTaps, feeds: Sequence[Feeds]) -> list[np.ndarray]:
    """What each layer reads, float64[samples, tokens, channels]."""
    parts = [run(feed) for feed in feeds[:_FEEDS]]
    return [np.concatenate([part[i] for part in parts]).astype(np.float64) for i in range(len(parts[0]))]


def _energy(x: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """Energy that the shift expert's results err by, token by token."""
    return np.asarray(np.sum((x @ lost) ** 2, axis=-1))


def _router(x: np.ndarray, lost: np.ndarray) -> tuple[np.ndarray, float]:
    """Least squares of the energy of the error, over its mean, on tokens x[T, K], in float64."""
    wanted = _energy(x, lost)
    wanted = wanted / max(float(np.mean(wanted)), 1e-300)
    mean = x.mean(axis=0)
    centred = x - mean
    square = centred.T @ centred / len(x)
    ridge = (_RIDGE * float(np.trace(square)) / len(square) + 1e-30) * np.eye(len(square))
    weight = np.linalg.solve(square + ridge, centred.T @ (wanted - wanted.mean()) / len(x))
    return weight.astype(np.float32), float(wanted.mean() - mean @ weight)


def _ratio(x: np.ndarray, lost: np.ndarray, routing: Routing) -> float:
    """Error of tokens x[B, N, K] that go to the shift expert, over what as many tokens err on average."""
    energy = _energy(x, lost)
    margin = (x @ routing.weight + routing.bias).astype(np.float32)
    _, shifted = ops.TopTokens(routing.count).evaluate(margin)
    routed = float(np.mean(np.take_along_axis(energy, shifted, axis=1)))
    return routed / max(float(np.mean(energy)), 1e-300)
