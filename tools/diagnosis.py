"""`planish doctor`: what is installed, what is missing and how to add it, what the CPU can do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

REQUIRED = ("onnx", "onnx-ir", "onnxruntime", "numpy", "networkx", "typer", "rich", "pydantic")
OPTIONAL = {
    "torch": ("torch", "reading torch modules and .pt2 files"),
    "onnxscript": ("torch", "reading torch modules and .pt2 files"),
    "apache-tvm": ("tvm", "the TVM targets"),
    "onnxslim": ("bench", "planish bench --against onnxslim"),
    "onnxsim": ("bench", "planish bench --against onnxsim"),
}
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp")


def diagnose() -> list[dict[str, str]]:
    """Rows of part, state and note."""
    rows = [_row("python", platform.python_version(), sys.executable if sys.version_info < (3, 11) else "")]
    for name in REQUIRED:
        version = _version(name)
        rows.append(_row(name, version or "MISSING", "" if version else f"pip install {name}"))
    for name, (extra, purpose) in OPTIONAL.items():
        version = _version(name)
        note = f"for {purpose}" + ("" if version else f': pip install "planish[{extra}]"')
        rows.append(_row(name, version or "not installed", note))
    rows.append(_row("cpu", _cpu_name(), " ".join(flag for flag in CPU_FLAGS if flag in _cpu_flags())))
    rows.append(
        _row("cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()), "")
    )
    return rows


def _row(part: str, state: str, note: str) -> dict[str, str]:
    return {"part": part, "state": state, "note": note}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    return next(
        (line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )


def _cpu_flags() -> set[str]:
    prefixes = ("flags", "Features")
    return set(next((line.split(":", 1)[1] for line in _cpuinfo() if line.startswith(prefixes)), "").split())


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
