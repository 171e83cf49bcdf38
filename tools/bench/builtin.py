"""Models to measure on: transformers of well-known sizes with random weights, exported from torch once and kept."""

from __future__ import annotations

import importlib.util
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from planish.ir.errors import UsageError

VITS: Mapping[str, tuple[int, int]] = {"deit-t": (192, 3), "deit-s": (384, 6), "vit-b": (768, 12)}
"""Width and heads; 12 layers, 224 x 224 pixels in patches of 16, 1,000 classes."""

BERTS: Mapping[str, tuple[int, int, int]] = {"bert-mini": (256, 4, 4), "bert-base": (768, 12, 12)}
"""Width, heads and layers; 128 tokens."""

TOKENS = 128


def builtin_names() -> list[str]:
    """Names of the models that are made on demand."""
    return [*VITS, *BERTS]


def builtin_file(name: str) -> Path:
    """The ONNX file of a built-in model, made on first use. Raises UsageError if torch or transformers is missing."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "planish" / "models"
    path = folder / f"{name}.onnx"
    if not path.is_file():
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                raise UsageError(f"{name} needs {package}", remedy='pip install "planish[torch,bench]"')
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            partial = Path(temporary) / f"{secrets.token_hex(4)}.onnx"
            (_vit if name in VITS else _bert)(name, partial)
            os.replace(partial, path)
    return path


def _vit(name: str, path: Path) -> None:
    import torch
    import transformers

    width, heads = VITS[name]
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, num_labels=1000
    )
    config._attn_implementation = "eager"
    model = transformers.ViTForImageClassification(config).eval()
    _with_biases(model)

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: Any) -> Any:
            return self.model(pixels).logits

    _export(Classifier(), (torch.zeros(1, 3, 224, 224),), ["pixels"], path)


def _bert(name: str, path: Path) -> None:
    import torch
    import transformers

    width, heads, layers = BERTS[name]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, num_hidden_layers=layers
    )
    config._attn_implementation = "eager"
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    _with_biases(model)

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any) -> Any:
            return self.model(input_ids=ids).last_hidden_state

    _export(Encoder(), (torch.ones(1, TOKENS, dtype=torch.int64),), ["ids"], path)


def _with_biases(model: Any) -> None:
    """Biases that aren't zero, since simplifiers would drop those."""
    import torch

    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(std=0.02)


def _export(module: Any, arguments: tuple[Any, ...], names: list[str], path: Path) -> None:
    import torch

    exported: Callable[..., Any] = torch.onnx.export
    exported(module.eval(), arguments, str(path), input_names=names, dynamo=True, external_data=False, verbose=False)
