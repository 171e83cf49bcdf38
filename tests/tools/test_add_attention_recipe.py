"""Attention by signed sums on the command line: the recipe trains, says what came out, and does nothing untrained."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import small_models
from small_models import save_samples

from planish.passes.pipelines import recipe

MODEL = Path(__file__).parent.parent / "zoo" / "vit_ts14.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return save_samples(MODEL, tmp_path)


def optimize(tmp_path: Path, data: Path, *options: str):
    return small_models.optimize(MODEL, tmp_path, data, *options, "--recipe", "add-attention")


@pytest.mark.torch
def test_every_attention_is_replaced_and_reported(tmp_path, data):
    pytest.importorskip("torch")
    # random weights and samples: what counts here is that training ran and its result was written
    found = optimize(tmp_path, data, "--recover", "1s", "--max-nmse", "1e9", "--no-verify", "--json")
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    (report,) = result["attention"]
    assert report["recovery"]["steps"] >= 1
    assert "Softmax" not in result["ops"]["after"]
    assert result["ops"]["before"]["Softmax"] == len(report["attentions"])
    shown = optimize(tmp_path, data, "--recover", "1s", "--max-nmse", "1e9", "--no-verify", "--force")
    assert "Attention by signed sums" in shown.stdout
    assert "trained for" in re.sub(r"\s+", " ", shown.stdout)


def test_without_training_nothing_is_replaced(tmp_path, data):
    found = optimize(tmp_path, data, "--json")
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    assert result["attention"] == []
    assert result["ops"]["after"]["Softmax"] == result["ops"]["before"]["Softmax"]
    (row,) = [row for row in result["passes"] if row["name"] == "add-attention"]
    assert "it needs training: --recover" in str(row)


def test_the_recipe_joins_with_shift_add_and_integer():
    names = [step.name for step in recipe("add-attention+shift-add").leaves()]
    assert names.index("add-attention") < names.index("shift-add")
    names = [step.name for step in recipe("add-attention+integer").leaves()]
    assert names.index("add-attention") < names.index("integerize")
    assert names.count("fold-norms") == 1
