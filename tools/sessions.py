"""Opening models of every kind: ONNX files on ONNX Runtime, compiled artifacts on their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from planish.backends.ort.session import Session, open_session
from planish.backends.tvm.runtime import Library, is_library
from planish.ir.errors import UsageError

MODEL_FILE = "model.onnx"
Model = Session | Library
"""A loaded model: has inputs, outputs, metadata and threads, and runs feeds."""


def open_model(path: Path, *, threads: int = 0, **options: Any) -> Model:
    """Load a model file, or the library of a compiled artifact. `options` are those of `open_session`."""
    if is_library(path):
        return Library(path if path.is_dir() else path.parent, threads=threads)
    if path.suffix == ".xml":
        from planish.tools.bench.openvino_peer import OpenVinoModel

        return cast("Model", OpenVinoModel(path, threads=threads))
    return open_session(path, threads=threads, **options)


def load_artifact(folder: str | Path, *, threads: int = 0) -> Any:
    """The model of an artifact folder, to call: load_artifact(folder)(**inputs) returns the outputs by name.

    threads: 0 takes one per core.
    Raises UsageError for a folder that isn't one of planish's, UnsupportedOp where the CPU lacks what it needs.
    """
    folder = Path(folder)
    if is_library(folder):
        return Library(folder, threads=threads)
    if not (folder / MODEL_FILE).is_file():
        raise UsageError("there is no artifact", where=str(folder), remedy="give a folder that planish optimize made")
    session = open_session(folder / MODEL_FILE, threads=threads)
    return lambda **inputs: session.run(inputs)


def model_in(path: Path) -> Path:
    """The file to open of an artifact folder, or the path itself."""
    if path.is_dir():
        return path if is_library(path) else path / MODEL_FILE
    return path
