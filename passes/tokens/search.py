"""Which choice fits a budget: a path of ever stronger ones is made by method, measured, and the best point taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from planish.ir.errors import GateError
from planish.ir.graph import Graph
from planish.passes.base import Context
from planish.passes.judging import Bars, Distance, Judge, joined, three_sets
from planish.passes.tokens.applying import compressed
from planish.passes.tokens.encoder import Encoder, find_encoder
from planish.passes.tokens.latency import Latency
from planish.passes.tokens.methods import Choice
from planish.passes.tokens.profile import Profile, profile
from planish.passes.tokens.refusal import Refusal
from planish.passes.tokens.report import Point
from planish.passes.tokens.schedule import by_counts, feasible, staged, useful_blocks

DEFAULT_ERROR = 0.02  # of the outputs over their variance
POINTS = 12  # of a curve, that are measured
_STEPS = 8  # the tokens go in about so many steps of equal size ...
_LONGEST = 12  # ... and the path ends after so many
_LOOKAHEAD = 3  # blocks that are tried again for each step, of those that looked best
_ALPHAS = (0.15, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2)
_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_TEST_SHARES = (0.75, 0.5)
_EVENLY = (0.2, 0.35, 0.5, 0.65, 0.8)  # of all tokens, that go in equal parts
_AT_ONCE = (0.15, 0.3, 0.45)  # of all tokens, that go in one block


@dataclass(frozen=True)
class Budget:
    """What the result has to keep. speed: at least so many times as fast, None for the fastest within the error.

    max_drop: by how much the metric may fall, in its unit; max_nmse: error of the outputs over their variance, which
    counts where there is no metric or no bar for it: 0.02 if no bar is given at all, not even speed.
    """

    speed: float | None = None
    max_drop: float | None = None
    max_nmse: float | None = None

    def allows(self, distance: Distance, doubts: float = 0.0) -> bool:
        """True if the error is within the budget, or so many standard errors from it."""
        return self.bars.allows(distance, doubts)

    @property
    def bars(self) -> Bars:
        """Those of the error."""
        return Bars(self.max_drop, self.error)

    @property
    def error(self) -> float:
        """The bar for max_nmse that counts."""
        if self.max_nmse is not None:
            return self.max_nmse
        return DEFAULT_ERROR if self.speed is None else float("inf")

    def __str__(self) -> str:
        speed = "" if self.speed is None else f"at least {self.speed:g} times as fast"
        return ", ".join(filter(None, [speed, str(self.bars)]))


class Search:
    """One search on one graph. Nothing is fitted, so that choices are made on all samples but the reported ones."""

    def __init__(self, graph: Graph, context: Context, budget: Budget, signal: str, proportional: bool | None):
        self.graph, self.context, self.budget = graph, context, budget
        self.signal, self.proportional = signal, proportional is not False
        self.weighings = (True, False) if proportional is None else (proportional,)
        self.encoder: Encoder = find_encoder(graph)
        self.sets = three_sets(context)
        self.judge = Judge(graph, joined(self.sets.fit, self.sets.rank), context)
        self.reporting = Judge(graph, self.sets.report, context)
        self.done, self.total = 0, 1
        self.profile: Profile | None = None

    def curve(self, method: str) -> tuple[Point, ...]:
        """Points of ever higher speed and error, measured. Raises Refusal where the method isn't legal."""
        latency = self._latency(method)
        if method == "merge":
            families = self._families(latency)
            self.proportional = _better_weighing(families)
            path = [point for point in families if point.choice.proportional is self.proportional]
            path += self._greedy(latency)
        else:
            choices = self._by_profile(method) if method != "route" else self._by_share()
            path = [self._point(choice, latency) for choice in choices]
        path = _front(path)
        seconds = self._measured([point.choice for point in path])
        if seconds is not None:
            path = [replace(p, speed=seconds[0] / s, measured=True) for p, s in zip(path, seconds[1:], strict=True)]
        return tuple(
            replace(point, reported=self.reporting.distance(compressed(self.graph, point.choice))) for point in path
        )

    def best(self, curves: Sequence[tuple[Point, ...]]) -> Point | None:
        """The point that the budget asks for; None if it allows none but the original.

        Raises GateError where no point is as fast as asked within the error.
        """
        points = [p for curve in curves for p in curve]
        allowed = [p for p in points if self.budget.allows(p.chosen, 2) and self._reported_allows(p)]
        if self.budget.speed is None:
            faster = [p for p in allowed if p.speed > 1]
            return max(faster, key=lambda p: p.speed, default=None)
        fast = [p for p in allowed if p.speed >= self.budget.speed]
        if not fast:
            best = max(allowed, key=lambda p: p.speed, default=None)
            reached = "none is within the error" if best is None else f"{best.speed:.2f} times is the most within it"
            raise GateError(
                f"no token schedule is {self.budget.speed:g} times as fast within the error: {reached}",
                remedy="lower --target-speedup, raise --max-drop, or try another --tokens method",
            )
        return min(fast, key=lambda p: p.chosen.nmse)  # a metric moves in coarse steps on few samples

    def _reported_allows(self, point: Point) -> bool:
        return point.reported is None or self.budget.allows(point.reported)

    # paths

    def _choice(self, method: str, removed: Sequence[int]) -> Choice:
        return Choice(method, tuple(removed), self.signal, self.proportional)

    def _by_profile(self, method: str) -> list[Choice]:
        self.profile = self.profile or profile(self.graph, self.sets.fit.feeds, self.context)
        made = [by_counts(self.profile.counts(alpha, self.encoder), self.encoder, method) for alpha in _ALPHAS]
        return [self._choice(method, removed) for removed in dict.fromkeys(made) if any(removed)]

    def _by_share(self) -> list[Choice]:
        made = [staged(share, self.encoder, "route") for share in _SHARES]
        return [self._choice("route", removed) for removed in dict.fromkeys(made) if any(removed)]

    def _families(self, latency: Latency) -> list[Point]:
        """As many tokens in each block, or many at once in one or two of the first ones: a cut has its price."""
        used, blocks, tokens = useful_blocks(self.encoder), len(self.encoder.blocks), self.encoder.tokens
        made = [[round(tokens * share / used)] * used + [0] * (blocks - used) for share in _EVENLY]
        for first in range(min(used, 3)):
            for share in _AT_ONCE:
                once = [round(tokens * share) if block == first else 0 for block in range(blocks)]
                made.append(once)
                again = first + max(1, used // 3)
                if again < used:
                    rest = round(tokens * (1 - share) * 0.4)
                    made.append([rest if block == again else removed for block, removed in enumerate(once)])
        removals = dict.fromkeys(feasible(removed, self.encoder, "merge") for removed in made)
        choices = [Choice("merge", removed, self.signal, weigh) for removed in removals for weigh in self.weighings]
        self.total = self.done + len(choices) + _LONGEST * _LOOKAHEAD + used
        return [self._point(choice, latency) for choice in choices]

    def _greedy(self, latency: Latency) -> Iterator[Point]:
        """Some more tokens go in one block at each step: where the error rises least for the time that it saves."""
        used, blocks = useful_blocks(self.encoder), len(self.encoder.blocks)
        step = max(1, round((self.encoder.tokens - self.encoder.protected) / (_STEPS + 2)))
        removed = [0] * blocks
        error = 0.0
        worth: dict[int, float] = dict.fromkeys(range(used), float("inf"))
        self.total = self.done + _LONGEST * _LOOKAHEAD + used
        for _ in range(_LONGEST):
            tried: list[tuple[float, int, Point]] = []
            for block in sorted(worth, key=lambda block: -worth[block]):
                wanted = tuple(r + (step if i == block else 0) for i, r in enumerate(removed))
                choice = self._choice("merge", wanted)
                saved = self._time(latency, self._choice("merge", removed)) - self._time(latency, choice)
                if feasible(wanted, self.encoder, "merge") != wanted or saved <= 0:
                    continue
                point = self._point(choice, latency)
                worth[block] = saved / max(point.chosen.nmse - error, 1e-9)
                tried.append((worth[block], block, point))
                if len(tried) == _LOOKAHEAD and any(removed):
                    break
            if not tried:
                return
            _, _, best = max(tried, key=lambda entry: (entry[0], -entry[1]))
            removed, error = list(best.choice.removed), best.chosen.nmse
            yield best

    def _time(self, latency: Latency, choice: Choice) -> float:
        return latency.of(self.encoder, choice.tokens_by_block(self.encoder.tokens))

    def _point(self, choice: Choice, latency: Latency) -> Point:
        tokens = choice.tokens_by_block(self.encoder.tokens)
        distance = self.judge.distance(compressed(self.graph, choice))
        self.done += 1
        self.context.progressed("choose tokens", self.done, max(self.total, self.done))
        return Point(choice, tuple(after for _, after in tokens), latency.speed(self.encoder, tokens), False, distance)

    # time

    def _latency(self, method: str) -> Latency:
        """From a few schedules that are measured on the target. Raises Refusal where the method isn't legal."""
        used, encoder = useful_blocks(self.encoder), self.encoder
        tests = [staged(share, encoder, method) for share in _TEST_SHARES]
        for place, share in ((0, 0.25), (used // 2, 0.45)) if method != "route" else ():
            once = [round(share * encoder.tokens) if block == place else 0 for block in range(len(encoder.blocks))]
            tests.append(feasible(once, encoder, method))
        choices = [self._choice(method, removed) for removed in tests if any(removed)]
        if not choices:
            raise Refusal("T9", f"{encoder.tokens} tokens are too few", encoder.blocks[0].attention)
        seconds = self._measured(choices)
        if seconds is None:
            compressed(self.graph, choices[0])  # legality
            return Latency.counted(self.graph, encoder)
        full = [(encoder.tokens, encoder.tokens)] * len(encoder.blocks)
        tried = [full, *(choice.tokens_by_block(encoder.tokens) for choice in choices)]
        return Latency.fitted(encoder, list(zip(tried, seconds, strict=True)))

    def _measured(self, choices: Sequence[Choice]) -> list[float] | None:
        """Seconds of the graph as it is, and with each choice; None where nothing measures."""
        if self.context.clock is None:
            return None
        return self.context.clock([self.graph, *(compressed(self.graph, choice) for choice in choices)])


def _front(points: Sequence[Point]) -> list[Point]:
    """The points that none is both faster and better than, slowest first; some of them, if they are many."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speed, p.chosen.nmse)):
        if point.speed > 1 and (not front or point.chosen.nmse < front[-1].chosen.nmse):
            front.append(point)
    front.reverse()
    if len(front) > POINTS:
        front = [front[round(i * (len(front) - 1) / (POINTS - 1))] for i in range(POINTS)]
    return front


def _better_weighing(points: Sequence[Point]) -> bool:
    """Whether merged tokens should count in attention for all their members: which of the two errs less, all in all."""

    def error(weigh: bool) -> tuple[float, float]:
        chosen = [p.chosen for p in points if p.choice.proportional is weigh]
        return sum(d.drop or 0.0 for d in chosen), sum(d.nmse for d in chosen)

    settings = {p.choice.proportional for p in points}
    return True in settings and (False not in settings or error(True) <= error(False))
