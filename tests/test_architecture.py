"""The shape of the repository: which part may import which, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "ir": {"ir"},
    "frontend": {"ir", "frontend"},
    "passes": {"ir", "passes"},
    "backends": {"ir", "backends"},
    "tools": {"ir", "frontend", "passes", "backends", "tools"},
}
FOREIGN = {
    "ir": {"onnx", "onnx_ir", "onnxruntime", "torch", "tvm", "rich", "typer", "pydantic"},
    "passes": {"onnx", "onnx_ir", "onnxruntime", "torch", "tvm", "rich", "typer", "pydantic"},
    "frontend": {"onnxruntime", "tvm", "rich", "typer"},
    "backends": {"torch", "rich", "typer"},
    "tools": {"tvm"},
}


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def modules() -> list[Path]:
    return sorted(file for part in ALLOWED for file in (ROOT / part).rglob("*.py"))


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_the_parts_below_it(part):
    offenders = []
    for file in sorted((ROOT / part).rglob("*.py")):
        for name in imports(file):
            pieces = name.split(".")
            if pieces[0] == "planish" and len(pieces) > 1 and pieces[1] in set(ALLOWED) - ALLOWED[part]:
                offenders.append(f"{file.relative_to(ROOT)} imports {name}")
            if pieces[0] in FOREIGN[part]:
                offenders.append(f"{file.relative_to(ROOT)} imports {name}")
    assert offenders == []


def test_modules_can_be_read_in_one_sitting():
    long = {str(f.relative_to(ROOT)): n for f in modules() if (n := len(f.read_text().splitlines())) > 400}
    assert long == {}


def test_every_module_says_what_it_is_for():
    files = [f for f in modules() if f.read_text().strip()]
    assert [str(f.relative_to(ROOT)) for f in files if not ast.get_docstring(ast.parse(f.read_text()))] == []


def test_every_op_and_pass_has_a_docstring_of_its_own():
    from planish.ir.op import OPS
    from planish.passes.pipelines import PASSES

    assert [
        kind.__name__ for kind in OPS.values() if not kind.__doc__ or kind.__doc__.startswith(kind.__name__ + "(")
    ] == []
    assert [kind.name for kind in PASSES if not kind.__doc__] == []


def test_rules_have_names_of_their_own_and_say_what_they_do():
    from planish.passes.pipelines import PASSES

    rules = [rule for kind in PASSES for rule in kind().rules]
    assert rules
    assert [rule.name for rule in rules if not rule.doc] == []
    assert len({rule.name for rule in rules}) == len(rules)


def test_importing_planish_imports_nothing_heavy():
    heavy = "onnx", "onnxruntime", "torch", "numpy", "networkx", "rich"
    code = f"import planish, sys; print([m for m in {heavy!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_command_never_imports_torch(tmp_path):
    code = (
        "import sys; from planish.tools.cli import app\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(app, ['optimize', '--list-passes']).exit_code == 0\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
