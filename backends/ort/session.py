"""ONNX Runtime sessions on the CPU: opened the way planish ships, verifies and measures, with errors of one line."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from planish.ir.errors import CalibrationError, FrontendError, PlanishError

SETTINGS = {
    # by default ORT computes DequantizeLinear + MatMul with int8 activations, which changes results
    "session.qdq_matmulnbits_accuracy_level": "0",
}
_ELEMENT_TYPES = {
    "float": onnx.TensorProto.FLOAT,
    "double": onnx.TensorProto.DOUBLE,
    **{name.lower(): number for name, number in onnx.TensorProto.DataType.items() if name not in ("FLOAT", "DOUBLE")},
}
_BITS = {
    onnx.TensorProto.BFLOAT16: 16,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.FLOAT4E2M1: 4,
}
_ORT_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.ModelLoaded,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
    ValueError,
    TypeError,
)


@dataclass(frozen=True)
class ValueInfo:
    """An input or output: ONNX type text, numpy dtype (None unless a tensor), shape with names of symbolic dimensions.

    A dimension without size and name is "?". ONNX Runtime reports unknown rank like rank 0.
    """

    name: str
    type: str
    dtype: np.dtype | None
    shape: tuple[int | str, ...]


class Session:
    """A loaded model; `what` and `error` say how it is called and whose fault it is when it fails."""

    def __init__(self, inner: ort.InferenceSession, *, threads: int, what: str, error: type[PlanishError]):
        self.inner = inner
        self.threads = threads
        self.what = what
        self._error = error

    @cached_property
    def inputs(self) -> tuple[ValueInfo, ...]:
        """Inputs that have no default, in graph order."""
        return tuple(_value_info(argument) for argument in self.inner.get_inputs())

    @cached_property
    def outputs(self) -> tuple[ValueInfo, ...]:
        """Outputs in graph order."""
        return tuple(_value_info(argument) for argument in self.inner.get_outputs())

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """Metadata of the model file."""
        return dict(self.inner.get_modelmeta().custom_metadata_map)

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Results by output name: arrays, lists of arrays for sequences, None for absent optionals.

        Raises CalibrationError where the feeds don't fit the inputs, else the session's error class.
        """
        names = [info.name for info in self.outputs] if outputs is None else list(outputs)
        self._check_names(feeds)
        try:
            if self._needs_ort_values(feeds):
                return dict(zip(names, self._run_ort_values(feeds, names), strict=True))
            return dict(zip(names, self.inner.run(names, dict(feeds), _quiet_run()), strict=True))
        except _ORT_ERRORS as error:
            reason = _one_line(error)
            if isinstance(error, ort_errors.InvalidArgument) and "while running" not in reason:
                remedy = "give data of the model's input types"
                raise CalibrationError(f"{self.what} refuses the data: {reason}", remedy=remedy) from error
            remedy = "check that the data has values the model accepts"
            raise self._error(f"{self.what} failed while running: {reason}", remedy=remedy) from error

    def _check_names(self, feeds: Collection[str]) -> None:
        known = {info.name for info in self.inputs}
        missing = [info.name for info in self.inputs if info.name not in feeds and not info.type.startswith("optional")]
        unknown = known and [name for name in feeds if name not in known and name not in self._defaults]
        if missing or unknown:
            wrong = f"lacks data for {missing}" if missing else f"has no inputs {unknown}"
            raise CalibrationError(f"{self.what} {wrong}", remedy=f"feed exactly {[info.name for info in self.inputs]}")

    @cached_property
    def _defaults(self) -> frozenset[str]:
        return frozenset(argument.name for argument in self.inner.get_overridable_initializers())

    def _needs_ort_values(self, feeds: Mapping[str, Any]) -> bool:
        """numpy and ORT share no names for bfloat16 and the 8- and 4-bit types."""
        exotic_feed = any(isinstance(array, np.ndarray) and array.dtype.kind == "V" for array in feeds.values())
        return exotic_feed or any(
            info.dtype is not None and _is_exotic(info.dtype) for info in self.inputs + self.outputs
        )

    def _run_ort_values(self, feeds: Mapping[str, Any], names: list[str]) -> list[Any]:
        values = {name: _to_ort_value(np.asarray(array)) for name, array in feeds.items()}
        return [_from_ort_value(value) for value in self.inner.run_with_ort_values(names, values, _quiet_run())]


def open_session(
    model: Path | bytes,
    *,
    threads: int = 0,
    optimize: bool = True,
    spinning: bool = True,
    what: str = "the model",
    error: type[PlanishError] = FrontendError,
) -> Session:
    """Load a model for the CPU with all of ORT's optimizations, or none.

    model: a file (its external data is found beside it, any size) or the bytes of a file without external data.
    threads: of one operator; 0 leaves the choice to ORT (one per physical core).
    spinning: whether idle threads spin; off where several multi-threaded sessions take turns in one process.
    what, error: name of the model in messages, and the class to raise (LoweringError for an artifact of planish).
    """
    return _open(model, threads, optimize, spinning, what, error, {})


def open_with_taps(
    model: Path,
    names: Sequence[str],
    *,
    threads: int = 0,
    optimize: bool = True,
    what: str = "the model",
    error: type[PlanishError] = FrontendError,
) -> Session:
    """Load a model whose only outputs are the given values of its main graph; external data stays where it is.

    ORT doesn't fuse across a value that is read, so results can differ in rounding from the whole model.
    Raises `error` where the file can't be read or a value doesn't exist.
    """
    proto = _read_proto(model, what, error)
    kept = {output.name: output for output in proto.graph.output}
    available = {name for node in proto.graph.node for name in node.output} | kept.keys()
    if missing := [name for name in names if name not in available]:
        raise error(f"{what} has no values {missing}", where=str(model), remedy="name values of the main graph")
    tapped = [kept.get(name) or onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names)]
    del proto.graph.output[:]
    proto.graph.output.extend(tapped)
    folder = {"session.model_external_initializers_file_folder_path": str(model.resolve().parent)}
    return _open(proto.SerializeToString(), threads, optimize, True, what, error, folder)


def run_with_taps(
    model: Path,
    feeds: Mapping[str, Any],
    names: Sequence[str],
    *,
    threads: int = 0,
    optimize: bool = True,
    what: str = "the model",
    error: type[PlanishError] = FrontendError,
) -> dict[str, Any]:
    """Run a model on one feed and return the given values of its main graph; see `open_with_taps`."""
    return open_with_taps(model, names, threads=threads, optimize=optimize, what=what, error=error).run(feeds)


def _open(
    model: Path | bytes,
    threads: int,
    optimize: bool,
    spinning: bool,
    what: str,
    error: type[PlanishError],
    settings: Mapping[str, str],
) -> Session:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors arrive as exceptions; ORT need not print them too
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    for key, value in (SETTINGS | dict(settings)).items():
        options.add_session_config_entry(key, value)
    where = "" if isinstance(model, bytes) else str(model)
    try:
        inner = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except _ORT_ERRORS as fault:
        raise error(
            f"ONNX Runtime can't load {what}: {_one_line(fault)}", where=where, remedy=_load_remedy(fault)
        ) from fault
    return Session(inner, threads=threads, what=what, error=error)


def _read_proto(model: Path, what: str, error: type[PlanishError]) -> onnx.ModelProto:
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(model, load_external_data=False)
    except (OSError, DecodeError) as fault:
        raise error(f"can't read {what}: {fault}", where=str(model), remedy="give an ONNX file") from fault


def _load_remedy(fault: Exception) -> str:
    if isinstance(fault, ort_errors.NoSuchFile):
        return "check the path"
    if isinstance(fault, ort_errors.NotImplemented):
        return "ONNX Runtime's CPU provider has no kernel for this op and type"
    return "check the model with onnx.checker, and that its external data lies beside it"


def _one_line(fault: Exception) -> str:
    """ORT's message without its code prefix, line breaks, and C++ source places."""
    text = " ".join(str(fault).split())
    if text.startswith("[ONNXRuntimeError] : "):
        text = text.split(" : ", 3)[-1]
    words = [word for word in text.split(" ") if not (word.startswith("/") and ".cc:" in word)]
    return " ".join(words)[:400].rstrip(" .")


def _quiet_run() -> ort.RunOptions:
    options = ort.RunOptions()
    options.log_severity_level = 4
    return options


def _value_info(argument: ort.NodeArg) -> ValueInfo:
    inner = argument.type.removeprefix("tensor(").removesuffix(")")
    number = _ELEMENT_TYPES.get(inner) if argument.type.startswith("tensor(") else None
    dtype = None if number is None else np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number))
    shape = argument.shape if isinstance(argument.shape, list) else []
    return ValueInfo(argument.name, argument.type, dtype, tuple("?" if dim is None else dim for dim in shape))


def _is_exotic(dtype: np.dtype) -> bool:
    return dtype.kind == "V" or dtype.type.__module__.startswith("ml_dtypes")


def _to_ort_value(array: np.ndarray) -> ort.OrtValue:
    if _is_exotic(array.dtype):
        number = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), number)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _from_ort_value(value: ort.OrtValue) -> Any:
    number = _ELEMENT_TYPES.get(value.data_type().removeprefix("tensor(").removesuffix(")"))
    if number is None or not _is_exotic(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number))):
        return value.numpy()
    shape = tuple(value.shape())
    bits = _BITS.get(number, 8)
    size = (int(np.prod(shape, dtype=np.int64)) * bits + 7) // 8
    data = ctypes.string_at(value.data_ptr(), size)
    return numpy_helper.to_array(onnx.TensorProto(dims=shape, data_type=number, raw_data=data))
