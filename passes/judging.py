"""Sample inputs in three sets that have nothing in common, and how far a rewritten graph is from the original on one.

Maps are fitted on the first set, chosen on the second, and reported on the third: a choice made on the samples that it
is judged by looks many times better than it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from planish.ir.errors import CalibrationError
from planish.ir.graph import Graph, Value
from planish.passes.base import Context, Feeds, Metric, PreparedTaps
from planish.passes.calibration.collect import numpy_taps

_PARTS = 16  # of a set, that the doubt about a metric is estimated from
_SHARES = {"fit": 2, "rank": 1, "report": 1}  # of the calibration feeds; without a report set of its own
_ENOUGH = 2048  # samples to choose or to report on


@dataclass(frozen=True)
class Samples:
    """Feeds, and the labels of their samples in the same order, where known."""

    feeds: Sequence[Feeds]
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class Bars:
    """What the error of a graph has to stay within; None for no bar.

    max_drop: by how much the metric may fall, in its unit. max_nmse: error of the outputs over their variance, which
    counts where there is no metric or no bar for it.
    """

    max_drop: float | None = None
    max_nmse: float | None = None

    def allows(self, distance: Distance, doubts: float = 0.0) -> bool:
        """True if the error is within the bars, or so many standard errors from them."""
        if self.max_drop is not None and distance.drop is not None:
            return distance.nmse < 1 and distance.drop - doubts * distance.doubt <= self.max_drop
        return self.max_nmse is None or distance.nmse <= self.max_nmse

    def __str__(self) -> str:
        if self.max_drop is not None:
            return f"metric at most {self.max_drop:g} lower"
        if self.max_nmse is not None and self.max_nmse < float("inf"):
            return f"output error at most {100 * self.max_nmse:g} % of the variance"
        return ""


@dataclass(frozen=True)
class ThreeSets:
    fit: Samples
    rank: Samples
    report: Samples


@dataclass(frozen=True)
class Distance:
    """How far a graph is from the original.

    nmse: energy of the differences of its outputs over their variance. drop: by how much the metric falls, None without
    one. doubt: standard error of drop, as this many samples allow no better.
    """

    nmse: float
    drop: float | None = None
    doubt: float = 0.0


def three_sets(context: Context) -> ThreeSets:
    """Calibration samples, cut into three sets; with `context.evaluation`, that is the third.

    Of many samples, a few thousand are enough to choose and to report on, where each choice costs a run of all of them:
    the rest goes to those to fit on.
    Raises CalibrationError if there are too few, or if a sample is in two sets.
    """
    assert context.calibration is not None
    feeds, labels = list(context.calibration), getattr(context.calibration, "labels", None)
    shares = dict(_SHARES)
    if context.evaluation is not None:
        del shares["report"]
    wheel = [name for name, share in shares.items() for _ in range(share)]
    if len(feeds) < len(wheel):
        raise CalibrationError(
            f"{len(feeds)} batches of calibration samples can't be cut into sets to fit, to choose and to report on",
            remedy=f"give at least {8 * len(wheel)} samples with --calib",
        )
    of_feed = None if labels is None else _by_feed(feeds, labels)
    sets, owners = {}, _owners(feeds, wheel)
    for name in shares:
        chosen = [i for i, owner in enumerate(owners) if owner == name]
        marks = None if of_feed is None else np.concatenate([of_feed[i] for i in chosen])
        sets[name] = Samples([feeds[i] for i in chosen], marks)
    if context.evaluation is not None:
        sets["report"] = Samples(list(context.evaluation), getattr(context.evaluation, "labels", None))
    found = ThreeSets(**sets)
    need_disjoint(found)
    return found


def _owners(feeds: Sequence[Feeds], wheel: Sequence[str]) -> list[str]:
    """The set of each feed: in turns, until the sets that are judged on are full."""
    owners, held = list[str](), dict.fromkeys(wheel, 0)
    for number, feed in enumerate(feeds):
        name = wheel[number % len(wheel)]
        owners.append(name if held[name] < _ENOUGH else "fit")
        first = next(iter(feed.values()))
        held[name] += len(first) if first.ndim else 1
    return owners


def joined(first: Samples, second: Samples) -> Samples:
    """Two sets as one."""
    labels = None
    if first.labels is not None and second.labels is not None:
        labels = np.concatenate([first.labels, second.labels])
    return Samples([*first.feeds, *second.feeds], labels)


def need_disjoint(sets: ThreeSets) -> None:
    """Raise CalibrationError if one sample is in two of the sets."""
    owner: dict[bytes, str] = {}
    for name in ("fit", "rank", "report"):
        for digest in _digests(getattr(sets, name).feeds):
            if owner.setdefault(digest, name) != name:
                raise CalibrationError(
                    f"a sample is in the set to {owner[digest]} on and in the set to {name} on",
                    remedy="give --verify-with other samples than --calib, and each sample once",
                )


class Judge:
    """Measures graphs against the original on one set, whose outputs by the original are kept."""

    def __init__(self, original: Graph, samples: Samples, context: Context):
        self.samples, self.context = samples, context
        self.names = getattr(original.tail.op, "names", ()) if original.tail is not None else ()
        self.metric: Metric | None = context.metric
        self.expected = self._outputs(original)
        if self.metric is not None:
            self._drop(self.expected, np.arange(len(self.expected[0])))  # a metric that can't be computed fails now

    def distance(self, graph: Graph) -> Distance:
        """How far `graph` is from the original."""
        found = self._outputs(graph)
        errors = [_nmse(new, old) for new, old in zip(found, self.expected, strict=True) if old.dtype.kind == "f"]
        nmse = float(np.mean(errors)) if errors else 0.0
        if self.metric is None:
            return Distance(nmse)
        rows = np.arange(len(found[0]))
        parts = [self._drop(found, part) for part in np.array_split(rows, min(_PARTS, len(rows)))]
        return Distance(nmse, self._drop(found, rows), float(np.std(parts)) / max(len(parts) - 1, 1) ** 0.5)

    def worst(self, graph: Graph) -> float:
        """The greatest error of one sample: energy of the differences of its outputs over the variance of all."""
        errors = [0.0]
        for new, old in zip(self._outputs(graph), self.expected, strict=True):
            if old.dtype.kind == "f":
                each = ((new.astype(np.float64) - old) ** 2).reshape(len(old), -1).mean(axis=1)
                errors.append(float(np.max(each, initial=0.0)) / max(float(np.var(old, dtype=np.float64)), 1e-30))
        return max(errors)

    def _drop(self, found: list[np.ndarray], rows: np.ndarray) -> float:
        """By how much the metric falls on some rows of the outputs; on all, if these don't go with the samples."""
        assert self.metric is not None
        labels, count = self.samples.labels, len(found[0])
        aligned = labels is None or len(labels) == count
        whole = not aligned or any(len(output) != count for output in found)
        chosen = slice(None) if whole else rows
        then, now = (
            self.metric(
                {name: output[chosen] for name, output in zip(self.names, outputs, strict=True)},
                None if labels is None else labels[chosen],
            )
            for outputs in (self.expected, found)
        )
        return then - now

    def _outputs(self, graph: Graph) -> list[np.ndarray]:
        """The outputs on all feeds, each joined along axis 0."""
        run = tapped(self.context, graph, list(graph.outputs))
        parts = [run(feed) for feed in self.samples.feeds]
        return [_joined([np.atleast_1d(part[i]) for part in parts]) for i in range(len(graph.outputs))]


def tapped(context: Context, graph: Graph, values: Sequence[Value]) -> PreparedTaps:
    """The graph, prepared to be run for some of its values."""
    return (context.taps or numpy_taps)(graph, values)


def _nmse(new: np.ndarray, old: np.ndarray) -> float:
    new, old = new.astype(np.float64), old.astype(np.float64)
    if not np.isfinite(new).all():
        return float("inf")
    variance = float(np.mean((old - old.mean(axis=0)) ** 2)) if len(old) > 1 else float(np.var(old))
    return float(np.mean((new - old) ** 2)) / max(variance, 1e-30)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Outputs of all feeds as one array; those whose later axes differ in length are laid flat."""
    if len({part.shape[1:] for part in parts}) > 1:
        parts = [part.reshape(-1, part.shape[-1]) for part in parts]
    return np.concatenate(parts)


def _by_feed(feeds: Sequence[Feeds], labels: np.ndarray) -> list[np.ndarray]:
    """Labels cut as the samples are."""
    sizes = [len(next(iter(feed.values()))) for feed in feeds]
    if sum(sizes) != len(labels):
        sizes = [len(labels) // len(feeds)] * len(feeds)
    return np.split(labels, np.cumsum(sizes)[:-1])


def _digests(feeds: Sequence[Feeds]) -> Iterable[bytes]:
    """One digest for each sample: a row of a batch, or a feed whose arrays aren't batches of one length."""
    for feed in feeds:
        lengths = {len(array) if array.ndim else 0 for array in feed.values()}
        rows = range(next(iter(lengths))) if len(lengths) == 1 else [slice(None)]
        for row in rows:
            sha = hashlib.sha256()
            for name in sorted(feed):
                sha.update(np.ascontiguousarray(feed[name][row] if feed[name].ndim else feed[name]).tobytes())
            yield sha.digest()
