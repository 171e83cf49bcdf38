"""PyTorch programs as graphs, through torch's own ONNX exporter. torch is imported when it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from planish.frontend.reader import Shapes, from_onnx_ir
from planish.ir.errors import FrontendError, UsageError
from planish.ir.graph import Graph

if TYPE_CHECKING:
    import torch

_INSTALL = "pip install 'planish[torch]'"


def from_torch(
    source: torch.nn.Module | torch.export.ExportedProgram | Path | str,
    example_inputs: Sequence[Any] | None = None,
    *,
    dynamic_shapes: Mapping[str, Any] | Sequence[Any] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int = 18,
    shapes: Shapes | None = None,
) -> Graph:
    """Read a module, an exported program, or the .pt2 file of one.

    example_inputs: positional arguments of the module's forward; needed for a module only.
    dynamic_shapes: as torch.export takes it. A module is exported in evaluation mode; its mode is restored.
    Raises UsageError if torch or onnxscript is missing or inputs are, FrontendError if torch can't export the program.
    """
    torch_ = _torch()
    if isinstance(source, str | Path):
        source = _loaded(torch_, Path(source))
    is_module = isinstance(source, torch_.nn.Module)
    if is_module and example_inputs is None:
        raise UsageError(
            f"{type(source).__name__} can't be exported without example inputs",
            remedy="pass example_inputs, a tuple of the tensors that forward takes",
        )
    options: dict[str, Any] = {"opset_version": opset, "dynamo": True, "verbose": False}
    options |= {"input_names": input_names, "output_names": output_names}
    if is_module:
        options["dynamic_shapes"] = dynamic_shapes
    training = is_module and source.training  # type: ignore[union-attr]
    try:
        if training:
            source.eval()  # type: ignore[union-attr]
        arguments = tuple(example_inputs) if example_inputs is not None else ()
        program = torch_.onnx.export(source, arguments, **options)
    except Exception as error:  # the exporter raises errors of many kinds, each about the program
        raise FrontendError(
            f"torch can't export {type(source).__name__}: {_first_line(error)}",
            where=type(source).__name__,
            remedy="make torch.export.export work on the program first",
        ) from error
    finally:
        if training:
            source.train()  # type: ignore[union-attr]
    if program is None:
        raise FrontendError(f"torch returned no program for {type(source).__name__}", where=type(source).__name__)
    return from_onnx_ir(program.model, shapes=shapes, where=type(source).__name__)


def _torch() -> ModuleType:
    try:
        import onnxscript  # noqa: F401 - the exporter needs it
        import torch
    except ImportError as error:
        raise UsageError(f"reading a PyTorch program needs {error.name or 'torch'}", remedy=_INSTALL) from error
    return torch


def _loaded(torch_: ModuleType, path: Path) -> Any:
    if not path.is_file():
        raise FrontendError(f"{path} doesn't exist or is no file", where=str(path), remedy="check the path")
    try:
        return torch_.export.load(path)
    except Exception as error:  # a damaged archive fails in zip, json or torch's own reader
        raise FrontendError(
            f"{path} is no exported PyTorch program: {_first_line(error)}",
            where=str(path),
            remedy="write it with torch.export.save(torch.export.export(module, inputs), path)",
        ) from error


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
