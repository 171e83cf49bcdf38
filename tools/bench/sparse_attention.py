"""Encoders of 2,048 tokens with and without sparse attention: `python -m planish.tools.bench.sparse_attention`.

The patterns are chosen on four inputs; errors are those of the compiled models on sixteen others. All models of a
target run in turns, so that medians of ratios stand where a busy machine makes times wander. `--costs` times single
patterns instead: what `planish.passes.sparse.attention_costs` draws its lines through.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir
import onnxruntime
import tvm_ffi
from rich.console import Console
from rich.table import Table

from planish.backends.onnx.dialect import ORT_CPU, STANDARD, Spellings
from planish.backends.onnx.writer import build
from planish.backends.ort.taps import taps
from planish.backends.tvm.build import Executable
from planish.backends.tvm.isa import host_isa
from planish.backends.tvm.program import lower
from planish.ir import dtypes, ops
from planish.ir.graph import Graph, Value
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import tensor
from planish.passes.base import Context, Feeds
from planish.passes.sparse.sparsify_attention import SparseAttentionReport, SparsifyAttention
from planish.tools.bench.models.long_encoder import LongEncoder

Outputs = Callable[[Feeds], np.ndarray]
_SHARE_CORES = -3  # TVM's mode in which no thread is bound to one of the cores
_OTHERS = 16  # inputs that nothing was chosen on
_COSTED = (
    *("window 0 blocks 64", "window 64 blocks 64", "window 128 blocks 64", "window 256 blocks 64"),
    *("window 64 stripe 1024:1152 blocks 64", "stripe 0:64", "stripe 0:256", "stripe 0:512"),
)


def on_runtime(graph: Graph, threads: int, spellings: Spellings = ORT_CPU) -> Outputs:
    """The graph on ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = onnx_ir.serde.serialize_model(
        build(graph, opset=24 if spellings is STANDARD else None, spellings=spellings)
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, dict(feed))[0]


def on_tvm(graph: Graph) -> Outputs:
    """The graph as compiled code, on as many threads as are configured."""
    isa = host_isa()
    executable = Executable(lower(graph, isa), isa.target())
    return lambda feed: next(iter(executable(**feed).values()))


def kernel_alone(graph: Graph) -> Outputs:
    """The last kernel of compiled code, without the copies of inputs and outputs around it."""
    isa = host_isa()
    program = lower(graph, isa, steps=True)
    executable, last = Executable(program, isa.target()), len(program.calls) - 1
    executable(**random_feed(graph))

    def run(feed: Feeds) -> np.ndarray:
        executable.step(last)
        return np.zeros(0)

    return run


def ratios(runs: Mapping[str, Outputs], feed: Feeds, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median milliseconds of each, and medians of the first's time over that of each, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(feed)
            taken[name].append(1e3 * (time.perf_counter() - start))
    first = next(iter(taken.values()))
    gains = {name: statistics.median(a / b for a, b in zip(first, each, strict=True)) for name, each in taken.items()}
    return {name: statistics.median(each) for name, each in taken.items()}, gains


def sparse(model: LongEncoder, target: str, max_nmse: float) -> tuple[Graph, Graph, SparseAttentionReport]:
    """The model as it is and with sparse attention, and how that was chosen."""
    graph, _ = model.graph().clone(binding={"batch": 1})
    original, _ = graph.clone()
    context = Context(target=target, calibration=model.feeds(4), evaluation=model.feeds(_OTHERS, seed=9), taps=taps)
    SparsifyAttention(max_nmse=max_nmse).run(graph, context)
    (report,) = context.reports
    assert isinstance(report, SparseAttentionReport)
    return original, graph, report


def attention_of(graph: Graph) -> Graph:
    """The attentions of a graph alone, each on queries, keys and values of its own."""
    alone, values = Graph(), []
    for number, node in enumerate(graph.nodes(ops.Attention, ops.SparseAttention)):
        taken = [alone.add_input(f"{name}{number}", node.inputs[i].tensor) for i, name in enumerate("qkv")]
        mean = [np.zeros(extents(value), np.float32) for value in node.inputs[3:]]
        values.append(node.op(*taken, *mean))
    total = values[0]
    for value in values[1:]:
        total = ops.Add()(total, value)
    alone.attach(total, None, Loc(("attention",)))
    alone.add(Return(("y",)), total)
    return alone


def random_feed(graph: Graph) -> Feeds:
    rng = np.random.default_rng(0)
    return {value.hint: rng.standard_normal(extents(value)).astype(np.float32) for value in graph.inputs}


def extents(value: Value) -> tuple[int, ...]:
    """The shape, which must be known."""
    return tuple(int(extent) for extent in value.tensor.dims)


def errors(original: Outputs, changed: Outputs, feeds: Sequence[Feeds]) -> list[float]:
    """Relative errors of the outputs, one for each input."""
    found = []
    for feed in feeds:
        wanted = original(feed)
        found.append(float(np.linalg.norm(changed(feed) - wanted) / np.linalg.norm(wanted)))
    return found


def compared(model: LongEncoder, rounds: int, max_nmse: float, console: Console) -> None:
    """Print what was chosen for both targets, and how fast and how far off the results are."""
    table = Table(title=f"{'causal' if model.causal else 'both ways'}, {model.tokens} tokens")
    for heading in ("target", "threads", "of", "ms dense", "ms sparse", "times as fast", "worst error", "mean error"):
        table.add_column(heading, justify="right")
    for target in ("ort-cpu", "tvm-cpu"):
        original, graph, report = sparse(model, target, max_nmse)
        for row in report.attentions:
            console.print(f"{target}  {row.name}: {'; '.join(row.heads)}", highlight=False)
        for threads in (1, os.cpu_count() or 1):
            tvm_ffi.get_global_func("runtime.config_threadpool")(_SHARE_CORES, threads, list(map(str, range(threads))))
            for part, make in (("model", lambda g: g), ("attention", attention_of)):
                before, after = make(original), make(graph)
                runs: dict[str, Outputs]
                if target == "ort-cpu":
                    runs = {"sparse": on_runtime(after, threads), "dense": on_runtime(before, threads)}
                    runs["dense, as standard op"] = on_runtime(before, threads, STANDARD)
                else:
                    runs = {"sparse": on_tvm(after), "dense": on_tvm(before)}
                milliseconds, gains = ratios(runs, random_feed(before), rounds)
                best = max((name for name in runs if name != "sparse"), key=lambda name: gains[name])
                off = [""] * 2
                if part == "model":
                    found = errors(runs["dense"], runs["sparse"], model.feeds(_OTHERS, seed=9))
                    off = [f"{max(found):.2g}", f"{np.mean(found):.2g}"]
                ms = [f"{milliseconds[name]:.1f}" for name in (best, "sparse")]
                table.add_row(target, f"{threads}", part, *ms, f"{1 / gains[best]:.2f}", *off)
    console.print(table)


def costs(rounds: int, console: Console) -> None:
    """Print the time of four heads with a pattern over that with all keys, by the share of pairs computed."""
    heads, length, width = 4, 2048, 64
    table = Table(title=f"time over that of all keys, {length} tokens, width {width}, one thread")
    for heading in ("pattern", "causal", "pairs computed", "ort-cpu", "tvm-cpu"):
        table.add_column(heading, justify="right")
    tvm_ffi.get_global_func("runtime.config_threadpool")(_SHARE_CORES, 1, ["0"])
    for causal in (False, True):
        graphs = {}
        for text in ("dense", *_COSTED):
            graphs[text] = Graph()
            q, k, v = (graphs[text].add_input(name, tensor(dtypes.f32, 1, heads, length, width)) for name in "qkv")
            dense = ops.Attention(width**-0.5, causal)
            op = dense if text == "dense" else ops.SparseAttention(width**-0.5, (text,) * heads, causal)
            graphs[text].attach(op(q, k, v), None, Loc(("attention",)))
            graphs[text].add(Return(("y",)), graphs[text].tail.result)  # type: ignore[union-attr]
        feed = random_feed(graphs["dense"])
        _, runtime = ratios({name: on_runtime(graph, 1) for name, graph in graphs.items()}, feed, rounds)
        _, compiled = ratios({name: kernel_alone(graph) for name, graph in graphs.items()}, feed, rounds)
        for text in _COSTED:
            (pattern,) = set(ops.SparseAttention(1.0, (text,)).patterns)
            gathered = pattern.window is None
            blocked = pattern.table(length, 64, causal).shape[1] * 64 / length
            share = pattern.in_stripe(length).mean() if gathered else blocked
            table.add_row(text, str(causal), f"{share:.3f}", f"{1 / runtime[text]:.3f}", f"{1 / compiled[text]:.3f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--max-nmse", type=float, default=1e-4, help="the budget of the choice; default: 1e-4, 1 %%")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--causal", choices=["no", "yes"], help="default: both")
    parser.add_argument("--costs", action="store_true", help="time single patterns instead")
    options = parser.parse_args()
    console = Console(width=120)
    if options.costs:
        costs(options.rounds, console)
        return
    for causal in (False, True) if options.causal is None else (options.causal == "yes",):
        compared(LongEncoder(options.tokens, causal=causal), options.rounds, options.max_nmse, console)


if __name__ == "__main__":
    main()
