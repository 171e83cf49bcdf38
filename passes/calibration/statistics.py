"""What calibration keeps of each value: extremes, means and a histogram; and its file form."""

from __future__ import annotations

import hashlib
import io
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planish.ir.errors import CalibrationError, UsageError
from planish.ir.graph import Graph, Value
from planish.ir.op import Const
from planish.ir.text import print_graph
from planish.passes.calibration.histogram import Histogram

_DECAY = 0.95  # of the moving averages of extremes, as I-ViT's
_DAMAGE = (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the time that zip entries carry, so that equal statistics are equal files


@dataclass(frozen=True)
class Request:
    """A value to observe, and the axis along which extremes and means are kept for each channel."""

    value: Value
    channel_axis: int | None = None


class ValueStatistics:
    """Statistics of one value over all feeds so far.

    lo, hi: extremes of all numbers. ema_lo, ema_hi: moving averages of the extremes of each feed.
    channel_lo, channel_hi, channel_mean: per channel, float64[channels], where asked for.
    """

    def __init__(self) -> None:
        self.lo, self.hi = np.inf, -np.inf
        self.ema_lo, self.ema_hi = 0.0, 0.0
        self.feeds = 0
        self.rows = 0
        self.histogram = Histogram()
        self.channel_lo: np.ndarray | None = None
        self.channel_hi: np.ndarray | None = None
        self._channel_sum: np.ndarray | None = None

    @property
    def channel_mean(self) -> np.ndarray | None:
        return None if self._channel_sum is None else self._channel_sum / max(self.rows, 1)

    def add(self, array: np.ndarray, channel_axis: int | None) -> None:
        """Take in one feed's array, all finite and not empty."""
        lo, hi = float(array.min()), float(array.max())
        self.lo, self.hi = min(self.lo, lo), max(self.hi, hi)
        keep = _DECAY if self.feeds else 0.0
        self.ema_lo, self.ema_hi = keep * self.ema_lo + (1 - keep) * lo, keep * self.ema_hi + (1 - keep) * hi
        self.feeds += 1
        self.histogram.add(array)
        if channel_axis is not None:
            self._add_channels(array, tuple(i for i in range(array.ndim) if i != channel_axis % array.ndim))

    def _add_channels(self, array: np.ndarray, others: tuple[int, ...]) -> None:
        lo, hi = array.min(axis=others).astype(np.float64), array.max(axis=others).astype(np.float64)
        total = array.sum(axis=others, dtype=np.float64)
        self.rows += array.size // max(total.size, 1)
        self.channel_lo = lo if self.channel_lo is None else np.minimum(self.channel_lo, lo)
        self.channel_hi = hi if self.channel_hi is None else np.maximum(self.channel_hi, hi)
        self._channel_sum = total if self._channel_sum is None else self._channel_sum + total

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays, for a file."""
        exponent = self.histogram.exponent if self.histogram.exponent is not None else -1000
        scalars = [self.lo, self.hi, self.ema_lo, self.ema_hi, self.feeds, self.rows, exponent]
        found = {"scalars": np.asarray(scalars, np.float64), "counts": self.histogram.counts}
        if self.channel_lo is not None and self.channel_hi is not None and self._channel_sum is not None:
            found["channels"] = np.stack([self.channel_lo, self.channel_hi, self._channel_sum])
        return found

    @staticmethod
    def of_arrays(arrays: Mapping[str, np.ndarray]) -> ValueStatistics:
        """The inverse of `arrays`."""
        made, scalars = ValueStatistics(), arrays["scalars"]
        made.lo, made.hi, made.ema_lo, made.ema_hi = (float(s) for s in scalars[:4])
        made.feeds, made.rows, exponent = (int(s) for s in scalars[4:])
        made.histogram.counts = arrays["counts"].astype(np.int64)
        made.histogram.exponent = None if exponent == -1000 else exponent
        if "channels" in arrays:
            made.channel_lo, made.channel_hi, made._channel_sum = arrays["channels"]
        return made


class Statistics(Mapping[Value, ValueStatistics]):
    """Statistics by value of one graph."""

    def __init__(self, by_value: Mapping[Value, ValueStatistics]):
        self._by_value = dict(by_value)

    def __getitem__(self, value: Value) -> ValueStatistics:
        try:
            return self._by_value[value]
        except KeyError:
            raise CalibrationError(f"{value.hint or 'a value'} wasn't observed during calibration") from None

    def rename(self, old: Value, new: Value) -> None:
        """Keep what was observed of `old` under `new`, which stands in its place."""
        self._by_value[new] = self._by_value.pop(old)

    def __iter__(self) -> Iterator[Value]:
        return iter(self._by_value)

    def __len__(self) -> int:
        return len(self._by_value)

    def save(self, path: Path, graph: Graph, data_digest: str) -> None:
        """Write an .npz whose bytes depend on the contents only. `graph` is the one that was observed.

        Raises UsageError if the file can't be written.
        """
        names = {value: name for name, value in _named(graph)}
        entries = {"key": np.frombuffer(_key(graph, data_digest).encode(), np.uint8)}
        for value, stats in self._by_value.items():
            entries |= {f"{names[value]}/{part}": array for part, array in stats.arrays().items()}
        partial = path.with_name(path.name + ".partial")
        try:
            _write(partial, entries)
            partial.replace(path)
        except OSError as error:
            raise UsageError(
                f"can't write calibration statistics: {error.strerror}",
                where=str(path),
                remedy="name a file in a folder that exists and can be written",
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    @staticmethod
    def load(path: Path, graph: Graph, data_digest: str, requests: Sequence[Request]) -> Statistics:
        """Read what `save` wrote. Raises CalibrationError if it is damaged, or of another graph or other data."""
        remedy = "delete it, or name another file with --calib-cache"
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except _DAMAGE as error:
            raise CalibrationError(
                f"can't read calibration statistics: {error}", where=str(path), remedy=remedy
            ) from error
        key = arrays.pop("key", np.zeros(0, np.uint8)).tobytes().decode(errors="replace")
        if key != _key(graph, data_digest):
            raise CalibrationError(
                "the statistics are of another model or of other data", where=str(path), remedy=remedy
            )
        parts: dict[str, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            place, _, part = name.rpartition("/")
            parts.setdefault(place, {})[part] = array
        found = {v: ValueStatistics.of_arrays(parts[name]) for name, v in _named(graph) if name in parts}
        if not all(_answers(found.get(request.value), request) for request in requests):
            raise CalibrationError("the statistics lack values of this recipe", where=str(path), remedy=remedy)
        return Statistics(found)


def _answers(stats: ValueStatistics | None, request: Request) -> bool:
    return stats is not None and (request.channel_axis is None or stats.channel_lo is not None)


def _write(path: Path, entries: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in sorted(entries.items()):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), buffer.getvalue(), zipfile.ZIP_DEFLATED)


def _named(graph: Graph) -> Iterator[tuple[str, Value]]:
    """Names of values by their place in the graph."""
    for i, value in enumerate(graph.inputs):
        yield f"input{i}", value
    for i, node in enumerate(n for n in graph if not isinstance(n.op, Const)):
        for j, value in enumerate(node.results):
            yield f"node{i}.{j}", value


def _key(graph: Graph, data_digest: str) -> str:
    return hashlib.sha256(f"{print_graph(graph)}\n{data_digest}".encode()).hexdigest()
