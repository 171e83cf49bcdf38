"""How much work a compiled model does, kernel by kernel, against what the machine can do at most."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from planish.ir import ops
from planish.ir.graph import Graph, Node, Value

_SUMS = (
    *(ops.IntLinear, ops.IntMatMul, ops.IntAddMatMul, ops.IntBinaryMatMul),
    *(ops.IntConv, ops.IntWeightedMean, ops.Linear, ops.MatMul, ops.AddMatMul, ops.Conv),
)


def products(node: Node) -> int:
    """Multiply-accumulates of one node, 0 for ops that aren't sums of products."""
    if not isinstance(node.op, (*_SUMS, ops.Attention)):
        return 0
    first, second = (tuple(int(d) for d in value.tensor.dims) for value in node.inputs[:2])
    count = math.prod(int(d) for d in node.result.tensor.dims)
    if isinstance(node.op, ops.Attention):  # of the queries by the keys, and of the weights by the values
        return math.prod(first) * second[-2] + count * second[-2]
    return count * (math.prod(second[1:]) if isinstance(node.op, ops.IntConv | ops.Conv) else first[-1])


@dataclass(frozen=True)
class Peak:
    """Operations per second of one core: u8 by s8 products in vectors, float32 multiply-adds, products in tiles."""

    integer: float
    floating: float | None
    tiles: float | None = None


def measured_peak(isa_name: str) -> Peak:
    """The peak of this machine with an instruction set ("" for the best that it has)."""
    from planish.backends.tvm.isa import isa_named
    from planish.backends.tvm.peak import float_peak, integer_peak, tile_peak

    isa = isa_named(isa_name)
    return Peak(integer_peak(isa), float_peak(isa), tile_peak(isa))


def kernel_rows(graph: Graph, isa_name: str, peak: Peak) -> list[dict[str, Any]]:
    """Kernels of a compiled graph by the time that all their calls take, the longest first, on one thread.

    microseconds: of one call. gops, of_peak: operations per second (1e9), and their share of the peak in vectors, of
    integers or of floats as the result is.
    """
    import tvm_ffi

    from planish.backends.tvm.build import Executable
    from planish.backends.tvm.isa import isa_named
    from planish.backends.tvm.profile import profile
    from planish.backends.tvm.program import lower
    from planish.backends.tvm.regions import FLOAT_REDUCTIONS, regions

    isa = isa_named(isa_name)
    tvm_ffi.get_global_func("runtime.config_threadpool")(1, 1)
    timings = profile(Executable(lower(graph, isa, steps=True), isa.target()))
    rows: dict[str, dict[str, Any]] = {}
    for timing, region in zip(timings, regions(graph)[0], strict=True):
        nodes = [region.anchor, region.attention.product if region.attention else None]
        row = rows.setdefault(
            timing.name,
            {"kernel": timing.name, "op": "Attention" if region.attention else _kind(region.anchor, timing.op),
             "result": _short(region.result), "calls": 0, "seconds": 0.0, "products": 0},
        )  # fmt: skip
        row["calls"] += 1
        row["seconds"] += timing.seconds
        row["products"] += sum(products(node) for node in nodes if node is not None)
        row["float"] = region.anchor is not None and isinstance(region.anchor.op, FLOAT_REDUCTIONS)
    whole = sum(row["seconds"] for row in rows.values())
    found = []
    for row in sorted(rows.values(), key=lambda row: -row["seconds"]):
        rate, most = 2 * row["products"] / row["seconds"], peak.floating if row["float"] else peak.integer
        found.append(
            {
                **{key: row[key] for key in ("kernel", "op", "result", "calls")},
                "microseconds": round(1e6 * row["seconds"] / row["calls"], 1),
                "share": round(row["seconds"] / whole, 4),
                "gops": round(rate / 1e9, 1) if row["products"] else None,
                "of_peak": round(rate / most, 3) if row["products"] and most else None,
            }
        )
    return found


def _short(value: Value) -> str:
    type_ = value.tensor
    return f"{type_.dtype} {'x'.join(str(d) for d in type_.dims)}"


def _kind(anchor: Node | None, last: str) -> str:
    return anchor.op.name if anchor is not None else last.split()[0]


def kernel_table(rows: list[dict[str, Any]]) -> Table:
    """A row per kernel."""
    table = Table(box=None, pad_edge=False, title="kernels of the artifact, one thread", title_justify="left")
    for name in ("op", "result"):
        table.add_column(name, no_wrap=True)
    for name in ("calls", "us each", "share", "GOPS", "% peak"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        rate = ("", "") if row["of_peak"] is None else (f"{row['gops']:.0f}", f"{100 * row['of_peak']:.0f}")
        table.add_row(
            row["op"], row["result"], str(row["calls"]), f"{row['microseconds']:.0f}", f"{100 * row['share']:.1f} %",
            *rate,
        )  # fmt: skip
    return table
