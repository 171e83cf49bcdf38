"""An artifact folder appears whole or not at all, never replaces what isn't one, and describes itself."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from planish.ir.errors import FrontendError, PlanishError, UsageError
from planish.tools import manifest as manifests
from planish.tools.artifact import artifact_folder


def fill(folder: Path, text: str = "new") -> None:
    (folder / "model.onnx").write_text(text)
    (folder / manifests.MANIFEST).write_text("{}")


def make(out: Path, text: str = "new", *, force: bool = False, protect=()) -> None:
    with artifact_folder(out, force=force, protect=protect) as folder:
        fill(folder, text)


def refused(out: Path, **options) -> UsageError:
    with pytest.raises(UsageError) as caught:
        make(out, **options)
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    return caught.value


def test_the_folder_appears_when_the_block_ends(tmp_path):
    out = tmp_path / "deep" / "out"
    with artifact_folder(out, force=False) as folder:
        fill(folder)
        assert not out.exists()
        assert folder.parent == out.parent
    assert (out / "model.onnx").read_text() == "new"
    assert os.listdir(out.parent) == ["out"]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit, UsageError])
def test_any_exception_leaves_nothing_behind(tmp_path, fault):
    with pytest.raises(fault), artifact_folder(tmp_path / "deep" / "er" / "out", force=False) as folder:
        fill(folder)
        raise fault("stop")
    assert os.listdir(tmp_path) == []


def test_an_existing_output_needs_force(tmp_path):
    make(tmp_path / "out", "old")
    assert "--force" in refused(tmp_path / "out").remedy
    assert (tmp_path / "out" / "model.onnx").read_text() == "old"
    make(tmp_path / "out", force=True)
    assert (tmp_path / "out" / "model.onnx").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_a_failed_replacement_keeps_the_old_artifact(tmp_path):
    make(tmp_path / "out", "old")
    with pytest.raises(KeyboardInterrupt), artifact_folder(tmp_path / "out", force=True) as folder:
        fill(folder)
        raise KeyboardInterrupt
    assert (tmp_path / "out" / "model.onnx").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_a_failed_rename_puts_the_old_artifact_back(tmp_path, monkeypatch):
    make(tmp_path / "out", "old")
    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", force=True)
    assert (tmp_path / "out" / "model.onnx").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_may_be_replaced_with_force(tmp_path):
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", force=True)
    assert (tmp_path / "out" / "model.onnx").exists()


def test_force_deletes_no_folder_that_planish_did_not_write(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert "didn't write" in refused(tmp_path / "out", force=True).what
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused(tmp_path / "file", force=True).what
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_the_input_is_never_replaced(tmp_path):
    make(tmp_path / "out", "input")
    model = tmp_path / "out" / "model.onnx"
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for out in (tmp_path / "out", model, tmp_path, tmp_path / "link", tmp_path / "x" / ".." / "out"):
        assert "would replace model.onnx" in refused(out, force=True, protect=[model]).what
    assert model.read_text() == "input"
    make(tmp_path / "out" / "optimized", protect=[model])
    assert model.read_text() == "input"


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "can't write the artifact" in refused(tmp_path / "file" / "out").what


@pytest.mark.parametrize(
    ("number", "message"), [(errno.EACCES, "can't write"), (errno.EROFS, "can't write"), (errno.ENOSPC, "no space")]
)
def test_a_read_only_or_full_destination_is_a_clean_error(tmp_path, monkeypatch, number, message):
    def fail(self, *args, **kwargs):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_text", fail)
    assert message in refused(tmp_path / "out").what
    assert os.listdir(tmp_path) == []


def test_other_faults_of_the_block_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), artifact_folder(tmp_path / "out", force=False):
        (tmp_path / "missing.bin").read_bytes()
    assert os.listdir(tmp_path) == []


def manifest(folder: Path, **changes) -> manifests.Manifest:
    fields = {
        "planish": "0.1.0",
        "versions": manifests.package_versions(),
        "model": manifests.OriginalModel(file="m.onnx", sha256="0" * 64),
        "files": manifests.describe_files(folder),
        "pipeline": "cleanup; raise",
        "target": "ort-cpu",
        "opset": {"": 20},
        "inputs": (manifests.ValueEntry(name="x", dtype="f32", shape=("n", 4)),),
        "outputs": (manifests.ValueEntry(name="y", dtype="seq", shape=None),),
        "passes": (manifests.PassEntry(name="cleanup", rewrites=3, skipped={"too large": 1}),),
        "calibration": manifests.CalibrationEntry(source="random:3 seed=0", digest="1" * 64),
        "verification": {"passed": True, "outputs": [{"sqnr_db": None}]},
    }
    return manifests.Manifest(**{**fields, **changes})


def test_a_manifest_is_read_back_as_written_and_its_bytes_are_stable(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"abc")
    (tmp_path / "sub" / "weights.bin").write_bytes(b"")
    manifests.write_measurements(tmp_path, {"rounds": 3})
    written = manifest(tmp_path)
    first = manifests.write_manifest(tmp_path, written).read_bytes()
    assert manifests.read_manifest(tmp_path) == written
    assert manifests.write_manifest(tmp_path, manifest(tmp_path)).read_bytes() == first
    assert list(written.files) == ["model.onnx", "sub/weights.bin"]
    assert written.files["model.onnx"].sha256.startswith("ba7816bf")
    assert list(json.loads(first)) == sorted(json.loads(first))
    assert json.loads((tmp_path / "measurements.json").read_text()) == {"rounds": 3}


def test_changed_and_missing_files_are_noticed(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"abc")
    described = manifest(tmp_path)
    manifests.check_files(tmp_path, described)
    (tmp_path / "model.onnx").write_bytes(b"abd")
    with pytest.raises(FrontendError, match="was changed"):
        manifests.check_files(tmp_path, described)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(FrontendError, match=r"lacks its file model\.onnx"):
        manifests.check_files(tmp_path, described)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no manifest.json"),
        ("{", "can't read the manifest"),
        ("[]", "schema version None"),
        ('{"schema_version": 2}', "schema version 2, this planish reads 1"),
        ('{"schema_version": 1}', "the manifest is invalid: planish: Field required"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_a_clean_error(tmp_path, text, message):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(PlanishError, match=message) as caught:
        manifests.read_manifest(tmp_path)
    assert caught.value.exit_code == 3
