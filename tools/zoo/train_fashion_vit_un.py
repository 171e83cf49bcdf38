"""Train the bundled ViT further, with norms that are constants in evaluation, and export it as ONNX.

`--norm unified` exchanges every LayerNorm for Unified Normalization (arXiv 2208.01313), `--norm progressive` for the
progressive RepBN of SLAB (arXiv 2405.11582). `--init` takes the weights of the bundled model, or of a weights.pt that
train_fashion_vit.py left; without it training starts from nothing. Data and its split are those of the bundled model.

Needs the `torch` extra and the four idx files of Fashion-MNIST (Debian: package `dataset-fashion-mnist`). This made
the bundled file:

    python -m planish.tools.zoo.train_fashion_vit_un --data DIR --out tools/zoo/fashion_vit_un \\
        --init tools/zoo/fashion_vit/model.onnx --norm unified

Products are computed in bf16 and nothing is compiled: compiled, the norms' own backward is slower than as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from planish.ir.errors import UsageError
from planish.tools.training.converting import initialize_from, replace_norms
from planish.tools.training.rep_batch_norm import ProgressiveNorm
from planish.tools.training.unified_norm import UnifiedNorm
from planish.tools.zoo.train_fashion_vit import Plan, VisionTransformer, export, load_split, train

FIT_IMAGES = 512  # 100,864 tokens, a thousand for each channel
STEPS_PER_EPOCH = 60_000 // Plan.batch


def trained_weights(path: Path, names: list[str]) -> dict[str, Tensor]:
    """A state of VisionTransformer from weights.pt, or from the file that its exporter made of one."""
    if path.suffix != ".onnx":
        state: dict[str, Tensor] = torch.load(path, weights_only=True)
        return state
    graph = onnx.load(path).graph
    found = {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    # The exporter transposes a linear layer's weight and renames it; the bias added to its product has kept its name.
    for node in graph.node:
        if node.op_type == "Add" and node.input[0] in products and node.input[1].endswith(".bias"):
            found[node.input[1].removesuffix("bias") + "weight"] = found[products[node.input[0]]].T.contiguous()
    missing = [name for name in names if name not in found]
    if missing:
        raise UsageError(
            f"{path} lacks {len(missing)} weights of this model, the first one is {missing[0]}",
            remedy="take a file that train_fashion_vit.py exported",
        )
    return {name: found[name] for name in names}


def with_norm(model: nn.Module, norm: str, warmup: int, steps: int) -> None:
    """Exchange the LayerNorms, for training of so many steps."""

    def unified(layer_norm: nn.LayerNorm) -> nn.Module:
        return UnifiedNorm(layer_norm.normalized_shape[0], warmup=warmup)

    def progressive(layer_norm: nn.LayerNorm) -> nn.Module:
        return ProgressiveNorm(layer_norm, steps)

    replace_norms(model, {"unified": unified, "progressive": progressive}[norm])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four gzipped idx files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write model.onnx and weights.pt to")
    parser.add_argument("--norm", choices=["unified", "progressive"], default="unified")
    parser.add_argument("--init", type=Path, help="trained LayerNorm weights: model.onnx or weights.pt")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--full-epochs", type=int, default=1, help="last epochs that see all patches")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate at its peak")
    parser.add_argument("--warmup", type=int, default=1000, help="steps of batch statistics before UN smooths them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    plan = Plan(
        args.epochs,
        args.full_epochs,
        peak_rate=args.rate,
        rising_steps=100,
        seed=args.seed,
        is_compiled=False,
        is_mixed=True,
    )
    model = VisionTransformer()
    if args.init:
        model.load_state_dict(trained_weights(args.init, list(model.state_dict())))
    # RepBN's share grows to all of it before the last epoch, which settles the running statistics.
    with_norm(model, args.norm, args.warmup, max(1, args.epochs - 1) * STEPS_PER_EPOCH)
    if args.init and args.norm == "unified":
        images, _ = load_split(args.data, "train")
        initialize_from(model, images[:FIT_IMAGES].split(Plan.batch))
    export(train(model, args.data, args.out, plan), args.out)


if __name__ == "__main__":
    main()
