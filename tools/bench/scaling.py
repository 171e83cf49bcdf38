"""How the time of the whole pipeline grows with the graph: `python -m planish.tools.bench.scaling`."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from planish.tools.bench.contenders import planish_pipeline

WIDTH = 16


def synthetic(nodes: int) -> onnx.ModelProto:
    """A chain of blocks as exporters write them (LayerNorm and GELU in parts), of about `nodes` nodes."""
    rng = np.random.default_rng(0)
    made: list[onnx.NodeProto] = []
    weights = [
        numpy_helper.from_array(np.asarray(v, np.float32), n)
        for n, v in (("two", 2.0), ("eps", 1e-6), ("root2", 2**0.5), ("one", 1.0), ("half", 0.5))
    ]
    last = "x"
    for block in range(nodes // 17):
        gamma, w, b = f"gamma{block}", f"w{block}", f"b{block}"
        weights += [
            numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) * 0.1, name)
            for name, shape in ((gamma, (WIDTH,)), (w, (WIDTH, WIDTH)), (b, (WIDTH,)))
        ]

        def op(kind: str, *inputs: str, block: int = block, **attributes: Any) -> str:
            name = f"block{block}/{kind}_{len(made)}"
            made.append(helper.make_node(kind, inputs, [name + "_out"], name=name, **attributes))
            return name + "_out"

        centred = op("Sub", last, op("ReduceMean", last, axes=[-1]))
        variance = op("ReduceMean", op("Pow", centred, "two"), axes=[-1])
        normed = op("Mul", op("Div", centred, op("Sqrt", op("Add", variance, "eps"))), gamma)
        hidden = op("Add", op("MatMul", normed, w), b)
        gate = op("Add", op("Erf", op("Div", hidden, "root2")), "one")
        last = op("Add", op("Mul", op("Mul", hidden, gate), "half"), last)
    graph = helper.make_graph(
        made,
        "synthetic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, WIDTH])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", 4, WIDTH])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,3000,10000", help="numbers of nodes")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    # The first run pays for imports, so a small one goes ahead.
    with tempfile.TemporaryDirectory() as folder:
        sizes = [int(size) for size in args.sizes.split(",")]
        for index, size in enumerate([100, *sizes]):
            model = synthetic(size)
            path = Path(folder) / f"{size}.onnx"
            onnx.save(model, path)
            start = time.perf_counter()
            planish_pipeline(path, Path(folder))
            seconds = time.perf_counter() - start
            nodes = len(model.graph.node)
            if index:
                rows.append(
                    {"nodes": nodes, "seconds": round(seconds, 3), "us_per_node": round(1e6 * seconds / nodes, 1)}
                )
    if args.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['nodes']:>6} nodes  {row['seconds']:>7.2f} s  {row['us_per_node']:>7.1f} us per node")


if __name__ == "__main__":
    main()
