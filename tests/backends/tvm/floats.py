"""Graphs of plain numbers: several ops side by side, so that one compilation tests them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planish.backends.tvm.build import Executable
from planish.backends.tvm.isa import Isa
from planish.backends.tvm.program import lower
from planish.ir.data import Data
from planish.ir.graph import Graph, Value
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.op import Op, Return
from planish.ir.types import of_array
from tests.backends.tvm.running import HOST, name_values, runnable_isas

RNG = np.random.default_rng(11)
EPSILON = 2.0**-23


@dataclass(frozen=True)
class Case:
    """An op on operands: arrays are fed, Data are constants, None is absent. error: allowed in a result, absolutely
    and relative to it; an array states it element by element."""

    op: Op
    operands: tuple[np.ndarray | Data | None, ...]
    error: float | np.ndarray = 1e-6


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def side_by_side(cases: Sequence[Case]) -> tuple[Graph, dict[str, np.ndarray], list[list[str]]]:
    """A graph that computes all cases, what to feed, and the names of each case's outputs."""
    graph, feeds, outputs = Graph(), {}, []
    values: list[list[Value | Data | None]] = []
    for number, case in enumerate(cases):
        row: list[Value | Data | None] = []
        for place, operand in enumerate(case.operands):
            if isinstance(operand, np.ndarray):
                name = f"x{number}_{place}"
                feeds[name] = operand
                row.append(graph.add_input(name, of_array(operand).interface()))
            else:
                row.append(operand)
        values.append(row)
    names: list[list[str]] = []
    for number, (case, row) in enumerate(zip(cases, values, strict=True)):
        made = case.op(*row)
        results = made if isinstance(made, tuple) else (made,)
        for value in results:
            graph.attach(value, None, Loc(("made",)))
        names.append([f"y{number}_{i}" for i in range(len(results))])
        outputs.extend(results)
    graph.add(Return(tuple(name for row in names for name in row)), *outputs)
    return graph, feeds, names


def both(
    graph: Graph, feeds: Mapping[str, np.ndarray], isa: Isa = HOST
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Outputs of compiled code and of the interpreter."""
    name_values(graph)
    return Executable(lower(graph, isa), isa.target())(**feeds), interpret(graph, dict(feeds))


def assert_close(found: np.ndarray, wanted: np.ndarray, error: float | np.ndarray, name: str) -> None:
    """Same dtype, shape, infinities and NaN; integers and truth values to the bit."""
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), name
    if wanted.dtype.kind != "f":
        np.testing.assert_array_equal(found, wanted, err_msg=name)
        return
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted), err_msg=name)
    infinite = np.isinf(wanted)
    np.testing.assert_array_equal(found[infinite], wanted[infinite], err_msg=name)
    finite = np.isfinite(wanted)
    with np.errstate(invalid="ignore"):
        off = np.abs(found.astype(np.float64) - wanted)
    allowed = error if isinstance(error, np.ndarray) else error * np.maximum(1, np.abs(wanted))
    worst = np.max((off - allowed)[finite], initial=-1.0)
    assert worst <= 0, f"{name}: off by {np.max(off[finite]):.3g}"


def assert_cases(cases: Sequence[Case], isa: Isa = HOST) -> None:
    graph, feeds, names = side_by_side(cases)
    found, wanted = both(graph, feeds, isa)
    for case, row in zip(cases, names, strict=True):
        shapes = [None if o is None else (o.numpy() if isinstance(o, Data) else o).shape for o in case.operands]
        for name in row:
            assert_close(found[name], wanted[name], case.error, f"{case.op!r} of {shapes}")


def float_isas() -> list[object]:
    """Runnable instruction sets that differ in what float code depends on: vectors, registers, multiply-adds."""
    found: dict[tuple[int, int, bool], object] = {}
    for parameter in runnable_isas():
        (isa,) = parameter.values  # type: ignore[attr-defined]
        found.setdefault((isa.lanes, isa.registers, "fma" in isa.features), parameter)
    return list(found.values())
