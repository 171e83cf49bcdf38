"""What the CPU at hand can do; needs no TVM."""

from __future__ import annotations

import ctypes
import sys

ASK_FOR_TILES = (158, 0x1023, 18)  # Linux on x86-64: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA)
_TILE_FEATURES = frozenset({"amx_tile", "amx_int8", "amx_bf16"})


def cpu_flags() -> frozenset[str]:
    """Features of this CPU as Linux names them; empty elsewhere. Those of AMX only where Linux lets this process."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    found = frozenset(line.split(":", 1)[1].split())
                    return found if "amx_tile" in found and _tiles_granted() else found - _TILE_FEATURES
    except OSError:
        pass
    return frozenset()


def _tiles_granted() -> bool:
    """Ask for tile registers, which a process may use only then."""
    if not sys.platform.startswith("linux"):
        return False
    return int(ctypes.CDLL(None).syscall(*ASK_FOR_TILES)) == 0
