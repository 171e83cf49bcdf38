"""torch is imported when somebody trains, not before."""

from __future__ import annotations

import subprocess
import sys


def test_importing_recovery_does_not_import_torch():
    code = "import planish.tools.recovery.recover, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
