"""The pass that takes weights out of trained layers, in structures that kernels can skip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir import ops
from planish.ir.data import Data
from planish.ir.errors import GateError, UsageError
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import constant
from planish.ir.sparsity import PATTERNS, density, pattern
from planish.passes.allocation import Option, spread, tradeoffs
from planish.passes.base import Context, Pass
from planish.passes.calibration.gram import collect_grams
from planish.passes.exactness import Exactness, approximate
from planish.passes.judging import Bars, Distance, Judge, three_sets
from planish.passes.rewrite import Changes
from planish.passes.shiftadd.layers import Layer, matrices, refusal
from planish.passes.sparse.masks import Structure
from planish.passes.sparse.pruning import METHODS, damped, error_of, refitted
from planish.passes.sparse.report import Point, PrunedLayer, PruneReport

BY = "prune"
_GRID = (1.0, 0.75, 0.625, 0.5, 0.4, 0.3, 0.2, 0.1)  # shares that may stay in a layer
_TRIED = 0.5  # in one layer at a time, to see how much its noise harms the outputs
_POINTS = 10  # choices that are measured


@dataclass(frozen=True)
class Pruned:
    """A layer's weights with zeros: float64 in the layout of the layer.

    density: share of the blocks that stays. noise: energy of the error of its results over that of the results, on
    samples that nothing was fitted on; masked: the same without a fit of what stays.
    """

    weights: np.ndarray
    density: float
    noise: float
    masked: float


Choice = tuple[Pruned, ...]


@dataclass(frozen=True)
class Prune(Pass):
    """Weights of linear layers and convolutions set to zero in a structure, without training.

    What vanishes is chosen, and made good by what stays, from second moments of calibration samples; biases take what
    is lost on average. How much of each layer stays follows from how much its noise harms the outputs.

    method: "magnitude", "wanda", "sparsegpt" or "obs" (see `pruning`). structure: "unstructured", "ob4", "ob16", "ib4"
    or "2:4". sparsity: share of the products that is to vanish, over all layers. max_drop: by how much the metric may
    fall; max_nmse: energy of the outputs' error over their variance; with one of these, as much vanishes as it allows.
    uniform: the same share in every layer. refit: fit what stays. keep: names of layers that stay as they are.
    Source: SparseGPT (arXiv 2301.00774), OBC (arXiv 2208.11580), Wanda (arXiv 2306.11695).
    """

    name: ClassVar[str] = BY
    exactness: ClassVar[Exactness] = approximate(3.0)
    needs_calibration: ClassVar[bool] = True
    method: str = "obs"
    structure: str = "ob4"
    sparsity: float = 0.5
    max_drop: float | None = None
    max_nmse: float | None = None
    uniform: bool = False
    refit: bool = True
    keep: tuple[str, ...] = ()

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph`. Raises UsageError for unknown options, CalibrationError for too few or shared samples,
        GateError for a budget that no choice fits.
        """
        if self.method not in METHODS:
            raise UsageError(f"there is no method {self.method!r}", remedy=f"known: {', '.join(METHODS)}")
        if self.structure not in PATTERNS:
            raise UsageError(f"there is no structure {self.structure!r}", remedy=f"known: {', '.join(PATTERNS)}")
        if not 0 < self.sparsity < 1:
            raise UsageError(f"a share of {self.sparsity:g} can't vanish", remedy="give one between 0 and 1")
        changes, nodes = Changes(), []
        for node in graph.nodes(ops.Linear, ops.Conv):
            reason = refusal(node)
            if any(name in node.loc.sources for name in self.keep):
                reason = "it was asked to stay as it is"
            if reason:
                changes.skipped.append((str(node.loc), reason))
            else:
                nodes.append(node)
        if nodes:
            report = _Run(self, graph, context, nodes).run()
            context.reports.append(report)
            changes.rewrites[f"{self.structure}, {self.method}"] = sum(1 for row in report.layers if row.density < 1)
        return changes

    @property
    def bars(self) -> Bars:
        """What the error has to stay within."""
        return Bars(self.max_drop, self.max_nmse)

    @property
    def barred(self) -> bool:
        """True if the error has a budget."""
        return self.bars != Bars()

    @property
    def budget(self) -> str:
        """The budget in words."""
        return str(self.bars) or f"{100 * self.sparsity:g} % of the products"


class _Run:
    """One run on one graph, which stays as it is until a choice has been made."""

    def __init__(self, step: Prune, graph: Graph, context: Context, nodes: Sequence[Node]):
        self.step, self.graph, self.context = step, graph, context
        self.structure = Structure(step.structure)
        self.sets = three_sets(context)
        fit = collect_grams(graph, context, nodes, self.sets.fit.feeds)
        rank = collect_grams(graph, context, nodes, self.sets.rank.feeds)
        self.layers = [Layer(n, matrices(n), f, r) for n, f, r in zip(nodes, fit, rank, strict=True)]
        self.products = [layer.products for layer in self.layers]
        self.judge = Judge(graph, self.sets.rank, context)

    def run(self) -> PruneReport:
        """Choose, rewrite the graph, and say what was found."""
        step, found = self.step, self._choices()
        limit = 1 - step.sparsity
        fits = [i for i, choice in enumerate(found) if step.barred or self._density(choice) <= limit + 1e-3]
        if not fits:
            least = 100 * (1 - self._density(found[0]))
            raise GateError(f"at most {least:.0f} % of the products can vanish", remedy="take less off, or keep fewer")
        taken, measured = fits[-1], dict[int, Distance]()
        sample = sorted({*spread(len(found), _POINTS), taken}) if len(found) > 1 else [taken]
        for done, place in enumerate(sample, 1):
            measured[place] = self.judge.distance(self._copy(found[place]))
            self.context.progressed("measure choices", done, len(sample))
        if step.barred:
            taken = next((place for place in sample if step.bars.allows(measured[place])), -1)
            if taken < 0:
                raise GateError(f"no choice of weights fits: {step.budget}", remedy="allow more")
        choice = found[taken]
        reported = Judge(self.graph, self.sets.report, self.context).distance(self._copy(choice))
        points = tuple(Point(self._density(found[i]), measured[i], i == taken) for i in sample)
        rows = tuple(_row(layer, each) for layer, each in zip(self.layers, choice, strict=True))
        self._apply(choice)
        shown = (step.method, step.structure, step.budget)
        return PruneReport(rows, points, *shown, self._density(choice), measured[taken], reported)

    def _choices(self) -> list[Choice]:
        """The choices to take one of, those of the least products first."""
        shares = (1 - self.step.sparsity,) if self.step.uniform and not self.step.barred else _GRID
        shares = (0.5, 1.0) if self.structure.fixed else shares
        options = []
        for done, layer in enumerate(self.layers, 1):
            options.append({share: self._pruned(layer, share) for share in {*shares, _TRIED}})
            self.context.progressed("prune layers", done, len(self.layers))
        if self.step.uniform:
            return [tuple(found[share] for found in options) for share in sorted(shares)]
        table: list[list[Option[Pruned]]] = []
        for number, (found, products) in enumerate(zip(options, self.products, strict=True)):
            harm = self._harm(number, found[_TRIED])
            table.append([(products * found[s].density, harm * found[s].noise, found[s]) for s in shares])
        return tradeoffs(table)

    def _harm(self, number: int, option: Pruned) -> float:
        """Error of the outputs per noise of a layer: from that layer alone."""
        distance = self.judge.distance(
            self._copy(tuple(option if i == number else None for i in range(len(self.layers))))
        )
        self.context.progressed("try layers", number + 1, len(self.layers))
        return distance.nmse / max(option.noise, 1e-12) if math.isfinite(distance.nmse) else 1e12

    def _pruned(self, layer: Layer, share: float) -> Pruned:
        if share == 1:
            return Pruned(_laid_out(layer.node, layer.weights), 1.0, 0.0, 0.0)
        masked, fitted = [], []
        for w, covariance in zip(layer.weights, layer.fit.covariance, strict=True):
            h = damped(covariance)
            masked.append(METHODS[self.step.method](w, h, self.structure, share))
            fitted.append(refitted(masked[-1], w, h) if self.step.refit else masked[-1])
        energy = sum(float(np.sum(w * (c @ w))) for w, c in zip(layer.weights, layer.rank.covariance, strict=True))
        noise, without = (
            sum(error_of(f, w, c) for f, w, c in zip(found, layer.weights, layer.rank.covariance, strict=True))
            for found in (fitted, masked)
        )
        best = fitted if noise <= without else masked
        array = _laid_out(layer.node, np.stack(best))
        layout = "conv" if isinstance(layer.node.op, ops.Conv) else "linear"
        kept = density(array, pattern(self.step.structure, layout))
        return Pruned(array, kept, min(noise, without) / max(energy, 1e-300), without / max(energy, 1e-300))

    def _density(self, choice: Choice) -> float:
        """The share of the products that stays."""
        total = sum(count * found.density for count, found in zip(self.products, choice, strict=True))
        return total / sum(self.products)

    def _copy(self, choice: Sequence[Pruned | None]) -> Graph:
        copy, twins = self.graph.clone()
        for layer, found in zip(self.layers, choice, strict=True):
            node = twins[layer.node.result].node
            if found is not None and found.density < 1 and node is not None:
                _replace(copy, layer, node, found, self.step.structure)
        return copy

    def _apply(self, choice: Choice) -> None:
        for layer, found in zip(self.layers, choice, strict=True):
            if found.density < 1 and self.context.fuelled:
                _replace(self.graph, layer, layer.node, found, self.step.structure)
                self.context.burn()


def _laid_out(node: Node, found: np.ndarray) -> np.ndarray:
    """Matrices [G, K, N] in the layout of the node's weights."""
    shape = tuple(int(dim) for dim in node.inputs[1].tensor.dims)
    return found[0] if not isinstance(node.op, ops.Conv) else np.swapaxes(found, 1, 2).reshape(shape)


def _replace(graph: Graph, layer: Layer, node: Node, found: Pruned, structure: str) -> None:
    """Give `node` the weights, and its bias what is lost on average."""
    op, data = node.op, constant(node.operands[2]) if len(node.operands) > 2 else None
    layout = "conv" if isinstance(op, ops.Conv) else "linear"
    flat = found.weights if layout == "linear" else found.weights.reshape(len(found.weights), -1)
    before = layer.weights[0] if layout == "linear" else np.swapaxes(layer.weights, 1, 2).reshape(flat.shape)
    if layout == "linear":
        shift = layer.fit.mean[0] @ (before - flat)
    else:
        groups = np.repeat(layer.fit.mean, len(flat) // len(layer.fit.mean), axis=0)
        shift = np.sum(groups * (before - flat), axis=1)
    bias = shift if data is None else data.numpy().astype(np.float64) + shift
    zeros = pattern(structure, layout, min(1.0, round(found.density + 5e-7, 6)))
    weight = Data(found.weights.astype(np.float32), None, zeros)
    result: Value = op(node.inputs[0], weight, bias.astype(np.float32))
    graph.attach(result, node, node.loc.made_by(BY))
    result.hint = node.result.hint
    graph.replace(node.result, result)
    graph.erase_dead([node])


def _row(layer: Layer, found: Pruned) -> PrunedLayer:
    noise, masked = (None if n <= 0 else -10 * math.log10(n) for n in (found.noise, found.masked))
    return PrunedLayer(layer.name, layer.weights.size, found.density, noise, masked)
