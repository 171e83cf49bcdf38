"""Running a compiled artifact: needs numpy, tvm_ffi and the artifact's own copy of TVM's small runtime."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planish.backends.tvm.cpu import cpu_flags
from planish.ir.errors import CalibrationError, FrontendError, UnsupportedOp

LIBRARY, CONSTANTS, DESCRIPTION, RUNTIME = "model.so", "constants.bin", "library.json", "libtvm_runtime.so"
FORMAT = 1
_ALIGNMENT = 64  # bytes; compiled code relies on it
_SHARE_CORES = -3  # TVM's mode in which no thread is bound to one of the cores


@dataclass(frozen=True)
class Port:
    """An input or output: a tensor of fixed shape."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def type(self) -> str:
        return f"tensor({self.dtype})"


class Library:
    """A compiled model. Calls from several threads are safe: one runs at a time, since they share the memory.

    library(**inputs) returns the outputs by name.
    """

    def __init__(self, folder: Path, *, threads: int = 0):
        """Load the artifact of a folder.

        threads: 0 takes one per core; they are TVM's, in common to all models of the process.
        Raises FrontendError for a folder that isn't whole, UnsupportedOp where the CPU lacks what the code uses.
        """
        description = _described(folder)
        _check_cpu(description, folder)
        self.inputs = tuple(_port(entry) for entry in description["inputs"])
        self.outputs = tuple(_port(entry) for entry in description["outputs"])
        self.metadata: Mapping[str, str] = description["metadata"]
        self.threads, self.isa = threads, description["isa"]
        self._lock, self._started = threading.Lock(), threading.local()
        ffi = _runtime(folder)
        self._configure = ffi.get_global_func("runtime.config_threadpool")
        try:
            self._module = ffi.load_module(str(folder / LIBRARY))
        except (RuntimeError, OSError) as error:
            raise FrontendError(f"can't load it: {error}", where=str(folder / LIBRARY), remedy=_AGAIN) from error
        self._main = self._module["main"]
        constants = np.memmap(folder / CONSTANTS, np.uint8, "c")  # pages in common to all processes: nobody writes
        arrays = [aligned(port.shape or (1,), port.dtype) for port in (*self.inputs, *self.outputs)]
        self._arrays = dict(zip([p.name for p in (*self.inputs, *self.outputs)], arrays, strict=True))
        self._held = [*arrays, np.asarray(constants), aligned((max(description["arena"], 1),), "uint8")]
        self._arguments = [ffi.from_dlpack(array) for array in self._held]

    def __call__(self, **feeds: Any) -> dict[str, np.ndarray]:
        """Outputs by name. Raises CalibrationError for an input that is missing, unknown, or of another type."""
        return self.run(feeds)

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """As a call; outputs: names of those wanted."""
        names = {port.name for port in self.inputs}
        if set(feeds) != names:
            raise CalibrationError(f"inputs are {', '.join(sorted(feeds))}", remedy=f"feed {', '.join(sorted(names))}")
        arrays = {}
        for port in self.inputs:
            array = np.asarray(feeds[port.name])
            if array.shape != port.shape or array.dtype != port.dtype:
                raise CalibrationError(
                    f"input {port.name} is {array.dtype}{list(array.shape)}",
                    remedy=f"feed {port.dtype}{list(port.shape)}; other shapes need an artifact of their own (--shape)",
                )
            arrays[port.name] = array
        with self._lock:
            self._start_threads()
            for name, array in arrays.items():
                self._arrays[name].reshape(array.shape)[...] = array
            self._main(*self._arguments)
            return {
                port.name: self._arrays[port.name].reshape(port.shape).copy()
                for port in self.outputs
                if outputs is None or port.name in outputs
            }

    def _start_threads(self) -> None:
        """Set up TVM's pool for the calling thread, which has one of its own; by itself TVM takes half of the cores."""
        if getattr(self._started, "done", False):
            return
        cores = available_cores()
        count = self.threads or len(cores)
        self._configure(_SHARE_CORES, count, [str(cores[i % len(cores)]) for i in range(count)])
        self._started.done = True


def available_cores() -> list[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def is_library(path: Path) -> bool:
    """True for the folder, or the library file, of a compiled artifact."""
    return path.name == LIBRARY or (path / DESCRIPTION).is_file()


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros that begin where compiled code needs it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


_AGAIN = "make the artifact again, or copy the whole folder"


def _described(folder: Path) -> dict[str, Any]:
    missing = [name for name in (LIBRARY, CONSTANTS, DESCRIPTION) if not (folder / name).is_file()]
    if missing:
        raise FrontendError(f"the artifact lacks {', '.join(missing)}", where=str(folder), remedy=_AGAIN)
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except ValueError as error:
        raise FrontendError(f"can't read {DESCRIPTION}: {error}", where=str(folder), remedy=_AGAIN) from error
    if description.get("format") != FORMAT:
        raise FrontendError(f"format {description.get('format')} isn't {FORMAT}", where=str(folder), remedy=_AGAIN)
    if (folder / CONSTANTS).stat().st_size != description["constants"]:
        raise FrontendError(f"{CONSTANTS} isn't whole", where=str(folder), remedy=_AGAIN)
    return dict(description)


def _check_cpu(description: Mapping[str, Any], folder: Path) -> None:
    machine = platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    wanted = description["triple"].split("-")[0]
    lacking = set(description["features"]) - cpu_flags()
    if machine != wanted or lacking:
        what = f"is for {wanted}, this CPU is {machine}" if machine != wanted else f"needs {', '.join(sorted(lacking))}"
        raise UnsupportedOp(
            f"the artifact {what}" + ("" if machine != wanted else ", which this CPU lacks"),
            where=str(folder),
            remedy="make it for this CPU: planish optimize --target tvm-cpu --isa NAME (avx2 and x86-64 run widely)",
        )


def _runtime(folder: Path) -> Any:
    try:
        import tvm_ffi
    except ImportError as error:
        raise UnsupportedOp("apache-tvm-ffi isn't installed", remedy="pip install apache-tvm-ffi") from error
    path = folder / RUNTIME
    if not path.is_file():
        raise FrontendError(f"the artifact lacks {RUNTIME}", where=str(folder), remedy=_AGAIN)
    if tvm_ffi.get_global_func("runtime.config_threadpool", allow_missing=True) is None:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def _port(entry: Mapping[str, Any]) -> Port:
    return Port(entry["name"], np.dtype(entry["dtype"]), tuple(entry["shape"]))
