"""Looking at tokens: a sample is read, followed through a compressed model, drawn and listed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from planish.frontend.calibration import InputSpec, open_calibration
from planish.ir.errors import UsageError
from planish.tools.job_options import schedule
from planish.tools.patches import SUFFIXES, picture_of, read_picture
from planish.tools.samples import input_specs, single_sample
from planish.tools.titled import titled
from planish.tools.token_pictures import write_picture
from planish.tools.token_trace import Trace, compressed_for_tracing, trace


def inspect_tokens(
    model: Path,
    shapes: Mapping[str, tuple[int | str, ...]],
    source: str | None,
    method: str,
    plan: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """Print where the tokens of one sample go, and draw it if there is an output.

    Raises UsageError without a sample, UnsupportedOp where tokens can't be compressed.
    """
    if source is None:
        raise UsageError("--tokens needs an input", remedy="give one with --image photo.jpg or --image samples.npz")
    graph, report = compressed_for_tracing(model, shapes, method, schedule(plan))
    sample = _sample(source, input_specs(graph))
    found = trace(graph, report, sample)
    if output is not None:
        write_picture(output, found, picture_of(sample, found.tokens - found.protected))
    if as_json:
        print(json.dumps(_to_dict(found), indent=2))
        return
    console = Console()
    console.print(_table(found))
    if output is not None:
        Console(stderr=True).print(Text(f"drawn into {output}", style="dim"))


def _sample(source: str, inputs: Mapping[str, InputSpec]) -> dict[str, np.ndarray]:
    """One sample, from a picture file or the first one of data."""
    if Path(source).suffix.lower() in SUFFIXES:
        return read_picture(Path(source), inputs)
    return single_sample(next(iter(open_calibration(source, inputs))), inputs)


def _table(found: Trace) -> Table:
    table = titled(f"Tokens: {found.method}")
    for name in ("block", "attention", "left", "of one token", "lost here"):
        table.add_column(name, justify="left" if name == "attention" else "right", overflow="fold")
    gone = found.gone_at()
    table.add_row("", "", str(found.tokens), str(found.tokens), "")
    for here in found.blocks:
        lost = sum(1 for block in gone if block == here.block)
        table.add_row(str(here.block), Text(here.name), str(here.count), str(_alone(here.places)), str(lost))
    return table


def _alone(places: np.ndarray) -> int:
    """How many tokens still stand for themselves only."""
    return int(np.sum(np.bincount(places[places >= 0]) == 1))


def _to_dict(found: Trace) -> dict[str, Any]:
    return {
        "method": found.method,
        "tokens": found.tokens,
        "protected": found.protected,
        "blocks": [
            {"block": b.block, "attention": b.name, "left": b.count, "places": b.places.tolist()} for b in found.blocks
        ],
        "gone_at": found.gone_at(),
    }
