"""Module scope of a node: where in the source program it stems from, from exporter metadata or from its name."""

from __future__ import annotations

import ast
from collections.abc import Mapping

_NAME_SCOPES = "pkg.torch.onnx.name_scopes"
_NAMESPACE = "namespace"


def scope_of(name: str, metadata: Mapping[str, str]) -> str:
    """Deepest module path ("vit.layers.3.attention") that holds the node; "" if nothing tells.

    torch's dynamo exporter keeps the list of enclosing scopes, then the node itself, as metadata. Its predecessor puts
    the path into the node name ("/vit/layers.3/attention/MatMul").
    """
    if metadata:
        if (text := metadata.get(_NAME_SCOPES)) is not None and (scope := _from_name_scopes(text)) is not None:
            return scope
        if (text := metadata.get(_NAMESPACE)) is not None:
            return _from_namespace(text)
    return ".".join(part for part in name.split("/")[:-1] if part)


def _from_name_scopes(text: str) -> str | None:
    try:
        scopes = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return None
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        return None
    return scopes[-2] if len(scopes) > 1 else ""


def _from_namespace(text: str) -> str:
    """From ": model.Vit/layers: torch.nn.ModuleList/layers.3: model.Layer/matmul: aten.matmul"."""
    entries = text.split("/")[:-1]
    scopes = [entry.split(":", 1)[0].strip() for entry in entries]
    return next((scope for scope in reversed(scopes) if scope), "")
