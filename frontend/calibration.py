"""Calibration and test data: where the feeds of a model come from, and the proof that they fit it.

A data set is a stream of feeds (input name -> array). It is read once when it is opened, to count, hash and check every
feed, and again at each iteration; no more than one feed is in memory at a time. Nothing is unpickled, cast or invented.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from planish.frontend.array_stream import ArrayStream, UnreadableArrayError, open_npy, open_npz
from planish.frontend.feeds import (
    LABELS,
    Feeds,
    InputSpec,
    check_keys,
    checked_array,
    checked_labels,
    is_float,
    shape_error,
    update_digest,
)
from planish.frontend.user_module import load_module
from planish.ir.errors import CalibrationError

__all__ = ["CalibrationSet", "InputSpec", "open_calibration"]

FORMS = "file.npz, file.npy, a folder of them, an ONNX test_data_set_* folder, file.py:function, or random:N"


class CalibrationSet:
    """A re-iterable stream of checked feeds in a fixed order.

    source: how the data was named, without folders, for the manifest.
    labels: int64 array with one entry per sample where the data has a key `labels`, else None.
    Raises CalibrationError where a feed doesn't fit `inputs`, or there is none.
    """

    def __init__(self, source: str, inputs: Mapping[str, InputSpec], open_feeds: Callable[[], Iterator[Feeds]]):
        self.source = source
        self._inputs = dict(inputs)
        self._open_feeds = open_feeds
        self._length = 0
        self._survey()

    def __len__(self) -> int:
        """Number of feeds, each one sample or one batch."""
        return self._length

    def __iter__(self) -> Iterator[Feeds]:
        count = 0
        for feed in self._open_feeds():
            yield self._checked(feed, count)
            count += 1
        if count != self._length:
            raise CalibrationError(
                f"the data gave {self._length} feeds when it was opened and {count} now",
                where=self.source,
                remedy="let the function yield the same feeds at every call",
            )

    def digest(self) -> str:
        """SHA-256 of all feeds and labels, independent of how they were stored."""
        return self._digest

    def _survey(self) -> None:
        sha = hashlib.sha256()
        labels: list[np.ndarray] = []
        for feed in self._open_feeds():
            if LABELS in feed and LABELS not in self._inputs:
                labels.append(checked_labels(feed[LABELS], self.source))
            checked = self._checked(feed, self._length)
            for name in self._inputs:
                update_digest(sha, name, checked[name])
            self._length += 1
        if self._length == 0:
            raise CalibrationError("the data set is empty", where=self.source, remedy="give at least one sample")
        if labels and len(labels) != self._length:
            raise CalibrationError(
                f"{len(labels)} of {self._length} feeds have labels",
                where=self.source,
                remedy="label all feeds or none",
            )
        self.labels: np.ndarray | None = np.concatenate(labels) if labels else None
        if self.labels is not None:
            update_digest(sha, LABELS, self.labels)
        self._digest = sha.hexdigest()

    def _checked(self, feed: Feeds, index: int) -> Feeds:
        where = f"{self.source}, feed {index}"
        check_keys(feed.keys(), self._inputs, where)
        return {name: checked_array(name, feed[name], spec, where) for name, spec in self._inputs.items()}


def open_calibration(spec: str, inputs: Mapping[str, InputSpec], *, seed: int = 0, batch: int = 1) -> CalibrationSet:
    """Open the data set that `spec` names, for a model with `inputs` (in graph order), and check all of it.

    spec: a `.npz` (keys = input names, axis 0 = samples, optional key `labels`), a `.npy` (model with one input), a
      folder of such files (one file = one batch), an ONNX `test_data_set_*` folder or a folder of these,
      `file.py:function` (the function yields dicts), or `random:N` (N feeds drawn from `seed`).
    batch: samples per feed where axis 0 of the inputs is symbolic; a fixed axis 0 decides itself.

    In an array file, data of the input's own rank is cut along axis 0 into batches; data with one axis more has one
    whole feed per entry of axis 0; a scalar for a scalar input goes into every feed.

    Raises CalibrationError naming input, expected and found, file and remedy.
    """
    if batch < 1:
        raise CalibrationError(
            f"a batch holds at least one sample, not {batch}", remedy="give a batch size of 1 or more"
        )
    if not inputs:
        raise CalibrationError("the model has no inputs to feed", where=spec, remedy="leave the data out")
    if spec.startswith("random:"):
        return _random_set(spec, inputs, seed)
    if match := re.fullmatch(r"(.+\.py):([A-Za-z_]\w*)", spec):
        return _function_set(Path(match[1]), match[2], inputs)
    path = Path(spec)
    if not path.exists():
        raise CalibrationError(f"no such data: {path}", remedy=f"give {FORMS}")
    if path.is_dir():
        return _folder_set(path, inputs)
    if path.suffix in (".npz", ".npy"):
        return CalibrationSet(path.name, inputs, lambda: _batches(path, inputs, batch))
    remedy = f"name the function too, as in {path.name}:feeds" if path.suffix == ".py" else f"give {FORMS}"
    raise CalibrationError(f"can't read data from a '{path.suffix or path.name}' file", where=str(path), remedy=remedy)


def _streams(path: Path, inputs: Mapping[str, InputSpec]) -> dict[str, ArrayStream]:
    try:
        if path.suffix == ".npz":
            return open_npz(path)
        if len(inputs) != 1:
            raise CalibrationError(
                f"a .npy file holds one array, and the model has {len(inputs)} inputs: {', '.join(inputs)}",
                where=str(path),
                remedy="save them under their names: np.savez('data.npz', "
                + ", ".join(f"{n}=..." for n in inputs)
                + ")",
            )
        return {next(iter(inputs)): open_npy(path)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, UnreadableArrayError) as error:
        raise CalibrationError(
            f"can't read the data file: {error}",
            where=str(path),
            remedy="save plain arrays with numpy.savez or numpy.save (no pickled objects)",
        ) from error


def _batches(path: Path, inputs: Mapping[str, InputSpec], batch: int) -> Iterator[Feeds]:
    """Feeds cut from a file whose arrays hold all samples along axis 0."""
    streams = _streams(path, inputs)
    check_keys(streams.keys(), inputs, str(path))
    cuts: dict[str, int | None] = {}
    feeds: dict[str, int] = {}
    for name, spec in inputs.items():
        cuts[name] = _rows_per_feed(name, streams[name], spec, batch, str(path))
        if (rows := cuts[name]) is not None:
            feeds[name] = -(-streams[name].shape[0] // max(rows, 1))
    if len(set(feeds.values())) > 1:
        counts = ", ".join(f"'{name}' {streams[name].shape} gives {count}" for name, count in feeds.items())
        raise CalibrationError(
            f"the arrays differ in the number of feeds: {counts}",
            where=str(path),
            remedy="give every input the same number of samples along axis 0",
        )
    sliced = [rows for rows in cuts.values() if rows]
    if LABELS in streams and LABELS not in inputs:
        cuts[LABELS] = max(sliced, default=1)
        _check_label_count(streams[LABELS], streams, cuts, inputs, str(path))
    readers = {name: streams[name].rows(rows) for name, rows in cuts.items() if rows is not None}
    shared = {name: streams[name].whole() for name, rows in cuts.items() if rows is None}
    try:
        for _ in range(next(iter(feeds.values()), 1)):
            yield {name: next(reader) for name, reader in readers.items()} | shared
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.error, StopIteration) as error:
        raise CalibrationError(
            f"the data file is damaged: {error}", where=str(path), remedy="write it again"
        ) from error


def _rows_per_feed(name: str, stream: ArrayStream, spec: InputSpec, batch: int, where: str) -> int | None:
    """Entries of axis 0 that one feed takes; 0 = one entry, without the axis; None = the array as it is."""
    rank, found = None if spec.shape is None else len(spec.shape), len(stream.shape)
    if rank == 0 and found == 0:
        return None
    if rank is None or spec.shape is None:
        return batch if found else None
    if found == rank + 1:
        return 0
    if found != rank:
        raise shape_error(name, stream.shape, spec, where, samples_first=True)
    rows = spec.shape[0]
    if isinstance(rows, str):
        return batch
    if rows == 0 or stream.shape[0] % rows:
        raise CalibrationError(
            f"input '{name}' takes batches of exactly {rows}, and the data has {stream.shape[0]} samples",
            where=where,
            remedy=f"give a multiple of {rows} samples",
        )
    return rows


def _check_label_count(
    labels: ArrayStream,
    streams: Mapping[str, ArrayStream],
    cuts: Mapping[str, int | None],
    inputs: Mapping[str, InputSpec],
    where: str,
) -> None:
    samples = next((streams[name].shape[0] for name in inputs if cuts[name] == cuts[LABELS]), None)
    samples = samples or next((streams[name].shape[0] for name in inputs if cuts[name] == 0), 1)
    if labels.shape != (samples,):
        raise CalibrationError(
            f"key 'labels' has shape {labels.shape}, expected ({samples},)",
            where=where,
            remedy="give one label per sample",
        )


def _folder_set(folder: Path, inputs: Mapping[str, InputSpec]) -> CalibrationSet:
    files = sorted(file for file in folder.iterdir() if file.suffix in (".npz", ".npy") and file.is_file())
    if files:
        return CalibrationSet(folder.resolve().name, inputs, lambda: (_whole_file(file, inputs) for file in files))
    if any(folder.glob("input_*.pb")):
        cases = [folder]
    else:
        found = [case for case in folder.glob("test_data_set_*") if case.is_dir()]
        cases = sorted(found, key=lambda case: (int("0" + re.sub(r"\D", "", case.name)), case.name))
    if not cases:
        raise CalibrationError("the folder has no data in it", where=str(folder), remedy=f"give {FORMS}")
    return CalibrationSet(folder.resolve().name, inputs, lambda: (_test_case(case, inputs) for case in cases))


def _whole_file(path: Path, inputs: Mapping[str, InputSpec]) -> Feeds:
    streams = _streams(path, inputs)
    check_keys(streams.keys(), inputs, str(path))
    try:
        feed = {name: stream.whole() for name, stream in streams.items()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CalibrationError(
            f"the data file is damaged: {error}", where=str(path), remedy="write it again"
        ) from error
    for name, spec in inputs.items():
        feed[name] = checked_array(name, feed[name], spec, str(path))
    return feed


def _test_case(folder: Path, inputs: Mapping[str, InputSpec]) -> Feeds:
    """Feed of one ONNX test case: `input_k.pb` is the tensor of the k-th graph input."""
    from google.protobuf.message import DecodeError
    from onnx import TensorProto, numpy_helper

    feed: Feeds = {}
    for index, (name, spec) in enumerate(inputs.items()):
        path = folder / f"input_{index}.pb"
        if not path.exists():
            raise CalibrationError(
                f"input '{name}' has no file input_{index}.pb",
                where=str(folder),
                remedy="give one file per graph input",
            )
        tensor = TensorProto()
        try:
            tensor.ParseFromString(path.read_bytes())
            array = numpy_helper.to_array(tensor)
        except (DecodeError, OSError, ValueError, TypeError) as error:
            raise CalibrationError(
                f"can't read a tensor for input '{name}': {error}", where=str(path), remedy="write a TensorProto"
            ) from error
        feed[name] = checked_array(name, array, spec, str(path))
    return feed


def _function_set(path: Path, function: str, inputs: Mapping[str, InputSpec]) -> CalibrationSet:
    where = f"{path.name}:{function}"
    if not path.is_file():
        raise CalibrationError(f"no such file: {path}", remedy=f"give {FORMS}")
    module: ModuleType = _guarded(lambda: load_module(path), where)
    produce = getattr(module, function, None)
    if not callable(produce):
        raise CalibrationError(
            f"{path.name} has no function '{function}'", where=str(path), remedy="name one that it has"
        )

    def feeds() -> Iterator[Feeds]:
        stream = _guarded(lambda: iter(produce()), where)
        end = object()
        while (feed := _guarded(lambda: next(stream, end), where)) is not end:
            if not isinstance(feed, Mapping) or not all(isinstance(a, np.ndarray) for a in feed.values()):
                kinds = (
                    {k: type(v).__name__ for k, v in feed.items()} if isinstance(feed, Mapping) else type(feed).__name__
                )
                raise CalibrationError(
                    f"the function yielded {kinds}", where=where, remedy="yield dicts of input name to numpy array"
                )
            yield dict(feed)

    return CalibrationSet(where, inputs, feeds)


def _guarded(call: Callable[[], Any], where: str) -> Any:
    """Run the user's code; its exceptions are faults of the data, not of planish."""
    try:
        return call()
    except Exception as error:
        raise CalibrationError(
            f"the data function failed: {type(error).__name__}: {error}", where=where, remedy="run it on its own first"
        ) from error


def _random_set(spec: str, inputs: Mapping[str, InputSpec], seed: int) -> CalibrationSet:
    count = spec.removeprefix("random:")
    if not count.isdecimal() or int(count) < 1:
        raise CalibrationError(f"'{spec}' doesn't say how many feeds to draw", remedy="write it as random:8")
    for name, expected in inputs.items():
        if expected.shape is None or expected.dtype.kind in "OUS":
            raise CalibrationError(
                f"input '{name}' ({expected}) can't be drawn at random", remedy="give real data for this model"
            )

    def feeds() -> Iterator[Feeds]:
        rng = np.random.default_rng(seed)
        for _ in range(int(count)):
            yield {name: _random_array(expected, rng) for name, expected in inputs.items()}

    return CalibrationSet(f"{spec} seed={seed}", inputs, feeds)


def _random_array(spec: InputSpec, rng: np.random.Generator) -> np.ndarray:
    """Standard normal floats; integers and booleans are 0 or 1, which no index range or mask refuses."""
    shape = tuple(dim if isinstance(dim, int) else 1 for dim in spec.shape or ())
    values = rng.standard_normal(shape) if is_float(spec.dtype) else rng.integers(0, 2, shape)
    return np.asarray(values).astype(spec.dtype)
