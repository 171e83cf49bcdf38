"""Writing a graph for its target: as an ONNX file, or compiled to machine code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.backends.onnx.writer import write
from planish.backends.targets import Target
from planish.backends.tvm.cpu import cpu_flags
from planish.ir.errors import UnsupportedOp, UsageError
from planish.ir.graph import Graph
from planish.passes.base import Context
from planish.passes.shiftadd import DecodeWeights
from planish.tools.buckets import batch_of, variants_of
from planish.tools.measure import cpu_name
from planish.tools.no_multiply import certified
from planish.tools.sessions import MODEL_FILE
from planish.tools.sparsity_label import SparsityLabel, compacted, sparsity_label


@dataclass(frozen=True)
class Written:
    """What was written. model: what to open. files: all that counts as the model, TVM's runtime doesn't.

    opset: of an ONNX file, None for machine code. note: how the form was chosen. compiled: what the manifest says of
    machine code. sparsity: what an ONNX file gains from zeros of its weights, None where there are few.
    """

    model: Path
    files: tuple[Path, ...]
    ops: Mapping[str, int]
    opset: int | None
    note: str
    compiled: dict[str, Any] | None = None
    sparsity: SparsityLabel | None = None


def write_for(
    graph: Graph,
    folder: Path,
    target: Target,
    *,
    opset: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write `graph` into `folder` for `target`. on_progress: of measuring tilings, done and in all.

    Raises UnsupportedOp where the target has no form of an op or TVM isn't installed, LoweringError if it fails.
    """
    if not target.compiled:
        spellings = compacted(graph, target.spellings)
        model = write(graph, folder / MODEL_FILE, opset=opset, spellings=spellings)
        label = sparsity_label(graph, model.files, spellings, opset)
        note = model.opset_reason
        if not target.spellings.multiply:
            note += f"; {certified(folder / MODEL_FILE).summary}"
        return Written(folder / MODEL_FILE, tuple(model.files), model.ops, model.opset, note, sparsity=label)
    try:
        from planish.backends.tvm.isa import isa_named
        from planish.backends.tvm.library import write_library
        from planish.backends.tvm.runtime import RUNTIME
        from planish.backends.tvm.schedule import Schedule
    except ImportError as error:
        raise UnsupportedOp(
            f"target {target} needs TVM: {error}", remedy='pip install "planish[tvm]", or take target ort-cpu'
        ) from error
    isa, context = isa_named(target.isa), Context(target=target.name)
    plain, _ = graph.clone()
    DecodeWeights().run(plain, context)
    variants, schedule = variants_of(plain, target.buckets, context), Schedule()
    if target.tune:
        if not isa.features <= cpu_flags():
            raise UsageError(f"can't measure {isa.name} on this CPU", remedy="leave out --tune, or --isa")
        from planish.backends.tvm.tune import tuned

        schedule = tuned([variant.graph for variant in variants], isa, target.tune, cpu_name(), on_progress)
    batch = batch_of(graph)
    library = write_library(variants, folder, isa, interface=graph, batch=batch, schedule=schedule)
    files = tuple(path for path in library.files if path.name != RUNTIME)
    state = "from the cache" if library.cached else "compiled"
    note = f"{isa.name}: {sum(library.ops.values())} calls of {library.kernels} kernels, {state}"
    if len(variants) > 1 or batch:
        sizes = "; ".join(", ".join(f"{s} {n}" for s, n in variant.sizes.items()) for variant in variants)
        note += f", for {sizes}" + (f" (any {batch} runs in pieces)" if batch else "")
    if target.tune:
        note += f", {len(schedule.measured)} tilings measured"
    made_for = tuple(dict(variant.sizes) for variant in variants)
    compiled = {"isa": isa.name, "sizes": made_for, "batch": batch, "tilings": schedule.to_dict()}
    return Written(folder, files, library.ops, None, note, compiled)
