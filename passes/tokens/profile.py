"""How many tokens each block needs, from the attention that they get; and one knob that turns this into schedules.

Source: the knob is that of the Latency-Adjustable Transformer (arXiv 2201.03327); the measure of a block is our own:
the effective number of tokens that get attention.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.ir import ops
from planish.ir.graph import Graph
from planish.passes.base import Context, FeedSource
from planish.passes.judging import tapped
from planish.passes.tokens.encoder import Encoder, find_encoder
from planish.passes.tokens.masks import key_mask, mask_of
from planish.passes.tokens.schedule import FEWEST
from planish.passes.tokens.signals import received_score

_LEAST = 0.05  # share of tokens that a profile goes down to


@dataclass(frozen=True)
class Profile:
    """Share of the tokens that each block needs: measured, and as an exponential fit that never rises."""

    measured: tuple[float, ...]
    fitted: tuple[float, ...]

    def counts(self, alpha: float, encoder: Encoder) -> list[int]:
        """Tokens behind each block for a latency knob `alpha`: 0 keeps all, 1 what the profile says, more is faster."""
        least = encoder.protected + FEWEST
        return [max(least, round(encoder.tokens * share**alpha)) for share in self.fitted]


def profile(graph: Graph, feeds: FeedSource, context: Context) -> Profile:
    """The profile of the encoder of `graph`: exp(entropy) of the attention that tokens get, over their number."""
    copy, _ = graph.clone()
    encoder = find_encoder(copy)
    scores = []
    for block in encoder.blocks:
        op = block.attention.op
        assert isinstance(op, ops.Attention)
        q, k = block.attention.inputs[:2]
        mask = mask_of(block.attention)
        shown = None if mask is None else key_mask(mask, block.attention)
        score = received_score(q, k, op.scale, shown)
        copy.attach(score, block.attention.next, block.attention.loc)
        scores.append(score)
    run = tapped(context, copy, scores)
    effective = [[_effective(array) for array in run(feed)] for feed in feeds]
    measured = np.mean(np.array([[np.mean(row) for row in one] for one in effective]), axis=0) / encoder.tokens
    return Profile(tuple(measured.tolist()), tuple(_fitted(measured).tolist()))


def _effective(score: np.ndarray) -> np.ndarray:
    """exp(entropy) of each row of scores [B, N]: how many tokens share what is given."""
    share = np.maximum(score.astype(np.float64), 0)
    share /= np.maximum(share.sum(axis=1, keepdims=True), 1e-30)
    return np.asarray(np.exp(-np.sum(share * np.log(np.maximum(share, 1e-30)), axis=1)))


def _fitted(measured: np.ndarray) -> np.ndarray:
    """a * exp(-b * block), by least squares of the logarithms, between `_LEAST` and 1 and never rising."""
    places = np.arange(len(measured))
    slope, start = np.polyfit(places, np.log(np.maximum(measured, _LEAST)), 1) if len(measured) > 1 else (0.0, 0.0)
    fit = np.exp(start + min(slope, 0.0) * places)
    return np.asarray(np.minimum.accumulate(np.clip(fit, _LEAST, 1.0)))
