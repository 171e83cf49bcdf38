"""The training loop of `recover`: Adam on normalised errors, a cosine schedule, the best weights seen are kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from planish.ir.data import Data
from planish.ir.errors import CalibrationError, UsageError
from planish.ir.graph import Graph, Node, Value
from planish.ir.op import as_value
from planish.tools.recovery.coordinates import Coordinates
from planish.tools.recovery.objective import Objective, as_tensors
from planish.tools.recovery.recover import Feed, Match, Recovery
from planish.tools.recovery.torch_graph import TorchGraph

CHECKS = 10  # times that the held-out error is measured on the way
BETAS = (0.9, 0.99)
CLIP = 1.0  # norm of the gradient, each weight measured in its own size
WARM_UP = 0.05  # share of the steps in which the rate rises
_SURVEYED = 8  # feeds that the covariance of the layers' inputs is estimated on
_TIMED = 3  # steps that are timed to choose their number


@dataclass(frozen=True)
class Settings:
    """How to train; see `recover`."""

    seconds: float
    steps: int | None
    seed: int
    learning_rate: float
    mix: bool
    threads: int


def train(
    student: Graph,
    teacher: Graph,
    trainable: Sequence[Node],
    pairs: Sequence[tuple[Value, Value]],
    feeds: list[Feed],
    held_out: list[Feed],
    settings: Settings,
    on_progress: Callable[[int, int], None],
) -> Recovery:
    """Train, and write the best weights into `student`. Arguments and errors are those of `recover`."""
    start = time.perf_counter()
    with _quietly(settings.threads), torch.enable_grad():
        module = TorchGraph(student, trainable)
        objective = Objective(module, teacher, pairs, settings.threads, feeds)
        run = _Run(module, objective, feeds, held_out, settings)
        steps = settings.steps or run.affordable(settings.seconds)
        recovery = run.train(steps, on_progress)
    if recovery.best_step:
        _write(student, module)
    return Recovery(
        steps=steps,
        seconds=time.perf_counter() - start,
        curve=tuple(recovery.curve),
        pairs=recovery.matches(slice(objective.pairs)),
        outputs=recovery.matches(slice(objective.pairs, None)),
        kept_step=recovery.best_step,
    )


class _Run:
    """State of one training: the best weights so far, the curve, and errors of every value at start and best."""

    def __init__(
        self, module: TorchGraph, objective: Objective, feeds: list[Feed], held_out: list[Feed], settings: Settings
    ):
        self.module, self.objective, self.feeds, self.held_out = module, objective, feeds, held_out
        self.settings = settings
        self.curve: list[tuple[int, float]] = []
        self.best_step = 0
        self._coordinates = Coordinates(module, [as_tensors(feed) for feed in feeds[:_SURVEYED]])
        self._best = self._copy()
        self._first: list[float] = []
        self._best_errors: list[float] = []
        self._mixed = _mixed_inputs(module.graph, feeds[0]) if settings.mix else []

    def affordable(self, seconds: float) -> int:
        """How many steps fit into the time, from a few that change nothing."""
        self.objective.errors(self.held_out)
        begin = time.perf_counter()
        self.objective.errors(self.held_out)
        judged = time.perf_counter() - begin
        source = self._draws()
        draws = [next(source) for _ in range(_TIMED)]
        for draw in draws:  # the first time allocates, and asks the teacher
            self._gradients(*draw)
        begin = time.perf_counter()
        for draw in draws:
            self._gradients(*draw)
        each = (time.perf_counter() - begin) / _TIMED
        return max(1, int((seconds - CHECKS * judged) / each))

    def train(self, steps: int, on_progress: Callable[[int, int], None]) -> _Run:
        rate = self.settings.learning_rate
        groups = [
            {"params": [leaf], "lr": rate * size}
            for leaf, size in zip(self._coordinates.leaves, self._coordinates.sizes, strict=True)
        ]
        optimizer = torch.optim.Adam(groups, betas=BETAS, eps=1e-12)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        self._judge(0)
        if not math.isfinite(self.curve[0][1]):
            raise CalibrationError(
                "the graph to train yields NaN or infinity on held-out data", remedy="replace less of it"
            )
        checks = {round(steps * (i + 1) / CHECKS) for i in range(CHECKS)}
        draws = self._draws()
        for step in range(1, steps + 1):
            if not self._gradients(*next(draws)):
                break  # diverged: what was best stays
            optimizer.step()
            self._coordinates.push()
            schedule.step()
            if step in checks:
                self._judge(step)
            on_progress(step, steps)
        self._set(self._best)
        return self

    def matches(self, which: slice) -> tuple[Match, ...]:
        rows = zip(self.objective.names, self._first, self._best_errors, strict=True)
        return tuple(Match(*row) for row in list(rows)[which])

    def _gradients(self, feed: Feed, key: int | None) -> bool:
        """Leave clipped gradients in the weights; False if they aren't finite."""
        loss = self.objective.loss(feed, self.objective.targets(feed, key))
        self.module.zero_grad(set_to_none=True)
        loss.backward()
        self._coordinates.pull()
        there = [leaf.grad for leaf in self._coordinates.leaves if leaf.grad is not None]
        scaled = [gradient.norm() * size for gradient, size in zip(there, self._coordinates.sizes, strict=True)]
        norm = float(torch.stack(scaled).norm())
        if not math.isfinite(norm):
            return False
        for gradient in there:
            gradient *= CLIP / max(norm, CLIP)
        return True

    def _judge(self, step: int) -> None:
        errors = self.objective.errors(self.held_out)
        error = float(np.mean(errors[self.objective.pairs :]))
        if not self.curve:
            self._first = self._best_errors = errors
        elif error < min(known for _, known in self.curve):
            self._best, self._best_errors, self.best_step = self._copy(), errors, step
        if self.curve and not math.isfinite(error):
            error = math.inf
        self.curve.append((step, error))

    def _copy(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.module.weights]

    @torch.no_grad()
    def _set(self, weights: Sequence[Tensor]) -> None:
        for weight, value in zip(self.module.weights, weights, strict=True):
            weight.copy_(value)

    def _draws(self) -> Iterator[tuple[Feed, int | None]]:
        """Feeds in an order shuffled anew each time round; with the key of their targets, None if they are mixed."""
        rng = np.random.default_rng(self.settings.seed)
        while True:
            for i in rng.permutation(len(self.feeds)):
                feed = self.feeds[i]
                yield (_mixture(feed, self._mixed, rng), None) if self._mixed else (feed, int(i))


def _rate(step: int, steps: int) -> float:
    """Factor of the learning rate: up in a line, then down along a cosine."""
    rising = max(1, round(WARM_UP * steps))
    return min(1.0, (step + 1) / rising) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _mixed_inputs(graph: Graph, feed: Feed) -> list[str]:
    """Names of the inputs that mixtures make sense for."""
    names = [
        v.hint for v in graph.inputs if feed[v.hint].ndim >= 2 and (feed[v.hint].dtype.kind == "f" or _is_bytes(v))
    ]
    if not names:
        raise UsageError("no input can be mixed: none is float or uint8", remedy="leave mix out")
    return names


def _is_bytes(value: Value) -> bool:
    return value.tensor.dtype.name == "u8"


def _mixture(feed: Feed, names: Sequence[str], rng: np.random.Generator) -> Feed:
    """The feed with each sample mixed with another, in one ratio for all inputs of the sample."""
    count = len(feed[names[0]])
    partner, ratio = rng.permutation(count), rng.random(count, dtype=np.float32)
    mixed: dict[str, np.ndarray] = dict(feed)
    for name in names:
        array = feed[name]
        share = ratio.reshape(-1, *(1,) * (array.ndim - 1))
        blend = share * array + (1 - share) * array[partner]
        mixed[name] = (np.rint(blend) if array.dtype.kind == "u" else blend).astype(array.dtype)
    return mixed


def _write(graph: Graph, module: TorchGraph) -> None:
    """Replace the operands that were trained by constants of the same dtype, structure of zeros and name."""
    order = {node: i for i, node in enumerate(graph)}
    for weight, places in zip(module.weights, module.places, strict=True):
        reader, index = min(places, key=lambda place: order[place[0]])
        old = reader.operands[index]
        assert old is not None
        assert old.node is not None
        array = weight.detach().numpy().astype(old.tensor.dtype.storage)
        new = as_value(Data(array, sparsity=old.tensor.sparsity))
        assert new is not None
        new.hint = old.hint
        graph.attach(new, reader, old.node.loc)
        for node, place in places:
            graph.set_operand(node, place, new)
        graph.erase_dead([old.node])


@contextmanager
def _quietly(threads: int) -> Iterator[None]:
    """Deterministic torch with so many threads; the caller's settings come back."""
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    count = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn)
        torch.set_num_threads(count)
