"""Small encoders as graphs, and the same token by token in numpy, with each method told as its paper tells it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from planish.ir import dtypes, ops
from planish.ir.graph import Graph, Value
from planish.ir.loc import Loc
from planish.ir.types import tensor

EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    """Extents of an encoder. prefix: class tokens put before the patches. head: "class", "mean" or "dense"."""

    tokens: int = 13
    width: int = 8
    heads: int = 2
    blocks: int = 3
    prefix: int = 1
    post_norm: bool = False
    head: str = "class"
    batch: int | str = "batch"
    masked: bool = False
    seed: int = 0


@dataclass
class Model:
    """Weights in numpy, for the graph and for the reference."""

    shape: Shape
    weights: list[dict[str, np.ndarray]] = field(default_factory=list)
    tokens_before: np.ndarray | None = None
    positions: np.ndarray | None = None
    head: np.ndarray | None = None

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.shape.seed)
        c = self.shape.width

        def array(*extents: int) -> np.ndarray:
            return (rng.standard_normal(extents) / math.sqrt(extents[0])).astype(np.float32)

        for _ in range(self.shape.blocks):
            shapes = {"q": (c, c), "k": (c, c), "v": (c, c), "o": (c, c), "up": (c, 2 * c), "down": (2 * c, c)}
            made = {name: array(*extents) for name, extents in shapes.items()}
            made |= {"gain1": 1 + 0.1 * array(c), "gain2": 1 + 0.1 * array(c)}
            self.weights.append(made)
        self.tokens_before = array(1, self.shape.prefix, c)
        self.positions = array(1, self.shape.tokens, c)
        self.head = array(c, 5)

    def graph(self) -> Graph:
        """As an exporter would leave it, raised."""
        s = self.shape
        graph = Graph("encoder")
        patches = graph.add_input("patches", tensor(dtypes.f32, s.batch, s.tokens - s.prefix, s.width))
        mask: Value | None = None
        if s.masked:
            shown = graph.add_input("mask", tensor(dtypes.i64, s.batch, s.tokens))
            flags = ops.Unsqueeze((1, 2))(ops.Cast(dtypes.boolean)(shown))
            mask = ops.Where()(flags, np.asarray(0, np.float32), np.asarray(-1e9, np.float32))
        x: Value = patches
        if s.prefix:
            zeros = ops.Mul()(ops.Slice((0,), (1,), (1,), (1,))(patches), np.zeros((1, 1, 1), np.float32))
            x = ops.Concat(1)(ops.Add()(zeros, self.tokens_before), patches)
        x = ops.Add()(x, self.positions)
        for w in self.weights:
            x = self._block(x, w, mask)
        y = self._headed(x)
        graph.attach(y, None, Loc(("made",)))
        for i, node in enumerate(graph):
            node.loc = Loc((f"node{i}",))
        graph.add(ops.Return(("y",)), y)
        return graph

    def _block(self, x: Value, w: dict[str, np.ndarray], mask: Value | None) -> Value:
        s = self.shape
        d = s.width // s.heads

        def norm(value: Value, gain: np.ndarray) -> Value:
            return ops.LayerNorm(-1, EPS)(value, gain)  # type: ignore[no-any-return]

        def split(value: Value) -> Value:
            return ops.Transpose((0, 2, 1, 3))(ops.Reshape((0, s.tokens, s.heads, d))(value))  # type: ignore[no-any-return]

        read = x if s.post_norm else norm(x, w["gain1"])
        q, k, v = (split(ops.Linear()(read, w[name])) for name in "qkv")
        seen = ops.Attention(d**-0.5)(q, k, v, mask)
        joined = ops.Reshape((0, s.tokens, s.width))(ops.Transpose((0, 2, 1, 3))(seen))
        x = ops.Add()(x, ops.Linear()(joined, w["o"]))
        x = norm(x, w["gain1"]) if s.post_norm else x
        read = x if s.post_norm else norm(x, w["gain2"])
        x = ops.Add()(x, ops.Linear()(ops.Relu()(ops.Linear()(read, w["up"])), w["down"]))
        return norm(x, w["gain2"]) if s.post_norm else x

    def _headed(self, x: Value) -> Value:
        if self.shape.head == "class":
            x = ops.Gather(1)(x, np.asarray(0))
        elif self.shape.head == "mean":
            x = ops.ReduceMean((-2,), False)(x)
        return ops.Linear()(x, self.head)  # type: ignore[no-any-return]

    def feed(self, batch: int = 2, seed: int = 1) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        s = self.shape
        found = {"patches": rng.standard_normal((batch, s.tokens - s.prefix, s.width)).astype(np.float32)}
        if s.masked:
            lengths = rng.integers(s.tokens // 2, s.tokens + 1, batch)
            found["mask"] = (np.arange(s.tokens)[None] < lengths[:, None]).astype(np.int64)
        return found

    # the same, sample by sample

    def run(
        self, feed: dict[str, np.ndarray], method: str = "", removed: tuple[int, ...] = (), proportional: bool = True
    ) -> np.ndarray:
        """The outputs, with tokens reduced as `method` says."""
        masks = feed.get("mask", [None] * len(feed["patches"]))
        rows = [
            self._sample(patches, mask, method, removed or (0,) * self.shape.blocks, proportional)
            for patches, mask in zip(feed["patches"], masks, strict=True)
        ]
        return np.stack(rows)

    def _sample(self, patches, mask, method, removed, proportional):  # type: ignore[no-untyped-def]
        s = self.shape
        x = np.concatenate([self.tokens_before[0], patches]).astype(np.float64) + self.positions[0]
        members = [[i] for i in range(len(x))]  # of each row: the original tokens that it stands for
        shown = np.ones(len(x), bool) if mask is None else mask.astype(bool)
        full: np.ndarray | None = None  # all rows, where tokens that are left out wait
        for w, r in zip(self.weights, removed, strict=True):
            if method == "route" and r and full is not None:
                x, full, members, shown = full, None, [[i] for i in range(s.tokens)], np.ones(s.tokens, bool)
            sizes = np.array([len(m) for m in members], float)
            at_last = x
            x, keys, scores = self._attend(x, w, shown, sizes if method == "merge" and proportional else None)
            if r:
                x, members, shown, full = self._reduced(method, r, x, keys, scores, members, shown, full)
                at_last = x
            x = self._mlp(x, w)
            if full is not None:
                self._wait(method, full, x, at_last, members)
        if s.head == "class":
            return x[0] @ self.head
        rows = np.empty((s.tokens, s.width))
        for row, group in zip(x, members, strict=True):
            rows[group] = row
        rows = rows if full is None else full
        return rows.mean(axis=0) @ self.head if s.head == "mean" else rows @ self.head

    def _attend(self, x, w, shown, sizes):  # type: ignore[no-untyped-def]
        s = self.shape
        d = s.width // s.heads
        read = x if s.post_norm else _norm(x, w["gain1"])
        heads = [slice(h * d, (h + 1) * d) for h in range(s.heads)]
        q, k, v = (read @ w[name] for name in "qkv")
        seen, scores = np.empty_like(x), []
        for h in heads:
            z = q[:, h] @ k[:, h].T * d**-0.5
            z = z + (np.log(sizes) if sizes is not None else 0) + np.where(shown, 0, -1e9)
            a = np.exp(z - z.max(axis=1, keepdims=True))
            a /= a.sum(axis=1, keepdims=True)
            seen[:, h] = a @ v[:, h]
            scores.append(a)
        x = x + seen @ w["o"]
        x = _norm(x, w["gain1"]) if s.post_norm else x
        return x, np.mean([k[:, h] for h in heads], axis=0), np.mean(scores, axis=0)

    def _mlp(self, x, w):  # type: ignore[no-untyped-def]
        s = self.shape
        read = x if s.post_norm else _norm(x, w["gain2"])
        x = x + np.maximum(read @ w["up"], 0) @ w["down"]
        return _norm(x, w["gain2"]) if s.post_norm else x

    def _score(self, scores, shown):  # type: ignore[no-untyped-def]
        return scores[0] if self.shape.prefix else scores[shown].mean(axis=0)

    def _reduced(self, method, r, x, keys, scores, members, shown, full):  # type: ignore[no-untyped-def]
        p = self.shape.prefix
        if method == "merge":
            return (*self._merged(r, x, keys, members), np.ones(len(x) - r, bool), full)
        score = self._score(scores, shown)
        extra = 0 if method == "eliminate" else 1  # the token that is put in for those that go
        free = sorted(range(p, len(x)), key=lambda i: (-score[i], i))
        stay = sorted([*range(p), *free[: len(x) - r - extra - p]])
        go = [i for i in range(len(x)) if i not in stay]
        kept = [members[i] for i in stay]
        if method == "fuse":
            fused = sum(score[i] * x[i] for i in go)
            gone = [token for i in go for token in members[i]]
            return np.vstack([x[stay], fused]), [*kept, gone], np.ones(len(stay) + 1, bool), full
        full = np.empty((self.shape.tokens, self.shape.width)) if full is None else full
        for i in range(len(x)):
            full[members[i]] = x[i]
        if method == "eliminate":
            return x[stay], kept, shown[stay], full
        bridge = x[go].mean(axis=0)
        waiting = [token for i in go for token in members[i]]
        return np.vstack([x[stay], bridge]), [*kept, waiting], np.append(shown[stay], shown[go].any()), full

    def _merged(self, r, x, keys, members):  # type: ignore[no-untyped-def]
        """Tokens in even places to those in odd ones, protected ones left out."""
        p = self.shape.prefix
        u = keys / np.linalg.norm(keys, axis=1, keepdims=True)
        odd = [b for b in range(1, len(x), 2) if b >= p]
        pairs = []
        for a in range(0, len(x), 2):
            if a >= p:
                best = max(odd, key=lambda b: (u[a] @ u[b], -b))
                pairs.append((-(u[a] @ u[best]), a, best))
        merging = {a: b for _, a, b in sorted(pairs)[:r]}
        rows, groups = [], []
        for i in range(len(x)):
            if i in merging:
                continue
            inside = [i, *(a for a, b in merging.items() if b == i)]
            weights = np.array([len(members[j]) for j in inside], float)
            rows.append(np.average(x[inside], axis=0, weights=weights))
            groups.append([token for j in inside for token in members[j]])
        return np.array(rows), groups

    def _wait(self, method, full, x, before, members) -> None:  # type: ignore[no-untyped-def]
        """Rows that are computed take their places among all; with `route`, the others gain what the bridge gains."""
        if method == "route":
            full[members[-1]] += x[-1] - before[-1]
            x, members = x[:-1], members[:-1]
        for row, group in zip(x, members, strict=True):
            full[group] = row


def _norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPS) * gain)
