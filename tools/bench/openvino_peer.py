"""OpenVINO as a peer: its compiled models, in fp32, bf16, or quantized to int8 by NNCF."""

from __future__ import annotations

import importlib.util
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planish.backends.tvm.runtime import Port
from planish.frontend.calibration import CalibrationSet
from planish.ir.errors import UsageError

_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
_SAMPLES = 300  # NNCF's own default for calibration


def openvino(precision: str) -> Callable[[Path, Path, CalibrationSet], Path]:
    """The contender in that precision; its file is OpenVINO's own format, named after it."""

    def prepare(model: Path, folder: Path, data: CalibrationSet) -> Path:
        for package in ("openvino", "nncf"):
            if importlib.util.find_spec(package) is None:
                raise UsageError(f"{package} isn't installed", remedy='pip install "planish[bench]"')
        import openvino as ov

        read = ov.Core().read_model(str(model))
        sample = next(iter(data))
        read.reshape({name: [1, *np.shape(array)[1:]] for name, array in sample.items()})
        if precision == "int8":
            read = _quantized(read, data)
        path = folder / f"openvino-{precision}.xml"
        ov.save_model(read, str(path), compress_to_fp16=False)
        return path

    return prepare


class OpenVinoModel:
    """A model of OpenVINO, compiled for latency, with what other sessions have."""

    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path, *, threads: int = 0):
        import openvino as ov

        hint = _PRECISIONS[path.stem.rpartition("-")[2]]
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        if threads:
            options["INFERENCE_NUM_THREADS"] = str(threads)
        self._compiled = ov.Core().compile_model(str(path), "CPU", options)
        self._request = self._compiled.create_infer_request()
        self.threads = threads
        self.inputs = tuple(_port(tensor) for tensor in self._compiled.inputs)
        self.outputs = tuple(_port(tensor) for tensor in self._compiled.outputs)

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Outputs by name."""
        found = self._request.infer(dict(feeds))
        results = zip(self.outputs, found.values(), strict=True)
        return {port.name: np.asarray(array) for port, array in results if outputs is None or port.name in outputs}


def _quantized(model: Any, data: CalibrationSet) -> Any:
    """The model with NNCF's int8, its settings for transformers."""
    logging.getLogger("nncf").setLevel(logging.ERROR)
    import nncf

    every = ({n: a[i : i + 1] for n, a in feed.items()} for feed in data for i in range(len(next(iter(feed.values())))))
    samples = list(itertools.islice(every, _SAMPLES))
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(samples),
    )


def _port(tensor: Any) -> Port:
    shape = tuple(d.get_length() if d.is_static else 1 for d in tensor.partial_shape)
    return Port(tensor.get_any_name(), np.dtype(tensor.element_type.to_dtype()), shape)
