"""Train the bundled model: a small DeiT-shaped ViT on Fashion-MNIST, exported as ONNX with its data.

The token geometry is DeiT's: 2x2 patches of a 28x28 image give 196 patches, plus a class token. The input is
the raw uint8 image; normalisation is part of the graph, as in a deployed model.

Needs the `torch` extra and the four idx files of Fashion-MNIST (Debian: package `dataset-fashion-mnist`):

    python -m planish.tools.zoo.train_fashion_vit --data DIR --out DIR

Same seed, same thread count, same torch: same weights. Plain ViTs learn small images slowly, so training uses
three published aids: PatchDropout (arXiv 2208.07220) in all but the last epochs, the mimetic initialisation of
attention (arXiv 2305.09828), and fixed sine-cosine position embeddings as the starting point (arXiv 2205.01580).
"""

from __future__ import annotations

import argparse
import gzip
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = 0.2860, 0.3530  # of the training images, in [0, 1]


class Attention(nn.Module):
    """Multi-head self-attention with packed q, k, v, written out as timm does (no fused SDPA)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """Pre-LayerNorm encoder block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """uint8 images [B, 1, 28, 28] to class logits f32 [B, 10]."""

    def __init__(self, width: int = 96, depth: int = 6, heads: int = 3, side: int = 14, classes: int = 10):
        super().__init__()
        self.patch = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.pos = nn.Parameter(sincos_positions(width, side))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)
        self.apply(initialise)
        for module in self.modules():
            if isinstance(module, Attention):
                mimetic_attention(module)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """`keep` i64 [B, K] selects the patches that take part (PatchDropout); None keeps all."""
        x = (images.float() / 255.0 - MEAN) / STD
        x = self.patch(x).flatten(2).transpose(1, 2) + self.pos
        if keep is not None:
            x = x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def sincos_positions(width: int, side: int) -> Tensor:
    """[1, side*side, width]: sine and cosine of both coordinates."""
    quarter = width // 4
    omega = 1.0 / 100.0 ** (torch.arange(quarter) / quarter)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [grid.flatten()[:, None] * omega[None, :] for grid in (y, x)]
    parts = [f(a) for a in angles for f in (torch.sin, torch.cos)]
    return 0.5 * torch.cat(parts, dim=1)[None]


def initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02 if module.out_features > 10 else 0.01)
        nn.init.zeros_(module.bias)


def mimetic_attention(attention: Attention, near: float = 0.7, far: float = 0.4) -> None:
    """Start q.k near a scaled identity and v.proj near a negative one, as trained ViTs end up."""
    width, heads = attention.proj.in_features, attention.heads
    size = width // heads
    eye, noise = torch.eye(width), lambda: torch.randn(width, width) / math.sqrt(width)
    with torch.no_grad():
        left, _, right = torch.linalg.svd(far * noise() - far * eye)
        attention.qkv.weight[2 * width :] = right * math.sqrt(far)
        attention.proj.weight.copy_(left * math.sqrt(far))
        for head in range(heads):
            u, s, v = torch.linalg.svd(near * noise() + near * eye)
            root = s[:size].sqrt()
            rows = slice(head * size, (head + 1) * size)
            attention.qkv.weight[:width][rows] = (u[:, :size] * root).T
            attention.qkv.weight[width : 2 * width][rows] = v[:size] * root[:, None]


def read_idx(path: Path) -> np.ndarray:
    """One gzipped idx file of unsigned bytes."""
    with gzip.open(path) as file:
        data = file.read()
    rank = data[3]
    shape = np.frombuffer(data, ">i4", rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load_split(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Images u8 [N, 1, 28, 28] and labels i64 [N]."""
    images = read_idx(folder / f"{name}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz")
    return torch.from_numpy(images.copy())[:, None], torch.from_numpy(labels.astype(np.int64))


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Random mirror image and a shift by up to two pixels, each per image."""
    count = images.shape[0]
    mirror = torch.rand(count, generator=rng) < 0.5
    images = torch.where(mirror[:, None, None, None], images.flip(3), images)
    padded = F.pad(images, (2, 2, 2, 2))
    dy, dx = torch.randint(0, 5, (2, count, 1), generator=rng)
    span = torch.arange(28)
    rows, columns = (dy + span)[:, :, None], (dx + span)[:, None, :]
    return padded[torch.arange(count)[:, None, None], 0, rows, columns][:, None]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    right = sum(
        int((model(images[i : i + 250]).argmax(1) == labels[i : i + 250]).sum()) for i in range(0, len(images), 250)
    )
    return right / len(images)


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train; the rate rises linearly and falls as a cosine."""

    epochs: int = 17
    full_epochs: int = 2  # the last of them, which see all patches
    keep_ratio: float = 0.3  # of the patches, in the others
    peak_rate: float = 1.5e-3
    rising_steps: int = 600
    seed: int = 0
    batch: int = 128
    is_compiled: bool = True
    is_mixed: bool = False  # matrix products in bf16

    def rate(self, step: int, steps: int) -> float:
        """Share of the peak rate."""
        fall = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
        return min(1.0, (step + 1) / self.rising_steps) * fall


def train(model: nn.Module, data: Path, out: Path, plan: Plan) -> nn.Module:
    """Train the model as it is; its weights go to out/weights.pt after every epoch."""
    torch.use_deterministic_algorithms(True)
    rng = torch.Generator().manual_seed(plan.seed)
    images, labels = load_split(data, "train")
    test_images, test_labels = load_split(data, "t10k")
    forward = torch.compile(model, dynamic=False) if plan.is_compiled else model
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.peak_rate, betas=(0.9, 0.99))
    batch = plan.batch
    steps = plan.epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: plan.rate(step, steps))
    start = time.time()
    for epoch in range(plan.epochs):
        model.train()
        order = torch.randperm(len(images), generator=rng)
        total = 0.0
        for i in range(len(images) // batch):
            chosen = order[i * batch : (i + 1) * batch]
            x = augment(images[chosen], rng)
            keep = None
            if epoch < plan.epochs - plan.full_epochs:
                keep = torch.rand(batch, 196, generator=rng).argsort(1)[:, : int(196 * plan.keep_ratio)]
            with torch.autocast("cpu", torch.bfloat16, enabled=plan.is_mixed):
                logits = forward(x, keep)
            loss = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        top1 = accuracy(model, test_images[:2000], test_labels[:2000])
        mean, seconds = total / (len(images) // batch), time.time() - start
        torch.save(model.state_dict(), out / "weights.pt")
        print(f"epoch {epoch + 1}/{plan.epochs}  loss {mean:.4f}  top-1 {top1:.4f}  {seconds:.0f} s", flush=True)
    print(f"final top-1 on all {len(test_images)} test images: {accuracy(model, test_images, test_labels):.4f}")
    return model.eval()


def export(model: nn.Module, out: Path) -> None:
    """Write model.onnx as the exporter leaves it, but for the traces that name folders of this machine."""
    out.mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8),),
        dynamo=True,
        opset_version=18,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: batch},),
        external_data=False,
    )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    program.save(out / "model.onnx", external_data=False)


def export_data(data: Path, out: Path, seed: int) -> None:
    """Write calibration.npz (training split) and test.npz (test split)."""
    picks = np.random.default_rng(seed)
    for name, split, count in (("calibration", "train", 512), ("test", "t10k", 2000)):
        images, labels = load_split(data, split)
        chosen = np.sort(picks.choice(len(images), count, replace=False))
        np.savez_compressed(out / f"{name}.npz", images=images.numpy()[chosen], labels=labels.numpy()[chosen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four gzipped idx files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write model.onnx, *.npz and weights.pt to")
    parser.add_argument("--epochs", type=int, default=Plan.epochs)
    parser.add_argument("--full-epochs", type=int, default=Plan.full_epochs, help="last epochs that see all patches")
    parser.add_argument("--keep", type=float, default=Plan.keep_ratio, help="share of patches kept in the other epochs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    plan = Plan(args.epochs, args.full_epochs, args.keep, seed=args.seed)
    export(train(VisionTransformer(), args.data, args.out, plan), args.out)
    export_data(args.data, args.out, args.seed)


if __name__ == "__main__":
    main()
