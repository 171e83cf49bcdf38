"""Pictures as a model takes them: read from files, and the grid of patches that its tokens stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planish.frontend.calibration import InputSpec
from planish.ir.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)  # of ImageNet
_DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)


@dataclass(frozen=True)
class Picture:
    """A picture f32[H, W, 3] of values from 0 to 1, cut into `rows` by `columns` patches."""

    pixels: np.ndarray
    rows: int
    columns: int


def picture_of(sample: Mapping[str, np.ndarray], patches: int) -> Picture | None:
    """The picture in a feed of batch 1 whose patches can be so many; None where no input is one."""
    for array in sample.values():
        if array.ndim != 4 or len(array) != 1:
            continue
        channels_last = array.shape[1] not in (1, 3, 4) and array.shape[3] in (1, 3, 4)
        pixels = array[0] if channels_last else np.moveaxis(array[0], 0, 2)
        if pixels.shape[2] not in (1, 3, 4):
            continue
        grid = _grid(patches, *pixels.shape[:2])
        if grid is not None:
            return Picture(_shown(pixels), *grid)
    return None


def _grid(patches: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of equal patches, as square as they can be."""
    fitting = [
        (rows, patches // rows)
        for rows in range(1, patches + 1)
        if patches % rows == 0 and height % rows == 0 and width % (patches // rows) == 0
    ]
    return min(fitting, key=lambda grid: abs(np.log((height / grid[0]) / (width / grid[1]))), default=None)


def _shown(pixels: np.ndarray) -> np.ndarray:
    """Values of whatever range as colours from 0 to 1; the range of all channels is stretched as one."""
    values = pixels[:, :, :3].astype(np.float32)
    low, high = float(values.min()), float(values.max())
    values = (values - low) / max(high - low, 1e-12)
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values


def read_picture(path: Path, inputs: Mapping[str, InputSpec]) -> dict[str, np.ndarray]:
    """A feed of batch 1 from a picture file, cut to the middle square or rectangle and resized to the input.

    Bytes stay as they are; floats are scaled as ImageNet models take them. Raises UsageError where the model has other
    inputs, or pillow is missing.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UsageError("reading a picture needs pillow", remedy="pip install pillow, or give a .npz") from error
    (name, spec), *others = inputs.items()
    shape = spec.shape or ()
    last = len(shape) == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3)
    height, width, channels = (shape[1:4] if last else (*shape[2:4], shape[1])) if len(shape) == 4 else (0, 0, 0)
    if others or not (isinstance(height, int) and isinstance(width, int) and height and channels in (1, 3)):
        raise UsageError(
            f"input {name!r} {shape} of the model takes no picture of a known size",
            where=str(path),
            remedy="bind its size with --shape, or give a .npz with the inputs",
        )
    try:
        image = Image.open(path).convert("L" if channels == 1 else "RGB")
    except OSError as error:
        raise UsageError(f"the picture can't be read: {error}", where=str(path)) from error
    pixels = np.asarray(ImageOps.fit(image, (width, height))).reshape(height, width, -1)
    if spec.dtype.kind == "f":
        pixels = pixels.astype(np.float32) / 255
        pixels = (pixels - _MEAN) / _DEVIATION if channels == 3 else pixels
    batch = pixels[None] if last else np.moveaxis(pixels, 2, 0)[None]
    return {name: np.ascontiguousarray(batch.astype(spec.dtype))}
