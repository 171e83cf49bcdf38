"""Graphs as one module: a function for each that calls a kernel per region, on an arena planned beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm.arena import ALIGNMENT, Arena, plan
from planish.backends.tvm.between_products import layouts
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
    """A kernel at work; kernels that are alike have one name. offsets: of arguments among the constants, or None."""

    name: str
    kernel: Kernel
    offsets: tuple[int | None, ...]


@dataclass(frozen=True)
class Entry:
    """A function of a program that runs a graph: takes inputs, outputs, the constants and the arena (uint8).

    calls: of kernels, in the order in which they run. interface: places of inputs and outputs among the arguments.
    """

    function: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    calls: tuple[Call, ...]
    arena: Arena
    interface: Mapping[Any, int]


@dataclass(frozen=True)
class Program:
    """A module with an entry per graph, all of which share kernels, constants and the arena."""

    module: tvm.IRModule
    entries: tuple[Entry, ...]
    constants: np.ndarray

    @property
    def arena_bytes(self) -> int:
        """Working memory that every entry takes."""
        return max(1, *(entry.arena.size for entry in self.entries))

    @property
    def kernels(self) -> int:
        """How many there are."""
        return len({call.name for entry in self.entries for call in entry.calls})

    @property
    def calls(self) -> tuple[Call, ...]:
        """Those of the first entry."""
        return self.entries[0].calls


def lower(
    graph: Graph, isa: Isa, *, keep: bool = False, steps: bool = False, schedule: Schedule | None = None
) -> Program:
    """The program of one graph, as `lower_all` makes it."""
    return lower_all([graph], isa, keep=keep, steps=steps, schedule=schedule)


def lower_all(
    graphs: Sequence[Graph],
    isa: Isa,
    *,
    keep: bool = False,
    steps: bool = False,
    schedule: Schedule | None = None,
) -> Program:
    """The program of graphs of fixed shapes, one model at several sizes, for an instruction set.

    schedule: tilings that were measured; others are chosen analytically.
    keep: leave every stored value in the arena after a run, to look at.
    steps: also make a function `step_<i>` of each call of a kernel of the first graph, to be timed.

    Raises UnsupportedOp for ops without a kernel and for symbolic shapes.
    """
    kernels: list[list[Kernel]] = []
    for graph in graphs:
        found, stored = regions(graph)
        context = Context(stored, isa, schedule or Schedule())
        context = replace(context, layouts=layouts(found, context))
        kernels.append([kernel_of(region, context) for region in found])
    assembly = _Assembly(list(graphs), kernels, isa, keep)
    if steps:
        for i in range(len(kernels[0])):
            assembly.function(f"step_{i}", assembly.entries[0], [i])
    return Program(assembly.module, tuple(assembly.entries), assembly.constants)


class _Assembly:
    """A module of kernels, those that are alike once, and of functions that call some of them."""

    def __init__(self, graphs: Sequence[Graph], kernels: Sequence[Sequence[Kernel]], isa: Isa, keep: bool):
        self.isa, self.module = isa, tvm.IRModule({})
        every = [kernel for some in kernels for kernel in some]
        names = _shared(every)
        self.symbols: dict[str, tvm.ir.GlobalVar] = {}
        for kernel, name in zip(every, names, strict=True):
            if name not in self.symbols:
                self.symbols[name] = tvm.ir.GlobalVar(name)
                self.module[self.symbols[name]] = kernel.function
        blob = _Constants()
        self.entries: list[Entry] = []
        calls = iter([Call(name, kernel, blob.places(kernel)) for name, kernel in zip(names, every, strict=True)])
        for number, (graph, some) in enumerate(zip(graphs, kernels, strict=True)):
            interface = {value: i for i, value in enumerate([*graph.inputs, *graph.outputs])}
            ports = [_port(value, name) for value, name in _interface(graph)]
            split, mine = len(graph.inputs), tuple(next(calls) for _ in some)
            arena = plan(some, set(interface), keep)
            function = f"main_{number}" if number else "main"
            self.entries.append(Entry(function, tuple(ports[:split]), tuple(ports[split:]), mine, arena, interface))
        self.constants = blob.array()
        self.room = max(1, *(entry.arena.size for entry in self.entries))
        for entry in self.entries:
            self.function(entry.function, entry, range(len(entry.calls)))

    def function(self, name: str, entry: Entry, steps: Sequence[int]) -> None:
        """Add a function that runs some calls of an entry."""
        ports = [*entry.inputs, *entry.outputs]
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"global_symbol": name, "tirx.noalias": True})
            arrays = [T.arg(f"t{i}", T.Buffer(p.shape or (1,), p.dtype)) for i, p in enumerate(ports)]
            held = T.arg("constants", T.Buffer((max(self.constants.size, 1),), "uint8"))
            room = T.arg("arena", T.Buffer((self.room,), "uint8"))

            def pointer(argument: Argument, offset: int | None) -> object:
                if offset is not None:
                    return T.address_of(held[offset])
                assert not isinstance(argument, np.ndarray)
                if argument in entry.interface:
                    array = arrays[entry.interface[argument]]
                    return T.address_of(array[tuple(0 for _ in array.shape)])
                return T.address_of(room[entry.arena.offsets[argument]])

            if self.isa.tiles:
                answer = T.call_extern("int64", "syscall", *(T.int64(number) for number in ASK_FOR_TILES))
                with T.Assert(tirx.EQ(answer, T.int64(0)), "this system grants no AMX tiles"):
                    pass
            for step in steps:
                call = entry.calls[step]
                pointers = [pointer(a, offset) for a, offset in zip(call.kernel.arguments, call.offsets, strict=True)]
                T.evaluate(tvm.ir.Call(self.symbols[call.name], pointers, ret_ty="int32"))
        self.module[name] = builder.get().with_attr("global_symbol", name)


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

    def places(self, kernel: Kernel) -> tuple[int | None, ...]:
        """Offsets of a kernel's arguments, None for those that aren't constants."""
        return tuple(self.add(a) if isinstance(a, np.ndarray) else None for a in kernel.arguments)

    def add(self, array: np.ndarray) -> int:
        raw = np.ascontiguousarray(array).tobytes()
        if raw not in self._offsets:
            padded = raw + bytes(-len(raw) % ALIGNMENT + ALIGNMENT)
            self._offsets[raw], self._size = self._size, self._size + len(padded)
            self._parts.append(padded)
        return self._offsets[raw]

    def array(self) -> np.ndarray:
        return np.frombuffer(b"".join(self._parts) or bytes(1), np.uint8)
