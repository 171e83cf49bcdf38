"""The integers of a bundled model, by numpy, ONNX Runtime, TVM, and ONNX Runtime without multiplications.

Run as `python -m planish.tools.zoo.compare_integers fashion_vit`: all 2,000 test images, to the last bit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from planish.backends.targets import TARGETS
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.tools.compiling import optimize
from planish.tools.sessions import open_model
from planish.tools.writing import write_for

ZOO = Path(__file__).parent
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def runs(graph: Graph, folder: Path) -> dict[str, Run]:
    """A function per way to compute the graph, by name; the first is the reference."""
    ort, tvm = TARGETS["ort-cpu"], TARGETS["tvm-cpu"]
    targets = {
        "ONNX Runtime": ort,
        "ONNX Runtime, no multiplications": replace(ort, spellings=replace(ort.spellings, multiply=False)),
        "TVM": tvm,
    }
    found: dict[str, Run] = {"numpy": lambda feed: interpret(graph, dict(feed))}
    for name, target in targets.items():
        place = folder / name
        place.mkdir()
        written = write_for(graph, place, target)
        print(f"{name}: {sum(written.ops.values()):,} nodes or calls; {written.note}")
        found[name] = open_model(written.model, threads=1).run
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=("fashion_vit", "fashion_cnn"))
    parser.add_argument("--recipe", default="integer-only", help="such as shift-add+integer-only")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=8)
    chosen = parser.parse_args()
    images = np.load(ZOO / "fashion_vit" / "test.npz")["images"][: chosen.images]
    data = str(ZOO / "fashion_vit" / "calibration.npz")
    graph = optimize(ZOO / chosen.model / "model.onnx", chosen.recipe, calibration=data)
    with tempfile.TemporaryDirectory(prefix="planish-") as folder:
        ways = runs(graph, Path(folder))
        seconds, same = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
        for start in range(0, len(images), chosen.batch):
            feed, expected = {"images": images[start : start + chosen.batch]}, None
            for name, run in ways.items():
                begin = time.perf_counter()
                logits = run(feed)["logits"]
                seconds[name] += time.perf_counter() - begin
                expected = logits if expected is None else expected
                same[name] += int(np.sum(np.all(logits == expected, axis=1)))
    for name in ways:
        print(
            f"{name}: same integers on {same[name]} of {len(images)}, {1000 * seconds[name] / len(images):.1f} ms each"
        )


if __name__ == "__main__":
    main()
