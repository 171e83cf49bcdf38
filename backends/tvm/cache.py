"""Where compiled code and measured schedules are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(part: str) -> Path | None:
    """The folder for `part` of the cache: in PLANISH_CACHE, or the user's; None where PLANISH_CACHE is empty."""
    chosen = os.environ.get("PLANISH_CACHE")
    if chosen is not None:
        return Path(chosen) / part if chosen else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "planish" / part
