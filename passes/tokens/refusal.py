"""Why tokens of a stream may not be reduced."""

from __future__ import annotations

from planish.ir.graph import Node

CONDITIONS = {
    "T1": "tokens lie along one known axis, and their number is known",
    "T2": "blocks are connected by the residual stream alone",
    "T3": "nothing depends on a token's position after the cut, or it can be gathered",
    "T4": "nothing mixes tokens by their position after the cut: windows, grids, token-mixing layers",
    "T5": "masks can follow their tokens",
    "T6": "heads read protected tokens, or get all tokens back",
    "T7": "every number of tokens written into the graph can be rewritten",
    "T8": "tokens that must stay are the first ones",
    "T9": "there are enough tokens for the schedule",
    "T10": "outputs with a token axis get all tokens back",
    "T11": "keys or attention scores are there to choose by",
    "T12": "each sample has its own choice",
    "T13": "the target can add up rows of this element type",
    "T14": "attention looks both ways",
    "T15": "what is saved is more than what choosing costs",
    "T16": "the accuracy holds on samples that nothing was chosen by",
}
"""Conditions of legality, by the identifier that a refusal starts with."""


class Refusal(Exception):
    """A condition doesn't hold. condition: its identifier; reason: a sentence; node: the one at fault."""

    def __init__(self, condition: str, reason: str, node: Node | None = None):
        super().__init__(f"{condition}: {reason}")
        self.condition, self.reason, self.node = condition, reason, node

    @property
    def where(self) -> str:
        return "" if self.node is None else str(self.node.loc)
