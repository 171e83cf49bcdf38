"""Decoding through layers of ReLU networks, all neurons or active ones: `python -m planish.tools.bench.relu_ffn`.

Layers are random; biases make as many neurons inactive as asked for. The pass `skip-inactive` measures and decides.
Dense code of the same compiler and ONNX Runtime run in turns with it, on inputs that change from run to run, so that
other neurons are active each time. Weights are to exceed the last-level cache. On one thread there are ratios of the
time that the processor was busy too, which hold where other processes share it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir
import onnxruntime
import tvm_ffi
from rich.console import Console
from rich.table import Table

from planish.backends.onnx.writer import build
from planish.backends.tvm.build import Executable
from planish.backends.tvm.isa import Isa, host_isa
from planish.backends.tvm.program import lower
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Graph, Value
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import TensorType
from planish.passes.base import Context
from planish.passes.sparse.skip_inactive import SkipInactive, SkipReport

INPUTS = 16  # that are run in turns
SAMPLES = 8  # for the pass, others than those that are run
_SHARE_CORES = -3  # TVM's mode in which no thread is bound to one of the cores

Run = Callable[[np.ndarray], np.ndarray]


def stack(width: int, neurons: int, layers: int, zeros: float, gated: bool) -> Graph:
    """x + layer(norm(x)), so often, where that share of the values that rectifiers read isn't above 0."""
    rng = np.random.default_rng(0)
    graph = Graph()
    x: Value = graph.add_input("x", TensorType(dtypes.f32, (1, width)))
    rows = rng.standard_normal((64, width)).astype(np.float32)
    norm = ops.LayerNorm(-1, 1e-5)
    for _ in range(layers):
        w, up, down = (_normal(rng, *shape) for shape in ((width, neurons), (width, neurons), (neurons, width)))
        read = norm.evaluate(rows)
        values = read @ w
        bias = np.full(neurons, -np.quantile(values, zeros), np.float32)
        hidden = np.maximum(values + bias, 0) * (read @ up if gated else 1)
        rows = rows + hidden @ down
        normed = norm(x)
        h = ops.Relu()(ops.Linear()(normed, Data(w), Data(bias)))
        if gated:
            h = ops.Mul()(h, ops.Linear()(normed, Data(up)))
        x = ops.Add()(x, ops.Linear()(h, Data(down)))
    graph.attach(x, None, Loc(("stack",)))
    graph.add(Return(("y",)), x)
    return graph


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[0]))


def skipping(graph: Graph) -> SkipReport:
    """Run the pass in place; what it measured. Raises RuntimeError if it left a layer alone."""
    rng, (x,) = np.random.default_rng(1), graph.inputs
    shape = tuple(int(dim) for dim in x.tensor.dims)
    feeds = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(SAMPLES)]
    context = Context(target="tvm-cpu", calibration=feeds)
    changes = SkipInactive().run(graph, context)
    if changes.skipped:
        raise RuntimeError(f"left alone: {changes.skipped[0][1]}")
    (report,) = context.reports
    assert isinstance(report, SkipReport)
    return report


def without_skipping(graph: Graph) -> Graph:
    """A copy whose kernels compute all neurons, in the same order."""
    copy, _ = graph.clone()
    for node in copy.nodes(ops.ReluMLP):
        made: Value = ops.ReluMLP(skip=False)(*node.operands)
        copy.attach(made, node, node.loc)
        copy.replace(node.result, made)
        copy.erase_dead([node])
    return copy


def on_tvm(graph: Graph, isa: Isa) -> Run:
    executable = Executable(lower(graph, isa), isa.target())
    return lambda x: executable(x=x)["y"]


def on_runtime(graph: Graph, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would take cores from the others
    model = onnx_ir.to_proto(build(graph)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def medians(
    runs: Mapping[str, Run], inputs: Sequence[np.ndarray], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each, in turns: by the clock, and those that the process was busy."""
    clock: dict[str, list[float]] = {name: [] for name in runs}
    busy: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name, run in runs.items():
            start, before = time.perf_counter(), time.process_time()
            run(inputs[number % len(inputs)])
            clock[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - before)
    first, second = ({name: statistics.median(taken) for name, taken in all_.items()} for all_ in (clock, busy))
    return first, second


def measured(zeros: float, options: argparse.Namespace, isa: Isa) -> list[str]:
    """A row of the table. Raises RuntimeError if leaving neurons out changes a bit."""
    graph = stack(options.width, options.neurons, options.layers, zeros, options.gated)
    shortened, _ = graph.clone()
    report = skipping(shortened)
    inactive, proved = (
        statistics.mean(getattr(layer, name) for layer in report.layers) for name in ("inactive", "proved")
    )
    rng = np.random.default_rng(2)
    inputs = [rng.standard_normal((1, options.width)).astype(np.float32) for _ in range(INPUTS)]
    skip, whole = on_tvm(shortened, isa), on_tvm(without_skipping(shortened), isa)
    if any(skip(x).tobytes() != whole(x).tobytes() for x in inputs):
        raise RuntimeError("leaving neurons out changes results")
    runs = {"skip": skip, "dense": on_tvm(graph, isa), "ort": on_runtime(graph, options.threads)}
    clock, busy = medians(runs, inputs, options.rounds)
    cells = [f"{zeros:.0%}", f"{inactive:.1%}", f"{proved:.1%}"]
    cells += [f"{1e3 * clock[name]:.2f}" for name in ("dense", "ort", "skip")]
    times = [clock, busy] if options.threads == 1 else [clock]
    return cells + [f"{taken[name] / taken['skip']:.2f}" for taken in times for name in ("dense", "ort")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--neurons", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--zeros", nargs="+", type=float, default=[0.5, 0.8, 0.9, 0.95])
    parser.add_argument("--gated", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=48)
    options = parser.parse_args()
    cores = [str(number) for number in range(options.threads)]
    tvm_ffi.get_global_func("runtime.config_threadpool")(_SHARE_CORES, options.threads, cores)
    isa = host_isa()
    size = 4e-6 * options.layers * options.width * options.neurons * (3 if options.gated else 2)
    kind = "ReGLU" if options.gated else "ReLU"
    what = f"{options.layers} {kind} layers {options.width} x {options.neurons}, {size:.0f} MB of weights"
    table = Table(title=f"{what}, {options.threads} thread(s), {isa.name}")
    by_clock, by_work = ("dense / skip", "ORT / skip"), ("dense / skip, busy", "ORT / skip, busy")
    headings = ("zeros", "inactive", "proved", "dense ms", "ORT ms", "skip ms", *by_clock)
    for heading in (*headings, *(by_work if options.threads == 1 else ())):
        table.add_column(heading, justify="right")
    for zeros in options.zeros:
        table.add_row(*measured(zeros, options, isa))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
