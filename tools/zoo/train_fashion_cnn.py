"""Train the bundled CNN: a small MobileNetV3-shaped network on Fashion-MNIST, exported as ONNX.

Conv-BatchNorm-ReLU6 stem, inverted residual blocks with depthwise convolutions, squeeze-and-excite and HardSwish
in the later ones, global average pooling and a linear head. The input is the raw uint8 image; normalisation is part
of the graph. Calibration and test data are those of the bundled ViT.

Needs the `torch` extra and the four idx files of Fashion-MNIST (Debian: package `dataset-fashion-mnist`):

    python -m planish.tools.zoo.train_fashion_cnn --data DIR --out DIR

One thread, so same seed and same torch give the same weights.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planish.tools.zoo.train_fashion_vit import MEAN, STD, accuracy, augment, load_split


class ConvNorm(nn.Sequential):
    """Convolution without bias that keeps the extent (times 1 / stride), BatchNorm, activation."""

    def __init__(self, taken: int, given: int, kernel: int, act: nn.Module, stride: int = 1, group: int = 1):
        conv = nn.Conv2d(taken, given, kernel, stride, kernel // 2, groups=group, bias=False)
        super().__init__(conv, nn.BatchNorm2d(given), act)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the channel means."""

    def __init__(self, channels: int):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return x * F.hardsigmoid(gate)


class InvertedResidual(nn.Module):
    """Expand, depthwise 3x3, (squeeze-and-excite,) project; a residual where the shape stays."""

    def __init__(self, taken: int, given: int, factor: int, stride: int, late: bool):
        super().__init__()
        wide, act = taken * factor, nn.Hardswish if late else nn.ReLU6
        self.residual = stride == 1 and taken == given
        self.body = nn.Sequential(
            ConvNorm(taken, wide, 1, act()),
            ConvNorm(wide, wide, 3, act(), stride, wide),
            SqueezeExcite(wide) if late else nn.Identity(),
            ConvNorm(wide, given, 1, nn.Identity()),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


class FashionCNN(nn.Module):
    """uint8 images [B, 1, 28, 28] to class logits f32 [B, 10]."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.features = nn.Sequential(
            ConvNorm(1, 24, 3, nn.ReLU6(), 2),
            InvertedResidual(24, 24, 3, 1, late=False),
            InvertedResidual(24, 40, 4, 2, late=True),
            InvertedResidual(40, 40, 3, 1, late=True),
            InvertedResidual(40, 40, 3, 1, late=True),
            ConvNorm(40, 128, 1, nn.Hardswish()),
        )
        self.head = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.features((images.float() / 255.0 - MEAN) / STD)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def train(data: Path, out: Path, epochs: int, seed: int) -> nn.Module:
    """Train from scratch; the weights go to out/weights.pt after every epoch."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    rng = torch.Generator().manual_seed(seed)
    images, labels = load_split(data, "train")
    test_images, test_labels = load_split(data, "t10k")
    model = FashionCNN()
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.02},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    batch = 128
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(groups, lr=4e-3)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 400) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    start = time.time()
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(images), generator=rng)
        total = 0.0
        for i in range(len(images) // batch):
            chosen = order[i * batch : (i + 1) * batch]
            loss = F.cross_entropy(model(augment(images[chosen], rng)), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        torch.save(model.state_dict(), out / "weights.pt")
        mean = total / (len(images) // batch)
        print(f"epoch {epoch + 1}/{epochs}  loss {mean:.4f}  {time.time() - start:.0f} s", flush=True)
    print(f"final top-1 on all {len(test_images)} test images: {accuracy(model, test_images, test_labels):.4f}")
    return model.eval()


def export(model: nn.Module, out: Path) -> None:
    """Write model.onnx as the exporter leaves it."""
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 28, 28, dtype=torch.uint8),),
        dynamo=True,
        opset_version=18,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
    )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    program.save(out / "model.onnx", external_data=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four gzipped idx files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write model.onnx and weights.pt to")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    export(train(args.data, args.out, args.epochs, args.seed), args.out)


if __name__ == "__main__":
    main()
