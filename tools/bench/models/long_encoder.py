"""A long encoder whose attention is concentrated by construction: near keys, some positions, or one phase."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.ir import dtypes, ops
from planish.ir.graph import Graph, Value
from planish.ir.loc import Loc
from planish.ir.types import tensor

ROLES = (("near", "near", "stripe", "phase"), ("near", "stripe", "both", "mean"))
CAUSAL_ROLES = (("near", "near", "stripe", "both"), ("near", "stripe", "both", "near"))
"""What the heads of each layer look at; under a causal mask a mean over all keys isn't constant."""

_FEATURES, _OUTPUTS = 32, 16
_PEAK = 26.0  # of the scores, above those of keys that get nothing
_CONTENT = 0.5  # variance of content channels, that of the waves too


@dataclass(frozen=True)
class LongEncoder:
    """Layers of norm, attention, norm and MLP over `tokens`, on features and waves of the position.

    near: keys about `reach` away get most of a "near" head's weight. period: of the positions that a "phase" head looks
    at. marked: neighbours in each of four runs of positions that a "stripe" head looks at.
    """

    tokens: int = 2048
    head: int = 64
    mlp: int = 4
    causal: bool = False
    reach: float = 16.0
    period: int = 64
    marked: int = 16
    seed: int = 0

    @property
    def width(self) -> int:
        """Channels: waves for near keys and for phases, a mark, and content."""
        return 4 * self.head

    def graph(self) -> Graph:
        """The graph, x[batch, tokens, 32] -> y[batch, tokens, 16]."""
        rng = np.random.default_rng(self.seed)
        graph = Graph("long_encoder")
        x: Value = graph.add_input("x", tensor(dtypes.f32, "batch", self.tokens, _FEATURES))
        embed = np.zeros((_FEATURES, self.width))
        embed[:, self._content] = rng.normal(size=(_FEATURES, self._size)) * (_CONTENT / _FEATURES) ** 0.5
        y = ops.Add()(ops.Linear()(x, _f32(embed)), _f32(self._positions(rng)))
        for roles in CAUSAL_ROLES if self.causal else ROLES:
            y = self._layer(y, roles, rng)
        out = rng.normal(size=(self.width, _OUTPUTS)) * self.width**-0.5
        out[: 2 * self.head + 1] = 0  # waves are the same for every input
        y = ops.Linear()(self._norm(y), _f32(out))
        graph.attach(y, None, Loc(("made",)))
        for number, node in enumerate(graph):
            node.loc = Loc((f"{node.op.name.lower()}_{number}",))
        graph.add(ops.Return(("y",)), y)
        return graph

    def feeds(self, count: int, seed: int = 1) -> list[dict[str, np.ndarray]]:
        """Random features, one sample each."""
        rng = np.random.default_rng(seed)
        shape = (1, self.tokens, _FEATURES)
        return [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(count)]

    @property
    def _content(self) -> slice:
        return slice(2 * self.head + 1, self.width)

    @property
    def _size(self) -> int:
        return self.width - 2 * self.head - 1

    def _positions(self, rng: np.random.Generator) -> np.ndarray:
        """[tokens, width]: waves of random lengths, harmonics of the period, and marks."""
        places, waves = np.arange(self.tokens)[:, None], self.head // 2
        speeds = rng.normal(size=waves) / (self.reach * _PEAK**0.5)  # products of such waves are a bell of that width
        harmonics = 2 * np.pi * np.arange(1, waves + 1) / self.period
        found = np.zeros((self.tokens, self.width))
        for start, each in ((0, speeds), (self.head, harmonics)):
            found[:, start : start + waves] = np.cos(places * each)
            found[:, start + waves : start + 2 * waves] = np.sin(places * each)
        found[:, 2 * self.head] = places[:, 0] % (self.tokens // 4) < self.marked
        return found

    def _layer(self, x: Value, roles: tuple[str, ...], rng: np.random.Generator) -> Value:
        heads, d, c = len(roles), self.head, self.width
        q, k, v = (rng.normal(size=(c, heads, d)) * 0.25 * self._size**-0.5 for _ in range(3))
        q[: 2 * d + 1], k[: 2 * d + 1], v[: 2 * d + 1] = 0, 0, 0
        v *= 4
        bias = np.zeros((heads, d))
        scale, waves = d**-0.5, d // 2
        gain = (_PEAK / (waves / _CONTENT * scale)) ** 0.5
        for head, role in enumerate(roles):
            if role in ("near", "both", "phase"):
                first = d if role == "phase" else 0
                q[first : first + d, head] += gain * np.eye(d)
                k[first : first + d, head] += gain * np.eye(d)
            if role in ("stripe", "both"):  # the first wave's place is taken, so that there are marks beside the waves
                q[:, head, 0], k[:, head, 0] = 0, 0
                k[2 * d, head, 0] = _PEAK * _CONTENT**0.5 / scale**0.5
                bias[head, 0] = scale**-0.5
        out = rng.normal(size=(heads, d, c)) * 0.5 * (heads * d) ** -0.5
        out[[head for head, role in enumerate(roles) if role == "mean"]] *= 0.25
        out[:, :, : 2 * d + 1] = 0
        read = self._norm(x)
        queries = self._split(ops.Linear()(read, _f32(q.reshape(c, -1)), _f32(bias.reshape(-1))), heads)
        keys, values = (self._split(ops.Linear()(read, _f32(w.reshape(c, -1))), heads) for w in (k, v))
        seen = ops.Transpose((0, 2, 1, 3))(ops.Attention(scale, self.causal)(queries, keys, values))
        x = ops.Add()(x, ops.Linear()(ops.Reshape((0, self.tokens, heads * d))(seen), _f32(out.reshape(-1, c))))
        up = rng.normal(size=(c, self.mlp * c)) * c**-0.5
        down = rng.normal(size=(self.mlp * c, c)) * 0.3 * (self.mlp * c) ** -0.5
        down[:, : 2 * d + 1] = 0
        inner = ops.Gelu()(ops.Linear()(self._norm(x), _f32(up)))
        result: Value = ops.Add()(x, ops.Linear()(inner, _f32(down)))
        return result

    def _norm(self, x: Value) -> Value:
        ones: np.ndarray = np.ones(self.width, np.float32)
        result: Value = ops.LayerNorm(-1, 1e-6)(x, ones, np.zeros_like(ones))
        return result

    def _split(self, x: Value, heads: int) -> Value:
        result: Value = ops.Transpose((0, 2, 1, 3))(ops.Reshape((0, self.tokens, heads, self.head))(x))
        return result


def _f32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)
