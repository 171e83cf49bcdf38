"""How far a job is, for whoever watches."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Is told how far a job is. `total` 0 means that the stage has no countable steps."""

    def stage(self, name: str) -> None: ...

    def advance(self, done: int, total: int) -> None: ...


class Silent:
    """Progress that nobody watches."""

    def stage(self, name: str) -> None:
        pass

    def advance(self, done: int, total: int) -> None:
        pass
