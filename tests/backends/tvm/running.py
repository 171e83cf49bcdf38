"""Runs graphs on compiled code, and holds every stored value against the interpreter's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from planish.backends.tvm.build import Executable
from planish.backends.tvm.cpu import cpu_flags
from planish.backends.tvm.isa import ISAS, Isa, host_isa
from planish.backends.tvm.program import lower
from planish.backends.tvm.schedule import Schedule
from planish.ir.graph import Graph
from planish.ir.interpret import interpret

HOST = host_isa()


def runnable_isas() -> list[object]:
    """Every instruction set of this architecture; those that the CPU lacks are skipped with the reason."""
    flags, machine = cpu_flags(), HOST.triple.split("-")[0]
    return [
        pytest.param(
            isa,
            id=isa.name,
            marks=pytest.mark.skipif(
                not isa.features <= flags, reason=f"this CPU lacks {', '.join(sorted(isa.features - flags))}"
            ),
        )
        for isa in ISAS.values()
        if isa.triple.startswith(machine)
    ]


def name_values(graph: Graph) -> None:
    """Give every value a name of its own."""
    seen: set[str] = set()
    for number, node in enumerate(graph):
        for value in node.results:
            if not value.hint or value.hint in seen:
                value.hint = f"{value.hint or 'v'}_{number}{f'_{value.index}' if value.index else ''}"
            seen.add(value.hint)


def assert_exact(
    graph: Graph, feeds: Mapping[str, np.ndarray], isa: Isa = HOST, schedule: Schedule | None = None
) -> dict[str, np.ndarray]:
    """Compile and run; every stored value and output must have the interpreter's bits."""
    name_values(graph)
    executable = Executable(lower(graph, isa, keep=True, schedule=schedule), isa.target())
    return assert_same_run(graph, executable, feeds)


def assert_same_run(graph: Graph, executable: Executable, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    wanted: dict[str, np.ndarray] = {}
    outputs = interpret(graph, dict(feeds), taps=lambda value, array: wanted.__setitem__(value.hint, array))
    found = executable(**feeds)
    for name, array in executable.stored().items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=f"stored value {name}")
    for name, array in outputs.items():
        np.testing.assert_array_equal(found[name], array, err_msg=f"output {name}")
    return found
