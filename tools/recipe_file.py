"""Recipes: what to do to a model, by name ("default+tokens") or from a YAML file.

# recipe.yaml
passes: "repeat(fold-constants; simplify-arithmetic); raise-norms"   # or a list, or recipe: NAME
skip: [raise-attention]
options: {prune: {sparsity: 0.8, structure: ob16}}                   # fields of passes
shapes: {x: [1, 3, 224, 224]}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from planish.ir.errors import UsageError
from planish.passes.base import Pipeline
from planish.passes.pipelines import known_options, parse_pipeline, pass_named, recipe, resolve_pipeline

_FILES = (".yaml", ".yml")


class RecipeFile(BaseModel):
    """Contents of a recipe file. Give `recipe` or `passes`, or both: the passes then follow the recipe's."""

    model_config = ConfigDict(extra="forbid")

    recipe: str | None = None
    passes: str | list[str] | None = None
    skip: list[str] = []
    options: dict[str, dict[str, Any]] = {}
    shapes: dict[str, list[int | str]] = {}


def read_recipe(path: Path) -> RecipeFile:
    """Read a recipe file. Raises UsageError naming the line or field at fault."""
    try:
        return RecipeFile.model_validate(yaml.safe_load(path.read_text()) or {})
    except OSError as error:
        raise UsageError(f"recipe file can't be read: {error.strerror}", where=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe file is no valid YAML: {error}", where=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        known = ", ".join(RecipeFile.model_fields)
        raise UsageError(
            f"recipe field {field!r}: {first['msg'].lower()}", where=str(path), remedy=f"known fields: {known}"
        ) from error


def chosen_pipeline(
    name: str | None, passes: str | None, skip: list[str]
) -> tuple[Pipeline, dict[str, tuple[int | str, ...]]]:
    """The pipeline that --recipe, --passes and --skip-pass ask for, and the shapes that a recipe file binds.

    --recipe is the default recipe if neither is given; --passes alone replaces it.
    """
    file = RecipeFile(recipe=name)
    if name is not None and Path(name).suffix in _FILES:
        file = read_recipe(Path(name))
    texts = [file.passes] if isinstance(file.passes, str) else list(file.passes or [])
    if passes is not None:
        texts.append(passes)
    base = file.recipe if file.recipe is not None or texts else "default"
    pipeline = recipe(base) if base is not None else Pipeline()
    for text in texts:
        pipeline += parse_pipeline(text)
    skipped = [*file.skip, *skip]
    for name_ in skipped:
        pass_named(name_)
    for step, options in file.options.items():
        pipeline = _with_options(pipeline, step, options)
    shapes: dict[str, tuple[int | str, ...]] = {key: tuple(dims) for key, dims in file.shapes.items()}
    return pipeline.without(*skipped), shapes


def pipeline_of(text: str) -> tuple[Pipeline, dict[str, tuple[int | str, ...]]]:
    """The pipeline that a recipe file, a recipe's name or a pipeline text means, and the shapes that a file binds."""
    return chosen_pipeline(text, None, []) if Path(text).suffix in _FILES else (resolve_pipeline(text), {})


def _with_options(pipeline: Pipeline, name: str, options: Mapping[str, object]) -> Pipeline:
    """The pipeline with fields of a pass set. Raises UsageError for a pass that isn't in it, and for unknown fields."""
    kind = pass_named(name)
    if all(step.name != name for step in pipeline.leaves()):
        raise UsageError(f"options of {name!r} are given, but the recipe doesn't have it", remedy="add it to passes")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return pipeline.with_options(name, **known_options(kind, values))
