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
from planish.backends.tvm.sizes import Port, Sizes, fitting, sizes_of
from planish.ir.errors import CalibrationError, FrontendError, UnsupportedOp

LIBRARY, CONSTANTS, DESCRIPTION, RUNTIME = "model.so", "constants.bin", "library.json", "libtvm_runtime.so"
FORMAT = 2
_ALIGNMENT = 64  # bytes; compiled code relies on it
_MOST_PLANS = 256  # that a loaded model keeps
_SHARE_CORES = -3  # TVM's mode in which no thread is bound to one of the cores


class Library:
    """A compiled model. Calls from several threads are safe: one runs at a time, since they share the memory.

    library(**inputs) returns the outputs by name. A batch of any size runs in pieces of those that were compiled; other
    dimensions that vary are filled up with zeros to the next size that was, and outputs are cut.
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
            module = ffi.load_module(str(folder / LIBRARY))
        except (RuntimeError, OSError) as error:
            raise FrontendError(f"can't load it: {error}", where=str(folder / LIBRARY), remedy=_AGAIN) from error
        constants = np.memmap(folder / CONSTANTS, np.uint8, "c")  # pages in common to all processes: nobody writes
        shared = [np.asarray(constants), aligned((description["arena"],), "uint8")]
        self._plans: dict[Any, _Plan] = {}
        self._batch: str | None = description["batch"]
        self._sizes: list[Sizes] = [entry["sizes"] for entry in description["entries"]]
        self._entries = [
            _Entry(ffi, module[entry["function"]], self.inputs, self.outputs, entry["sizes"], shared)
            for entry in description["entries"]
        ]

    def __call__(self, **feeds: Any) -> dict[str, np.ndarray]:
        """Outputs by name. Raises CalibrationError for an input that is missing, unknown, or of another type."""
        return self.run(feeds)

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """As a call; outputs: names of those wanted."""
        names = {port.name for port in self.inputs}
        if set(feeds) != names:
            raise CalibrationError(f"inputs are {', '.join(sorted(feeds))}", remedy=f"feed {', '.join(sorted(names))}")
        arrays = {name: np.asarray(array) for name, array in feeds.items()}
        plan = self._planned(arrays)
        wanted = self.outputs if outputs is None else [port for port in self.outputs if port.name in outputs]
        results = {port.name: np.empty(plan.shapes[port.name], port.dtype) for port in wanted}
        with self._lock:
            self._start_threads()
            for entry, piece in plan.pieces:
                if piece is None:
                    entry(arrays, results)
                else:
                    entry(
                        {name: array[piece] for name, array in arrays.items()},
                        {name: array[piece] for name, array in results.items()},
                    )
        return results

    def _planned(self, arrays: Mapping[str, np.ndarray]) -> _Plan:
        """How feeds of these shapes run; kept, since working it out takes as long as a small kernel."""
        key = tuple((arrays[port.name].shape, arrays[port.name].dtype) for port in self.inputs)
        plan = self._plans.get(key)
        if plan is None:
            sizes = sizes_of(self.inputs, arrays)
            pieces: list[tuple[_Entry, slice | None]] = []
            if self._batch is None:
                pieces.append((self._entries[fitting(self._sizes, sizes, None)], None))
            else:
                done, count = 0, sizes[self._batch]
                while done < count:
                    chosen = fitting(self._sizes, {**sizes, self._batch: count - done}, self._batch)
                    stop = min(count, done + self._sizes[chosen][self._batch])
                    pieces.append((self._entries[chosen], slice(done, stop) if stop - done < count else None))
                    done = stop
            plan = _Plan({port.name: port.at(sizes) for port in self.outputs}, tuple(pieces))
            if len(self._plans) < _MOST_PLANS:
                self._plans[key] = plan
        return plan

    def _start_threads(self) -> None:
        """Set up TVM's pool for the calling thread, which has one of its own; by itself TVM takes half of the cores."""
        if getattr(self._started, "done", False):
            return
        cores = available_cores()
        count = self.threads or len(cores)
        self._configure(_SHARE_CORES, count, [str(cores[i % len(cores)]) for i in range(count)])
        self._started.done = True


@dataclass(frozen=True)
class _Plan:
    """How feeds of one size run: shapes of the outputs, and the entries with their parts of the batch, None for all."""

    shapes: Mapping[str, tuple[int, ...]]
    pieces: tuple[tuple[_Entry, slice | None], ...]


class _Entry:
    """A function of the library for one size, and the arrays that it takes."""

    def __init__(
        self,
        ffi: Any,
        function: Any,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        sizes: Sizes,
        shared: Sequence[np.ndarray],
    ):
        ports = [*inputs, *outputs]
        self._function = function
        self._arrays = {port.name: aligned(port.at(sizes), port.dtype) for port in ports}
        self._held = [*(array.reshape(array.shape or (1,)) for array in self._arrays.values()), *shared]
        self._arguments = [ffi.from_dlpack(array) for array in self._held]

    def __call__(self, feeds: Mapping[str, np.ndarray], results: Mapping[str, np.ndarray]) -> None:
        """Run once: zeros fill up what feeds leave, results take the part that they have room for."""
        for name, array in feeds.items():
            room = self._arrays[name]
            if room.shape != array.shape:
                room[...] = 0
            room[tuple(slice(extent) for extent in array.shape)] = array
        self._function(*self._arguments)
        for name, array in results.items():
            array[...] = self._arrays[name][tuple(slice(extent) for extent in array.shape)]


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
