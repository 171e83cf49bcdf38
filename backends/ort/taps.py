"""Run a graph for the arrays of values inside it: calibration, and comparison of every intermediate value."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from planish.backends.onnx.dialect import ORT_CPU, Spellings
from planish.backends.onnx.writer import write
from planish.backends.ort.session import open_session
from planish.ir.errors import LoweringError
from planish.ir.graph import Graph, Value
from planish.ir.op import Return


def taps(
    graph: Graph, values: Sequence[Value], *, spellings: Spellings = ORT_CPU, optimize: bool = True, threads: int = 0
) -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
    """A function from feeds to the arrays of `values`, computed by ONNX Runtime in one session; `graph` stays as it is.

    Raises UnsupportedOp or LoweringError if the graph can't be written or loaded.
    """
    copy, twins = graph.clone()
    assert copy.tail is not None
    copy.erase(copy.tail)
    names = tuple(f"tap/{i}" for i in range(len(values)))
    copy.add(Return(names), *(twins[value] for value in values))
    copy.erase_dead()
    copy.extras.pop("declared", None)
    with tempfile.TemporaryDirectory(prefix="planish-") as folder:
        path = Path(folder) / "tapped.onnx"
        write(copy, path, spellings=spellings)
        session = open_session(path, threads=threads, optimize=optimize, what="the tapped model", error=LoweringError)
    unread = {value.hint for value in copy.inputs} - {info.name for info in session.inputs}

    def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        found = session.run({name: array for name, array in feeds.items() if name not in unread}, names)
        return [found[name] for name in names]

    return run
