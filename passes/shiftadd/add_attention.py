"""The pass that replaces softmax attention by signed sums in linear order, and trains the model to live with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from planish.ir.graph import Graph, Node, Value
from planish.ir.ops import Add, AddMatMul, Attention, Binarize, Linear, Mul, ReduceSum, Transpose
from planish.passes.base import Context, Feeds, Pass
from planish.passes.exactness import Exactness, approximate
from planish.passes.judging import Bars, Distance, Judge, ThreeSets, tapped, three_sets
from planish.passes.norms.converting import norms_of
from planish.passes.rewrite import Changes, array_like
from planish.passes.trained import take_weights, trainable, trained

BY = "add-attention"
_FITTED_FEEDS = 16  # the two factors of an attention need no more samples


@dataclass(frozen=True)
class Factors:
    """What signed sums stand for an attention with. nmse: their error there, over the variance, before training."""

    name: str
    alpha: float
    beta: float
    nmse: float


@dataclass(frozen=True)
class AddAttentionReport:
    """The run of one `add-attention`. reported: error of the trained graph on samples that training didn't see."""

    attentions: tuple[Factors, ...]
    reported: Distance
    recovery: object = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class AddAttention(Pass):
    """Softmax attention replaced by signed sums, and all linear layers trained against the original on its samples.

    y = alpha * signs(q) @ (signs(k).T @ v) + beta * sum of v, two factors per attention, fitted before training: no
    product of data by data, no exponential, no quotient, and linear in the number of tokens. Training, without labels,
    is `context.recover`'s; without it nothing is done. If the result isn't within the budget, nothing is done either.
    max_nmse: energy of the outputs' error over their variance, on samples of their own. max_drop: by how much the
    metric may fall; then max_nmse doesn't count.
    Source: ShiftAddViT (arXiv 2306.06446), section 4.1, with the own token's share given to the mean of all tokens.
    """

    name: ClassVar[str] = BY
    exactness: ClassVar[Exactness] = approximate(3.0)
    needs_calibration: ClassVar[bool] = True
    max_nmse: float = 0.3
    max_drop: float | None = None

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph`. Raises CalibrationError for too few or shared samples."""
        changes = Changes()
        numbers: list[int] = []
        for number, node in enumerate(graph.nodes(Attention)):
            reason = "it changes the function, so it needs training: --recover" if context.recover is None else ""
            if fault := fault_of(node) or reason:
                changes.skipped.append((str(node.loc), fault))
            elif context.fuel is None or len(numbers) < context.fuel.left:
                numbers.append(number)
        if not numbers:
            return changes
        sets = three_sets(context)
        factors = fitted(graph, numbers, sets.fit.feeds, context)
        student, _ = graph.clone()
        convert(student, numbers, factors)
        recovery = _trained(student, graph, sets, context)
        reported = Judge(graph, sets.report, context).distance(student)
        if not Bars(self.max_drop, self.max_nmse).allows(reported):
            name, found = ("the metric falls", reported.drop) if self.max_drop is not None else ("outputs err", None)
            shown = f"by {found:.3g}" if found is not None else f"by {100 * reported.nmse:.2g} % of their variance"
            changes.skipped.extend((factor.name, f"{name} {shown}, more than allowed") for factor in factors)
            return changes
        convert(graph, numbers, factors)
        take_weights(graph, student)
        context.reports.append(AddAttentionReport(tuple(factors), reported, recovery))
        changes.rewrites[BY] += len(numbers)
        for _ in numbers:
            context.burn()
        return changes


def fault_of(node: Node) -> str:
    """Why signed sums can't stand for an attention; "" if they can."""
    op = node.op
    assert isinstance(op, Attention)
    if len(node.inputs) > 3:
        return "it has a mask"
    if op.causal:
        return "it is causal"
    q, k = node.inputs[:2]
    return "" if q.tensor.dims[1] == k.tensor.dims[1] else "its heads are grouped"


def fitted(graph: Graph, numbers: Sequence[int], feeds: Sequence[Feeds], context: Context) -> list[Factors]:
    """alpha and beta of some attentions, by number, as least squares of what they give in the original."""
    nodes = graph.nodes(Attention)
    chosen = [nodes[number] for number in numbers]
    run = tapped(context, graph, [value for node in chosen for value in (*node.inputs[:3], node.result)])
    moments = np.zeros((len(chosen), 3, 3))  # of alpha's term, beta's term, and the original
    variances = np.zeros(len(chosen))
    used = feeds[:_FITTED_FEEDS]
    for feed in used:
        arrays = iter(run(feed))
        for i, _ in enumerate(chosen):
            q, k, v, y = (next(arrays).astype(np.float64) for _ in range(4))
            sums = np.matmul(_signs(q), np.matmul(np.swapaxes(_signs(k), 2, 3), v))
            total = np.broadcast_to(v.sum(axis=2, keepdims=True), y.shape)
            terms = np.stack([sums.ravel(), total.ravel(), y.ravel()])
            moments[i] += terms @ terms.T / y.size
            variances[i] += np.var(y)
    found = []
    for node, moment, variance in zip(chosen, moments, variances, strict=True):
        ridge = 1e-9 * np.diag(np.diag(moment[:2, :2])) + 1e-30 * np.eye(2)
        factors = np.maximum(np.linalg.solve(moment[:2, :2] + ridge, moment[:2, 2]), 1e-9)
        error = moment[2, 2] - 2 * factors @ moment[:2, 2] + factors @ moment[:2, :2] @ factors
        found.append(Factors(node.label, float(factors[0]), float(factors[1]), float(error / max(variance, 1e-30))))
    return found


def convert(graph: Graph, numbers: Sequence[int], factors: Sequence[Factors]) -> None:
    """Replace attentions of the graph, by number, with signed sums of these factors, in place."""
    nodes = graph.nodes(Attention)
    for number, factor in zip(numbers, factors, strict=True):
        node = nodes[number]
        q, k, v = node.inputs[:3]
        memory = AddMatMul()(Transpose((0, 1, 3, 2))(Binarize()(k)), v)  # [B, H, D, E]
        sums = Mul()(AddMatMul()(Binarize()(q), memory), array_like(factor.alpha, v))
        total = Mul()(ReduceSum((-2,))(v), array_like(factor.beta, v))  # [B, H, 1, E]
        made: Value = Add()(sums, total)
        graph.attach(made, node, node.loc.made_by(BY))
        made.hint = node.result.hint
        graph.replace(node.result, made)
        graph.erase_dead([node])


def _signs(x: np.ndarray) -> np.ndarray:
    return np.asarray(Binarize().evaluate(x))


def _trained(student: Graph, teacher: Graph, sets: ThreeSets, context: Context) -> object:
    """Train all linear layers of the student; the residual stream, where norms read it, and outputs are compared."""
    changed = _after_signs(student)
    streams = zip(norms_of(student), norms_of(teacher), strict=True)
    pairs = list(
        {
            mine.inputs[0]: (mine.inputs[0], other.inputs[0]) for mine, other in streams if mine.inputs[0] in changed
        }.values()
    )
    return trained(student, teacher, trainable(student, Linear), pairs, sets, context)


def _after_signs(graph: Graph) -> set[Value]:
    """Values that depend on signed sums."""
    found: set[Value] = set()
    for node in graph:
        if isinstance(node.op, AddMatMul) or any(value in found for value in node.inputs):
            found.update(node.results)
    return found
