"""The weights to train, in coordinates that suit descent: linear layers as if their inputs were white.

A layer that took a norm in reads inputs that nothing normalises: a few directions are a hundred times as strong as the
rest. Descent along single weights crawls there. With x = mean + white @ root, the layer x @ w + b is
white @ (root @ w) + (b + mean @ w), and in these two, every direction of the input counts alike. On the bundled ViT
with 11 of 13 norms folded, 600 steps leave 3.0 % of held-out error this way and 3.4 % along single weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from planish.ir.graph import Node, Value
from planish.ir.ops import Linear
from planish.tools.recovery.torch_graph import TorchGraph

DAMPING = 1e-2  # share of the mean variance of the inputs that is added to each direction


class Coordinates:
    """Leaves that stand for the weights of a module.

    leaves: what an optimizer trains. sizes: root mean square of each, which its rate is relative to; a bias counts at
    least as much as its weight.
    """

    def __init__(self, module: TorchGraph, feeds: Sequence[Mapping[str, Tensor]]):
        self._weights, self._masks = list(module.weights), module.masks
        self.leaves = [weight.detach().clone() for weight in self._weights]
        self._layers = _layers(module)
        self._moments = _moments(module, [node for node, _, _ in self._layers], feeds)
        for (_, w, b), (mean, root, _) in zip(self._layers, self._moments, strict=True):
            if b is not None:
                self.leaves[b] = self.leaves[b] + mean @ self.leaves[w]
            self.leaves[w] = root @ self.leaves[w]
        self.sizes = [max(float(leaf.square().mean().sqrt()), 1e-6) for leaf in self.leaves]
        for _, w, b in self._layers:
            if b is not None:
                self.sizes[b] = max(self.sizes[b], self.sizes[w])

    @torch.no_grad()
    def pull(self) -> None:
        """Give the leaves the gradients that they have through the weights."""
        found = [torch.zeros_like(weight) if weight.grad is None else weight.grad.clone() for weight in self._weights]
        for (_, w, b), (mean, _, _) in zip(self._layers, self._moments, strict=True):
            if b is not None:
                found[w] -= torch.outer(mean, found[b])
        self._hold_zeros(found)
        for (_, w, _), (_, _, inverse) in zip(self._layers, self._moments, strict=True):
            found[w] = inverse @ found[w]
        for leaf, gradient in zip(self.leaves, found, strict=True):
            leaf.grad = gradient

    @torch.no_grad()
    def push(self) -> None:
        """Give the weights the values that the leaves stand for."""
        values = list(self.leaves)
        for (_, w, _), (_, _, inverse) in zip(self._layers, self._moments, strict=True):
            values[w] = inverse @ self.leaves[w]
        self._hold_zeros(values)
        for (_, w, b), (mean, _, _) in zip(self._layers, self._moments, strict=True):
            if b is not None:
                values[b] = self.leaves[b] - mean @ values[w]
        for weight, value in zip(self._weights, values, strict=True):
            weight.copy_(value)

    def _hold_zeros(self, tensors: list[Tensor]) -> None:
        """Set what stands for zeros of a structure to 0."""
        for number, mask in enumerate(self._masks):
            if mask is not None:
                tensors[number] = tensors[number].where(mask, 0.0)


def _layers(module: TorchGraph) -> list[tuple[Node, int, int | None]]:
    """(node, number of its weight, number of its bias) of the linear layers that share neither with another node."""
    own = {places[0]: i for i, places in enumerate(module.places) if len(places) == 1}
    found: list[tuple[Node, int, int | None]] = []
    for (node, index), number in own.items():
        if not isinstance(node.op, Linear) or index != 1:
            continue
        bias = own.get((node, 2))
        if bias is not None or len(node.inputs) == 2:
            found.append((node, number, bias))
    return found


@torch.no_grad()
def _moments(
    module: TorchGraph, nodes: Sequence[Node], feeds: Sequence[Mapping[str, Tensor]]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Mean f32[K], root and inverse root of the damped covariance f32[K, K] of the inputs of each layer.

    A layer without a bias can't take a mean in: its mean is zero, and its second moments stand for the covariance.
    """
    inputs = list(dict.fromkeys(_input(node) for node in nodes))
    sums = {value: torch.zeros(int(value.tensor.dims[-1]), dtype=torch.float64) for value in inputs}
    squares = {value: torch.zeros((len(sums[value]),) * 2, dtype=torch.float64) for value in inputs}
    counts = dict.fromkeys(inputs, 0)
    for feed in feeds:
        _, arrays = module(feed, inputs)
        for value, array in zip(inputs, arrays, strict=True):
            rows = array.double().reshape(-1, array.shape[-1])
            sums[value] += rows.sum(0)
            squares[value] += rows.T @ rows
            counts[value] += len(rows)
    found = []
    for node in nodes:
        value = _input(node)
        mean, square = sums[value] / counts[value], squares[value] / counts[value]
        if len(node.inputs) == 2:
            mean = torch.zeros_like(mean)
        covariance = square - torch.outer(mean, mean)
        strength, directions = torch.linalg.eigh(covariance)
        scale = (strength.clamp(min=0) + DAMPING * strength.mean() + 1e-12).sqrt()
        root, inverse = ((directions * s) @ directions.T for s in (scale, 1 / scale))
        found.append((mean.float(), root.float(), inverse.float()))
    return found


def _input(node: Node) -> Value:
    value = node.operands[0]
    assert value is not None
    return value
