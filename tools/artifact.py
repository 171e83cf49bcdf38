"""Writing an artifact folder: complete or not at all, and never over the user's own files."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from planish.ir.errors import PlanishError, UsageError
from planish.tools.manifest import MANIFEST

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def artifact_folder(out: Path, *, force: bool, protect: Sequence[Path] = ()) -> Iterator[Path]:
    """Yield an empty folder beside `out` that becomes `out` when the block ends, and vanishes when it raises.

    force: replace what is at `out` if that is an artifact of planish or an empty folder, once the new one is complete.
    protect: files the run reads (the model, its data); `out` may not replace a folder that holds one.

    Raises UsageError where `out` exists without `force`, mustn't be replaced, or can't be written.
    """
    target = _resolved(out)
    _check_target(target, out, force, [_resolved(path) for path in protect])
    created = _missing_parents(target)
    partial = target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        _publish(partial, target)
    except OSError as error:
        raise _write_error(error, out, partial) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in created:
            if not target.exists() and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _missing_parents(target: Path) -> list[Path]:
    """Parents that don't exist yet, innermost first."""
    return [folder for folder in target.parents if not folder.exists()]


def _check_target(target: Path, out: Path, force: bool, protect: Sequence[Path]) -> None:
    for path in protect:
        if path == target or target in path.parents:
            raise UsageError(
                f"the output {out} would replace {path.name}, which this run reads",
                where=str(out),
                remedy="name another output folder",
            )
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError("the output exists and is a file", where=str(out), remedy="name a folder for the artifact")
    if not force:
        raise UsageError("the output exists already", where=str(out), remedy="name another, or replace it with --force")
    if not (target / MANIFEST).is_file() and any(target.iterdir()):
        raise UsageError(
            f"the output is a folder that planish didn't write (it has no {MANIFEST}); it won't be deleted",
            where=str(out),
            remedy="name another output folder, or remove this one yourself",
        )


def _publish(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    old = target.parent / f".{target.name}.{secrets.token_hex(4)}.old"
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_error(error: OSError, out: Path, partial: Path) -> PlanishError | OSError:
    """A clean error for a destination that can't be written; other faults of the block stay what they are."""
    reason = error.strerror or str(error)
    if error.errno in _NO_SPACE:
        return UsageError(
            f"no space to write the artifact: {reason}", where=str(out), remedy="free some, or write elsewhere"
        )
    if error.errno in _NOT_WRITABLE:
        remedy = "name an output folder that you may write to"
        return UsageError(f"can't write the artifact: {reason}", where=str(out), remedy=remedy)
    named = [str(name) for name in (error.filename, error.filename2) if name is not None]
    if any(name.startswith(str(partial)) or Path(name) in partial.parents for name in named):
        return UsageError(f"can't write the artifact: {reason}", where=str(out), remedy="name another output folder")
    return error
