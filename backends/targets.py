"""Targets: the runtimes that planish writes artifacts for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planish.backends.onnx.dialect import ORT_CPU, STANDARD, Spellings
from planish.ir.errors import UnsupportedOp


@dataclass(frozen=True)
class Target:
    """A runtime on a kind of machine.

    spellings: how ops are written for it in ONNX, by what was measured fastest there.
    compiled: to machine code, of the instruction set `isa` ("": the best that this CPU has), for fixed shapes.
    tune: seconds to measure tilings for. buckets: extents to compile symbolic dimensions for, by symbol.
    """

    name: str
    summary: str
    spellings: Spellings
    compiled: bool = False
    isa: str = ""
    tune: float = 0.0
    buckets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            "ort-cpu", "ONNX Runtime on CPU: an ONNX file, each op in the spelling that runs fastest there", ORT_CPU
        ),
        Target("onnx", "portable ONNX: every op in its newest standard spelling, timed on ONNX Runtime", STANDARD),
        Target("tvm-cpu", "a library of machine code, compiled by TVM", STANDARD, compiled=True),
    )
}


def target_named(name: str) -> Target:
    """The target of that name. Raises UnsupportedOp (exit code 4) listing the known ones otherwise."""
    if name not in TARGETS:
        raise UnsupportedOp(f"there is no target {name!r}", remedy="known targets: " + ", ".join(TARGETS))
    return TARGETS[name]
