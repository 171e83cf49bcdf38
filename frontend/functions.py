"""Functions that a model brings along: inlined where they speak the model's operator sets, else kept."""

from __future__ import annotations

import onnx_ir
from onnx_ir.passes.common import InlinePass

from planish.ir.errors import FrontendError


def inlined(model: onnx_ir.Model, where: str) -> onnx_ir.Model:
    """Inline, in place, the functions whose operator sets agree with the model's. Raises FrontendError on recursion."""
    if not model.functions:
        return model
    agreed = dict(model.opset_imports)

    def agrees(function: onnx_ir.Function) -> bool:
        if any(attr.type in _GRAPHS for attr in function.attributes.values()):
            return False
        return all(agreed.setdefault(domain, version) == version for domain, version in function.opset_imports.items())

    try:
        result = InlinePass(criteria=agrees)(model)
    except onnx_ir.passes.PreconditionError as error:
        raise FrontendError("a function of the model calls itself", where=where) from error
    return result.model


_GRAPHS = (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS)
