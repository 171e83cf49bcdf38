"""What planish is measured against: ways to turn a model file into one that runs on ONNX Runtime."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Mapping
from pathlib import Path

from planish.ir.errors import UsageError

Contender = Callable[[Path, Path], Path]
"""Takes the model file and a folder to write into; returns the file to run."""


def planish_pipeline(model: Path, folder: Path) -> Path:
    """The default pipeline: read, optimize with every pass verified, write. No comparison, no timing."""
    from planish.backends.onnx.writer import write
    from planish.tools.compiling import optimize

    path = folder / "planish.onnx"
    write(optimize(model, "default"), path)
    return path


def original(model: Path, folder: Path) -> Path:
    """The model as it is: ONNX Runtime's own optimizations are on for every contender."""
    return model


def onnxslim(model: Path, folder: Path) -> Path:
    """OnnxSlim with its defaults."""
    _needs("onnxslim")
    import onnxslim as slim

    path = folder / "onnxslim.onnx"
    with contextlib.redirect_stdout(io.StringIO()):
        slim.slim(str(model), str(path))
    return path


def onnxsim(model: Path, folder: Path) -> Path:
    """onnxsim with its defaults, without its random-input check."""
    _needs("onnxsim")
    import onnx
    import onnxsim as simplifier

    path = folder / "onnxsim.onnx"
    simplified, _ = simplifier.simplify(str(model))
    onnx.save(simplified, path)
    return path


def ort_dynamic_int8(model: Path, folder: Path) -> Path:
    """ONNX Runtime's dynamic int8 quantization: another number format, so not the same results."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = folder / "ort-dynamic-int8.onnx"
    quantize_dynamic(str(model), str(path), weight_type=QuantType.QInt8)
    return path


CONTENDERS: Mapping[str, Contender] = {
    "original": original,
    "onnxslim": onnxslim,
    "onnxsim": onnxsim,
    "ort-dynamic-int8": ort_dynamic_int8,
}


def contender_named(name: str) -> Contender:
    """The contender of that name. Raises UsageError listing the known ones otherwise."""
    if name not in CONTENDERS:
        raise UsageError(f"there is no contender {name!r}", remedy="known: " + ", ".join(CONTENDERS))
    return CONTENDERS[name]


def _needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{package} isn't installed", remedy='pip install "planish[bench]"')
