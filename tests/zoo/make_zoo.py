"""Exports the zoo of tiny models and their expected raised-operator counts.

Run from the repository root with the ``torch`` extra and ``transformers`` installed::

    python -m tests.zoo.make_zoo --out tests/zoo

Every file is what the exporter wrote, less the source locations it records, and agrees with torch to 1e-4 in ONNX
Runtime at two batch sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from . import modules_zoo, spelled_zoo, transformers_zoo
from .inputs import VOCABULARY, seeded_inputs

SEED = 20
TOLERANCE = {"float32": 1e-4, "float16": 4e-3}
LARGEST_FILE = 160 * 1024
KEPT_METADATA = ("pkg.torch.onnx.name_scopes",)

PIXELS = {"pixel_values": (torch.float32, (2, 3, 16, 16))}
TOKENS = {"x": (torch.float32, (2, 6, 32))}
IMAGE = {"x": (torch.float32, (2, 8, 8, 8))}
IDS = {"input_ids": (torch.int64, (2, 7))}
MASKED_IDS = {**IDS, "attention_mask": (torch.int64, (2, 7))}
BERT_IDS = {**MASKED_IDS, "token_type_ids": (torch.int64, (2, 7))}

Declared = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Case:
    """A family of files: one module, its inputs (axis 0 is a free batch), its exporters and its raised operators.

    ``targets`` names exporter and opset: ``ts17`` is TorchScript at opset 17, ``dyn18`` dynamo at opset 18.
    ``keep_norms`` exports without the optimizations that would fold batch norms away.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Declared
    raised: dict[str, int]
    targets: tuple[str, ...]
    keep_norms: bool = False


VIT = {"LayerNorm": 5, "Gelu": 2, "Attention": 2}
DECODER = {"RMSNorm": 5, "Swish": 2, "Attention": 2, "RotaryEmbedding": 4}
SWIN = {"LayerNorm": 4, "Gelu": 2, "Attention": 2}
ACTIVATION_TARGETS = ("ts14", "ts17", "dyn18", "dyn20", "dyn23")
NORM_TARGETS = ("ts14", "ts17", "dyn18", "dyn23")
BATCH_NORM_TARGETS = ("ts14", "dyn18")
SPELLED_TARGETS = ("ts14", "dyn18")


def cases() -> Iterator[Case]:
    """All families of the zoo."""
    yield from transformer_cases()
    yield from activation_cases()
    yield from norm_cases()
    yield from block_cases()
    for name, build, inputs, raised in spelled_zoo.rows():
        yield Case(name, build, inputs, raised, SPELLED_TARGETS, name in spelled_zoo.UNOPTIMIZED)


def transformer_cases() -> Iterator[Case]:
    """Encoders and decoders."""
    zoo = transformers_zoo
    yield Case("vit", partial(zoo.dinov2, "eager"), PIXELS, VIT, ("ts11", "ts14", "ts17", "dyn18", "dyn20", "dyn23"))
    yield Case("vit_sdpa", partial(zoo.dinov2, "sdpa"), PIXELS, VIT, ("ts17", "dyn18", "dyn23"))
    yield Case("timm", partial(zoo.TokenViT, True), PIXELS, VIT, ("ts14", "ts17", "dyn18", "dyn23"))
    yield Case("timm_eager", partial(zoo.TokenViT, False), PIXELS, VIT, ("ts11", "ts17", "dyn18", "dyn23"))
    yield Case("bert", partial(zoo.bert, "eager"), BERT_IDS, VIT, ("ts14", "dyn18", "dyn23"))
    yield Case("bert_sdpa", partial(zoo.bert, "sdpa"), BERT_IDS, VIT, ("ts14", "dyn18", "dyn23"))
    for attention in ("eager", "sdpa"):
        name = "llama" if attention == "eager" else "llama_sdpa"
        # TorchScript can't export the search for packed sequences; a mask input avoids it.
        yield Case(name, partial(zoo.llama, attention, True), MASKED_IDS, DECODER, ("ts17",))
        yield Case(name, partial(zoo.llama, attention), IDS, DECODER, ("dyn18", "dyn23"))
    yield Case("swin", zoo.swin_stage, {"x": (torch.float32, (2, 64, 32))}, SWIN, ("ts17", "dyn18", "dyn23"))


def activation_cases() -> Iterator[Case]:
    """One activation each."""
    yield Case("gelu_erf", nn.GELU, TOKENS, {"Gelu": 1}, ACTIVATION_TARGETS)
    yield Case("gelu_tanh", partial(nn.GELU, "tanh"), TOKENS, {"Gelu": 1}, ACTIVATION_TARGETS)
    yield Case("quick_gelu", modules_zoo.QuickGELU, TOKENS, {"Swish": 1}, ("ts17", "dyn18"))
    yield Case("silu", nn.SiLU, TOKENS, {"Swish": 1}, ("ts17", "dyn18", "dyn23"))
    yield Case("hard_swish", nn.Hardswish, TOKENS, {"HardSwish": 1}, ("ts11", "ts14", "dyn18"))


def norm_cases() -> Iterator[Case]:
    """Layer norms, RMS norm, batch norms."""
    zoo, one = modules_zoo, {"LayerNorm": 1}
    yield Case("layer_norm", partial(nn.LayerNorm, 32), TOKENS, one, ("ts11", *NORM_TARGETS))
    plain = partial(nn.LayerNorm, 32, elementwise_affine=False)
    yield Case("layer_norm_plain", plain, TOKENS, one, NORM_TARGETS)
    yield Case("layer_norm_two_axes", partial(nn.LayerNorm, (6, 32)), TOKENS, one, ("ts14", "dyn18"))
    yield Case("layer_norm_channel_first", partial(zoo.ChannelFirstLayerNorm, 8), IMAGE, one, ("ts14", "dyn18"))
    yield Case("rms_norm", partial(nn.RMSNorm, 32, eps=1e-6), TOKENS, {"RMSNorm": 1}, ("dyn18", "dyn23"))
    folded, kept = {"BatchNorm": 0}, {"BatchNorm": 1}
    yield Case("conv_batch_norm", zoo.conv_batch_norm, IMAGE, folded, BATCH_NORM_TARGETS, keep_norms=True)
    rows = {"x": (torch.float32, (2, 32))}
    yield Case("linear_batch_norm", zoo.linear_batch_norm, rows, folded, BATCH_NORM_TARGETS, keep_norms=True)
    yield Case("token_batch_norm", zoo.TokenBatchNorm, TOKENS, folded, BATCH_NORM_TARGETS, keep_norms=True)
    before = partial(zoo.norm_before_conv, 0)
    yield Case("batch_norm_conv", before, IMAGE, folded, BATCH_NORM_TARGETS, keep_norms=True)
    padded = partial(zoo.norm_before_conv, 1)
    yield Case("batch_norm_padded_conv", padded, IMAGE, kept, BATCH_NORM_TARGETS, keep_norms=True)


def block_cases() -> Iterator[Case]:
    """Blocks of convolutional networks and torch's own attention module."""
    zoo = modules_zoo
    image = {"x": (torch.float32, (2, 16, 8, 8))}
    yield Case("convnext", zoo.ConvNextBlock, image, {"LayerNorm": 1, "Gelu": 1}, ("ts14", "ts17", "dyn18", "dyn23"))
    counts = {"HardSwish": 1, "BatchNorm": 0}
    yield Case("mobile", zoo.mobile_block, IMAGE, counts, ("ts11", "ts14", "dyn18"), keep_norms=True)
    merged, fused = partial(zoo.SelfAttention, True), partial(zoo.SelfAttention, False)
    yield Case("multihead", fused, TOKENS, {"Attention": 1}, ("ts14", "ts17", "dyn18", "dyn23"))
    yield Case("multihead_merged", merged, TOKENS, {"Attention": 1}, ("ts14", "ts17", "dyn18"))


def seeded_module(case: Case) -> nn.Module:
    """The case's module in eval mode, with random parameters, statistics and norm weights from the fixed seed."""
    torch.manual_seed(SEED)
    module = case.build()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in module.parameters():
            # Ones and zeros would hide a dropped scale or bias, so vectors get noise on top.
            spread = 0.2 if parameter.dim() == 1 else 0.05
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator) * 0.3)
                layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
    return module.eval()


def example_tensors(inputs: Declared) -> tuple[torch.Tensor, ...]:
    """Tracing inputs of the declared types."""
    generator = torch.Generator().manual_seed(SEED)
    made = []
    for name, (dtype, shape) in inputs.items():
        if dtype.is_floating_point:
            made.append(torch.randn(shape, generator=generator).to(dtype))
        elif name == "input_ids":
            made.append(torch.randint(0, VOCABULARY, shape, generator=generator))
        else:
            made.append(torch.full(shape, int(name == "attention_mask"), dtype=dtype))
    return tuple(made)


def export(case: Case, target: str) -> tuple[onnx.ModelProto, nn.Module]:
    """The exported model of one case at one target, and the module it came from."""
    module, tensors = seeded_module(case), example_tensors(case.inputs)
    names = list(case.inputs)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if target.startswith("ts"):
            model = _export_torchscript(module, tensors, names, int(target[2:]), case.keep_norms)
        else:
            model = _export_dynamo(module, tensors, names, int(target[3:]), case.keep_norms)
    return without_locations(model), module


def _export_torchscript(
    module: nn.Module, tensors: tuple[torch.Tensor, ...], names: list[str], opset: int, keep_norms: bool
) -> onnx.ModelProto:
    buffer = io.BytesIO()
    mode = torch.onnx.TrainingMode.PRESERVE if keep_norms else torch.onnx.TrainingMode.EVAL
    torch.onnx.export(
        module,
        tensors,
        buffer,
        dynamo=False,
        opset_version=opset,
        input_names=names,
        output_names=["y"],
        dynamic_axes={name: {0: "batch"} for name in [*names, "y"]},
        training=mode,
    )
    return onnx.load_from_string(buffer.getvalue())


def _export_dynamo(
    module: nn.Module, tensors: tuple[torch.Tensor, ...], names: list[str], opset: int, keep_norms: bool
) -> onnx.ModelProto:
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in tensors)
    # A module with ``*tensors`` in its signature takes its shapes as one nested tuple.
    signature = inspect.signature(module.forward).parameters.values()
    own = [place for place in signature if place.kind is not place.VAR_POSITIONAL]
    nested = (*shapes[: len(own)], shapes[len(own) :]) if len(own) < len(shapes) else shapes
    program = torch.onnx.export(
        module,
        tensors,
        dynamo=True,
        opset_version=opset,
        input_names=names,
        output_names=["y"],
        dynamic_shapes=nested,
        optimize=not keep_norms,
        verbose=False,
    )
    return program.model_proto


def without_locations(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` without what dynamo records per node beyond module scopes: large, and different between machines."""
    holders = [model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info]
    holders += [*model.graph.input, *model.graph.output]
    for function in model.functions:
        holders += [function, *function.node, *function.value_info]
    for holder in holders:
        kept = [entry for entry in holder.metadata_props if entry.key in KEPT_METADATA]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)
        if not isinstance(holder, onnx.ModelProto):
            holder.ClearField("doc_string")
    return model


def disagreement(model: onnx.ModelProto, module: nn.Module, batch: int) -> float:
    """Largest absolute difference between ONNX Runtime and torch on a seeded feed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = seeded_inputs(model, seed=1, symbolic=batch)
    (got,) = session.run(None, feed)
    with torch.no_grad():
        wanted = module(*(torch.from_numpy(array) for array in feed.values())).numpy()
    return float(np.abs(got - wanted).max()) if got.shape == wanted.shape else float("inf")


def model_dtype(model: onnx.ModelProto) -> str:
    """Name of the dtype of the first output."""
    return onnx.helper.tensor_dtype_to_np_dtype(model.graph.output[0].type.tensor_type.elem_type).name


def write_bytes(path: Path, data: bytes) -> None:
    """Writes ``data`` through a sibling, so that no half-written file is ever left at ``path``."""
    partial_path = path.with_name(path.name + ".partial")
    partial_path.write_bytes(data)
    os.replace(partial_path, path)


def write_zoo(out: Path, only: str) -> list[str]:
    """Writes the files whose name starts with ``only`` and, for the whole zoo, expected.json; returns failures."""
    expected, failures = {}, []
    for case in cases():
        for target in case.targets:
            name = f"{case.name}_{target}.onnx"
            expected[name] = case.raised
            if not name.startswith(only):
                continue
            try:
                model, module = export(case, target)
                error = max(disagreement(model, module, batch) for batch in (2, 3))
            except Exception as problem:
                failures.append(f"{name}: {type(problem).__name__}: {str(problem).strip().splitlines()[0][:200]}")
                print(failures[-1], flush=True)
                del expected[name]
                continue
            data = model.SerializeToString(deterministic=True)
            if error > TOLERANCE[model_dtype(model)] or len(data) > LARGEST_FILE:
                failures.append(f"{name}: error {error:.1e}, {len(data)} bytes")
                print(failures[-1], flush=True)
            write_bytes(out / name, data)
            print(f"{name}: {len(data)} bytes, error {error:.1e}", flush=True)
    if not only:
        text = json.dumps(expected, indent=2, sort_keys=True) + "\n"
        write_bytes(out / "expected.json", text.encode())
    return failures


def main() -> int:
    """Command line; exit code 1 where an export failed or disagrees with torch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--only", default="", help="export only files whose name starts with this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    arguments.out.mkdir(parents=True, exist_ok=True)
    return 1 if write_zoo(arguments.out, arguments.only) else 0


if __name__ == "__main__":
    raise SystemExit(main())
