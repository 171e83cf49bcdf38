"""Random well-typed graphs: ops and operands are proposed at random, and kept where `infer` accepts them."""

from __future__ import annotations

import random

import numpy as np

from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.errors import VerifyError
from planish.ir.graph import Graph, Node, Value
from planish.ir.loc import Loc
from planish.ir.op import Const, Op, Return
from planish.ir.types import TensorType, tensor

SIZES = (1, 2, 3, 4, 6)


def random_graph(seed: int, nodes: int = 12) -> Graph:
    """A graph of about `nodes` nodes: one or two inputs, the first with a symbolic batch, and up to three outputs."""
    rng = random.Random(seed)
    numbers = np.random.default_rng(seed)
    graph = Graph("random")
    shape = tuple(rng.choice(SIZES) for _ in range(rng.randint(1, 3)))
    values = [graph.add_input("x", tensor(dtypes.f32, "batch", *shape))]
    if rng.random() < 0.5:
        values.append(graph.add_input("y", tensor(dtypes.f32, *rng.sample((*shape, 1), k=len(shape)))))
    made = 0
    for attempt in range(nodes * 6):
        if made >= nodes:
            break
        node = _proposal(rng, numbers, graph, values)
        if node is None:
            continue
        made += 1
        node.loc = Loc((f"node_{attempt}",))
        graph.insert(node)
        values.extend(node.results)
    candidates = [v for v in values if v.node is not None and not isinstance(v.op, Const)] or values
    outputs = list(dict.fromkeys([candidates[-1], *rng.sample(candidates, k=min(2, len(candidates)))]))
    graph.add(Return(tuple(f"out_{i}" for i in range(len(outputs)))), *outputs, loc=Loc(("Return",)))
    return graph


def feeds_of(graph: Graph, seed: int, batch: int = 2) -> dict[str, np.ndarray]:
    """Seeded inputs with the symbolic batch bound."""
    numbers = np.random.default_rng(seed)
    shapes = {v.hint: tuple(batch if isinstance(d, str) else d for d in v.tensor.dims) for v in graph.inputs}
    return {name: numbers.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _proposal(rng: random.Random, numbers: np.random.Generator, graph: Graph, values: list[Value]) -> Node | None:
    x = rng.choice(values)
    op = _op(rng, x)
    operands = [x]
    while len(operands) < (2 if op.signature.variadic else op.signature.required):
        operands.append(_second(rng, numbers, graph, values, x, op))
    if _binds_a_symbol(op, operands):
        return None
    try:
        return Node(op, operands)
    except VerifyError:
        return None


def _binds_a_symbol(op: Op, operands: list[Value]) -> bool:
    """Whether the node holds only for some batch sizes: legal, but not for the feeds drawn here."""
    shapes = [v.tensor.dims for v in operands]
    if isinstance(op, ops.Squeeze):
        return any(not isinstance(d, int) for d in shapes[0])
    if isinstance(op, ops.MatMul | ops.Linear):
        contracted = {shapes[0][-1:], shapes[1][-2:][:1]}
        if len(contracted) > 1 and any(isinstance(d, str) for dims in contracted for d in dims):
            return True
    if isinstance(op, ops.Concat) and len(set(map(len, shapes))) == 1:
        others = zip(*(dims[: op.axis] + dims[op.axis + 1 :] for dims in shapes), strict=True)
        return any(len(set(column)) > 1 for column in others)
    longest = max(map(len, shapes))
    columns = zip(*((1,) * (longest - len(shape)) + shape for shape in shapes), strict=True)
    return any(len({d for d in column if d != 1}) > 1 and any(isinstance(d, str) for d in column) for column in columns)


def _second(
    rng: random.Random, numbers: np.random.Generator, graph: Graph, values: list[Value], x: Value, op: Op
) -> Value:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(values)
    last = x.tensor.shape[-1] if x.tensor.shape and isinstance(x.tensor.shape[-1], int) else 1
    shape: tuple[int, ...] = (last, rng.choice(SIZES)) if isinstance(op, ops.MatMul | ops.Linear) else (last,)
    if kind < 0.7 and not isinstance(op, ops.MatMul | ops.Linear):
        array = np.asarray(rng.choice((0.0, 1.0, 2.0, 0.5, -1.0)), np.float32)
    else:
        array = numbers.standard_normal(shape).astype(np.float32)
    return graph.add(Const(Data(array)), loc=Loc(("constant",))).result


def _op(rng: random.Random, x: Value) -> Op:
    rank = len(x.tensor.dims)
    axis = rng.randrange(rank) if rank else 0
    extent = x.tensor.dims[axis] if rank else 1
    cut = max(1, extent // 2) if isinstance(extent, int) else 1
    perm = list(range(rank))
    rng.shuffle(perm)
    unary = (ops.Neg, ops.Abs, ops.Relu, ops.Tanh, ops.Sigmoid, ops.Erf, ops.Identity, ops.Gelu, ops.HardSwish, ops.Exp)
    choices: list[Op] = [
        *(kind() for kind in rng.sample(unary, 4)),
        *(kind() for kind in (ops.Add, ops.Sub, ops.Mul, ops.Max, ops.Min, ops.Add, ops.Mul)),
        ops.MatMul(),
        ops.Linear(),
        ops.Transpose(perm=tuple(perm)),
        ops.ReduceMean(axes=(-1,), keepdims=rng.random() < 0.5),
        ops.ReduceMax(axes=(-1,), keepdims=True),
        ops.Softmax(axis=-1),
        ops.LayerNorm(axis=-1, eps=1e-5),
        ops.RMSNorm(axis=-1, eps=1e-5),
        ops.Concat(axis=axis),
        ops.Slice(starts=(0,), ends=(cut,), axes=(axis,), steps=(1,)),
        ops.Unsqueeze(axes=(axis,)),
        ops.Squeeze(axes=(axis,)),
        ops.Clip(lo=-1.0, hi=rng.choice((1.0, None))),
        ops.Cast(to=rng.choice((dtypes.f32, dtypes.f64))),
        ops.Shape(),
    ]
    reshaped = _reshape(rng, x.tensor)
    return rng.choice([*choices, reshaped] if reshaped is not None else choices)


def _reshape(rng: random.Random, type_: TensorType) -> Op | None:
    tail = [d for d in type_.dims[1:] if isinstance(d, int)]
    if len(tail) != len(type_.dims) - 1 or not tail:
        return None
    flat = int(np.prod(tail))
    return ops.Reshape.to(
        type_, rng.choice([(type_.dims[0], flat), (type_.dims[0], 1, flat), (type_.dims[0], flat, 1)])
    )
