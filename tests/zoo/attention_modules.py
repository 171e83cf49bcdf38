"""Self-attention as models write it out by hand, on x[B, N, C] with two heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEADS = 32, 2
DEPTH = WIDTH // HEADS

Tensor = torch.Tensor


def heads(x: Tensor) -> Tensor:
    """[B, N, C] as [B, H, N, D]."""
    return x.view(x.shape[0], -1, HEADS, DEPTH).transpose(1, 2)


class Attention(nn.Module):
    """Separate projections, then ``core(q, k, v, *masks)`` on [B, H, N, D], then the heads joined."""

    def __init__(self, core: Callable[..., Tensor], bias: bool = True) -> None:
        super().__init__()
        self.core = core
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(3))

    def forward(self, x: Tensor, *masks: Tensor) -> Tensor:
        mixed = self.core(*(heads(layer(x)) for layer in (self.query, self.key, self.value)), *masks)
        return mixed.transpose(1, 2).reshape(x.shape[0], -1, WIDTH)


def divided(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores over the root of D."""
    return functional.softmax(q @ k.transpose(-1, -2) / DEPTH**0.5, dim=-1) @ v


def scaled_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The scale on the query, the softmax over axis 3."""
    return functional.softmax((q * DEPTH**-0.5) @ k.transpose(2, 3), dim=3) @ v


def scaled_both(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The root of the scale on query and key, the key transposed once."""
    return ((q * DEPTH**-0.25) @ (k * DEPTH**-0.25).permute(0, 1, 3, 2)).softmax(-1) @ v


def unscaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """No scale (T5)."""
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Products as einsum."""
    weights = (torch.einsum("bhid,bhjd->bhij", q, k) * DEPTH**-0.5).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", weights, v)


def added_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Padding as a large negative summand (BERT)."""
    return (q @ k.transpose(-1, -2) / DEPTH**0.5 + (1.0 - mask[:, None, None, :]) * -10000.0).softmax(-1) @ v


def filled_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Padding as the lowest number, put in after the product (DistilBERT)."""
    scores = (q / DEPTH**0.5) @ k.transpose(2, 3)
    padding = (mask == 0).view(mask.shape[0], 1, 1, -1).expand_as(scores)
    return scores.masked_fill(padding, torch.finfo(torch.float32).min).softmax(-1) @ v


def causal_where(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A triangle selects scores (GPT-2)."""
    scores = q @ k.transpose(-1, -2) * DEPTH**-0.5
    triangle = torch.ones(6, 6, dtype=torch.bool).tril()
    return torch.where(triangle, scores, torch.finfo(torch.float32).min).softmax(-1) @ v


def softmax_in_single_precision(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores cast up for the softmax, weights cast down again."""
    return functional.softmax(q @ k.transpose(-1, -2) * DEPTH**-0.5, dim=-1, dtype=torch.float32).to(v.dtype) @ v


def guarded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """NaN among the weights becomes zero."""
    weights = (q @ k.transpose(-1, -2) * DEPTH**-0.5).softmax(-1)
    return torch.where(torch.isnan(weights), 0.0, weights) @ v


def merged_batch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads merged into the batch, a causal mask added under another shape (CLIP)."""
    batch, _, tokens, _ = q.shape
    q, k, v = (x.reshape(-1, tokens, DEPTH) for x in (q * DEPTH**-0.5, k, v))
    scores = torch.bmm(q, k.transpose(1, 2))
    mask = torch.full((6, 6), -10000.0).triu(1)[None, None]
    scores = (scores.view(batch, HEADS, tokens, tokens) + mask).view(batch * HEADS, tokens, tokens)
    return torch.bmm(scores.softmax(-1), v).view(batch, HEADS, tokens, DEPTH)


def dropped_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """With the dropout of training, which evaluation leaves out."""
    return functional.dropout((q @ k.transpose(-1, -2) / DEPTH**0.5).softmax(-1), 0.1, training=False) @ v


class KeyInOneTranspose(nn.Module):
    """Key as [B, H, D, N] in one permutation."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(-1, 6, HEADS, DEPTH) for layer in (self.query, self.key, self.value))
        weights = (q.permute(0, 2, 1, 3) @ k.permute(0, 2, 3, 1) / DEPTH**0.5).softmax(-1)
        return (weights @ v.permute(0, 2, 1, 3)).permute(0, 2, 1, 3).reshape(-1, 6, WIDTH)


class PackedProjection(nn.Module):
    """One projection for query, key and value, taken apart by ``cut`` (chunk or slice)."""

    def __init__(self, cut: str) -> None:
        super().__init__()
        self.cut = cut
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(x)
        if self.cut == "chunk":
            parts = packed.chunk(3, dim=-1)
        else:
            parts = tuple(packed[..., WIDTH * place : WIDTH * (place + 1)] for place in range(3))
        mixed = divided(*(heads(part) for part in parts))
        return mixed.transpose(1, 2).reshape(x.shape[0], -1, WIDTH)


class EinsumProjections(nn.Module):
    """Weights [C, H, D] and einsum throughout (Albert, TensorFlow)."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(WIDTH, HEADS, DEPTH) * 0.2 for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bsd,dnh->bsnh", x, weight) for weight in self.weights)
        weights = (torch.einsum("bfnd,btnd->bnft", q, k) * DEPTH**-0.5).softmax(-1)
        return torch.einsum("bnft,btnd->bfnd", weights, v).reshape(x.shape[0], -1, WIDTH)


class FlattenedRows(nn.Module):
    """Products on rows [B * N, C] (GPT-2's Conv1D, TensorFlow's BERT)."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(WIDTH, WIDTH) * 0.2 for _ in range(3))
        self.shift = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH)
        q, k, v = (torch.addmm(self.shift, rows, weight).view(x.shape) for weight in self.weights)
        return divided(heads(q), heads(k), heads(v)).transpose(1, 2).reshape(x.shape)


class ConvolvedProjections(nn.Module):
    """1 x 1 convolutions as projections, on an image [B, C, H, W]."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(width, width, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2).view(x.shape[0], 2, 4, 64) for layer in (self.query, self.key, self.value))
        weights = (q.transpose(-1, -2) @ k * 0.5).softmax(-1)  # [B, H, HW, HW]
        return (v @ weights.transpose(-1, -2)).reshape(x.shape)


class RotaryHalves(nn.Module):
    """Query and key turned by the two parts of each head, joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        angles = torch.arange(6.0)[:, None] * 10000.0 ** (-torch.arange(0, DEPTH, 2) / DEPTH)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def turned(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(layer(x)) for layer in (self.query, self.key, self.value))
        return divided(self.turned(q), self.turned(k), v).transpose(1, 2).reshape(x.shape)
