"""planish: a compiler for trained neural networks. ONNX in, a smaller, faster, verified artifact out.

import planish
graph = planish.load("model.onnx")                      # ONNX file, torch module, ExportedProgram or .pt2
graph = planish.optimize(graph, "default")              # a recipe, a pipeline, or its text
artifact = planish.compile("model.onnx", "out/")        # optimize, write, verify and time
outputs = planish.load_artifact("out/")(x=images)        # run what was written
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.backends.targets import Target as Target
    from planish.frontend import load as load
    from planish.passes.base import Pass as Pass
    from planish.passes.base import Pipeline as Pipeline
    from planish.passes.base import RulePass as RulePass
    from planish.passes.rewrite import reject as reject
    from planish.passes.rewrite import rule as rule
    from planish.tools.compiling import compile as compile
    from planish.tools.compiling import optimize as optimize
    from planish.tools.sessions import load_artifact as load_artifact

__version__ = "0.1.0"

_HOMES = {
    "load": "planish.frontend",
    "load_artifact": "planish.tools.sessions",
    "optimize": "planish.tools.compiling",
    "compile": "planish.tools.compiling",
    "Pass": "planish.passes.base",
    "Pipeline": "planish.passes.base",
    "RulePass": "planish.passes.base",
    "rule": "planish.passes.rewrite",
    "reject": "planish.passes.rewrite",
    "Target": "planish.backends.targets",
}

__all__ = [
    "Pass",
    "Pipeline",
    "RulePass",
    "Target",
    "__version__",
    "compile",
    "load",
    "load_artifact",
    "optimize",
    "reject",
    "rule",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'planish' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
