"""Pooling: automatic padding and rounded-up extents become explicit pads."""

from __future__ import annotations

from planish.frontend.call import Call, Converted, Converter, Refusal, apply
from planish.frontend.convert_linalg import explicit_pads
from planish.ir import ops


def _window(call: Call) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]:
    """Kernel, strides, pads, dilations; and whether rounding up has widened the pads."""
    kernel = call.ints_attr("kernel_shape") or ()
    if not kernel or len(call.dims(0)) != len(kernel) + 2:
        raise Refusal("pooling window that doesn't fit the operand")
    strides = call.ints_attr("strides") or (1,) * len(kernel)
    dilations = call.ints_attr("dilations") or (1,) * len(kernel)
    pads = explicit_pads(call, kernel, strides, dilations)
    wider = pads
    if call.flag_attr("ceil_mode"):
        wider = _rounded_up(call, kernel, strides, pads, dilations)
    spatial = len(kernel)
    for i, (k, d) in enumerate(zip(kernel, dilations, strict=True)):
        if max(wider[i], wider[i + spatial]) > d * (k - 1) or min(wider[i], wider[i + spatial]) < 0:
            raise Refusal("pooling window that may lie in the padding only")
    return kernel, strides, wider, dilations, wider != pads


def _rounded_up(
    call: Call, kernel: tuple[int, ...], strides: tuple[int, ...], pads: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[int, ...]:
    """Pads with which rounding down gives as many windows as rounding up, less one that would start in the padding."""
    if call.text_attr("auto_pad", "NOTSET") != "NOTSET":
        raise Refusal("automatic padding with rounded-up extents")
    spatial, ends = len(kernel), []
    for i, extent in enumerate(call.dims(0)[2:]):
        if not isinstance(extent, int):
            raise Refusal("rounded-up pooling of symbolic extents")
        before, after = pads[i], pads[i + spatial]
        reach = dilations[i] * (kernel[i] - 1) + 1
        last = -(-(extent + before + after - reach) // strides[i]) * strides[i]  # where the last window starts
        if last >= extent + before:
            last -= strides[i]
        ends.append(max(after, last + reach - extent - before))
    return (*pads[:spatial], *ends)


def _max_pool(call: Call) -> Converted:
    if call.results > 1:
        raise Refusal("MaxPool with the places of the maxima")
    kernel, strides, pads, dilations, _ = _window(call)
    return apply(ops.MaxPool(kernel, strides, pads, dilations), call.arg(0))


def _average_pool(call: Call) -> Converted:
    kernel, strides, pads, dilations, widened = _window(call)
    counted = call.flag_attr("count_include_pad")
    if any(d != 1 for d in dilations):
        raise Refusal("average over dilated windows")
    if widened and counted:
        raise Refusal("average that counts some of the padding only")
    return apply(ops.AveragePool(kernel, strides, pads, counted), call.arg(0))


def _spatial(call: Call) -> tuple[int, ...]:
    if len(call.dims(0)) < 3:
        raise Refusal("global pooling without spatial axes")
    return tuple(range(2 - len(call.dims(0)), 0))


def _global_average_pool(call: Call) -> Converted:
    return apply(ops.ReduceMean(_spatial(call), True), call.arg(0))


def _global_max_pool(call: Call) -> Converted:
    return apply(ops.ReduceMax(_spatial(call), True), call.arg(0))


CONVERTERS: dict[tuple[str, str], Converter] = {
    ("", "MaxPool"): _max_pool,
    ("", "AveragePool"): _average_pool,
    ("", "GlobalAveragePool"): _global_average_pool,
    ("", "GlobalMaxPool"): _global_max_pool,
}
