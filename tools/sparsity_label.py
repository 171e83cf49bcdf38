"""What an ONNX file gains from the zeros of its weights, said truthfully: bytes, where they are stored without them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from planish.backends.onnx.dialect import Spellings
from planish.backends.onnx.writer import write
from planish.ir.graph import Graph, Node
from planish.ir.op import Const, constant
from planish.passes.sparse.detect_sparsity import LAYOUTS, DetectSparsity
from planish.tools.semi_structured import semi_structured

_LARGE = 1 << 30  # bytes of files from which on weights aren't read again


@dataclass(frozen=True)
class SparsityLabel:
    """Weights with zeros in a file for ONNX Runtime, which multiplies by zeros as by anything.

    weights: how many have zeros worth a mention. zeros: their share in these. bytes_smaller: by how much the file is
    smaller than with all zeros in it. two_of_four: weights of which at least half is zero, eligible: how many of these
    TensorRT can skip zeros of.
    """

    weights: int
    zeros: float
    bytes_smaller: int
    two_of_four: int
    eligible: int

    def __str__(self) -> str:
        counted = f"{self.weights} weight{'' if self.weights == 1 else 's'} with {100 * self.zeros:.0f} % zeros"
        text = f"{counted}: no speed-up on ONNX Runtime; {self.bytes_smaller:,} bytes smaller"
        return text + (f"; TensorRT can skip those of {self.eligible}" if self.eligible else "")

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        return {"label": str(self), **asdict(self)}


def sparsity_label(
    graph: Graph, files: Iterable[Path], spellings: Spellings, opset: int | None = None
) -> SparsityLabel | None:
    """The label of a graph that was written to `files`, the model first; None if no weight has zeros worth a mention.

    What is saved is measured: the graph is written a second time, with the zeros, into a folder that goes again.
    """
    found = [array for array in map(_sparse_weight, graph.nodes(*LAYOUTS)) if array is not None]
    if not found:
        return None
    written = tuple(files)
    size, saved = sum(path.stat().st_size for path in written), 0
    if spellings.compact:
        with tempfile.TemporaryDirectory(prefix="planish-") as folder:
            dense = write(
                graph, Path(folder) / written[0].name, opset=opset, spellings=replace(spellings, compact=False)
            )
            saved = sum(path.stat().st_size for path in dense.files) - size
    rows = semi_structured(onnx.load(written[0], load_external_data=False), written[0].parent) if size < _LARGE else []
    elements = sum(array.size for array in found)
    zeros = sum(array.size - np.count_nonzero(array) for array in found)
    return SparsityLabel(len(found), zeros / elements, max(saved, 0), len(rows), sum(row.eligible for row in rows))


def compacted(graph: Graph, spellings: Spellings) -> Spellings:
    """The spellings, with weights stored without their zeros where the runtime folds constants and there are some."""
    typed = any(node.op.data.type.sparsity is not None for node in graph if isinstance(node.op, Const))
    return replace(spellings, compact=True) if typed and spellings.contrib and spellings.multiply else spellings


def _sparse_weight(node: Node) -> np.ndarray | None:
    """The weight of a layer if it has zeros worth a mention."""
    data = constant(node.operands[1])
    if data is None:
        return None
    array = data.numpy()
    known = data.type.sparsity or DetectSparsity().structure(array, LAYOUTS[type(node.op)])
    return None if known is None else array
