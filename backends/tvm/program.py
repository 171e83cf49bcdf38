"""A graph as one module: a function `main` that calls a kernel per region, on one arena planned beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.arena import ALIGNMENT, Arena, plan
from planish.backends.tvm.cpu import ASK_FOR_TILES
from planish.backends.tvm.epilogue import Context
from planish.backends.tvm.isa import Isa
from planish.backends.tvm.kernels import kernel_of
from planish.backends.tvm.regions import regions
from planish.backends.tvm.schedule import Schedule
from planish.backends.tvm.scope import Argument, Kernel, extents
from planish.ir import ops
from planish.ir.graph import Graph, Value


@dataclass(frozen=True)
class Port:
    """A tensor of the interface."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Call:
    """A kernel at work; kernels that are alike have one name."""

    name: str
    kernel: Kernel


@dataclass(frozen=True)
class Program:
    """A module whose `main` takes inputs, outputs, the constants and the arena (uint8), in this order.

    calls: of kernels, in the order in which they run.
    """

    module: tvm.IRModule
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    constants: np.ndarray
    arena_bytes: int
    calls: tuple[Call, ...]
    arena: Arena


def lower(
    graph: Graph, isa: Isa, *, keep: bool = False, steps: bool = False, schedule: Schedule | None = None
) -> Program:
    """The program of a graph of fixed shapes for an instruction set.

    schedule: tilings that were measured; others are chosen analytically.
    keep: leave every stored value in the arena after a run, to look at.
    steps: also make a function `step_<i>` of each call of a kernel, to be timed.

    Raises UnsupportedOp for ops without a kernel and for symbolic shapes.
    """
    found, stored = regions(graph)
    context = Context(stored, isa, schedule or Schedule())
    return _assemble(graph, [kernel_of(region, context) for region in found], isa, keep, steps)


def _assemble(graph: Graph, kernels: Sequence[Kernel], isa: Isa, keep: bool, steps: bool) -> Program:
    module, names = tvm.IRModule({}), _shared(kernels)
    symbols: dict[str, tvm.ir.GlobalVar] = {}
    for kernel, name in zip(kernels, names, strict=True):
        if name not in symbols:
            symbols[name] = tvm.ir.GlobalVar(name)
            module[symbols[name]] = kernel.function
    blob = _Constants()
    interface = {value: i for i, value in enumerate([*graph.inputs, *graph.outputs])}
    arena = plan(kernels, set(interface), keep)
    ports = [_port(value, name) for value, name in _interface(graph)]
    offsets = [[blob.add(a) if isinstance(a, np.ndarray) else None for a in k.arguments] for k in kernels]
    constants = blob.array()

    def entry(name: str, steps: Sequence[int]) -> tirx.PrimFunc:
        """A function that runs some of the kernels."""
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True})
            arrays = [T.arg(f"t{i}", T.Buffer(p.shape or (1,), p.dtype)) for i, p in enumerate(ports)]
            held = T.arg("constants", T.Buffer((max(constants.size, 1),), "uint8"))
            room = T.arg("arena", T.Buffer((max(arena.size, 1),), "uint8"))

            def pointer(argument: Argument, offset: int | None) -> object:
                if offset is not None:
                    return T.address_of(held[offset])
                assert not isinstance(argument, np.ndarray)
                if argument in interface:
                    array = arrays[interface[argument]]
                    return T.address_of(array[tuple(0 for _ in array.shape)])
                return T.address_of(room[arena.offsets[argument]])

            if isa.tiles:
                granted = T.call_extern("int64", "syscall", *(T.int64(number) for number in ASK_FOR_TILES))
                T.evaluate(granted)
            for step in steps:
                call = [pointer(a, o) for a, o in zip(kernels[step].arguments, offsets[step], strict=True)]
                T.evaluate(tvm.ir.Call(symbols[names[step]], call, ret_ty="int32"))
        return builder.get().with_attr("global_symbol", name)

    module["main"] = entry("main", range(len(kernels)))
    if steps:
        for i in range(len(kernels)):
            module[f"step_{i}"] = entry(f"step_{i}", [i])
    count = len(graph.inputs)
    calls = tuple(Call(name, kernel) for name, kernel in zip(names, kernels, strict=True))
    return Program(module, tuple(ports[:count]), tuple(ports[count:]), constants, arena.size, calls, arena)


def _shared(kernels: Sequence[Kernel]) -> list[str]:
    """A name for each kernel; kernels of the same structure get the same one."""
    seen: dict[int, list[tuple[tirx.PrimFunc, str]]] = {}
    names = []
    for kernel in kernels:
        alike = seen.setdefault(int(tvm_ffi.structural_hash(kernel.function)), [])
        name = next((n for f, n in alike if tvm_ffi.structural_equal(f, kernel.function)), None)
        if name is None:
            name = f"kernel_{sum(map(len, seen.values()))}"
            alike.append((kernel.function, name))
        names.append(name)
    return names


def _interface(graph: Graph) -> list[tuple[Value, str]]:
    assert graph.tail is not None
    assert isinstance(graph.tail.op, ops.Return)
    return [(v, v.hint) for v in graph.inputs] + list(zip(graph.outputs, graph.tail.op.names, strict=True))


def _port(value: Value, name: str) -> Port:
    return Port(name, extents(value.tensor, name), str(value.tensor.dtype.storage))


class _Constants:
    """Arrays known at compile time in one piece; equal ones once."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._offsets: dict[bytes, int] = {}
        self._size = 0

    def add(self, array: np.ndarray) -> int:
        raw = np.ascontiguousarray(array).tobytes()
        if raw not in self._offsets:
            padded = raw + bytes(-len(raw) % ALIGNMENT + ALIGNMENT)
            self._offsets[raw], self._size = self._size, self._size + len(padded)
            self._parts.append(padded)
        return self._offsets[raw]

    def array(self) -> np.ndarray:
        return np.frombuffer(b"".join(self._parts) or bytes(1), np.uint8)
