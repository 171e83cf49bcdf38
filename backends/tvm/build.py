"""From a program to machine code, and running it in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm

from planish.backends.tvm.program import Program
from planish.ir.errors import CalibrationError
from planish.ir.graph import Value


class Executable:
    """The first entry of a compiled program, its constants and its arena. Not for several threads at once."""

    def __init__(self, program: Program, target: Mapping[str, Any]):
        self.program, self.entry = program, program.entries[0]
        self._library = compiled(program, target)
        self._main = self._library["main"]
        self._steps: list[Any] = []
        self._constants = _tensor(program.constants)
        self._arena = _tensor(np.zeros(program.arena_bytes, np.uint8))
        self._outputs = [_tensor(np.zeros(p.shape or (1,), p.dtype)) for p in self.entry.outputs]

    def __call__(self, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name. Raises CalibrationError if an input is missing, unknown or of another dtype or shape."""
        names = {port.name for port in self.entry.inputs}
        if set(feeds) != names:
            raise CalibrationError(f"inputs are {', '.join(sorted(feeds))}", remedy=f"feed {', '.join(sorted(names))}")
        inputs = []
        for port in self.entry.inputs:
            array = np.asarray(feeds[port.name])
            if array.shape != port.shape or str(array.dtype) != port.dtype:
                raise CalibrationError(
                    f"input {port.name} is {array.dtype}{list(array.shape)}",
                    remedy=f"feed {port.dtype}{list(port.shape)}",
                )
            inputs.append(_tensor(array.reshape(port.shape or (1,))))
        self._main(*inputs, *self._outputs, self._constants, self._arena)
        results = zip(self.entry.outputs, self._outputs, strict=True)
        return {port.name: array.numpy().reshape(port.shape).copy() for port, array in results}

    def step(self, number: int) -> None:
        """Run one kernel of a program that was lowered with `steps`, on what the last run left."""
        if not self._steps:
            inputs = [_tensor(np.zeros(p.shape or (1,), p.dtype)) for p in self.entry.inputs]
            self._buffers = [*inputs, *self._outputs, self._constants, self._arena]
            self._steps = [self._library[f"step_{i}"] for i in range(len(self.program.calls))]
        self._steps[number](*self._buffers)

    def stored(self) -> dict[str, np.ndarray]:
        """What the arena holds, by name of the value; whole only if the program was lowered with `keep`."""
        room = self._arena.numpy()
        found = {}
        for value, offset in self.entry.arena.offsets.items():
            if not isinstance(value, Value):
                continue
            dtype, shape = value.tensor.dtype.storage, tuple(int(d) for d in value.tensor.dims)
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            found[value.hint] = room[offset : offset + size].view(dtype).reshape(shape)
        return found


def _tensor(array: np.ndarray) -> Any:
    return tvm.runtime.tensor(np.ascontiguousarray(array))


def compiled(program: Program, target: Mapping[str, Any]) -> Any:
    """A program as TVM's executable. Local arrays stay as they are: LLVM keeps them in registers, tiles fill them."""
    config, disabled = {"tirx.disable_storage_rewrite": True}, ["s_tir.CompactBufferAllocation"]
    with tvm.transform.PassContext(config=config, disabled_pass=disabled):
        return tvm.compile(program.module, target=tvm.target.Target(dict(target)))


def assembly(program: Program, target: Mapping[str, Any]) -> str:
    """The assembly text of a program, for CPUs of any kind."""
    library = compiled(program, target)
    return str(library.mod.inspect_source("asm"))
