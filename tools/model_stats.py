"""What a model consists of: nodes by kind and bytes, before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from planish.ir.graph import Graph
from planish.ir.op import Const
from planish.ir.ops import Opaque


@dataclass(frozen=True)
class ModelStats:
    """Nodes by op type (constants aside) and size on disk in bytes, external data included."""

    ops: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0

    @property
    def nodes(self) -> int:
        return sum(self.ops.values())


def graph_ops(graph: Graph) -> Counter[str]:
    """Nodes of a graph by the name of their op; carried-over ones by their ONNX name."""
    return Counter(
        n.op.op_type if isinstance(n.op, Opaque) else n.op.name
        for n in graph
        if not isinstance(n.op, Const) and not n.op.is_return
    )


def bytes_of(files: tuple[Path, ...]) -> int:
    """Size of the files together."""
    return sum(file.stat().st_size for file in files)
