"""Errors that planish raises: each says what is wrong, where, who did it, and what to do next.

The command line turns `exit_code` into the process status; the codes are part of the interface.
"""

from __future__ import annotations

from typing import ClassVar


class PlanishError(Exception):
    """Base of all errors that planish raises on purpose.

    what: the fault, in one sentence, with the actual types or values.
    where: the node or file at fault, by its source name.
    who: the pass and rule at work, if any.
    remedy: what the reader can do about it.
    context: a few lines of text IR around the fault.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", who: str = "", remedy: str = "", context: str = ""):
        super().__init__(what)
        self.what, self.where, self.who, self.remedy, self.context = what, where, who, remedy, context

    def __str__(self) -> str:
        lines = [self.what]
        lines += [
            f"  {label} {text}"
            for label, text in (("at ", self.where), ("by ", self.who), ("try", self.remedy))
            if text
        ]
        if self.context:
            lines += self.context.splitlines()
        return "\n".join(lines)


class UsageError(PlanishError):
    """The command or call itself makes no sense: unknown pass, bad option value, existing output."""

    exit_code = 2


class FrontendError(PlanishError):
    """The model file can't be read or isn't a valid model."""

    exit_code = 3


class CalibrationError(PlanishError):
    """The data given doesn't fit the model: missing input, wrong shape or dtype, NaN."""

    exit_code = 3


class UnsupportedOp(PlanishError):
    """The target or pass can't express an op of the model."""

    exit_code = 4


class LoweringError(PlanishError):
    """The backend could not turn a graph into an artifact."""

    exit_code = 4


class VerifyError(PlanishError):
    """A graph violates an invariant of the IR: a bug in a pass, or a wrong text."""


class RewriteError(PlanishError):
    """A rule or pass broke its contract: wrong type, no termination, false property."""


class MismatchError(PlanishError):
    """The artifact computes something else than the original model."""

    exit_code = 5


class GateError(PlanishError):
    """An accuracy or speed bar that the user set was missed."""

    exit_code = 6
