"""A layer with zeros: what a method makes of its weights for each share that may stay, and the layer that has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir import ops
from planish.ir.data import Data
from planish.ir.graph import Graph, Node, Value
from planish.ir.sparsity import Layout, density, pattern
from planish.ir.types import Sparsity
from planish.passes.layers import Layer, alone, replace_layer
from planish.passes.sparse.masks import Structure
from planish.passes.sparse.pruning import METHODS, block_obs_path, damped, error_of, refitted


@dataclass(frozen=True)
class Pruned:
    """A layer's weights with zeros.

    weights: float32 in the layout of the layer, None where all of them stay. lost: float64, by how much its results are
    smaller on average, per channel. density: share of the blocks that stays. noise: energy of the error of its results
    over that of the results, on samples that nothing was fitted on; masked: the same without a fit of what stays.
    """

    weights: Data | None
    lost: np.ndarray
    density: float
    noise: float
    masked: float


def pruned(
    layer: Layer, structure: Structure, method: str, shares: Sequence[float], *, refit: bool
) -> dict[float, Pruned]:
    """The layer with each share of its blocks. What stays is fitted, where that errs less on samples unseen."""
    masked: list[list[np.ndarray]] = [[] for _ in shares]
    fitted: list[list[np.ndarray]] = [[] for _ in shares]
    order = _order(layer.node, structure)
    back = np.argsort(order)
    for w, covariance in zip(layer.weights, layer.fit.covariance, strict=True):
        w, h = w[order], damped(covariance)[np.ix_(order, order)]
        if method == "obs":
            found = block_obs_path(w, h, structure, shares)
        else:
            found = [METHODS[method](w, h, structure, share) for share in shares]
        for number, array in enumerate(found):
            masked[number].append(array[back])
            fitted[number].append((refitted(array, w, h) if refit else array)[back])
    made = zip(shares, masked, fitted, strict=True)
    return {share: _whole(layer) if share == 1 else _better(layer, structure, mask, fit) for share, mask, fit in made}


def unfit(node: Node, structure: Structure) -> str:
    """Why a layer can't have zeros in a structure; "" if it can."""
    op, shape = node.op, tuple(int(dim) for dim in node.inputs[1].tensor.dims)
    if not isinstance(op, ops.Conv):
        return ""
    if _by_inputs(structure) and shape[1] % 4:
        return f"its {shape[1]} input channels can't be cut into fours"
    if op.group > 1 and shape[0] // op.group % structure.columns:
        return f"its {shape[0] // op.group} outputs per group can't be cut into blocks of {structure.columns}"
    return ""


def _by_inputs(structure: Structure) -> bool:
    """True if neighbouring inputs have their zeros together."""
    return structure.fixed or structure.rows > 1


def _order(node: Node, structure: Structure) -> np.ndarray:
    """Rows of the matrix in the order in which neighbours are neighbouring inputs: in a convolution, channels."""
    shape = tuple(int(dim) for dim in node.inputs[1].tensor.dims)
    depth = math.prod(shape[1:]) if isinstance(node.op, ops.Conv) else shape[0]
    if not (isinstance(node.op, ops.Conv) and _by_inputs(structure)):
        return np.arange(depth)
    return np.ascontiguousarray(np.arange(depth).reshape(shape[1], -1).T).reshape(-1)


def _whole(layer: Layer) -> Pruned:
    return Pruned(None, np.zeros(layer.weights.shape[0] * layer.weights.shape[2]), 1.0, 0.0, 0.0)


def _better(layer: Layer, structure: Structure, masked: list[np.ndarray], fitted: list[np.ndarray]) -> Pruned:
    energy = max(layer.energy, 1e-300)
    noise, without = (_error(layer, found) / energy for found in (fitted, masked))
    best = np.stack(fitted if noise <= without else masked)
    array = layer.laid_out(best).astype(np.float32)
    plain = pattern(structure.name, _layout(layer.node))
    kept = density(array, plain)
    return Pruned(Data(array, None, _rounded(plain, kept)), layer.lost(best), kept, min(noise, without), without)


def at_random(layer: Layer, structure: Structure, share: float, seed: int) -> Graph:
    """The layer alone with zeros anywhere, which take as long as chosen ones: a graph to be timed."""
    rng = np.random.default_rng(seed)
    back = np.argsort(_order(layer.node, structure))
    w = layer.weights * np.stack([structure.kept(rng.random(w.shape), share)[back] for w in layer.weights])
    array, plain = layer.laid_out(w).astype(np.float32), pattern(structure.name, _layout(layer.node))
    op = layer.node.op
    assert isinstance(op, ops.Linear | ops.Conv)
    return alone(layer.node, op, Data(array, None, _rounded(plain, density(array, plain)) if share < 1 else None))


def replace_pruned(graph: Graph, node: Node, found: Pruned, by: str) -> Value:
    """Give `node` of `graph` the weights, and its bias what is lost on average."""
    op = node.op
    assert isinstance(op, ops.Linear | ops.Conv)
    assert found.weights is not None
    return replace_layer(graph, node, op, found.weights, found.lost, by)


def _error(layer: Layer, found: Sequence[np.ndarray]) -> float:
    return sum(error_of(f, w, c) for f, w, c in zip(found, layer.weights, layer.rank.covariance, strict=True))


def _layout(node: Node) -> Layout:
    return "conv" if isinstance(node.op, ops.Conv) else "linear"


def _rounded(plain: Sparsity, kept: float) -> Sparsity:
    """The structure with a density that prints short and isn't less than what is there."""
    return Sparsity(plain.kind, plain.block, plain.axis, min(1.0, round(kept + 5e-7, 6)))
