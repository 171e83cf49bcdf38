"""Shapes given on the command line: `x=1x3x224x224` in all the spellings that similar tools accept."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from planish.ir.errors import UsageError

Shape = tuple[int | str, ...]

EXAMPLE = "write it as x=1x3x224x224 or x=batch,3,224,224"
_TOKEN = re.compile(r"(?:\[[^\]]*\]|[^\s\[])+")


def parse_shapes(values: Iterable[str], inputs: Sequence[str]) -> dict[str, Shape]:
    """Shapes by input name.

    values: options as given, each with one or more shapes separated by spaces: `x=1x3x224x224`, `x:1x3x224x224`,
      `x=1,3,224,224`, `x:[1, 3, 224, 224]`, or a bare shape for a model with one input. The last `=` or `:` ends the
      name. A dimension stays symbolic under a name in the comma or bracket form: `x=batch,3,224,224`.
    inputs: names of the model's inputs.

    Raises UsageError for a shape that can't be read, an unknown name, or two shapes for one input.
    """
    shapes: dict[str, Shape] = {}
    for value in values:
        tokens = _TOKEN.findall(value)
        if not tokens:
            raise UsageError("empty shape", remedy=EXAMPLE)
        for token in tokens:
            name, text = _split(token, inputs)
            shape = _parse_dims(text, token)
            if shapes.setdefault(name, shape) != shape:
                raise UsageError(
                    f"two shapes for input '{name}': {list(shapes[name])} and {list(shape)}",
                    remedy="give one shape per input",
                )
    return shapes


def _split(token: str, inputs: Sequence[str]) -> tuple[str, str]:
    """Name and dimensions of one token."""
    if token in inputs:
        raise UsageError(f"input '{token}' has no shape after its name", remedy=f"write {token}=1x3x224x224")
    end = max(token.rfind("="), token.rfind(":"))
    if end >= 0:
        name = token[:end]
        if name in inputs:
            return name, token[end + 1 :]
        near = difflib.get_close_matches(name, inputs, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UsageError(
            f"the model has no input '{name}'", remedy=f"{hint}Its inputs are {', '.join(inputs) or 'none'}"
        )
    if len(inputs) != 1:
        raise UsageError(
            f"the shape '{token}' names no input, and the model has {len(inputs)}: {', '.join(inputs)}",
            remedy=f"write {inputs[0]}={token}" if inputs else "leave the shape out",
        )
    return inputs[0], token


def _parse_dims(text: str, token: str) -> Shape:
    bracketed = text.startswith("[") and text.endswith("]")
    inner = text[1:-1].strip() if bracketed else text
    if bracketed and not inner:
        return ()
    if "," in inner or bracketed:
        return tuple(_parse_dim(part.strip(), token) for part in inner.split(","))
    if re.fullmatch(r"\d+([xX]\d+)*", inner):
        return tuple(int(part) for part in re.split("[xX]", inner))
    raise UsageError(f"can't read the shape '{token}'", remedy=f"{EXAMPLE} (names of dimensions need commas)")


def _parse_dim(text: str, token: str) -> int | str:
    if re.fullmatch(r"\d+", text):
        return int(text)
    if re.fullmatch(r"[A-Za-z_]\w*", text):
        return text
    what = "a dimension can't be negative" if re.fullmatch(r"-\d+", text) else f"'{text}' is no dimension"
    raise UsageError(f"can't read the shape '{token}': {what}", remedy=f"{EXAMPLE} (a name keeps a dimension symbolic)")
