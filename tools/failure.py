"""How failures reach the user: one message, one exit code, no traceback unless asked for.

Exit codes: 0 done, 1 internal error, 2 usage, 3 unreadable or invalid model or data, 4 unsupported op or target,
5 verification failed, 6 accuracy or speed gate missed, 130 interrupted.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from planish.ir.errors import PlanishError, UsageError

INTERRUPTED = 130


def exit_code(error: BaseException) -> int:
    """The process status for an exception."""
    if isinstance(error, PlanishError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return UsageError.exit_code if isinstance(error, PermissionError) else 1


def message(error: BaseException) -> str:
    """What to tell the user: what is wrong, where, and what to do."""
    if isinstance(error, PlanishError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing was written"
    if isinstance(error, OSError):
        remedy = {
            errno.ENOSPC: "free some space, or choose another --output",
            errno.EACCES: "choose an --output that you may write to",
            errno.EROFS: "choose an --output on a file system that is not read-only",
        }.get(error.errno or 0, "check the path and try again")
        return f"{error.strerror or error}\n  at  {error.filename or ''}\n  try {remedy}"
    return (
        f"internal error: {type(error).__name__}: {error}\n"
        "  try run again with --debug and report the traceback: this is a fault of planish, not of your model"
    )


@contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Turn exceptions of the body into a message on standard error and an exit status. Raises SystemExit."""
    try:
        yield
    except (PlanishError, OSError, KeyboardInterrupt, Exception) as error:
        if debug:
            traceback.print_exc()
        head, _, rest = message(error).partition("\n")
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print(Text("error: ", style="bold red").append(head, style="not bold default"))
        if rest:
            console.print(Text(rest))
        sys.exit(exit_code(error))
