"""Pictures of where tokens go: patches of an image outlined by what they merged into, or a strip of positions."""

from __future__ import annotations

import base64
import colorsys
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planish.ir.errors import UsageError
from planish.tools.patches import Picture
from planish.tools.token_trace import GONE, BlockTokens, Trace

_PATCH = 28  # pixels of a patch in a panel, at least
_ACROSS = 4  # panels in a row
_DIMMED = 0.8  # share of `_PALE` over what is left out
_PALE = np.array((0.78, 0.83, 0.98), np.float32)  # no picture in black and white has it
_LINE = np.array((0.75, 0.75, 0.75), np.float32)
_OWN, _JOINED, _GONE = "#1d4ed8", "#bfdbfe", "#f3f4f6"


def write_picture(path: Path, trace: Trace, picture: Picture | None) -> None:
    """Write a .png, or a page with it and a table (.html). Raises UsageError for another suffix."""
    if path.suffix not in (".png", ".html"):
        raise UsageError(f"{path.name} is neither .png nor .html", remedy="name one, as in -o tokens.html")
    drawn = _strip(trace) if picture is None else _panels(trace, picture)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        path.write_bytes(drawn)
    else:
        path.write_text(_page(path.stem, drawn, trace, picture is None), encoding="utf-8")


def panel(picture: Picture, trace: Trace, here: BlockTokens) -> np.ndarray:
    """The picture f32[h, w, 3] with the patches behind one block: each group in its mean colour and framed."""
    places = here.places[trace.protected :].reshape(picture.rows, picture.columns)
    base, high, wide = _enlarged(picture)
    result = base.copy()
    cells = np.kron(places, np.ones((high, wide), np.int64))
    sizes = np.bincount(places[places != GONE], minlength=here.count)
    for group in np.flatnonzero(sizes > 1):
        inside = cells == group
        result[inside] = base[inside].mean(axis=0, dtype=np.float64)
    gone = cells == GONE
    result[gone] = base[gone] * (1 - _DIMMED) + _DIMMED * _PALE
    return _framed(result, cells, sizes, high, wide)


def _enlarged(picture: Picture) -> tuple[np.ndarray, int, int]:
    """The picture with patches of at least `_PATCH` pixels, and their height and width."""
    height, width = picture.pixels.shape[:2]
    high, wide = height // picture.rows, width // picture.columns
    times = -(-_PATCH // min(high, wide))
    return picture.pixels.repeat(times, axis=0).repeat(times, axis=1), high * times, wide * times


def _framed(result: np.ndarray, cells: np.ndarray, sizes: np.ndarray, high: int, wide: int) -> np.ndarray:
    """Thin lines between all patches but those of one group, and a frame in a colour of its own around each group."""
    colours = np.array([_colour(group) for group in range(len(sizes))], np.float32)
    for shift_y, shift_x in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        beside = np.full_like(cells, GONE - 1)
        rows, columns = cells.shape
        beside[max(-shift_y, 0) : rows - max(shift_y, 0), max(-shift_x, 0) : columns - max(shift_x, 0)] = cells[
            max(shift_y, 0) : rows + min(shift_y, 0), max(shift_x, 0) : columns + min(shift_x, 0)
        ]
        edge = (cells != beside) & (cells != GONE)
        grouped = edge & (np.where(cells == GONE, 0, sizes[cells]) > 1)
        result[edge & ~grouped] = _LINE
        for depth in range(max(2, min(high, wide) // 10)):
            moved = np.roll(grouped, (-shift_y * depth, -shift_x * depth), axis=(0, 1))
            moved &= cells == np.roll(cells, (-shift_y * depth, -shift_x * depth), axis=(0, 1))
            result[moved] = colours[cells[moved]]
    return result


def _colour(group: int) -> tuple[float, float, float]:
    """Colours far from each other for groups of neighbouring numbers."""
    return colorsys.hsv_to_rgb((group * 0.61803398875) % 1.0, 0.75, 0.95)


def _panels(trace: Trace, picture: Picture) -> bytes:
    first = ("the picture", f"{trace.tokens} tokens", _enlarged(picture)[0])
    others = [(f"block {here.block}", f"{here.count} tokens", panel(picture, trace, here)) for here in trace.blocks]
    shown = [first, *others]
    across = min(_ACROSS, len(shown))
    down = -(-len(shown) // across)
    from matplotlib.figure import Figure

    ratio = picture.pixels.shape[0] / picture.pixels.shape[1]
    figure = Figure(figsize=(3.3 * across, (3.3 * ratio + 0.35) * down), layout="constrained", dpi=110)
    axes: Any = figure.subplots(down, across, squeeze=False)
    for place in axes.flat:
        place.set_axis_off()
    for place, (title, count, pixels) in zip(axes.flat, shown, strict=False):
        place.imshow(np.clip(pixels, 0, 1), interpolation="nearest")
        place.set_title(f"{title}: {count}", fontsize=11, color="#1f2937")
    return _png(figure)


def _strip(trace: Trace) -> bytes:
    """Rows for blocks, columns for tokens: those with a row of their own, merged into another, or gone."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    states = np.array([np.where(here.own, 0, np.where(here.places == GONE, 2, 1)) for here in trace.blocks])
    states = np.concatenate([np.zeros((1, trace.tokens), np.int64), states.reshape(-1, trace.tokens)])
    figure = Figure(
        figsize=(min(14.0, 2.5 + 0.16 * trace.tokens), 1.3 + 0.3 * len(states)), layout="constrained", dpi=110
    )
    axes: Any = figure.subplots()
    axes.pcolormesh(
        np.arange(trace.tokens + 1) - 0.5,
        np.arange(len(states) + 1),
        states[::-1],
        cmap=ListedColormap([_OWN, _JOINED, _GONE]),
        vmin=0,
        vmax=2,
        edgecolors="white",
        lw=0.6,
    )
    axes.set_yticks(np.arange(len(states)) + 0.5)
    labels = [f"in: {trace.tokens}", *(f"block {here.block}: {here.count}" for here in trace.blocks)]
    axes.set_yticklabels(labels[::-1])
    axes.set_xlabel("position of the token")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    names = [
        ("own row", _OWN),
        ("merged or fused", _JOINED),
        ("left out" if trace.method != "route" else "led around", _GONE),
    ]
    used = [
        Patch(facecolor=c, edgecolor="#9ca3af", lw=0.5, label=n)
        for i, (n, c) in enumerate(names)
        if (states == i).any()
    ]
    figure.legend(handles=used, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _page(title: str, drawn: bytes, trace: Trace, positions: bool) -> str:
    source = base64.b64encode(drawn).decode()
    rows = [("block", "attention", "tokens left")] + [(str(b.block), b.name, str(b.count)) for b in trace.blocks]
    tables = [_table(rows)]
    if positions:
        gone = [(str(i), "stays" if block is None else f"block {block}") for i, block in enumerate(trace.gone_at())]
        tables.append(_table([("position", "went at"), *gone]))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)} - planish</title><style>"
        "body{font:15px/1.5 system-ui,sans-serif;color:#1f2937;max-width:90rem;margin:2rem auto;padding:0 1rem}"
        "img{max-width:100%}table{border-collapse:collapse;margin-top:1rem}"
        "th,td{padding:.2rem .8rem .2rem 0;text-align:left}th{border-bottom:1px solid #9ca3af}</style></head>\n<body>"
        f"<h1>Tokens {html.escape(_WAYS[trace.method])}</h1><p>{_STRIP if positions else _LEGENDS[trace.method]}</p>"
        f'<img alt="tokens by block" src="data:image/png;base64,{source}">{"".join(tables)}</body></html>\n'
    )


_WAYS = {"merge": "merged", "fuse": "fused", "eliminate": "eliminated", "route": "led around blocks"}
_LEGENDS = {
    "merge": "Patches of one token share a colour, the mean of what they show, and a frame.",
    "fuse": "Patches of the fused token share a colour, the mean of what they show, and a frame.",
    "eliminate": "What is pale blue was left out.",
    "route": "What is pale blue was led around the blocks that follow; all tokens come back before others are chosen.",
}

_STRIP = "A column is a token: it has a row of its own, is part of another one's, or is gone."


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    lines = []
    for number, row in enumerate(rows):
        tag = "th" if number == 0 else "td"
        lines.append("<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>")
    return f"<table>{''.join(lines)}</table>"
