"""What the README shows works."""

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import planish

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_python_example_runs(tmp_path, monkeypatch):
    (code,) = [text for text in EXAMPLES if "planish.rule" in text]
    code = code.replace(
        '"model.onnx", shapes={"x": (1, 3, 224, 224)}', '"model.onnx", shapes={"images": (1, 1, 28, 28)}'
    )
    (tmp_path / "model.onnx").write_bytes((ROOT / "tools/zoo/fashion_vit/model.onnx").read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["outcome"].verification.passed
    assert names["graph"].inputs[0].tensor.dims == (1, 1, 28, 28)


def test_the_example_of_a_compiled_artifact_runs(tmp_path, monkeypatch):
    pytest.importorskip("tvm")
    from planish.tools.cli import app

    zoo = ROOT / "tools/zoo/fashion_vit"
    monkeypatch.chdir(tmp_path)
    command = (
        f"optimize {zoo / 'model.onnx'} -o out/ --recipe integer --calib {zoo / 'calibration.npz'} --target tvm-cpu"
    )
    assert CliRunner().invoke(app, command.split()).exit_code == 0
    (code,) = [text for text in EXAMPLES if "load_artifact" in text]
    names: dict[str, object] = {"planish": planish, "images": np.load(zoo / "test.npz")["images"][:1]}
    exec(code, names)
    (logits,) = names["outputs"].values()
    assert logits.shape == (1, 10)


def test_every_subcommand_is_in_the_readme():
    from planish.tools.cli import app

    commands = [command.callback.__name__ for command in app.registered_commands]
    assert [name for name in commands if f"`planish {name}" not in README] == []
