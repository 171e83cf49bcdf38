"""From model files and programs to graphs, and from data files to arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.ir.errors import FrontendError, UsageError

if TYPE_CHECKING:
    from planish.ir.graph import Graph

_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def load(
    source: Any,
    *,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    example_inputs: Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
) -> Graph:
    """Read a model: an .onnx or .pt2 file, an onnx ModelProto, an onnx_ir Model, a torch module or ExportedProgram.

    shapes: extents or names for dimensions of inputs. example_inputs, dynamic_shapes: for torch programs.
    Raises FrontendError if the model can't be read, UsageError if the arguments don't fit.
    """
    # Reading ONNX takes half a second of imports and torch several: they wait until a model is there to be read.
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix.lower() in _PICKLES and path.is_file():
            raise FrontendError(
                f"{path} may be a pickle, which can run any code when it is read",
                where=str(path),
                remedy="save the program with torch.export.save as .pt2, or export it to ONNX",
            )
        if path.suffix.lower() != ".pt2":
            from planish.frontend.reader import load_onnx

            return load_onnx(path, shapes=shapes)
    kind = type(source).__module__.partition(".")[0]
    if kind == "onnx" and type(source).__name__ == "ModelProto":
        from planish.frontend.reader import from_proto

        return from_proto(source, shapes=shapes)
    if kind == "onnx_ir" and type(source).__name__ == "Model":
        from planish.frontend.reader import from_onnx_ir

        return from_onnx_ir(source, shapes=shapes)
    if isinstance(source, str | Path) or _is_torch(source):
        from planish.frontend.torch_export import from_torch

        return from_torch(source, example_inputs, dynamic_shapes=dynamic_shapes, shapes=shapes)
    raise UsageError(
        f"a model can't be read from {type(source).__name__}",
        remedy="give a path to an .onnx or .pt2 file, an onnx model, a torch module or an exported program",
    )


def input_names(source: Path) -> list[str]:
    """Names of the inputs of a model file, in order. Raises FrontendError if the file can't be read."""
    return [value.hint for value in load(source).inputs]


def _is_torch(source: object) -> bool:
    return any(cls.__module__.partition(".")[0] == "torch" for cls in type(source).__mro__)
