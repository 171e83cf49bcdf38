"""Seconds that graphs take once they are finished: what passes that weigh speed measure by."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from planish.backends.ort.evaluate import evaluate_opaque
from planish.backends.ort.taps import taps
from planish.backends.targets import Target
from planish.frontend.calibration import open_calibration
from planish.ir.graph import Graph
from planish.passes.base import Context, Feeds, FeedSource, Pipeline
from planish.passes.norms import UnifyNorms
from planish.tools.measure import measure_models
from planish.tools.samples import input_specs
from planish.tools.writing import write_for

_CALIBRATION_FEEDS = 2  # codes of the right sizes are all that timing needs, not good ones
_SECONDS_EACH = 1.0  # of measuring, per graph
_LEAST_SECONDS = 3.0


@dataclass(frozen=True)
class TargetClock:
    """Finishes copies of graphs with the passes that are still to come, writes them for the target, and times them.

    rest: the passes to come. sample: one sample to time on. calibration: for passes that need some.
    on_progress: is told of the stage, and how much of it is done and in all.
    """

    rest: Pipeline
    target: Target
    sample: Feeds
    calibration: FeedSource
    threads: int
    opset: int | None
    seed: int
    on_progress: Callable[[str, int, int], None]

    def __call__(self, graphs: Sequence[Graph]) -> list[float]:
        """Median seconds of each graph, all measured in turns. Raises what passes, writing or running raise.

        Graphs of other inputs than the sample's, such as single layers, are timed on random ones.
        """
        feeds, sample = list(islice(self.calibration, _CALIBRATION_FEEDS)), self.sample
        inputs = input_specs(graphs[0])
        if set(inputs) != set(sample):
            feeds = list(open_calibration(f"random:{_CALIBRATION_FEEDS}", inputs, seed=self.seed))
            sample = feeds[0]
        with tempfile.TemporaryDirectory(prefix="planish-") as name:
            models = {}
            for number, graph in enumerate(graphs):
                folder = Path(name) / str(number)
                folder.mkdir()
                models[str(number)] = self._written(graph, feeds, folder)
                self.on_progress("write candidates", number + 1, len(graphs))
            found = measure_models(
                models,
                sample,
                threads=self.threads,
                seconds=max(_LEAST_SECONDS, _SECONDS_EACH * len(models)),
                on_progress=partial(self.on_progress, "time candidates"),
            )
        return [found.median_ms(name) / 1000 for name in models]

    def _written(self, graph: Graph, feeds: Sequence[Feeds], folder: Path) -> Path:
        copy, _ = graph.clone()
        context = Context(
            target=self.target.name,
            calibration=feeds,
            seed=self.seed,
            evaluate_opaque=evaluate_opaque,
            taps=taps,
        )
        # replacing norms needs more samples than timing does, and hardly changes the time
        self.rest.without(UnifyNorms.name).run(copy, context)
        return write_for(copy, folder, replace(self.target, tune=0.0), opset=self.opset).model
