"""Pictures of weights set to zero: what zeros cost, by method, and which layer got how many."""

from __future__ import annotations

from planish.passes.sparse.report import PruneReport
from planish.tools.report.curve import ACCENT, GREY, STYLE, svg
from planish.tools.report.layers import layer_bars

_COLOURS = {"magnitude": GREY, "wanda": "#d97706", "sparsegpt": "#059669", "obs": ACCENT}
_SMALLEST = 1e-3  # percent of error that is still drawn: the axis is logarithmic


def sparsity_curve(report: PruneReport) -> str:
    """Error of the outputs against products gone, and the change of the metric where there is one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    judged = report.chosen.drop is not None
    with matplotlib.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            1, 2 if judged else 1, figsize=(10.4 if judged else 7.2, 3.6), layout="constrained", squeeze=False
        )
        error, gone = panels[0][0], 100 * (1 - report.density)
        for method, points in report.curves.items():
            shares, colour = [100 * (1 - p.density) for p in points], _COLOURS.get(method, ACCENT)
            errors = [max(100 * min(p.chosen.nmse, 10.0), _SMALLEST) for p in points]
            error.plot(shares, errors, "o-", color=colour, ms=4, label=method)
            if judged:
                changes, doubts = [0 - (p.chosen.drop or 0.0) for p in points], [p.chosen.doubt for p in points]
                panels[0][1].errorbar(
                    shares, changes, doubts, fmt="o-", color=colour, ms=4, capsize=2, elinewidth=0.6, label=method
                )
        marks = [(error, [max(100 * d.nmse, _SMALLEST) for d in (report.chosen, report.reported)])]
        error.set_yscale("log")
        error.set_ylabel("error of the outputs, % of their variance")
        if judged:
            metric = panels[0][1]
            marks.append((metric, [0 - (d.drop or 0.0) for d in (report.chosen, report.reported)]))
            metric.axhline(0, color=GREY, lw=0.8, zorder=1)
            metric.set_ylabel("change of the metric")
        for axes, (chosen, unseen) in marks:
            axes.plot([gone], [chosen], "o", ms=13, mfc="none", mec="#dc2626", label="taken")
            axes.plot([gone], [unseen], "D", color="#111827", ms=6, label="on unseen samples")
            axes.set_xlabel("products gone, %")
            axes.grid(color="#e5e7eb")
            axes.legend(frameon=False, fontsize=9)
        text = svg(figure)
        pyplot.close(figure)
    return text


def density_picture(report: PruneReport) -> str:
    """What stays of each layer's weights as bars, and the signal-to-noise ratio of its results as points."""
    heights = [100 * layer.density for layer in report.layers]
    noise = [layer.noise_db for layer in report.layers]
    return layer_bars(heights, [ACCENT] * len(heights), "weights left, %", noise, top=100)
