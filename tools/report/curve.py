"""Pictures of a report, as SVG text that is the same for the same numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from planish.passes.norms.unify_report import UnifyReport
from planish.tools.recovery.recover import Recovery

INK, ACCENT, GREY = "#1f2937", "#2563eb", "#9ca3af"
STYLE: Any = {"svg.hashsalt": "planish", "font.family": "sans-serif", "text.color": INK}
_SMALLEST = 1e-8  # relative error that is still drawn: the axis is logarithmic


def error_curve(report: UnifyReport) -> str:
    """Error of the outputs, and fall of the metric if there is one, against the number of norms replaced."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(7.2, 3.4), layout="constrained")
        counts = [step.count for step in report.curve]
        axes.plot(counts, [_drawn(s.distance.nmse) for s in report.curve], "o-", color=ACCENT, label="output error")
        rejected = [step for step in report.curve if not step.accepted]
        axes.plot([s.count for s in rejected], [_drawn(s.distance.nmse) for s in rejected], "x", color="#dc2626", ms=10)
        replaced = sum(norm.state != "kept" for norm in report.norms)
        axes.plot([replaced], [_drawn(report.reported.nmse)], "D", color="#059669", label="result, on unseen samples")
        axes.set_yscale("log")
        axes.set_xlabel("norms replaced")
        axes.set_ylabel("error / variance of the outputs")
        axes.set_xlim(0, len(report.norms) + 0.5)
        axes.grid(color="#e5e7eb")
        handles, labels = axes.get_legend_handles_labels()
        if any(step.distance.drop is not None for step in report.curve):
            right = axes.twinx()
            drops = [-(step.distance.drop or 0.0) for step in report.curve]
            doubts = [step.distance.doubt for step in report.curve]
            right.errorbar(counts, drops, doubts, fmt="s--", color=GREY, ms=4, capsize=2, label="metric")
            right.set_ylabel("change of the metric")
            more = right.get_legend_handles_labels()
            handles, labels = handles + more[0], labels + more[1]
        figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside upper center", ncols=len(labels))
        text = svg(figure)
        pyplot.close(figure)
    return text


def training_curve(recovery: Recovery) -> str:
    """Error of the outputs on samples that training doesn't see, against its steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(7.2, 2.6), layout="constrained")
        steps: Sequence[int] = [step for step, _ in recovery.curve]
        axes.plot(steps, [_drawn(error) for _, error in recovery.curve], "o-", color=ACCENT)
        axes.set_yscale("log")
        axes.set_xlabel("training steps")
        axes.set_ylabel("error / variance")
        axes.grid(color="#e5e7eb")
        text = svg(figure)
        pyplot.close(figure)
    return text


def _drawn(error: float) -> float:
    return max(error, _SMALLEST)


def svg(figure: object) -> str:
    """A figure as an element of a page: the same bytes for the same figure."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})  # type: ignore[attr-defined]
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
