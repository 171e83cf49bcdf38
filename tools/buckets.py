"""Sizes that a model with symbolic dimensions is compiled at: its graph, once for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from planish.backends.tvm.sizes import Variant
from planish.ir.dims import symbols
from planish.ir.errors import UnsupportedOp, UsageError
from planish.ir.graph import Graph, Value
from planish.passes.base import Context, Pipeline, Repeat
from planish.passes.pipelines import cleanup

Buckets = Mapping[str, tuple[int, ...]]
"""Extents by symbol, in ascending order."""


def parse_buckets(options: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Extents by symbol, from `sequence=32,64,128`. Raises UsageError for text that can't be read."""
    found: dict[str, tuple[int, ...]] = {}
    for option in options:
        name, _, text = option.partition("=")
        extents = text.split(",")
        if not name or name in found or not all(part.strip().isdecimal() and int(part) > 0 for part in extents):
            raise UsageError(f"can't read the buckets {option!r}", remedy="write them as --buckets sequence=32,64,128")
        found[name] = tuple(sorted({int(part) for part in extents}))
    return found


def batch_of(graph: Graph) -> str | None:
    """The symbol that leads every input and every output: samples along it are taken to be independent."""
    leading = {_leading(value) for value in (*graph.inputs, *graph.outputs)}
    return leading.pop() if len(leading) == 1 else None


def variants_of(graph: Graph, buckets: Buckets, context: Context) -> list[Variant]:
    """The graph at each combination of sizes. Dimensions that lead an input are 1 where nothing else is said.

    Raises UnsupportedOp for other symbolic dimensions without buckets, UsageError for buckets of no dimension.
    """
    known: dict[str, Value] = {}
    for value in graph.inputs:
        for symbol in (symbol for dim in value.tensor.dims for symbol in sorted(symbols(dim))):
            known.setdefault(symbol, value)
    for name in buckets:
        if name not in known:
            names = ", ".join(known) or "none are symbolic"
            raise UsageError(f"no input has a dimension {name!r}", remedy=f"dimensions that vary: {names}")
    leading = {_leading(value) for value in graph.inputs}
    extents: dict[str, Sequence[int]] = {}
    for symbol, value in known.items():
        if symbol not in buckets and symbol not in leading:
            raise UnsupportedOp(
                f"dimension {symbol!r} of input {value.hint!r} isn't fixed",
                remedy=f"fix it with --shape, or name the sizes to compile: --buckets {symbol}=32,64,128",
            )
        extents[symbol] = buckets.get(symbol, (1,))
    if not extents:
        return [Variant(graph)]
    found = []
    for combination in itertools.product(*extents.values()):
        sizes = dict(zip(extents, combination, strict=True))
        fixed, _ = graph.clone(binding=sizes)
        Pipeline(Repeat(cleanup)).run(fixed, context)
        found.append(Variant(fixed, sizes))
    return found


def _leading(value: Value) -> str | None:
    """The first dimension, if it is one symbol."""
    dims = value.tensor.dims
    return dims[0] if dims and isinstance(dims[0], str) and symbols(dims[0]) == {dims[0]} else None
