"""Replaced norms on the command line: the recipe, its bars, its report, and training."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import small_models
from small_models import save_samples

from planish.passes.pipelines import recipe

MODEL = Path(__file__).parent.parent / "zoo" / "vit_dyn18.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return save_samples(MODEL, tmp_path)


def optimize(tmp_path: Path, data: Path, *options: str):
    return small_models.optimize(MODEL, tmp_path, data, *options)


def test_the_report_shows_what_became_of_each_norm(tmp_path, data):
    found = optimize(tmp_path, data, "--recipe", "unify", "--max-nmse", "0.5", "--json")
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    (norms,) = result["norms"]
    replaced = [norm for norm in norms["norms"] if norm["state"] != "kept"]
    assert replaced
    assert result["ops"]["after"].get("LayerNormalization", 0) == len(norms["norms"]) - len(replaced)
    assert norms["reported"]["nmse"] <= 0.5
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 1
    assert all(norm["name"] in page for norm in norms["norms"])
    assert not re.search(r"https?://(?!www\.w3\.org|purl\.org|creativecommons\.org|matplotlib\.org)", page)


def test_a_bar_of_nothing_replaces_nothing(tmp_path, data):
    found = optimize(tmp_path, data, "--recipe", "unify", "--max-nmse", "0", "--json")
    assert found.exit_code == 0, found.output
    assert all(norm["state"] == "kept" for norm in json.loads(found.stdout)["norms"][0]["norms"])


@pytest.mark.torch
def test_training_brings_more_norms_within_the_bar(tmp_path, data):
    pytest.importorskip("torch")
    found = optimize(tmp_path, data, "--recipe", "unify", "--max-nmse", "0.5", "--recover", "1s")
    assert found.exit_code == 0, found.output
    assert "trained for" in found.stdout
    assert (tmp_path / "out" / "report.html").read_text().count("<svg") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-nmse", "0.1"], "--recipe unify"),
        (["--recover", "1m"], "--recipe unify"),
        (["--max-drop", "1"], "--recipe integer, unify, compress,"),
    ],
)
def test_bars_that_nothing_heeds_are_usage_errors(tmp_path, data, options, message):
    found = optimize(tmp_path, data, *options)
    assert found.exit_code == 2
    assert message in re.sub(r"\s+", " ", found.output)


def test_a_sample_to_report_on_must_not_be_one_to_fit_on(tmp_path, data):
    found = optimize(tmp_path, data, "--recipe", "unify", "--verify-with", str(data))
    assert found.exit_code == 3
    assert "a sample is in the set to" in re.sub(r"\s+", " ", found.output)
    assert not (tmp_path / "out").exists()


def test_recipes_join():
    names = [step.name for step in recipe("unify+integer").leaves()]
    assert names.index("unify-norms") < names.index("integerize")
    assert names.count("fold-norms") == 1
