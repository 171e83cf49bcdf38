"""Int8 products by weights with blocks of zeros against dense ones: `python -m planish.tools.bench.sparse_products`.

Every product runs in turns with the dense one of the same instruction set and with ONNX Runtime's, on one thread, so
that ratios of medians stand where a busy machine makes times wander.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime
import tvm_ffi
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from planish.backends.tvm.build import Executable
from planish.backends.tvm.cpu import cpu_flags
from planish.backends.tvm.isa import ISAS, Isa, TileProduct, host_isa
from planish.backends.tvm.program import lower
from planish.backends.tvm.sparse_weights import form_of
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import Quant, TensorType

SHAPES = ((768, 768), (768, 3072), (3072, 768))
"""K x N."""
PAIR = (768, 3072)

_SHARE_CORES = -3  # TVM's mode in which no thread is bound to one of the cores
Run = Callable[[], object]


def product(rows: int, weights: np.ndarray, *, codes: bool) -> Graph:
    """Rows of u8 codes by int8 [K, N], brought to i8 or left as sums; a kernel before it makes the codes."""
    depth, columns = weights.shape
    graph = Graph()
    x = graph.add_input("x", TensorType(dtypes.u8, (rows, depth), Quant((0.1,), 128)))
    made = ops.Requantize(0.05, 128, dtypes.u8)(x)
    bias = Data(np.arange(columns, dtype=np.int32), Quant((0.0005,) * columns, 0, 0))
    y = ops.IntLinear()(made, Data(weights, Quant((0.01,) * columns, 0, 1)), bias)
    if codes:
        y = ops.Requantize(1.0, 0, dtypes.i8)(y)
    graph.attach(y, None, Loc(("product",)))
    graph.add(Return(("y",)), y)
    return graph


def pair(rows: int, up: np.ndarray, down: np.ndarray) -> Graph:
    """Two products in a row, as in an MLP, with codes of 8 bits between them; a kernel before them makes the codes."""
    graph = Graph()
    x = graph.add_input("x", TensorType(dtypes.u8, (rows, len(up)), Quant((0.1,), 128)))
    y = ops.Requantize(0.05, 128, dtypes.u8)(x)
    for weights, scale in ((up, 2.0), (down, 50.0)):
        y = ops.IntLinear()(y, Data(weights, Quant((0.01,) * weights.shape[1], 0, 1)))
        y = ops.Requantize(scale, 128, dtypes.u8)(y)
    graph.attach(y, None, Loc(("pair",)))
    graph.add(Return(("y",)), y)
    return graph


def float_product(rows: int, weights: np.ndarray) -> Graph:
    """Rows by float32 [K, N]."""
    graph = Graph()
    x = graph.add_input("x", TensorType(dtypes.f32, (rows, len(weights))))
    y = ops.Linear()(ops.Relu()(x), Data(weights.astype(np.float32)))
    graph.attach(y, None, Loc(("product",)))
    graph.add(Return(("y",)), y)
    return graph


def random_weights(shape: tuple[int, int], outputs: int, zeros: float) -> np.ndarray:
    """int8 [K, N] in which that share of blocks of so many neighbouring outputs is zero."""
    rng = np.random.default_rng(0)
    depth, columns = shape
    kept = np.repeat(rng.random((depth, columns // outputs)) >= zeros, outputs, axis=1)
    return (rng.integers(1, 128, shape) * rng.choice((-1, 1), shape) * kept).astype(np.int8)


def products_of(graph: Graph, isa: Isa) -> Run:
    """Runs the products of a graph, all kernels but the first."""
    program = lower(graph, isa, steps=True)
    executable, count = Executable(program, isa.target()), len(program.calls)

    def run() -> None:
        for number in range(1, count):
            executable.step(number)

    return run


def runtime_product(rows: int, weights: np.ndarray, *, floats: bool = False) -> Run:
    """ONNX Runtime's MatMulInteger of u8 by s8, its output left as sums; or MatMul of floats."""
    depth, columns = weights.shape
    name, inputs = ("MatMul", ["x", "w"]) if floats else ("MatMulInteger", ["x", "w", "zero"])
    given, made = (TensorProto.FLOAT,) * 2 if floats else (TensorProto.UINT8, TensorProto.INT32)
    constants = [numpy_helper.from_array(weights.astype(np.float32) if floats else weights, "w")]
    graph = helper.make_graph(
        [helper.make_node(name, inputs, ["y"])],
        "product",
        [helper.make_tensor_value_info("x", given, (rows, depth))],
        [helper.make_tensor_value_info("y", made, (rows, columns))],
        constants if floats else [*constants, numpy_helper.from_array(np.asarray(128, np.uint8), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.random.default_rng(0).integers(0, 256, (rows, depth)).astype("f" if floats else "B")}
    return lambda: session.run(None, feeds)


def medians(runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Seconds of each, in turns; the first of two runs brings its data near."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def form_name(weights: np.ndarray, rows: int, isa: Isa) -> str:
    """How the product is done."""
    form = form_of(weights, rows, isa, dtypes.u8)
    if form is None:
        return "dense"
    return f"{form.outputs} outputs in {'tiles' if isinstance(form.product, TileProduct) else 'vectors'}"


def measured(isa: Isa, rows: Sequence[int], zeros: Sequence[float], outputs: int, rounds: int) -> Table:
    """Ratios of an instruction set's dense time, and of ONNX Runtime's, to that of each sparse product."""
    table = Table(title=f"{isa.name}, zeros in blocks of {outputs} outputs")
    for heading in ("K x N", "tokens", "zeros", "form", "ms", "dense / sparse", "i32 sums", "ORT / sparse"):
        table.add_column(heading, justify="right")
    ratios: dict[float, list[tuple[float, float, float]]] = {share: [] for share in zeros}
    for count in rows:
        for shape in SHAPES:
            full = random_weights(shape, outputs, 0.0)
            runs = {"ort": runtime_product(count, full)}
            for share in (0.0, *zeros):
                weights = random_weights(shape, outputs, share)
                for codes in (True, False):
                    runs[f"{share} {codes}"] = products_of(product(count, weights, codes=codes), isa)
            taken = medians(runs, rounds)
            for share in zeros:
                sparse, sums = taken[f"{share} True"], taken[f"{share} False"]
                found = (taken["0.0 True"] / sparse, taken["0.0 False"] / sums, taken["ort"] / sums)
                ratios[share].append(found)
                name = form_name(random_weights(shape, outputs, share), count, isa)
                cells = [f"{ratio:.2f}" for ratio in found]
                table.add_row(
                    f"{shape[0]} x {shape[1]}", f"{count}", f"{share:.0%}", name, f"{1e3 * sparse:.3f}", *cells
                )
    for share, found_all in ratios.items():
        means = [f"{statistics.geometric_mean(column):.2f}" for column in zip(*found_all, strict=True)]
        table.add_row("geometric mean", "", f"{share:.0%}", "", "", *means, style="bold")
    return table


def measured_pairs(isa: Isa, rows: Sequence[int], zeros: Sequence[float], outputs: int, rounds: int) -> Table:
    """Ratios of the dense time to that of two sparse products in a row, which hand on codes in blocks of tokens."""
    table = Table(title=f"{isa.name}, two products, zeros in blocks of {outputs} outputs")
    for heading in ("K x N x K", "tokens", "zeros", "ms", "dense / sparse"):
        table.add_column(heading, justify="right")
    depth, columns = PAIR
    for count in rows:
        shares = (0.0, *zeros)
        weights = {s: [random_weights(shape, outputs, s) for shape in (PAIR, PAIR[::-1])] for s in shares}
        taken = medians({f"{s}": products_of(pair(count, *weights[s]), isa) for s in shares}, rounds)
        for share in zeros:
            seconds = taken[f"{share}"]
            cells = (f"{share:.0%}", f"{1e3 * seconds:.3f}", f"{taken['0.0'] / seconds:.2f}")
            table.add_row(f"{depth} x {columns} x {depth}", f"{count}", *cells)
    return table


def measured_floats(isa: Isa, rows: Sequence[int], zeros: Sequence[float], outputs: int, rounds: int) -> Table:
    """The same in float32."""
    table = Table(title=f"{isa.name}, float32, zeros in blocks of {outputs} outputs")
    for heading in ("K x N", "tokens", "zeros", "ms", "dense / sparse", "ORT / sparse"):
        table.add_column(heading, justify="right")
    ratios: dict[float, list[tuple[float, float]]] = {share: [] for share in zeros}
    for count in rows:
        for shape in SHAPES:
            runs = {"ort": runtime_product(count, random_weights(shape, outputs, 0.0), floats=True)}
            for share in (0.0, *zeros):
                runs[f"{share}"] = products_of(float_product(count, random_weights(shape, outputs, share)), isa)
            taken = medians(runs, rounds)
            for share in zeros:
                found = (taken["0.0"] / taken[f"{share}"], taken["ort"] / taken[f"{share}"])
                ratios[share].append(found)
                cells = (f"{1e3 * taken[f'{share}']:.3f}", *(f"{ratio:.2f}" for ratio in found))
                table.add_row(f"{shape[0]} x {shape[1]}", f"{count}", f"{share:.0%}", *cells)
    for share, every in ratios.items():
        means = (f"{statistics.geometric_mean(column):.2f}" for column in zip(*every, strict=True))
        table.add_row("geometric mean", "", f"{share:.0%}", "", *means, style="bold")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", nargs="+", default=[], choices=list(ISAS), help="default: the best two of this CPU")
    parser.add_argument("--tokens", nargs="+", type=int, default=[128, 384])
    parser.add_argument("--zeros", nargs="+", type=float, default=[0.5, 0.8, 0.9])
    parser.add_argument("--outputs", nargs="+", type=int, default=[4, 16], help="neighbours that are zero together")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--floats", action="store_true", help="float32 instead of int8")
    options = parser.parse_args()
    tvm_ffi.get_global_func("runtime.config_threadpool")(_SHARE_CORES, 1, ["0"])
    able = [isa for isa in ISAS.values() if isa.triple == host_isa().triple and isa.features <= cpu_flags()]
    console = Console(width=120)
    for isa in [ISAS[name] for name in options.isa] or able[:2]:
        for outputs in options.outputs:
            for table in (measured_floats,) if options.floats else (measured, measured_pairs):
                console.print(table(isa, options.tokens, options.zeros, outputs, options.rounds))


if __name__ == "__main__":
    main()
