"""Writing a compiled artifact: a shared library, its constants, what it takes and needs, and TVM's small runtime."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm

from planish.backends.tvm.build import compiled
from planish.backends.tvm.cache import cache_folder
from planish.backends.tvm.example import write_example
from planish.backends.tvm.isa import Isa
from planish.backends.tvm.program import Program, lower_all
from planish.backends.tvm.runtime import CONSTANTS, DESCRIPTION, FORMAT, LIBRARY, RUNTIME
from planish.backends.tvm.schedule import Schedule
from planish.backends.tvm.sizes import Port, Variant
from planish.ir.errors import LoweringError
from planish.ir.graph import Graph
from planish.ir.op import Return
from planish.ir.text import print_graph


@dataclass(frozen=True)
class WrittenLibrary:
    """What was written. ops: calls of kernels by the op that ends them. cached: True if the code was at hand."""

    files: tuple[Path, ...]
    ops: dict[str, int]
    kernels: int
    arena_bytes: int
    cached: bool


def write_library(
    variants: Sequence[Variant],
    folder: Path,
    isa: Isa,
    *,
    interface: Graph | None = None,
    batch: str | None = None,
    schedule: Schedule | None = None,
) -> WrittenLibrary:
    """Compile a model into `folder`, at one or several sizes, with an example of its use from C++.

    interface: the model before its sizes were fixed, if they vary. batch: the symbol along which samples are
    independent. schedule: tilings that were measured, which the description lists; others are chosen analytically.
    Machine code is kept in the user's cache by the hash of what it is made from (PLANISH_CACHE, "" to switch it off).
    Raises UnsupportedOp for ops without a kernel, LoweringError where no C compiler can link.
    """
    schedule = schedule or Schedule()
    graphs = [variant.graph for variant in variants]
    program = lower_all(graphs, isa, schedule=schedule)
    library = folder / LIBRARY
    cached = _from_cache(_content_hash(graphs, isa, schedule), program, isa, library)
    (folder / CONSTANTS).write_bytes(program.constants.tobytes())
    metadata = graphs[0].extras.get("metadata")
    inputs, outputs = ports_of(interface or graphs[0])
    description = {
        "format": FORMAT,
        "isa": isa.name,
        "triple": isa.triple,
        "features": sorted(isa.features),
        "inputs": [_described(port) for port in inputs],
        "outputs": [_described(port) for port in outputs],
        "entries": [
            {"function": entry.function, "sizes": dict(variant.sizes)}
            for entry, variant in zip(program.entries, variants, strict=True)
        ],
        "batch": batch,
        "arena": program.arena_bytes,
        "constants": int(program.constants.nbytes),
        "schedule": schedule.to_dict(),
        "metadata": dict(metadata) if isinstance(metadata, dict) else {},
    }
    text = json.dumps(description, indent=2, sort_keys=True)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8", newline="\n")
    shutil.copyfile(runtime_file(), folder / RUNTIME)
    write_example(program, isa, folder)
    ops: dict[str, int] = {}
    for call in (call for entry in program.entries for call in entry.calls):
        op = call.kernel.title.split()[0]
        ops[op] = ops.get(op, 0) + 1
    files = tuple(folder / name for name in (LIBRARY, CONSTANTS, DESCRIPTION, RUNTIME))
    return WrittenLibrary(files, ops, program.kernels, program.arena_bytes, cached)


def runtime_file() -> Path:
    """TVM's runtime without its compiler, as the wheel carries it."""
    spec = importlib.util.find_spec("tvm")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "lib" / RUNTIME


def _from_cache(content: str, program: Program, isa: Isa, path: Path) -> bool:
    """Put the program's library at `path`; True if it didn't need to be compiled."""
    cache = cache_folder("libraries")
    if cache is None:
        _export(program, isa, path)
        return False
    kept = cache / f"{content}.so"
    if kept.is_file():
        shutil.copyfile(kept, path)
        return True
    _export(program, isa, path)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        partial = cache / f".{secrets.token_hex(8)}"
        shutil.copyfile(path, partial)
        os.replace(partial, kept)
    except OSError:
        pass  # a cache that can't be written only costs time
    return False


def _content_hash(graphs: Sequence[Graph], isa: Isa, schedule: Schedule) -> str:
    """Of all that decides what the machine code is: the graphs, the instruction set, TVM, and this folder's sources."""
    made_for = f"{tvm.__version__} {isa.name} {sorted(isa.target().items())} {schedule.to_dict()}"
    found = hashlib.sha256(f"{made_for}\n".encode())
    for graph in graphs:
        found.update(print_graph(graph).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        found.update(source.read_bytes())
    return found.hexdigest()


def _export(program: Program, isa: Isa, path: Path) -> None:
    try:
        compiled(program, isa.target()).export_library(str(path))
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise LoweringError(
            f"can't link the library: {reason}", remedy="install a C++ compiler (g++), which links it"
        ) from error


def ports_of(graph: Graph) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of a graph, whose shapes may have names."""
    assert graph.tail is not None
    assert isinstance(graph.tail.op, Return)
    named = [(value.hint, value) for value in graph.inputs], zip(graph.tail.op.names, graph.outputs, strict=True)
    inputs, outputs = ([Port(n, v.tensor.dtype.storage, v.tensor.dims) for n, v in values] for values in named)
    return inputs, outputs


def _described(port: Port) -> dict[str, object]:
    return {"name": port.name, "dtype": str(port.dtype), "shape": list(port.shape)}
