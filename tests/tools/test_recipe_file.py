"""Recipe files: what they say becomes a pipeline, and what they get wrong is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from small_models import save_samples
from typer.testing import CliRunner

from planish.ir.errors import UsageError
from planish.passes.pipelines import recipe
from planish.passes.sparse import Prune
from planish.tools.cli import app
from planish.tools.recipe_file import chosen_pipeline

SMALL = Path(__file__).parent.parent / "zoo/timm_dyn18.onnx"


def written(folder: Path, text: str) -> str:
    (folder / "recipe.yaml").write_text(text)
    return str(folder / "recipe.yaml")


def test_passes_follow_a_recipe_and_some_are_skipped(tmp_path):
    text = 'recipe: clean\npasses: ["raise-norms", "fold-norms"]\nskip: [fold-constants]\nshapes: {x: [1, 3]}\n'
    pipeline, shapes = chosen_pipeline(written(tmp_path, text), None, [])
    names = [step.name for step in pipeline.leaves()]
    assert names[-2:] == ["raise-norms", "fold-norms"]
    assert names[:-2] == [step.name for step in recipe("clean").without("fold-constants").leaves()]
    assert shapes == {"x": (1, 3)}


def test_options_set_fields_of_passes(tmp_path):
    text = "recipe: prune+integer\noptions:\n  prune: {sparsity: 0.8, structure: ob16, keep: [head]}\n"
    pipeline, _ = chosen_pipeline(written(tmp_path, text), None, [])
    (step,) = [step for step in pipeline.leaves() if isinstance(step, Prune)]
    assert step == Prune(sparsity=0.8, structure="ob16", keep=("head",))
    assert str(pipeline.without("prune")) == str(recipe("prune+integer").without("prune"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: [", "no valid YAML"),
        ("recipes: clean\n", "recipe field 'recipes'"),
        ("recipe: clean\nskip: [raise-norm]\n", "there is no pass 'raise-norm'"),
        ("recipe: clean\noptions: {prune: {sparsity: 0.8}}\n", "options of 'prune' are given"),
        ("recipe: prune\noptions: {prune: {sparsty: 0.8}}\n", "prune has no option 'sparsty'"),
    ],
)
def test_faults_are_named(tmp_path, text, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        chosen_pipeline(written(tmp_path, text), None, [])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="can't be read"):
        chosen_pipeline(str(tmp_path / "none.yaml"), None, [])


def test_recipes_of_planish_are_measured_against_each_other(tmp_path):
    pytest.importorskip("tvm")
    text = "recipe: prune+integer\noptions: {prune: {method: wanda, structure: ob16, sparsity: 0.5}}\n"
    samples = save_samples(SMALL, tmp_path)
    options = ["--recipe", written(tmp_path, text), "--target", "tvm-cpu", "--calib", str(samples)]
    done = CliRunner().invoke(
        app, ["bench", str(SMALL), *options, "--against", "ort-fp32,planish:integer", "--seconds", "0.1", "--json"]
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["failed"] == {}
    assert found["ratios"]["planish:integer"] > 0
