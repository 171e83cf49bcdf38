"""The C++ example of an artifact builds against the wheel's headers and computes what the reference does."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from planish.backends.tvm.library import write_library
from planish.backends.tvm.sizes import Variant
from planish.ir import dtypes, ops
from planish.ir.interpret import interpret
from tests.backends.tvm.graphs import coded, graph_of, linear
from tests.backends.tvm.running import HOST

TOOLS = [name for name in ("cmake", "g++") if shutil.which(name) is None]


@pytest.mark.skipif(bool(TOOLS), reason=f"needs {' and '.join(TOOLS)}")
def test_the_example_builds_and_gives_the_reference_s_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANISH_CACHE", "")

    def build(x):
        return ops.Requantize(0.2, 3, dtypes.i8)(linear(x, 24, 40))

    graph, feeds = graph_of(coded(dtypes.u8, 9, 24, zero=3), build=build)
    write_library([Variant(graph)], tmp_path, HOST)
    feeds["x0"].tofile(tmp_path / "x0.bin")
    configure = ["cmake", "-B", "build", f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (configure, ["cmake", "--build", "build"], ["build/example", ".", "x0.bin"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    expected = interpret(graph, feeds)["y"]
    assert (tmp_path / "output_0.bin").read_bytes() == expected.tobytes()
    short = subprocess.run(["build/example", ".", "output_0.bin.none"], cwd=tmp_path, capture_output=True, text=True)
    assert short.returncode == 1
    assert "can't read 216 bytes" in short.stderr
