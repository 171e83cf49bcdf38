"""Models whose inputs or outputs are codes: what their integers stand for, from the metadata that planish wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.tools.sessions import Model

SCALE, ZERO = "planish.scale.", "planish.zero."


@dataclass(frozen=True)
class Boundary:
    """Scale and zero point of each input and output that holds codes, by name."""

    codes: Mapping[str, tuple[float, int]]

    @staticmethod
    def of(metadata: Mapping[str, str]) -> Boundary:
        """As the metadata of a model says; empty for one that planish didn't give an integer boundary."""
        names = [key.removeprefix(SCALE) for key in metadata if key.startswith(SCALE)]
        return Boundary({name: (float(metadata[SCALE + name]), int(metadata.get(ZERO + name, "0"))) for name in names})

    @staticmethod
    def of_session(session: Model) -> Boundary:
        return Boundary.of(session.metadata)

    def encoded(
        self, feed: Mapping[str, np.ndarray], dtypes: Mapping[str, np.dtype[Any] | None]
    ) -> dict[str, np.ndarray]:
        """The feed with real inputs as codes of the given dtypes: rounded half to even, saturated."""
        encoded = dict(feed)
        for name, (scale, zero) in self.codes.items():
            dtype = dtypes.get(name)
            if name in encoded and dtype is not None and encoded[name].dtype.kind == "f":
                bounds = np.iinfo(dtype)
                codes = np.rint(encoded[name] / np.float32(scale)) + zero
                encoded[name] = np.clip(codes, bounds.min, bounds.max).astype(dtype)
        return encoded

    def encoded_for(self, session: Model, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The feed as a session takes it."""
        if not self.codes:
            return dict(feed)
        return self.encoded(feed, {info.name: info.dtype for info in session.inputs})

    def decoded(self, name: str, array: Any) -> Any:
        """The output as real numbers, float32, if it holds codes."""
        if name not in self.codes or not isinstance(array, np.ndarray):
            return array
        scale, zero = self.codes[name]
        return ((array.astype(np.int64) - zero) * scale).astype(np.float32)
