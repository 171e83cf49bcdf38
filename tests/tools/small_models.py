"""Samples for small models of the zoo, and `planish optimize` on them. Import as `from small_models import ...`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from typer.testing import CliRunner, Result

from planish.tools.cli import app


def save_samples(model: Path, folder: Path) -> Path:
    """64 random samples for the only input of a model."""
    (value,) = onnx.load(model).graph.input
    shape = [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
    path = folder / "samples.npz"
    samples = np.random.default_rng(0).standard_normal((64, *shape)).astype(np.float32)
    np.savez(path, **{value.name: samples})
    return path


def optimize(model: Path, folder: Path, data: Path, *options: str) -> Result:
    """`planish optimize` of a model into folder/out, untimed."""
    arguments = ["optimize", str(model), "-o", str(folder / "out"), "--calib", str(data), "--no-bench", *options]
    return CliRunner().invoke(app, arguments)
