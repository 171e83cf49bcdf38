"""The pass that puts sparse weights between two block-diagonal factors, which take in most of what zeros lose."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from planish.ir import ops
from planish.ir.data import Data
from planish.ir.errors import UsageError
from planish.ir.graph import Graph, Node, Value
from planish.ir.sparsity import PATTERNS, density, pattern
from planish.passes.base import Context, Pass
from planish.passes.calibration.gram import Gram, collect_grams
from planish.passes.exactness import Exactness, approximate
from planish.passes.judging import three_sets
from planish.passes.layers import decibels, matrices, raised_bias, refusal
from planish.passes.rewrite import Changes
from planish.passes.sparse.armor import Armor, armored, extra_share
from planish.passes.sparse.masks import Structure
from planish.passes.sparse.pruning import block_obs, damped, error_of

BY = "armor"


@dataclass(frozen=True)
class ArmoredLayer:
    """One layer.

    density: share of the core's blocks that stays. extra: products of numbers that the factors cost, over those of the
    dense layer. noise_db: signal-to-noise ratio of its results on samples that nothing was fitted on; plain_db: the
    same for block OBS in the same structure without factors. None where there is no noise.
    """

    name: str
    density: float
    extra: float
    noise_db: float | None
    plain_db: float | None


@dataclass(frozen=True)
class ArmorReport:
    """The run of one `armor`."""

    layers: tuple[ArmoredLayer, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class ArmorPrune(Pass):
    """Linear layers become a sparse one between two products with block-diagonal matrices, fitted without training.

    structure: "2:4", "unstructured", "ob4", "ob16" or "ib4", of the core. sparsity: share of its blocks that vanishes;
    half in 2:4. block: rows and columns of the blocks of the factors. most_extra: products that the factors may cost,
    over those of the dense layer. keep: names of layers that stay as they are.
    Factors cost products as well: worth them where the structure limits what stays, as hardware does with 2:4. Where a
    kernel takes any sparsity, spend those products on more weights and compare.
    Source: ARMOR (arXiv 2510.05528).
    """

    name: ClassVar[str] = BY
    exactness: ClassVar[Exactness] = approximate(3.0)
    needs_calibration: ClassVar[bool] = True
    structure: str = "2:4"
    sparsity: float = 0.5
    block: int = 16
    most_extra: float = 0.1
    keep: tuple[str, ...] = ()

    def run(self, graph: Graph, context: Context) -> Changes:
        """Rewrite `graph`. Raises UsageError for unknown options, CalibrationError for too few or shared samples."""
        if self.structure not in PATTERNS:
            raise UsageError(f"there is no structure {self.structure!r}", remedy=f"known: {', '.join(PATTERNS)}")
        if not 0 < self.sparsity < 1:
            raise UsageError(f"a share of {self.sparsity:g} can't vanish", remedy="give one between 0 and 1")
        columns = Structure(self.structure).columns
        if self.block < 1 or self.block % columns:
            raise UsageError(f"blocks of {self.block} split columns of {self.structure}", remedy="give 16, 32 or 64")
        changes, nodes = Changes(), []
        for node in graph.nodes(ops.Linear):
            if reason := self._refusal(node):
                changes.skipped.append((str(node.loc), reason))
            else:
                nodes.append(node)
        if not nodes:
            return changes
        sets = three_sets(context)
        fit = collect_grams(graph, context, nodes, sets.fit.feeds)
        rank = collect_grams(graph, context, nodes, sets.rank.feeds)
        rows = []
        for done, (node, known, unseen) in enumerate(zip(nodes, fit, rank, strict=True), 1):
            if not context.fuelled:
                break
            rows.append(self._rewritten(graph, node, known, unseen))
            context.burn()
            context.progressed("fit factors", done, len(nodes))
        if rows:
            context.reports.append(ArmorReport(tuple(rows)))
            changes.rewrites[f"{self.structure}, blocks of {self.block}"] = len(rows)
        return changes

    def _refusal(self, node: Node) -> str:
        """Why a layer stays as it is; "" if it doesn't."""
        if reason := refusal(node):
            return reason
        x, w = node.inputs[0].tensor, node.inputs[1].tensor
        shape = (int(w.dims[0]), int(w.dims[1]))
        extra = extra_share(shape, self.block)
        if any(name in node.loc.sources for name in self.keep):
            return "it was asked to stay as it is"
        if w.sparsity is not None:
            return "it is sparse already"
        if shape[0] % self.block or shape[1] % self.block:
            return f"blocks of {self.block} don't fit {shape[0]} x {shape[1]} weights"
        if extra > self.most_extra:
            return f"factors would cost {100 * extra:.0f} % of its products, more than {100 * self.most_extra:g} %"
        if x.shape is None or len(x.dims) < 2 or ops.Reshape.to(x, (*x.dims[:-1], 1, shape[0])) is None:
            return "its input can't be cut into blocks"
        return ""

    def _rewritten(self, graph: Graph, node: Node, known: Gram, unseen: Gram) -> ArmoredLayer:
        w, h = matrices(node)[0], damped(known.covariance[0])
        structure = Structure(self.structure)
        plain = block_obs(w, h, structure, 1 - self.sparsity)
        found = armored(w, h, structure, 1 - self.sparsity, self.block, plain)
        kept = density(found.core, pattern(self.structure))
        label, shape = node.label, (len(w), w.shape[1])
        energy, rest = error_of(0 * w, w, unseen.covariance[0]), unseen.covariance[0]
        shown = [decibels(error_of(each, w, rest) / energy) if energy > 0 else None for each in (found.product, plain)]
        _replace(graph, node, found, known.mean[0] @ (w - found.product), self.structure)
        return ArmoredLayer(label, kept, extra_share(shape, self.block), *shown)


def _replace(graph: Graph, node: Node, found: Armor, lost: np.ndarray, structure: str) -> None:
    """Put the three products in place of `node`; the bias takes what is lost on average."""
    share = density(found.core, pattern(structure))
    core = Data(found.core.astype(np.float32), None, pattern(structure, density=min(1.0, round(share + 5e-7, 6))))
    inner = ops.Linear()(_blockwise(node.inputs[0], found.before), core)
    made: Value = ops.Add()(_blockwise(inner, found.after), Data(raised_bias(node, lost)))
    graph.attach(made, node, node.loc.made_by(BY))
    made.hint = node.result.hint
    graph.replace(node.result, made)
    graph.erase_dead([node])


def _blockwise(x: Value, blocks: np.ndarray) -> Value:
    """x[.., T, K] @ diag(blocks), as a product of stacks of matrices: [.., K / b, T, b] @ [K / b, b, b]."""
    dims, (count, size, _) = x.tensor.dims, blocks.shape
    cut = ops.Reshape.to(x.tensor, (*dims[:-1], count, size))
    assert cut is not None
    rank = len(dims) + 1
    perm = (*range(rank - 3), rank - 2, rank - 3, rank - 1)
    turned = ops.MatMul()(ops.Transpose(perm)(cut(x)), Data(blocks.astype(np.float32)))
    back = ops.Transpose(perm)(turned)
    joined = ops.Reshape.to(back.tensor, dims)
    assert joined is not None
    result: Value = joined(back)
    return result
