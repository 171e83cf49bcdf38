"""Does a model multiply? For any ONNX file: op by op, with a proof that what matrix products add up is ternary."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import AttributeProto, ModelProto, NodeProto

from planish.ir.errors import UnsupportedOp
from planish.tools.integer_only import Border, Offender, graph_offenders, read_inferred
from planish.tools.value_sets import Values, value_sets

Verdict = Literal["no multiplications", "no multiplications between its boundaries", "multiplies"]
Kind = Literal["shifts", "additions", "comparisons", "look-ups", "masked sums", "data movement", "boundary"]

_ALLOWED: Mapping[Kind, tuple[str, ...]] = {
    "shifts": ("BitShift",),
    "additions": ("Add", "Sub", "Neg", "Sum", "ReduceSum"),
    "comparisons": (
        *("Max", "Min", "Clip", "Abs", "Sign", "Relu", "Where", "Equal", "Less", "LessOrEqual", "Greater"),
        *("GreaterOrEqual", "And", "Or", "Xor", "Not", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"),
        *("ReduceMax", "ReduceMin", "ArgMax", "ArgMin", "TopK", "MaxPool"),
    ),
    "look-ups": ("Gather", "GatherElements", "GatherND"),
    "data movement": (
        *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Concat", "Expand", "Tile"),
        *("Pad", "Identity", "Cast", "Shape", "Constant", "ConstantOfShape", "ScatterElements", "ScatterND"),
    ),
}
_KINDS: Mapping[str, Kind] = {op: kind for kind, names in _ALLOWED.items() for op in names}

_PRODUCTS: Mapping[str, tuple[int, int]] = {
    "MatMulInteger": (2, 3), "ConvInteger": (2, 3), "MatMul": (-1, -1), "Gemm": (-1, -1),
}  # fmt: skip
"""Products of two operands, with the places of their zero points; -1 for none."""

_AT_THE_BORDER = ("QuantizeLinear", "DequantizeLinear", "Div", "Mul", "Round", "Clip", "Add", "Cast")
_REASONS = {
    "Mul": "it multiplies",
    "Div": "it divides",
    "Mod": "it divides",
    "Pow": "it multiplies",
    "Sqrt": "it takes a root",
    "ReduceMean": "it divides",
    "AveragePool": "it divides",
    "ReduceProd": "it multiplies",
    "ReduceSumSquare": "it multiplies",
    "Einsum": "it multiplies",
}
_TERNARY = frozenset((-1, 0, 1))


@dataclass(frozen=True)
class Certificate:
    """The verdict, what stands against it, the float inputs and outputs, and how many nodes of each kind there are."""

    verdict: Verdict
    boundary: tuple[str, ...]
    offenders: tuple[Offender, ...]
    counts: Mapping[Kind, Mapping[str, int]]

    @property
    def summary(self) -> str:
        """The verdict, and how many nodes of each kind there are."""
        counts = ", ".join(f"{sum(ops.values()):,} {kind}" for kind, ops in self.counts.items())
        return f"{self.verdict}: {counts}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def certified(path: Path) -> Certificate:
    """The certificate of a model without multiplications. Raises UnsupportedOp (exit code 4) where it has some."""
    found = inspect_no_multiply(path)
    if found.offenders:
        first = found.offenders[0]
        raise UnsupportedOp(
            f"{path.name} {found.verdict}: {len(found.offenders)} offenders, the first {first.op}: {first.reason}",
            where=first.where,
            remedy="planish optimize --recipe integer --no-multiply, and look at what it skipped",
        )
    return found


def inspect_no_multiply(path: Path) -> Certificate:
    """Prove of each op that it doesn't multiply, or name it. Raises FrontendError if the file can't be read.

    Allowed are integer shifts, additions, comparisons, look-ups and data movement, and products one operand of which
    consists of -1, 0 and 1, whatever the inputs: sums of what the other one has there. Real numbers, and what scales
    them, only at the border, as for an integer-only model. What isn't known isn't certified.
    """
    model = read_inferred(path)
    border = Border(model.graph)
    offenders = [*_faults(path, model), *graph_offenders(model.graph, border.tensors, border.nodes, "")]
    counts: dict[Kind, Counter[str]] = {}
    known = value_sets(model.graph, path.parent)
    functions = {(_domain(function.domain), function.name) for function in model.functions}
    for node in model.graph.node:
        reason = _hidden(node, functions)
        kind: Kind | None = "boundary"
        if not reason and not (id(node) in border.nodes and node.op_type in _AT_THE_BORDER):
            kind, reason = _judged(node, known)
        if reason or kind is None:
            offenders.append(Offender(_place(node), node.op_type, "", reason))
        else:
            counts.setdefault(kind, Counter())[node.op_type] += 1
    names = tuple(border.names)
    verdict: Verdict = "no multiplications between its boundaries" if names else "no multiplications"
    return Certificate(
        "multiplies" if offenders else verdict,
        names,
        tuple(dict.fromkeys(offenders)),
        {kind: dict(found) for kind, found in counts.items()},
    )


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _place(node: NodeProto) -> str:
    return node.name or (node.output[0] if node.output else node.op_type)


def _faults(path: Path, model: ModelProto) -> Iterator[Offender]:
    """What makes a proof void: types that contradict each other, and names with two definitions."""
    try:
        with tempfile.TemporaryDirectory(prefix="planish-") as folder:
            onnx.shape_inference.infer_shapes_path(str(path), f"{folder}/model.onnx", check_type=True, strict_mode=True)
    except Exception as error:  # onnx raises several unrelated types
        yield Offender(path.name, "", "", f"the model isn't valid: {' '.join(str(error).split())[:200]}")
    graph = model.graph
    defaults = {tensor.name for tensor in graph.initializer}
    names = Counter(name for node in graph.node for name in node.output if name)
    names.update(defaults)
    names.update(value.name for value in graph.input if value.name not in defaults)
    yield from (Offender(name, "", name, "the name is defined twice") for name, n in names.items() if n > 1)


def _hidden(node: NodeProto, functions: set[tuple[str, str]]) -> str:
    """Why nobody can look into a node; "" for an op of ONNX itself."""
    if (_domain(node.domain), node.op_type) in functions:
        return "it calls a function, into which nobody has looked"
    if node.domain not in ("", "ai.onnx"):
        return "what it computes inside isn't known"
    if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute):
        return "it has a graph inside, into which nobody has looked"
    return ""


def _judged(node: NodeProto, known: Values) -> tuple[Kind | None, str]:
    """The kind of an op that doesn't multiply, or None and why that isn't known."""
    if node.op_type in _PRODUCTS:
        reason = _product_fault(node, known)
        return (None, reason) if reason else ("masked sums", "")
    if any(attribute.name == "reduction" and attribute.s not in (b"", b"none") for attribute in node.attribute):
        return None, "it combines values with what was there"
    kind = _KINDS.get(node.op_type)
    return kind, "" if kind else _REASONS.get(node.op_type, "it isn't among the ops that are known not to multiply")


def _product_fault(node: NodeProto, known: Values) -> str:
    """Why neither operand is proven ternary; "" if one is."""
    for attribute in node.attribute:
        if attribute.name in ("alpha", "beta") and attribute.f != 1.0:
            return f"{attribute.name} is {attribute.f:g}"
    reasons = []
    for index, (operand, point) in enumerate(zip(("left", "right"), _PRODUCTS[node.op_type], strict=True)):
        found = known.get(node.input[index]) if len(node.input) > index else None
        if found is None or not found <= _TERNARY:
            what = "isn't known" if found is None else f"may be {max(found - _TERNARY, key=abs)}"
            reasons.append(f"the {operand} operand {what}")
            continue
        zero = node.input[point] if 0 <= point < len(node.input) else ""
        if not zero or known.get(zero) == frozenset((0,)):
            return ""
        reasons.append(f"the {operand} operand is ternary, but its zero point isn't 0")
    return "; ".join(reasons)
