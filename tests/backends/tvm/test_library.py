"""Compiled artifacts: written, loaded without TVM's compiler, checked, called from threads."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import numpy as np
import pytest

import planish
from planish.backends.tvm import runtime
from planish.backends.tvm.library import write_library
from planish.backends.tvm.sizes import Variant
from planish.ir import dtypes, ops
from planish.ir.errors import CalibrationError, FrontendError, UnsupportedOp
from planish.ir.interpret import interpret
from tests.backends.tvm.graphs import coded, graph_of, linear
from tests.backends.tvm.running import HOST


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model():
    def build(x):
        hidden = ops.Requantize(0.07, 128, dtypes.u8)(linear(x, 24, 40))
        return ops.Requantize(0.2, 3, dtypes.i8)(linear(hidden, 40, 10))

    return graph_of(coded(dtypes.u8, 9, 24, zero=3), build=build)


@pytest.fixture
def folder(model, tmp_path):
    path = tmp_path / "artifact"
    path.mkdir()
    write_library([Variant(model[0])], path, HOST)
    return path


def expected(model):
    return interpret(model[0], model[1])["y"]


def test_a_loaded_artifact_computes_what_the_reference_does(model, folder):
    found = planish.load_artifact(folder)(**model[1])
    np.testing.assert_array_equal(found["y"], expected(model))


def test_loading_needs_no_compiler(model, folder, tmp_path):
    np.save(tmp_path / "x.npy", model[1]["x0"])
    code = (
        "import sys, numpy as np, planish\n"
        "from planish.backends.tvm.runtime import Library\n"
        "from pathlib import Path\n"
        f"found = Library(Path({str(folder)!r}))(x0=np.load({str(tmp_path / 'x.npy')!r}))\n"
        "assert not {'tvm', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, found['y'])\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected(model))


def test_the_same_graph_gives_the_same_bytes_and_the_cache_serves_the_second(model, folder, tmp_path, monkeypatch):
    again, fresh = tmp_path / "again", tmp_path / "fresh"
    again.mkdir()
    fresh.mkdir()
    assert write_library([Variant(model[0])], again, HOST).cached
    monkeypatch.setenv("PLANISH_CACHE", "")
    assert not write_library([Variant(model[0])], fresh, HOST).cached
    for name in (runtime.LIBRARY, runtime.CONSTANTS, runtime.DESCRIPTION):
        assert (folder / name).read_bytes() == (again / name).read_bytes() == (fresh / name).read_bytes(), name


def test_a_cpu_that_lacks_features_is_told_which(folder, monkeypatch):
    monkeypatch.setattr(runtime, "cpu_flags", lambda: frozenset({"avx2"}))
    text = json.loads((folder / runtime.DESCRIPTION).read_text())
    (folder / runtime.DESCRIPTION).write_text(json.dumps({**text, "features": ["avx2", "avx512_vnni"]}))
    with pytest.raises(UnsupportedOp, match="needs avx512_vnni, which this CPU lacks"):
        planish.load_artifact(folder)


@pytest.mark.parametrize("name", [runtime.LIBRARY, runtime.CONSTANTS, runtime.RUNTIME])
def test_a_folder_that_lacks_a_file_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(FrontendError, match=f"lacks .*{name}"):
        runtime.Library(folder)


def test_truncated_constants_are_refused(folder):
    whole = (folder / runtime.CONSTANTS).read_bytes()
    (folder / runtime.CONSTANTS).write_bytes(whole[:-64])
    with pytest.raises(FrontendError, match="isn't whole"):
        runtime.Library(folder)


def test_wrong_inputs_are_refused_by_name(folder):
    library = runtime.Library(folder)
    with pytest.raises(CalibrationError, match="feed x0"):
        library()
    with pytest.raises(CalibrationError, match=r"x0 is uint8\[1, 24\]"):
        library(x0=np.zeros((1, 24), np.uint8))


def test_threads_may_share_a_model(model, folder):
    library = runtime.Library(folder)
    feeds = [np.random.default_rng(i).integers(0, 256, (9, 24)).astype(np.uint8) for i in range(4)]
    wanted = [interpret(model[0], {"x0": feed})["y"] for feed in feeds]
    wrong = []

    def work(i: int) -> None:
        for _ in range(200):
            if not np.array_equal(library(x0=feeds[i])["y"], wanted[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_memory_stays_flat_over_many_runs(model, folder):
    library = runtime.Library(folder)

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1])

    first = library(**model[1])["y"]
    for _ in range(500):
        library(**model[1])
    before = resident()
    for _ in range(10_000):
        found = library(**model[1])["y"]
    assert np.array_equal(found, first)
    assert resident() - before < 256  # pages
