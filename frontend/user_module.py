"""Loading a Python file that the user names on the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType


def load_module(path: Path) -> ModuleType:
    """Execute the file as a module of its own; it may import its neighbours while it does.

    Leaves the import path as it was and writes no bytecode. Raises whatever the file raises.
    """
    module = ModuleType(f"planish_user_{path.stem}")
    module.__file__ = str(path)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[module.__name__] = module  # dataclasses look their module up by name while it is executed
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    finally:
        sys.path.remove(folder)
        del sys.modules[module.__name__]
    return module
