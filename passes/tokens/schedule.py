"""How many tokens go in which block, from the ways in which a user says so."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from planish.ir.errors import UsageError
from planish.ir.ops.tokens import most_merged
from planish.passes.tokens.encoder import Encoder

Schedule = int | float | str | tuple[int, ...]
"""13: so many in each block; "linear:13": on average as many, falling to none; 0.7: such a share stays at
each of three stages, a quarter, a half and three quarters of the way; (60, 0, 40, 0): block by block."""

FEWEST = 4  # tokens that are always left
_STAGES = (0.25, 0.5, 0.75)


def useful_blocks(encoder: Encoder) -> int:
    """Blocks in which fewer tokens save work: where heads read single tokens, only their rows of the last one count."""
    return len(encoder.blocks) if encoder.is_dense else len(encoder.blocks) - 1


def removed_by(schedule: Schedule, encoder: Encoder, method: str) -> tuple[int, ...]:
    """Tokens that go in each block, cut down to what can go. Raises UsageError for what isn't a schedule."""
    blocks = len(encoder.blocks)
    if isinstance(schedule, tuple | list):
        if len(schedule) != blocks or any(not isinstance(r, int) or r < 0 for r in schedule):
            raise UsageError(
                f"schedule {tuple(schedule)} isn't one number of tokens for each of {blocks} blocks",
                remedy="write as many numbers as there are blocks, 0 for none",
            )
        return feasible(schedule, encoder, method)
    if isinstance(schedule, str):
        kind, _, number = schedule.partition(":")
        if kind != "linear" or not number.isdigit():
            raise UsageError(
                f"there is no schedule {schedule!r}", remedy='write "linear:13", 13, 0.7 or (60, 0, 40, 0)'
            )
        used = useful_blocks(encoder)
        falling = np.linspace(2 * int(number), 0, used) if used > 1 else np.array([int(number)])
        return feasible([round(float(r)) for r in falling] + [0] * (blocks - used), encoder, method)
    if isinstance(schedule, int) and method != "route":
        return feasible([schedule] * useful_blocks(encoder) + [0] * (blocks - useful_blocks(encoder)), encoder, method)
    share = schedule if isinstance(schedule, float) else 1 - schedule / encoder.tokens
    if not 0 < share <= 1:
        raise UsageError(f"{schedule} isn't a share of tokens that stay", remedy="take a number between 0 and 1")
    return staged(share, encoder, method)


def staged(share: float, encoder: Encoder, method: str, stages: Sequence[float] = _STAGES) -> tuple[int, ...]:
    """A share of the tokens stays at each stage (a place between 0 and 1 in the stack); for `route`, of all tokens."""
    blocks, left = len(encoder.blocks), encoder.tokens
    removed = [0] * blocks
    for stage in stages:
        block = min(int(blocks * stage), useful_blocks(encoder) - 1)
        if method == "route":
            left = encoder.tokens
        stay = math.ceil(share * (left - encoder.protected)) + encoder.protected
        removed[block] = left - stay if method == "route" else removed[block] + left - stay
        left = stay
    return feasible(removed, encoder, method)


def by_counts(counts: Sequence[int], encoder: Encoder, method: str) -> tuple[int, ...]:
    """Tokens that go in each block, for how many are left behind each."""
    left, removed = encoder.tokens, []
    used = useful_blocks(encoder)
    for count in counts[:used]:
        removed.append(max(left - count, 0))
        left -= removed[-1]
    return feasible([*removed, *[0] * (len(counts) - used)], encoder, method)


def feasible(removed: Sequence[int], encoder: Encoder, method: str) -> tuple[int, ...]:
    """Cut down to what can go in each block: half of the tokens at most where they merge; some are always left."""
    left, made = encoder.tokens, []
    for wanted in removed:
        if method == "route" and wanted:
            left = encoder.tokens
        most = max(left - encoder.protected - FEWEST, 0)
        if method == "merge":
            most = min(most, most_merged(left, encoder.protected))
        possible = min(int(wanted), most)
        if method in ("fuse", "route") and possible < 2:
            possible = 0  # one token more comes than goes
        made.append(possible)
        left -= possible
    return tuple(made)
