"""Whether an artifact computes what the original does: how close it has to be, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from planish.frontend.calibration import CalibrationSet
from planish.ir.errors import MismatchError
from planish.passes.exactness import Exactness
from planish.tools.divergence import first_divergence
from planish.tools.verify import ROUNDING, Tolerance, Verification

if TYPE_CHECKING:
    from planish.tools.compiling import Job


def tolerance_of(exactness: Exactness) -> Tolerance:
    """What verification allows a pipeline: at least rounding, since runtimes fuse what remains in their own ways."""
    if exactness.min_sqnr_db is not None:
        return Tolerance(min_sqnr_db=exactness.min_sqnr_db)
    return Tolerance(max(exactness.atol, ROUNDING.atol), max(exactness.rtol, ROUNDING.rtol))


def mismatch(job: Job, artifact: Path, feeds: CalibrationSet, verification: Verification) -> MismatchError:
    """The error that says where and how far an artifact departs from the original."""
    worst = next(feed for i, feed in enumerate(feeds) if i == verification.worst_feed)
    place = None  # machine code has no values inside to look at
    if not job.target.compiled:
        place = first_divergence(job.source, artifact, worst, tolerance=verification.tolerance)
    return MismatchError(
        f"the artifact computes something else than the original: {agreement(verification)}",
        where=str(place) if place else "",
        remedy="find the pass at fault with --skip-pass, and report it; nothing was written",
    )


def agreement(verification: Verification) -> str:
    """One sentence on how well artifact and original agree."""
    parts = list(verification.problems)
    for row in verification.rows:
        if row.problem or row.note:
            parts.append(f"{row.name}: {row.problem or row.note}")
            continue
        text = f"{row.name}: max abs difference {row.max_abs:.2g}"
        if row.max_abs:
            text += f", SQNR {row.sqnr_db:.0f} dB"
        if row.top1_agreement is not None:
            text += f", same top-1 on {100 * row.top1_agreement:.2f} %"
        if row.accuracy_original is not None and row.accuracy_artifact is not None:
            text += f", accuracy {100 * row.accuracy_original:.2f} % -> {100 * row.accuracy_artifact:.2f} %"
        parts.append(text)
    return "; ".join(parts)
