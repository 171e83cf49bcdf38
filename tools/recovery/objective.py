"""What the student is measured by: its values against those of the original on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from planish.backends.ort.taps import taps
from planish.ir import ops
from planish.ir.errors import CalibrationError
from planish.ir.graph import Graph, Value
from planish.ir.types import TensorType
from planish.tools.recovery.torch_graph import TorchGraph

Feed = Mapping[str, np.ndarray]

CACHE_BYTES = 1 << 30  # of the teacher's values, which are computed again where they don't fit
PAIR_WEIGHT = 1.0  # of the mean error of the pairs, beside that of the outputs
KL_WEIGHT = 1.0
TEMPERATURE = 2.0  # softens the classes: how the unlikely ones are ranked says more than which one wins
_SURVEYED = 8  # feeds that the variance of the teacher's values is estimated on


class Objective:
    """Losses and errors of a student against a teacher.

    names: of the compared values, pairs first, then outputs that are floats.
    """

    def __init__(
        self, student: TorchGraph, teacher: Graph, pairs: Sequence[tuple[Value, Value]], threads: int, feeds: list[Feed]
    ):
        self._student = student
        self._places = [i for i, value in enumerate(student.graph.outputs) if _is_float(value)]
        self._taps = [mine for mine, _ in pairs]
        compared = [other for _, other in pairs] + [teacher.outputs[i] for i in self._places]
        self._teacher = taps(teacher, compared, threads=threads)
        self._logits = [_is_logits(value) for value in compared]
        self._cache: dict[int, list[Tensor]] = {}
        self._room = CACHE_BYTES
        self.pairs = len(pairs)
        self.names = [value.hint for value in compared]
        self._variance = self._survey(feeds[:_SURVEYED])

    def targets(self, feed: Feed, key: int | None = None) -> list[Tensor]:
        """The teacher's values for a feed; kept under `key`, if one is given and memory allows.

        Raises CalibrationError if they aren't finite.
        """
        if key is not None and key in self._cache:
            return self._cache[key]
        arrays = self._teacher(feed)
        for name, array in zip(self.names, arrays, strict=True):
            if not np.isfinite(array.astype(np.float32, copy=False)).all():
                raise CalibrationError(f"the original yields NaN or infinity in {name}", remedy="check the data")
        found = [torch.from_numpy(array.astype(np.float32)) for array in arrays]
        size = sum(target.nbytes for target in found)
        if key is not None and size <= self._room:
            self._cache[key] = found
            self._room -= size
        return found

    def loss(self, feed: Feed, targets: Sequence[Tensor]) -> Tensor:
        """Mean error of the pairs, plus that of the outputs, plus divergence of the classes where there are any."""
        values = self._values(feed)
        errors = self._errors(values, targets)
        loss = torch.stack(errors[self.pairs :]).mean()
        if self.pairs:
            loss = loss + PAIR_WEIGHT * torch.stack(errors[: self.pairs]).mean()
        for value, target, logits in zip(values, targets, self._logits, strict=True):
            if logits:
                loss = loss + KL_WEIGHT * _divergence(value, target)
        return loss

    @torch.no_grad()
    def errors(self, feeds: Sequence[Feed]) -> list[float]:
        """Squared error over variance of each compared value, mean over the feeds, which are the held-out ones."""
        total = torch.zeros(len(self.names), dtype=torch.float64)
        for i, feed in enumerate(feeds):
            targets = self.targets(feed, -1 - i)
            total += torch.stack(self._errors(self._values(feed), targets)).double()
        return [float(error) for error in total / len(feeds)]

    def _values(self, feed: Feed) -> list[Tensor]:
        outputs, tapped = self._student(as_tensors(feed), self._taps)
        return [*tapped, *(outputs[i] for i in self._places)]

    def _errors(self, values: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        return [
            F.mse_loss(value, target) / variance
            for value, target, variance in zip(values, targets, self._variance, strict=True)
        ]

    def _survey(self, feeds: Sequence[Feed]) -> list[float]:
        """Variance of each compared value: of one number drawn from all its elements and feeds."""
        sums = np.zeros((3, len(self.names)))
        for i, feed in enumerate(feeds):
            for j, target in enumerate(self.targets(feed, i)):
                wide = target.double()
                sums[:, j] += wide.numel(), float(wide.sum()), float((wide * wide).sum())
        mean = sums[1] / sums[0]
        return [max(float(v), 1e-12) for v in sums[2] / sums[0] - mean * mean]


def as_tensors(feed: Feed) -> dict[str, Tensor]:
    """The feed as torch takes it."""
    return {name: torch.from_numpy(np.array(array)) for name, array in feed.items()}


def _divergence(value: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence of softened classes, f32[N, classes] each; scaled as if they weren't softened."""
    mine, true = (x.div(TEMPERATURE).log_softmax(-1) for x in (value, target))
    return F.kl_div(mine, true, reduction="batchmean", log_target=True) * TEMPERATURE**2


def _is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype.is_float


def _is_logits(value: Value) -> bool:
    """Whether a value is [N, classes] and made by a linear layer: pooled embeddings and probabilities are not."""
    if value.tensor.rank != 2:
        return False
    node = value.node
    while node is not None and isinstance(node.op, ops.Reshape | ops.Squeeze | ops.Cast | ops.Identity):
        node = node.inputs[0].node
    return node is not None and isinstance(node.op, ops.Linear | ops.Conv)
