"""A process that holds one model and times it on request; it speaks JSON, one line per request and answer."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from planish.ir.errors import LoweringError, PlanishError
from planish.tools.boundary import Boundary
from planish.tools.sessions import open_model


class Worker:
    """The other end of the process: loads `model` on construction, times it in `run`, ends with `close`.

    Raises LoweringError where the process reports a fault or dies.
    """

    def __init__(self, name: str, model: Path, feeds: Mapping[str, np.ndarray], threads: int):
        self._name = name
        with tempfile.TemporaryDirectory(prefix="planish-") as folder:
            _write_feeds(Path(folder), feeds)
            # -P: a folder called planish in the working directory must not shadow the package
            command = [sys.executable, "-P", "-m", "planish.tools.measure_worker", str(model), folder, str(threads)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            try:
                self._answer()
            except BaseException:
                self.close()
                raise

    def run(self, count: int) -> float:
        """Median seconds of `count` runs, after one that isn't timed."""
        if self._process.stdin is None:
            raise RuntimeError("the process has no standard input")
        try:
            self._process.stdin.write(f"{count}\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._died() from error
        return float(np.median(self._answer()["seconds"]))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise self._died()
        answer = json.loads(line)
        if "error" in answer:
            raise LoweringError(f"can't measure '{self._name}': {answer['error']}", remedy="check that the model runs")
        return dict(answer)

    def _died(self) -> LoweringError:
        return LoweringError(
            f"the process measuring '{self._name}' died", remedy="check that the machine has memory enough"
        )


def main() -> None:
    """Load the model, answer `{"ready": true}`, then time as many runs as each line of standard input says."""
    parser = argparse.ArgumentParser(prog="python -m planish.tools.measure_worker", description=main.__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("feeds", type=Path, help="folder of input_*.pb, tensors named like the inputs")
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args()
    try:
        feeds = _read_feeds(arguments.feeds)
        session = open_model(arguments.model, threads=arguments.threads)
        feeds = Boundary.of_session(session).encoded_for(session, feeds)
        session.run(feeds)
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            session.run(feeds)
            seconds = []
            for _ in range(int(line)):
                start = time.perf_counter()
                session.run(feeds)
                seconds.append(time.perf_counter() - start)
            print(json.dumps({"seconds": seconds}), flush=True)
    except PlanishError as error:
        print(json.dumps({"error": error.what}), flush=True)


def _write_feeds(folder: Path, feeds: Mapping[str, np.ndarray]) -> None:
    from onnx import numpy_helper

    for index, (name, array) in enumerate(feeds.items()):
        (folder / f"input_{index}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())


def _read_feeds(folder: Path) -> dict[str, np.ndarray]:
    from onnx import TensorProto, numpy_helper

    tensors = [TensorProto.FromString(path.read_bytes()) for path in folder.glob("input_*.pb")]
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}


if __name__ == "__main__":
    main()
