"""What the README shows works."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    code = code.replace(
        '"model.onnx", shapes={"x": (1, 3, 224, 224)}', '"model.onnx", shapes={"images": (1, 1, 28, 28)}'
    )
    (tmp_path / "model.onnx").write_bytes((ROOT / "tools/zoo/fashion_vit/model.onnx").read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["outcome"].verification.passed
    assert names["graph"].inputs[0].tensor.dims == (1, 1, 28, 28)


def test_every_subcommand_is_in_the_readme():
    from planish.tools.cli import app

    commands = [command.callback.__name__ for command in app.registered_commands]
    assert [name for name in commands if f"`planish {name}" not in README] == []
