"""Run a model file on data."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from planish.frontend.calibration import InputSpec, open_calibration
from planish.ir.errors import UnsupportedOp, UsageError
from planish.tools.compiling import VERIFY_BATCH
from planish.tools.sessions import open_model


def run_file(
    model: Path, inputs: str, output: Path | None, *, threads: int = 0, seed: int = 0, force: bool = False
) -> dict[str, Any]:
    """Run `model` on all feeds; write the results, feeds stacked along axis 0, to the .npz file `output`.

    Returns what to show: samples, shapes and ranges of the outputs, accuracy where the data has labels.
    Raises UsageError if `output` exists or doesn't end in .npz, CalibrationError if the data doesn't fit.
    """
    if output is not None and output.suffix != ".npz":
        raise UsageError(
            f"outputs are written as .npz, not {output.suffix or 'a file without suffix'}", where=str(output)
        )
    if output is not None and output.exists() and not force:
        raise UsageError(
            "the output exists already", where=str(output), remedy="name another, or replace it with --force"
        )
    session = open_model(model, threads=threads)
    specs: dict[str, InputSpec] = {}
    for info in session.inputs:
        if info.dtype is None:
            raise UnsupportedOp(
                f"input {info.name!r} is a {info.type}, not a tensor", remedy="run such models in Python"
            )
        specs[info.name] = InputSpec(info.dtype, info.shape)
    feeds = open_calibration(inputs, specs, seed=seed, batch=VERIFY_BATCH)
    parts: dict[str, list[np.ndarray]] = {info.name: [] for info in session.outputs}
    for feed in feeds:
        for name, array in session.run(feed).items():
            parts[name].append(np.atleast_1d(array))
    results = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    if output is not None:
        _save(output, results)
    shown: dict[str, Any] = {"model": model.name, "data": feeds.source, "feeds": len(feeds)}
    for name, array in results.items():
        numeric = array.dtype.kind in "fiu" and array.size
        span = f", {array.min():.4g} to {array.max():.4g}" if numeric else ""
        shown[name] = f"{array.dtype}{list(array.shape)}{span}"
        if feeds.labels is not None and array.ndim == 2 and len(array) == len(feeds.labels):
            shown["accuracy"] = f"{100 * float(np.mean(array.argmax(1) == feeds.labels)):.2f} %"
    if output is not None:
        shown["written"] = str(output)
    return shown


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
