"""Arrays in .npy and .npz files, read a few rows at a time so that a data set larger than memory can be streamed."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np


class UnreadableArrayError(ValueError):
    """The file holds an array that can't be read without unpickling, or not by rows."""


@dataclass(frozen=True)
class ArrayStream:
    """A stored array whose header is known and whose rows are read when asked for."""

    open: Callable[[], IO[bytes]]
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    def rows(self, count: int) -> Iterator[np.ndarray]:
        """Blocks of `count` entries of axis 0 (the last may be shorter); with 0, single entries without that axis."""
        if self.fortran:  # columns first: its rows are spread over the whole file
            array = self.whole()
            yield from array if count == 0 else (array[i : i + count] for i in range(0, len(array), count))
            return
        inner = self.shape[1:]
        with self.open() as file:
            _read_header(file)
            for start in range(0, self.shape[0], max(count, 1)):
                taken = min(max(count, 1), self.shape[0] - start)
                block = self._read(file, (taken, *inner))
                yield block[0] if count == 0 else block

    def whole(self) -> np.ndarray:
        """The whole array."""
        with self.open() as file:
            _read_header(file)
            if self.fortran:
                return np.ascontiguousarray(self._read(file, self.shape[::-1]).T)
            return self._read(file, self.shape)

    def _read(self, file: IO[bytes], shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        data = file.read(size)
        if len(data) != size:
            raise EOFError(f"the file ends {size - len(data)} bytes too early")
        return np.frombuffer(data, self.dtype).reshape(shape)


def open_npy(path: Path) -> ArrayStream:
    """The array of a .npy file. Raises OSError, ValueError or UnreadableArrayError."""
    return _stream(lambda: path.open("rb"))


def open_npz(path: Path) -> dict[str, ArrayStream]:
    """The arrays of a .npz file by key. Raises OSError, zipfile.BadZipFile, ValueError or UnreadableArrayError."""

    def opener(member: str) -> Callable[[], IO[bytes]]:
        # the handle of a member keeps its own reference to the file, so the archive need not stay open
        def open_member() -> IO[bytes]:
            with zipfile.ZipFile(path) as opened:
                return opened.open(member)

        return open_member

    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
    return {member.removesuffix(".npy"): _stream(opener(member)) for member in members}


def _stream(open_file: Callable[[], IO[bytes]]) -> ArrayStream:
    with open_file() as file:
        shape, fortran, dtype = _read_header(file)
    if dtype.hasobject:
        raise UnreadableArrayError("it holds pickled Python objects")
    return ArrayStream(open_file, shape, dtype, fortran)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise UnreadableArrayError(f"unknown .npy format version {version}")
