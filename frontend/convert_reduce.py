"""Reductions. Axes were attributes, then became inputs (ReduceSum in operator set 13, the others in 18)."""

from __future__ import annotations

from collections.abc import Callable

from planish.frontend.call import Call, Converted, Converter, Refusal, apply, from_end
from planish.ir import dtypes, ops
from planish.ir.op import Op

Reduction = Callable[[tuple[int, ...], bool], Op]


def reduction(make: Reduction, axes_as_input: int, neutral: bool) -> Converter:
    """Converter of a reduction.

    axes_as_input: first operator set with axes as an input. neutral: reducing over no axis gives the operand.
    """

    def convert(call: Call) -> Converted:
        x, rank = call.arg(0), len(call.dims(0))
        if x.tensor.dtype == dtypes.boolean:
            raise Refusal("reduction of booleans")
        axes = call.ints_of(1) if call.version >= axes_as_input else call.ints_attr("axes")
        if not axes:
            nothing = call.version >= axes_as_input and call.flag_attr("noop_with_empty_axes")
            axes = () if nothing else tuple(range(rank))
        if not axes:
            if not neutral:
                raise Refusal("reduction over no axis")
            return apply(ops.Identity(), x)
        return apply(make(from_end(axes, rank), call.flag_attr("keepdims", True)), x)

    return convert


def _arg_max(call: Call) -> Converted:
    if call.version >= 12 and call.flag_attr("select_last_index"):
        raise Refusal("the last of equal maxima is asked for")
    (axis,) = from_end([call.int_attr("axis", 0)], len(call.dims(0)))
    return apply(ops.ArgMax(axis, call.flag_attr("keepdims", True)), call.arg(0))


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "ReduceMean"): reduction(ops.ReduceMean, 18, neutral=True),
    ("", "ReduceSum"): reduction(ops.ReduceSum, 13, neutral=True),
    ("", "ReduceMax"): reduction(ops.ReduceMax, 18, neutral=True),
    ("", "ReduceMin"): reduction(ops.ReduceMin, 18, neutral=True),
    ("", "ReduceProd"): reduction(ops.ReduceProd, 18, neutral=True),
    ("", "ReduceL2"): reduction(ops.ReduceL2, 18, neutral=False),
    ("", "ReduceSumSquare"): reduction(ops.ReduceSumSquare, 18, neutral=False),
    ("", "ArgMax"): _arg_max,
}
