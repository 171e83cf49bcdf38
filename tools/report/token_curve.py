"""Pictures of compressed tokens: what speed costs, by method, and how many tokens each block has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from planish.passes.judging import Distance
from planish.passes.tokens.report import CompressReport, Point
from planish.tools.report.curve import ACCENT, GREY, STYLE, svg

_COLOURS = {"merge": ACCENT, "fuse": "#d97706", "eliminate": "#7c3aed", "route": "#059669"}
_SMALLEST = 1e-4  # percent of error that is still drawn: the axis is logarithmic


def speed_curve(report: CompressReport) -> str:
    """Error of the outputs against speed, and the change of the metric where there is one; one line per method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    judged = any(point.chosen.drop is not None for points in report.curves.values() for point in points)
    with matplotlib.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            1, 2 if judged else 1, figsize=(10.4 if judged else 7.2, 4.0), layout="constrained", squeeze=False
        )
        _panel(panels[0][0], report, _error)
        panels[0][0].set_yscale("log")
        panels[0][0].set_ylabel("error of the outputs, % of their variance")
        if judged:
            _panel(panels[0][1], report, _change, lambda distance: distance.doubt)
            panels[0][1].axhline(0, color=GREY, lw=0.8, zorder=1)
            panels[0][1].set_ylabel("change of the metric")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside upper center", ncols=6)
        text = svg(figure)
        pyplot.close(figure)
    return text


def _panel(
    axes: Any,
    report: CompressReport,
    value: Callable[[Distance], float],
    doubt: Callable[[Distance], float] = lambda distance: 0.0,
) -> None:
    for method, curve in report.curves.items():
        colour, points = _COLOURS[method], sorted(curve, key=lambda point: point.speed)
        speeds = [point.speed for point in points]
        doubts = [doubt(point.chosen) for point in points]
        axes.errorbar(
            speeds, [value(p.chosen) for p in points], doubts if any(doubts) else None,
            fmt="o-", color=colour, ms=5, lw=1.6, elinewidth=0.6, capsize=2, label=method,
        )  # fmt: skip
        seen = [(point.speed, value(point.reported)) for point in points if point.reported is not None]
        axes.plot([s for s, _ in seen], [v for _, v in seen], "o--", color=colour, mfc="white", ms=4, lw=0.8)
    axes.plot([], [], "o--", color=GREY, mfc="white", ms=4, lw=0.8, label="on unseen samples")
    if report.result is not None:
        place = ([report.result.speed], [value(report.result.chosen)])
        axes.plot(*place, "o", ms=13, mfc="none", mec="#dc2626", mew=1.8, label="taken", zorder=5)
    axes.axvline(1, color=GREY, lw=0.8, zorder=1)
    axes.set_xlabel("times as fast as with all tokens" + ("" if _measured(report) else " (estimated)"))
    axes.grid(color="#e5e7eb")


def _error(distance: Distance) -> float:
    return max(100 * distance.nmse, _SMALLEST)


def _change(distance: Distance) -> float:
    return 0 - (distance.drop or 0.0)


def _measured(report: CompressReport) -> bool:
    every: Sequence[Point] = [point for points in report.curves.values() for point in points]
    return all(point.measured for point in every)


def block_picture(report: CompressReport) -> str:
    """Tokens in the attention and in the MLP of each block, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seen = report.choice.tokens_by_block(report.tokens)
    blocks = range(1, len(seen) + 1)
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(max(5.0, 1.2 + 0.62 * len(seen)), 2.8), layout="constrained")
        axes.axhline(report.tokens, color=GREY, lw=0.8, ls="--", zorder=1)
        axes.bar([b - 0.2 for b in blocks], [n for n, _ in seen], 0.38, color="#bfdbfe", label="in attention")
        bars = axes.bar([b + 0.2 for b in blocks], [n for _, n in seen], 0.38, color=ACCENT, label="in the MLP")
        axes.bar_label(bars, fontsize=8, padding=1)
        axes.set_xticks(list(blocks))
        axes.set_xlabel("block")
        axes.set_ylabel("tokens")
        axes.set_ylim(0, 1.12 * report.tokens)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=2)
        text = svg(figure)
        pyplot.close(figure)
    return text
