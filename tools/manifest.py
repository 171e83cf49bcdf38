"""What an artifact folder says about itself: `manifest.json`, the same bytes for the same input and seed, and
`measurements.json`, the only file that differs from run to run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

from planish.ir.errors import FrontendError

MANIFEST = "manifest.json"
MEASUREMENTS = "measurements.json"
SCHEMA_VERSION: Literal[1] = 1
_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime")


class _Record(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class OriginalModel(_Record):
    """The file the artifact was made from."""

    file: str
    sha256: str


class FileEntry(_Record):
    """A file of the artifact."""

    sha256: str
    bytes: int


class ValueEntry(_Record):
    """An input or output of the model; `shape` is None where the rank is unknown.

    scale, zero: of one that holds codes, real = scale * (integer - zero); None for plain numbers.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None
    scale: float | None = None
    zero: int | None = None


class PassEntry(_Record):
    """What a pass did: number of rewrites, and how often it held back for which reason."""

    name: str
    rewrites: int
    skipped: dict[str, int] = {}


class CalibrationEntry(_Record):
    """The data used: its name and the SHA-256 of its content."""

    source: str
    digest: str


class CompiledEntry(_Record):
    """Machine code: its instruction set, the sizes of varying dimensions that it was made for, and measured tilings.

    batch: the dimension along which any number of samples runs in pieces.
    """

    isa: str
    sizes: tuple[dict[str, int], ...]
    batch: str | None
    tilings: dict[str, Any]


class TokensEntry(_Record):
    """Tokens that go from block to block: `removed` behind each attention, so that `left` of `tokens` are left.

    chosen, reported: error of the outputs over their variance, and fall of the metric, on the samples that the schedule
    was chosen on and on others; None for a schedule that was given. refused: methods that aren't legal, and why.
    """

    method: str
    signal: str
    proportional: bool
    tokens: int
    removed: tuple[int, ...]
    left: tuple[int, ...]
    budget: str
    chosen: dict[str, float | None] | None
    reported: dict[str, float | None] | None
    refused: dict[str, str] = {}


class CodebooksEntry(_Record):
    """Weights in codebooks: that of each layer by name, in order ("" where it keeps its floats).

    bits: stored per weight on average, with scales. energy: of the operations over that of 8-bit integers. chosen,
    reported: as of tokens.
    """

    layers: tuple[tuple[str, str], ...]
    bits: float
    energy: float
    budget: str
    chosen: dict[str, float | None]
    reported: dict[str, float | None]


class ZerosEntry(_Record):
    """Weights set to zero: by which method and in which structure, and the share of each layer that stays, by name.

    density: share of the products that stays. chosen, reported: as of tokens.
    """

    layers: tuple[tuple[str, float], ...]
    method: str
    structure: str
    density: float
    budget: str
    chosen: dict[str, float | None]
    reported: dict[str, float | None]


class UnitsEntry(_Record):
    """Neurons and heads that are left: of each layer its name, what they are, how many there were and are.

    density: share of the products of these layers that stays. chosen, reported: as of tokens.
    """

    layers: tuple[tuple[str, str, int, int], ...]
    density: float
    budget: str
    chosen: dict[str, float | None]
    reported: dict[str, float | None]


class SparsityEntry(_Record):
    """Weights with zeros in a file for ONNX Runtime, where they make nothing faster.

    zeros: their share in these weights. bytes_smaller: by how much the file is smaller than with all zeros in it.
    two_of_four: weights of which at least half is zero; eligible: how many of these TensorRT can skip zeros of.
    """

    label: str
    weights: int
    zeros: float
    bytes_smaller: int
    two_of_four: int
    eligible: int


class Manifest(_Record):
    """Everything that is reproducible about an artifact."""

    schema_version: Literal[1] = SCHEMA_VERSION
    planish: str
    versions: dict[str, str]
    model: OriginalModel
    files: dict[str, FileEntry]
    pipeline: str
    target: str
    opset: dict[str, int]
    compiled: CompiledEntry | None = None
    inputs: tuple[ValueEntry, ...]
    outputs: tuple[ValueEntry, ...]
    passes: tuple[PassEntry, ...] = ()
    tokens: tuple[TokensEntry, ...] = ()
    codebooks: tuple[CodebooksEntry, ...] = ()
    zeros: tuple[ZerosEntry, ...] = ()
    units: tuple[UnitsEntry, ...] = ()
    sparsity: SparsityEntry | None = None
    seed: int = 0
    calibration: CalibrationEntry | None = None
    verification: dict[str, Any] | None = None


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write `manifest.json` with sorted keys. Raises OSError, or ValueError for NaN or infinity in `verification`."""
    return _write_json(folder / MANIFEST, manifest.model_dump(mode="json"))


def write_measurements(folder: Path, measurements: Mapping[str, Any]) -> Path:
    """Write `measurements.json`. Raises OSError, or ValueError for NaN or infinity."""
    return _write_json(folder / MEASUREMENTS, dict(measurements))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact folder. Raises FrontendError where there is none, or not one of this version."""
    path = folder / MANIFEST
    remedy = "give an artifact folder that planish wrote"
    if not path.is_file():
        raise FrontendError(f"no {MANIFEST} in the folder", where=str(folder), remedy=remedy)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FrontendError(f"can't read the manifest: {error}", where=str(path), remedy=remedy) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise FrontendError(
            f"the manifest has schema version {version}, this planish reads {SCHEMA_VERSION}",
            where=str(path),
            remedy="make the artifact again with this version",
        )
    try:
        return Manifest.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise FrontendError(
            f"the manifest is invalid: {field}: {first['msg']}", where=str(path), remedy=remedy
        ) from error


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Hash and size of every file in the folder but the manifest and the measurements, by relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        name: FileEntry(sha256=sha256_file(path), bytes=path.stat().st_size)
        for name, path in names.items()
        if name not in (MANIFEST, MEASUREMENTS)
    }


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise FrontendError unless every file that the manifest lists is there, unchanged."""
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise FrontendError(
                f"the artifact lacks its file {name}", where=str(folder), remedy="copy the whole folder"
            )
        if path.stat().st_size != entry.bytes or sha256_file(path) != entry.sha256:
            raise FrontendError(
                f"{name} was changed after it was written", where=str(path), remedy="make the artifact again"
            )


def sha256_file(path: Path) -> str:
    """SHA-256 of a file of any size, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what an artifact looks like."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _write_json(path: Path, content: dict[str, Any]) -> Path:
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
    return path
