"""Measured search for tilings: each product of a model, on its own, in all the ways that are worth trying."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from planish.backends.tvm.build import Executable
from planish.backends.tvm.cache import cache_folder
from planish.backends.tvm.isa import Isa
from planish.backends.tvm.program import lower, lower_all
from planish.backends.tvm.schedule import Schedule, Shape, keep_schedule, kept_schedule
from planish.backends.tvm.tiles import Tiling, tilings
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import Quant, TensorType

_WORTH = 0.97  # of the analytical choice's time: what is slower isn't worth a change
_ROUNDS = 15

Progress = Callable[[int, int], None]


def tuned(graphs: Sequence[Graph], isa: Isa, seconds: float, cpu: str, on_progress: Progress | None = None) -> Schedule:
    """The schedule of the products of graphs, each measured for its share of `seconds`.

    What was measured before, on a CPU of that name, is taken from the user's cache and not measured again.
    """
    path = _path(isa, cpu)
    known = kept_schedule(path)
    plain = Schedule()
    lower_all(graphs, isa, schedule=plain)
    missing = sorted(shape for shape in plain.asked if str(shape) not in known.measured)
    missing.sort(key=lambda shape: -shape.rows * shape.columns * shape.depth)
    end, found = time.monotonic() + seconds, dict(known.measured)
    for done, shape in enumerate(missing):
        left = end - time.monotonic()
        if left <= 0:
            break
        if (best := _fastest(shape, isa, time.monotonic() + left / (len(missing) - done))) is not None:
            found[str(shape)] = best
        if on_progress:
            on_progress(done + 1, len(missing))
    keep_schedule(Schedule(found), path)
    return Schedule({str(shape): found[str(shape)] for shape in sorted(plain.asked) if str(shape) in found})


def _fastest(shape: Shape, isa: Isa, end: float) -> Tiling | None:
    """The fastest tiling of a product among those that there is time to build, or None for just one."""
    graph = product_graph(shape)
    product = isa.product_by(np.asarray((-128, 127)), _ROWS[shape.dtype], shape.rows)
    built: dict[Tiling, Executable] = {}
    for plan in tilings(shape.rows, shape.columns, isa, product):
        if len(built) > 1 and time.monotonic() > end:
            break
        program = lower(graph, isa, steps=True, schedule=Schedule({str(shape): plan}))
        built[plan] = Executable(program, isa.target())
    if len(built) < 2:
        return None
    taken = _medians(built)
    usual, best = next(iter(taken)), min(taken, key=lambda plan: taken[plan])
    return best if taken[best] < _WORTH * taken[usual] else usual


def _medians(built: Mapping[Tiling, Executable]) -> dict[Tiling, float]:
    """Seconds of the product in each way, in turns."""
    seconds: dict[Tiling, list[float]] = {plan: [] for plan in built}
    for executable in built.values():
        executable.step(0)
    for _ in range(_ROUNDS):
        for plan, executable in built.items():
            last = len(executable.program.calls) - 1
            executable.step(last)
            start = time.perf_counter()
            executable.step(last)
            seconds[plan].append(time.perf_counter() - start)
    return {plan: statistics.median(taken) for plan, taken in seconds.items()}


_ROWS = {"uint8": dtypes.u8, "int8": dtypes.i8, "int16": dtypes.i16, "int32": dtypes.u8}
"""A dtype of codes that a product takes as such rows."""


def product_graph(shape: Shape) -> Graph:
    """A linear layer of that shape whose operand is computed before it, and its codes."""
    dtype, rng = _ROWS[shape.dtype], np.random.default_rng(0)
    weights = rng.integers(-127, 128, (shape.depth, shape.columns)).astype(np.int8)
    bias = rng.integers(-1000, 1000, shape.columns).astype(np.int32)
    graph = Graph()
    x = graph.add_input("x", TensorType(dtype, (shape.rows, shape.depth), Quant((0.1,), 0)))
    rows = ops.Requantize(0.05, 0, dtype)(x)
    scales = (0.01,) * shape.columns
    sums = ops.IntLinear()(rows, Data(weights, Quant(scales, 0, 1)), Data(bias, Quant((0.0005,) * shape.columns, 0, 0)))
    codes = ops.Requantize(1.0, 0, dtypes.i8)(sums)
    graph.attach(codes, None, Loc(("product",)))
    graph.add(Return(("y",)), codes)
    return graph


def _path(isa: Isa, cpu: str) -> Path | None:
    folder = cache_folder("schedules")
    name = hashlib.sha256(f"{cpu} {isa.name}".encode()).hexdigest()[:16]
    return None if folder is None else folder / f"{name}.json"
