"""What the CPU at hand can do; needs no TVM."""

from __future__ import annotations


def cpu_flags() -> frozenset[str]:
    """Features of this CPU as Linux names them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()
