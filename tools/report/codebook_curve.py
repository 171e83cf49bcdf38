"""Pictures of weights in codebooks: what bits cost, and which layer got how many."""

from __future__ import annotations

import math

from planish.passes.shiftadd.report import ShiftAddReport
from planish.tools.report.curve import ACCENT, GREY, STYLE, svg
from planish.tools.report.layers import layer_bars

_COLOURS = {8: "#1e3a8a", 6: "#2563eb", 5: "#60a5fa", 4: "#059669", 3: "#d97706", 2: "#dc2626"}
_SMALLEST = 1e-4  # percent of error that is still drawn: the axis is logarithmic


def bits_curve(report: ShiftAddReport) -> str:
    """Error of the outputs against stored bits per weight, and the change of the metric where there is one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    judged = any(point.chosen.drop is not None for point in report.curve)
    with matplotlib.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            1, 2 if judged else 1, figsize=(10.4 if judged else 7.2, 3.6), layout="constrained", squeeze=False
        )
        points = [point for point in report.curve if point.bits <= 16]
        error, bits = panels[0][0], [point.bits for point in points]
        error.plot(bits, [max(100 * p.chosen.nmse, _SMALLEST) for p in points], "o-", color=ACCENT, ms=5)
        error.plot([report.bits], [max(100 * report.chosen.nmse, _SMALLEST)], "o", ms=13, mfc="none", mec="#dc2626")
        error.plot([report.bits], [max(100 * report.reported.nmse, _SMALLEST)], "D", color="#059669", ms=6)
        error.set_yscale("log")
        error.set_ylabel("error of the outputs, % of their variance")
        if judged:
            metric = panels[0][1]
            changes = [0 - (p.chosen.drop or 0.0) for p in points]
            metric.errorbar(bits, changes, [p.chosen.doubt for p in points], fmt="o-", color=ACCENT, ms=5, capsize=2,
                            elinewidth=0.6, label="choices")  # fmt: skip
            metric.plot([report.bits], [0 - (report.chosen.drop or 0.0)], "o", ms=13, mfc="none", mec="#dc2626",
                        label="taken")  # fmt: skip
            metric.plot([report.bits], [0 - (report.reported.drop or 0.0)], "D", color="#059669", ms=6,
                        label="on unseen samples")  # fmt: skip
            metric.axhline(0, color=GREY, lw=0.8, zorder=1)
            metric.set_ylabel("change of the metric")
            metric.legend(frameon=False, fontsize=9)
        for axes in panels[0]:
            axes.set_xlabel("stored bits per weight, scales counted")
            axes.grid(color="#e5e7eb")
        text = svg(figure)
        pyplot.close(figure)
    return text


def layer_picture(report: ShiftAddReport) -> str:
    """Bits of each layer's weights as bars, and the signal-to-noise ratio of its results as points."""
    widths = [min(layer.bits, 32) for layer in report.layers]
    colours = [_COLOURS.get(math.floor(width), GREY) for width in widths]
    return layer_bars(widths, colours, "stored bits per weight", [layer.noise_db for layer in report.layers])
