"""Transformer encoders and decoders of the zoo: width 32, two layers, two heads, random weights.

Each function returns a module in eval mode that takes tensors by position and returns one tensor. The Hugging Face
models are built from configurations, nothing is downloaded; ``TokenViT`` and ``SwinStage`` are written here in the
manner of image-model libraries (packed query-key-value projection, window partition, relative position bias).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model, LlamaConfig, LlamaModel

from .inputs import VOCABULARY

WIDTH = 32
HEADS = 2
LAYERS = 2
HIDDEN = 48
POSITIONS = 16


class LastHiddenState(nn.Module):
    """A Hugging Face model called with positional tensors, returning its last hidden state."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, tensors, strict=True))).last_hidden_state


def dinov2(attention: str) -> nn.Module:
    """Pre-norm ViT with separate projections, erf GELU and layer scale; 3 x 16 x 16 pixels to 17 tokens."""
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        mlp_ratio=2,
        image_size=16,
        patch_size=4,
        attn_implementation=attention,
    )
    return LastHiddenState(Dinov2Model(config), ("pixel_values",))


def bert(attention: str) -> nn.Module:
    """Post-norm encoder with word, position and type embeddings and a padding mask."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        max_position_embeddings=POSITIONS,
        attn_implementation=attention,
    )
    names = ("input_ids", "attention_mask", "token_type_ids")
    return LastHiddenState(BertModel(config, add_pooling_layer=False), names)


def llama(attention: str, masked: bool = False) -> nn.Module:
    """Causal decoder: RMS norm written out, rotary embedding, gated SiLU, two query heads on one key-value head."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        intermediate_size=HIDDEN,
        max_position_embeddings=POSITIONS,
        use_cache=False,
        attn_implementation=attention,
    )
    return LastHiddenState(LlamaModel(config), ("input_ids", "attention_mask") if masked else ("input_ids",))


class PackedAttention(nn.Module):
    """Self-attention with one packed projection, split by reshape, permute and unbind."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.scale = (WIDTH // HEADS) ** -0.5
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # each [B, H, N, d]
        if self.fused:
            mixed = functional.scaled_dot_product_attention(query, key, value)
        else:
            mixed = ((query * self.scale) @ key.transpose(-2, -1)).softmax(dim=-1) @ value
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class TokenBlock(nn.Module):
    """Pre-norm block: attention and GELU network, each with a residual."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenViT(nn.Module):
    """Classifier with packed attention, class token and a linear head on the class token."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, WIDTH) * 0.1)
        self.blocks = nn.Sequential(*(TokenBlock(PackedAttention(fused)) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(image).flatten(2).transpose(1, 2)  # [B, 16, C]
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class WindowAttention(nn.Module):
    """Attention in windows of 4 x 4 tokens with a learned relative position bias, cyclically shifted or not."""

    def __init__(self, shift: int, side: int = 8, window: int = 4) -> None:
        super().__init__()
        self.shift, self.side, self.window = shift, side, window
        self.scale = (WIDTH // HEADS) ** -0.5
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, HEADS) * 0.1)
        grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offset = grid[:, :, None] - grid[:, None, :] + window - 1
        self.register_buffer("bias_index", offset[0] * (2 * window - 1) + offset[1])
        self.register_buffer("mask", self._shift_mask() if shift else None)

    def _shift_mask(self) -> torch.Tensor:
        """Additive mask [windows, M, M] that keeps tokens of different image regions apart."""
        region = torch.zeros(1, self.side, self.side, 1)
        cuts = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        for row, rows in enumerate(cuts):
            for column, columns in enumerate(cuts):
                region[:, rows, columns] = 3 * row + column
        flat = self.partition(region).squeeze(-1)
        return (flat[:, None, :] != flat[:, :, None]).float() * -100.0

    def partition(self, x: torch.Tensor) -> torch.Tensor:
        size, count = self.window, self.side // self.window
        x = x.view(-1, count, size, count, size, x.shape[-1])
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, x.shape[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size, count, tokens = self.window, self.side // self.window, self.window**2
        x = x.view(-1, self.side, self.side, WIDTH)
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        windows = self.partition(x)  # [B * windows, M, C]
        qkv = self.qkv(windows).reshape(-1, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        logits = (qkv[0] * self.scale) @ qkv[1].transpose(-2, -1)
        bias = self.bias_table[self.bias_index.view(-1)].view(tokens, tokens, HEADS).permute(2, 0, 1)
        logits = logits + bias.unsqueeze(0)
        if self.mask is not None:
            logits = logits.view(-1, count**2, HEADS, tokens, tokens) + self.mask[None, :, None]
            logits = logits.view(-1, HEADS, tokens, tokens)
        mixed = (logits.softmax(dim=-1) @ qkv[2]).transpose(1, 2).reshape(-1, tokens, WIDTH)
        x = self.proj(mixed).view(-1, count, count, size, size, WIDTH)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.side, self.side, WIDTH)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        return x.reshape(-1, self.side**2, WIDTH)


def swin_stage() -> nn.Module:
    """A plain and a shifted window block on [B, 64, 32]."""
    return nn.Sequential(TokenBlock(WindowAttention(0)), TokenBlock(WindowAttention(2)))
