"""ONNX Runtime's own int8 quantizers as contenders: another number format, so not the same results.

All of them first run the preprocessing that ONNX Runtime's documentation asks for, and quantize weights to int8 and,
where static, activations to uint8: the pairing that its x86 kernels run fastest.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planish.frontend.calibration import CalibrationSet
from planish.ir.errors import UsageError

PRODUCTS = ("MatMul", "Gemm", "Conv")


def ort_dynamic(model: Path, folder: Path, data: CalibrationSet) -> Path:
    """quantize_dynamic, one weight scale per tensor: activations are measured at each run. `data` isn't used."""
    return _dynamic(model, folder / "ort-dynamic.onnx", per_channel=False)


def ort_dynamic_per_channel(model: Path, folder: Path, data: CalibrationSet) -> Path:
    """quantize_dynamic, one weight scale per output channel. `data` isn't used."""
    return _dynamic(model, folder / "ort-dynamic-per-channel.onnx", per_channel=True)


def ort_static(model: Path, folder: Path, data: CalibrationSet) -> Path:
    """quantize_static of matrix products and convolutions, per output channel, min-max over `data`, as QDQ."""
    return _static(model, folder / "ort-static.onnx", data, PRODUCTS, "QDQ")


def ort_static_operators(model: Path, folder: Path, data: CalibrationSet) -> Path:
    """The same with quantized operators (QLinearMatMul and others) instead of QDQ pairs."""
    return _static(model, folder / "ort-static-operators.onnx", data, PRODUCTS, "QOperator")


def ort_static_all(model: Path, folder: Path, data: CalibrationSet) -> Path:
    """quantize_static of every op that it can quantize, per output channel, min-max over `data`, as QDQ."""
    return _static(model, folder / "ort-static-all.onnx", data, None, "QDQ")


def ort_nbits4(model: Path, folder: Path, data: CalibrationSet) -> Path:
    """MatMulNBitsQuantizer: weights of matrix products in 4 bits, a scale for each 32 rows, products in float32.

    `data` isn't used; convolutions and Gemm stay as they are.
    """
    return _nbits4(model, folder / "ort-nbits4.onnx", accuracy_level=1)


def ort_nbits4_int8(model: Path, folder: Path, data: CalibrationSet) -> Path:
    """The same with activations that are rounded to 8 bits as they come (accuracy level 4), which is faster."""
    return _nbits4(model, folder / "ort-nbits4-int8.onnx", accuracy_level=4)


def _nbits4(model: Path, path: Path, accuracy_level: int) -> Path:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with _quiet():
        quantizer = MatMulNBitsQuantizer(
            onnx.load(model), bits=4, block_size=32, is_symmetric=True, accuracy_level=accuracy_level
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(path), use_external_data_format=False)
    return path


def _dynamic(model: Path, path: Path, *, per_channel: bool) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            str(_preprocessed(model, path)), str(path), per_channel=per_channel, weight_type=QuantType.QInt8
        )
    return path


def _static(model: Path, path: Path, data: CalibrationSet, ops: Sequence[str] | None, form: str) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Streams the data set; ONNX Runtime calls get_next until it returns None."""

        def __init__(self) -> None:
            self._feeds: Iterator[dict[str, np.ndarray[Any, Any]]] = (dict(feed) for feed in data)

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            return next(self._feeds, None)

    with _quiet():
        quantize_static(
            str(_preprocessed(model, path)),
            str(path),
            Reader(),
            quant_format=QuantFormat[form],
            op_types_to_quantize=None if ops is None else list(ops),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return path


def _preprocessed(model: Path, path: Path) -> Path:
    if importlib.util.find_spec("sympy") is None:
        raise UsageError("sympy isn't installed, which ONNX Runtime's quantizers need", remedy="pip install sympy")
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_name(f"{path.stem}-prepared.onnx")
    quant_pre_process(str(model), str(prepared))
    return prepared


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizers log advice through the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
