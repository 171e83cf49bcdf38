"""Provenance: which nodes of the source model a node stems from, and which rules made it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Loc:
    """Where a node comes from.

    sources: names of the original nodes, in order, without repeats.
    scope: deepest module path that holds all of them ("vit.layers.3.attention"), "" if unknown.
    via: rules and passes that made the node, oldest first; empty for a node as imported.
    """

    sources: tuple[str, ...] = ()
    scope: str = ""
    via: tuple[str, ...] = ()

    @staticmethod
    def fuse(locs: Iterable[Loc]) -> Loc:
        """The provenance of a node that stands for several."""
        found = list(locs)
        sources = tuple(dict.fromkeys(s for loc in found for s in loc.sources))
        via = tuple(dict.fromkeys(v for loc in found for v in loc.via))
        return Loc(sources, common_scope([loc.scope for loc in found if loc.scope]), via)

    def made_by(self, rule: str) -> Loc:
        return self if self.via[-1:] == (rule,) else replace(self, via=(*self.via, rule))

    def __str__(self) -> str:
        shown = "+".join(self.sources[:3]) + (f"+{len(self.sources) - 3} more" if len(self.sources) > 3 else "")
        return shown + (f" via {' > '.join(self.via)}" if self.via else "")


def common_scope(scopes: list[str]) -> str:
    """Longest common module path of dotted or slashed scopes."""
    if not scopes:
        return ""
    if all(scope == scopes[0] for scope in scopes):
        return scopes[0]
    separator = "/" if any("/" in scope for scope in scopes) else "."
    steps = zip(*(scope.split(separator) for scope in scopes), strict=False)
    shared = itertools.takewhile(lambda names: len(set(names)) == 1, steps)
    return separator.join(names[0] for names in shared)
