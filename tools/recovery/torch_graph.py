"""A graph as a torch module: the same values in float32, with gradients for the weights that are to be trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from planish.backends.ort.evaluate import evaluate_opaque
from planish.ir.data import Data
from planish.ir.errors import CalibrationError, UnsupportedOp, UsageError
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import Const, constant
from planish.ir.ops import Conv, Linear
from planish.ir.ops.opaque import Opaque
from planish.ir.sparsity import kept
from planish.ir.types import TensorType
from planish.tools.recovery.torch_ops import TORCH_OPS, TorchOp

Step = Callable[[Node, Sequence[Any]], Sequence[Any]]


class TorchGraph(nn.Module):
    """Runs `graph` in torch. Floats of any width are float32; everything else is computed as the interpreter does.

    trainable: Linear and Conv nodes whose constant weight and bias become parameters; a bias that is absent stays so.
    A constant that several of them share is one parameter; other readers of it keep the original.
    places: for each of `weights`, the operands (node, index) that it stands for. masks: for each, True where it may
    have any value and False where its type has zeros in a structure; None where there is no structure.
    The graph must not change while the module is in use.
    Raises UsageError if a trainable node is of another op, of another graph, or has a computed weight; UnsupportedOp
    if a gradient would have to pass an op that isn't differentiable here.
    """

    def __init__(self, graph: Graph, trainable: Collection[Node] = ()):
        super().__init__()
        self.graph = graph
        self.weights = nn.ParameterList()
        self.places: list[list[tuple[Node, int]]] = []
        self.masks: list[Tensor | None] = []
        self._parameter_at: dict[tuple[Node, int], int] = {}
        self._constant_of: dict[Value, str | np.ndarray] = {}
        self._train(trainable)
        for node in graph:
            if isinstance(node.op, Const):
                self._hold(node.result, node.op.data.numpy())
        self._plan = _plan(graph, self._parameter_at)
        self._last: dict[Value, Node] = {value: node for node, _ in self._plan for value in node.inputs}

    def forward(
        self, feed: Mapping[str, Tensor], taps: Sequence[Value] = ()
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The graph's outputs, and the values `taps` inside it, for inputs by name.

        Raises CalibrationError if an input is missing.
        """
        kept = {*self.graph.outputs, *taps}
        state: dict[Value, Any] = {}
        for value in self.graph.inputs:
            if value.hint not in feed:
                raise CalibrationError(f"no data for input {value.hint}", remedy=f"feed {', '.join(feed)} and the rest")
            state[value] = _entered(feed[value.hint], value)
        for node, step in self._plan:
            operands = [self._operand(node, i, state) for i in range(len(node.operands))]
            state.update(zip(node.results, step(node, operands), strict=True))
            for value in node.inputs:
                if self._last[value] is node and value not in kept:
                    state.pop(value, None)
        found = [state[v] if v in state else self._constant(v) for v in (*self.graph.outputs, *taps)]
        found = [torch.as_tensor(array) if isinstance(array, np.ndarray) else array for array in found]
        count = len(self.graph.outputs)
        return tuple(found[:count]), tuple(found[count:])

    def _train(self, trainable: Collection[Node]) -> None:
        known: dict[Value, int] = {}
        for node in trainable:
            if node.graph is not self.graph or not isinstance(node.op, Linear | Conv):
                raise UsageError(
                    f"{node.op.name} can't be trained here",
                    where=str(node.loc),
                    remedy="give Linear or Conv nodes of the graph itself",
                )
            for index, value in enumerate(node.operands[1:], 1):
                if value is None:
                    continue
                if (data := constant(value)) is None:
                    raise UsageError(
                        f"operand {index} of {node.op.name} is computed, so there is no weight to train",
                        where=str(node.loc),
                        remedy="leave the node out, or fold constants first (recipe clean)",
                    )
                if value not in known:
                    known[value] = len(self.weights)
                    self.weights.append(nn.Parameter(_float(data.numpy())))
                    self.places.append([])
                    self.masks.append(_mask(data))
                self.places[known[value]].append((node, index))
                self._parameter_at[node, index] = known[value]

    def _hold(self, value: Value, array: np.ndarray) -> None:
        if _is_real(value):
            name = f"constant_{len(self._constant_of)}"
            self.register_buffer(name, _float(array), persistent=False)
            self._constant_of[value] = name
        else:
            self._constant_of[value] = array

    def _constant(self, value: Value) -> Any:
        held = self._constant_of[value]
        return getattr(self, held) if isinstance(held, str) else held

    def _operand(self, node: Node, index: int, state: Mapping[Value, Any]) -> Any:
        value = node.operands[index]
        if value is None:
            return None
        if (parameter := self._parameter_at.get((node, index))) is not None:
            return self.weights[parameter]
        return state[value] if value in state else self._constant(value)


def _plan(graph: Graph, parameter_at: Collection[tuple[Node, int]]) -> list[tuple[Node, Step]]:
    """How each node runs, in order: in torch, or by the interpreter where no gradient can pass."""
    plan: list[tuple[Node, Step]] = []
    learned = {node for node, _ in parameter_at}
    carrying: set[Value] = set()  # values with a gradient
    for node in graph:
        if isinstance(node.op, Const) or node.op.is_return:
            continue
        real = any(_is_real(value) for value in node.results)
        carries = node in learned or any(value in carrying for value in node.inputs)
        if real and type(node.op) in TORCH_OPS:
            plan.append((node, _in_torch(TORCH_OPS[type(node.op)])))
        elif real and carries:
            raise UnsupportedOp(
                f"{_shown(node)} has no derivative here, and trained weights come before it",
                where=str(node.loc),
                remedy="train only nodes that come after it, or lower it to other ops first",
            )
        else:
            plan.append((node, _interpreted))
        if carries:
            carrying.update(value for value in node.results if _is_real(value))
    return plan


def _in_torch(function: TorchOp) -> Step:
    def step(node: Node, operands: Sequence[Any]) -> Sequence[Any]:
        result = function(node.op, *(_as_tensor(operand) for operand in operands))
        return result if isinstance(result, tuple) else (result,)

    return step


def _interpreted(node: Node, operands: Sequence[Any]) -> Sequence[Any]:
    arrays = [
        array.detach().cpu().numpy().astype(value.tensor.dtype.storage, copy=False)
        if value is not None and isinstance(array, Tensor)
        else array
        for value, array in zip(node.operands, operands, strict=True)
    ]
    if isinstance(node.op, Opaque):
        computed: Any = tuple(evaluate_opaque(node, arrays))
    else:
        with np.errstate(all="ignore"):
            computed = node.op.compute(arrays, [None if v is None else v.type for v in node.operands])
    results = computed if isinstance(computed, tuple) else (computed,)
    return [_float(array) if _is_real(value) else array for value, array in zip(node.results, results, strict=True)]


def _entered(fed: Tensor, value: Value) -> Any:
    """An input as it lives in a run: float32, or an array of the dtype of the graph."""
    if _is_real(value):
        return fed.float()
    array = fed.detach().cpu().numpy()
    return array.astype(value.tensor.dtype.storage, copy=False) if isinstance(value.type, TensorType) else array


def _as_tensor(operand: Any) -> Any:
    if not isinstance(operand, np.ndarray):
        return operand
    return torch.from_numpy(operand.copy() if operand.dtype == np.bool_ else operand.astype(np.int64))


def _float(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _mask(data: Data) -> Tensor | None:
    return None if data.type.sparsity is None else torch.from_numpy(kept(data.numpy(), data.type.sparsity))


def _is_real(value: Value) -> bool:
    """Whether the value is a float that torch computes with; 8-bit floats are codes."""
    type_ = value.type
    return isinstance(type_, TensorType) and type_.dtype.is_float and type_.dtype.bits >= 16 and type_.quant is None


def _shown(node: Node) -> str:
    op = node.op
    return f"{op.domain or 'ai.onnx'}.{op.op_type}" if isinstance(op, Opaque) else op.name
