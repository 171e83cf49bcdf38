"""What an installation consists of."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [
        file.parent.relative_to(ROOT)
        for part in settings["package-dir"].values()
        for file in (ROOT / part).rglob("__init__.py")
    ]
    expected = {
        ".".join(folder.parts if folder.parts[0] == "planish" else ("planish", *folder.parts)) for folder in folders
    }
    assert set(settings["packages"]) == expected
