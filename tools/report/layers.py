"""Pictures of what each layer got, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from planish.tools.report.curve import STYLE, svg


def layer_bars(
    heights: Sequence[float],
    colours: Sequence[str],
    label: str,
    noise: Sequence[float | None],
    top: float | None = None,
) -> str:
    """A bar per layer up to `top`, and as points the signal-to-noise ratio of its results in dB, where there is one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    numbers = range(1, len(heights) + 1)
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(max(6.0, 1.5 + 0.22 * len(heights)), 3.2), layout="constrained")
        axes.bar(numbers, heights, 0.8, color=colours)
        axes.set_xlabel("layer")
        axes.set_ylabel(label)
        axes.set_ylim(0, top)
        right = axes.twinx()
        shown = [(i, ratio) for i, ratio in zip(numbers, noise, strict=True) if ratio is not None]
        right.plot([i for i, _ in shown], [ratio for _, ratio in shown], "o", color="#111827", ms=3.5)
        right.set_ylabel("signal to noise of results, dB")
        right.set_ylim(0, None)
        for side in (axes, right):
            side.spines["top"].set_visible(False)
        text = svg(figure)
        pyplot.close(figure)
    return text
