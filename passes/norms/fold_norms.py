"""The pass that folds what stands around norms into the weights of the linear layers next to them, exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.ir.graph import Graph, Node
from planish.ir.op import constant
from planish.ir.ops import Add, BatchNorm, LayerNorm, Linear, Mul, RMSNorm
from planish.passes.base import Context, Pass
from planish.passes.exactness import ROUNDING, Exactness
from planish.passes.norms.affine_parts import AffinePart, affine_parts
from planish.passes.norms.centring import centred_streams
from planish.passes.norms.readers import fold_into_readers, readers
from planish.passes.raising.parameters import stored, wide
from planish.passes.raising.weights import Affine
from planish.passes.rewrite import Changes


@dataclass(frozen=True)
class FoldNorms(Pass):
    """Scales and shifts of norms, and norms that are affine in inference, in the weights of all linears that read them.

    - LayerNorm(x, gamma, beta), RMSNorm(x, gamma): every reader is a Linear or Conv of constant, unshared weights, seen
      through ops that move tokens; a beta needs Linears that have a bias, and Convs that pad no zeros.
    - x * a + d, BatchNorm(x), BatchNorm(x) + eta * x (Unified Normalization and RepBN as trained): the same, and where
      it doesn't fold it is written as one product and one sum at most.
    - LayerNorm(x) = RMSNorm(x), where every writer of x, and of what is added to it, can be made to write rows of mean
      zero, and nothing but LayerNorms reads them. Off unless `centre`: no kernel here gets faster by it.

    Source: Unified Normalization (arXiv 2208.01313), SliceGPT (arXiv 2401.15024) for the mean.
    """

    name: ClassVar[str] = "fold-norms"
    exactness: ClassVar[Exactness] = ROUNDING
    centre: bool = False

    def run(self, graph: Graph, context: Context) -> Changes:
        changes = Changes()
        for node in reversed(graph.nodes(Mul, Add, BatchNorm)):
            if node.graph is graph and context.fuelled and self._fold_affine(graph, node, changes):
                context.burn()
        for node in graph.nodes(LayerNorm, RMSNorm):
            if context.fuelled and self._fold_parameters(graph, node, changes):
                context.burn()
        if self.centre:
            for stream in centred_streams(graph):
                if stream.obstacle:
                    changes.skipped += [(str(norm.loc), stream.obstacle) for norm in stream.norms]
                elif context.fuelled:
                    stream.rewrite(graph, self.name)
                    changes.rewrites["layer norm to RMS norm"] += len(stream.norms)
                    context.burn()
        return changes

    def _fold_parameters(self, graph: Graph, node: Node, changes: Changes) -> bool:
        """gamma and beta into all readers: W' = diag(gamma) W, b' = b + beta W."""
        if len(node.inputs) < 2:
            return False
        reason = self._fold_norm(graph, node)
        if reason:
            changes.skipped.append((str(node.loc), f"its scale and shift stay: {reason}"))
            return False
        changes.rewrites["norm parameters into linears"] += 1
        return True

    def _fold_norm(self, graph: Graph, node: Node) -> str:
        op, x = node.op, node.inputs[0]
        assert isinstance(op, LayerNorm | RMSNorm)
        arrays = [None if p is None else constant(p) for p in node.operands[1:]]
        if any(p is not None and a is None for p, a in zip(node.operands[1:], arrays, strict=True)):
            return "they are computed"
        if op.axis != -1:
            return f"they vary along {-op.axis} axes"
        gamma, beta = (*(None if a is None else wide(a.numpy()) for a in arrays), None)[:2]
        known = next(a for a in (gamma, beta) if a is not None)
        affine = Affine(np.ones_like(known) if gamma is None else gamma, np.zeros_like(known) if beta is None else beta)
        found = list(readers(node.result, len(x.tensor.dims) - 1))
        if affine.shift.any() and any(_lacks_bias(reader.node) for reader in found):
            return "a linear without bias reads it, which would need one"
        twin = Node(op, [x], node.loc.made_by(self.name))
        graph.insert(twin, node)
        reason = fold_into_readers(graph, node.result, len(x.tensor.dims) - 1, affine, twin.result, self.name)
        twin.result.hint = node.result.hint
        graph.erase_dead([twin if reason else node])
        return reason

    def _fold_affine(self, graph: Graph, node: Node, changes: Changes) -> bool:
        reasons = []
        for part in affine_parts(node.result):
            reason = fold_into_readers(graph, node.result, part.axis, part.affine, part.source, self.name)
            if not reason:
                graph.erase_dead(list(part.nodes))
                changes.rewrites["affine norm into linears"] += 1
                return True
            reasons.append(reason)
            if _write_shortest(graph, node, part, self.name):
                changes.rewrites["affine norm merged"] += 1
                return True
        if reasons and isinstance(node.op, BatchNorm):
            changes.skipped.append((str(node.loc), f"it stays: {reasons[0]}"))
        return False


def _write_shortest(graph: Graph, node: Node, part: AffinePart, by: str) -> bool:
    """Write the map as one product and one sum; False if it takes as few ops already."""
    wanted = int((part.affine.factor != 1).any()) + int(part.affine.shift.any())
    ours = [n for n in part.nodes if n is node or all(user in part.nodes for user in n.result.users)]
    if len(ours) <= max(wanted, 1) or not np.isfinite([part.affine.factor, part.affine.shift]).all():
        return False
    spread = (-1, *(1,) * (len(part.source.tensor.dims) - 1 - part.axis))
    like = np.empty(0, part.source.tensor.dtype.storage)
    value = Mul()(part.source, stored(part.affine.factor, like).reshape(spread))
    if part.affine.shift.any():
        value = Add()(value, stored(part.affine.shift, like).reshape(spread))
    graph.attach(value, node, node.loc.made_by(by))
    value.hint = node.result.hint
    graph.replace(node.result, value)
    graph.erase_dead(list(part.nodes))
    return True


def _lacks_bias(node: Node) -> bool:
    return isinstance(node.op, Linear) and len(node.inputs) < 3
