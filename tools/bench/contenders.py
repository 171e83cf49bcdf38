"""What planish is measured against: ways to turn a model file into one that a runtime runs."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Mapping
from pathlib import Path

from planish.backends.targets import Target
from planish.frontend.calibration import CalibrationSet
from planish.ir.errors import UsageError
from planish.tools.bench import quantizers
from planish.tools.bench.openvino_peer import openvino

Contender = Callable[[Path, Path, CalibrationSet], Path]
"""Takes the model file, a folder to write into, and data to calibrate on; returns the file to run."""


def planish_pipeline(model: Path, folder: Path) -> Path:
    """The default pipeline: read, optimize with every pass verified, write. No comparison, no timing."""
    from planish.backends.onnx.writer import write
    from planish.tools.compiling import optimize

    path = folder / "planish.onnx"
    write(optimize(model, "default"), path)
    return path


def own(recipe: str, target: Target, seed: int) -> Contender:
    """Another recipe of planish for the same target, calibrated on the same data."""

    def prepare(model: Path, folder: Path, data: CalibrationSet) -> Path:
        from planish.tools.compiling import optimize
        from planish.tools.recipe_file import pipeline_of
        from planish.tools.writing import write_for

        pipeline, shapes = pipeline_of(recipe)
        graph = optimize(model, pipeline, shapes=shapes, target=target.name, calibration=data, seed=seed)
        place = folder / f"own-{Path(recipe).stem}"
        place.mkdir()
        return write_for(graph, place, target).model

    return prepare


def original(model: Path, folder: Path, data: CalibrationSet) -> Path:
    """The model as it is: ONNX Runtime's own optimizations are on for every contender."""
    return model


def onnxslim(model: Path, folder: Path, data: CalibrationSet) -> Path:
    """OnnxSlim with its defaults."""
    _needs("onnxslim")
    import onnxslim as slim

    path = folder / "onnxslim.onnx"
    with contextlib.redirect_stdout(io.StringIO()):
        slim.slim(str(model), str(path))
    return path


def onnxsim(model: Path, folder: Path, data: CalibrationSet) -> Path:
    """onnxsim with its defaults, without its random-input check."""
    _needs("onnxsim")
    import onnx
    import onnxsim as simplifier

    path = folder / "onnxsim.onnx"
    simplified, _ = simplifier.simplify(str(model))
    onnx.save(simplified, path)
    return path


CONTENDERS: Mapping[str, Contender] = {
    "original": original,
    "ort-fp32": original,
    "ort-int8": quantizers.ort_dynamic,
    "openvino-fp32": openvino("fp32"),
    "openvino-bf16": openvino("bf16"),
    "openvino-int8": openvino("int8"),
    "onnxslim": onnxslim,
    "onnxsim": onnxsim,
    "ort-dynamic": quantizers.ort_dynamic,
    "ort-dynamic-per-channel": quantizers.ort_dynamic_per_channel,
    "ort-nbits4": quantizers.ort_nbits4,
    "ort-nbits4-int8": quantizers.ort_nbits4_int8,
    "ort-static": quantizers.ort_static,
    "ort-static-operators": quantizers.ort_static_operators,
    "ort-static-all": quantizers.ort_static_all,
}


OWN = "planish:"  # before the name or file of a recipe


def contender_named(name: str, target: Target, seed: int = 0) -> Contender:
    """The contender of that name, planish's own for a target. Raises UsageError listing the known ones otherwise."""
    if name.startswith(OWN):
        return own(name.removeprefix(OWN), target, seed)
    if name not in CONTENDERS:
        raise UsageError(f"there is no contender {name!r}", remedy=f"known: {', '.join(CONTENDERS)}, {OWN}RECIPE")
    return CONTENDERS[name]


def _needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{package} isn't installed", remedy='pip install "planish[bench]"')
