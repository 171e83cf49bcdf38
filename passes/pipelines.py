"""The passes and pipelines that planish ships, as data; and the text form of pipelines.

pipeline := step (";" step)*        step := name | name{option=literal, ...} | repeat(pipeline)
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields

from planish.ir.errors import UsageError
from planish.passes.base import Pass, Pipeline, Repeat
from planish.passes.cleanup import CLEANUP
from planish.passes.cleanup.hoist_slices import HoistSlices
from planish.passes.integer import IntegerBoundary, Integerize, QuantizeProducts, SplitProjections
from planish.passes.norms import FoldNorms, UnifyNorms
from planish.passes.raising import OPTIONAL, RAISING
from planish.passes.raising.projections import MergeProjections
from planish.passes.shiftadd import AddAttention, DecodeWeights, MixExperts, ShiftAdd
from planish.passes.sparse import (
    ArmorPrune,
    DetectSparsity,
    DropZeroChannels,
    Prune,
    PruneUnits,
    SkipInactive,
    SparsifyAttention,
)
from planish.passes.tokens import CompressTokens

cleanup = Pipeline(*(kind() for kind in CLEANUP))
"""Fold what is constant, simplify, share, drop what is dead."""

raising = Pipeline(*(kind() for kind in RAISING))
"""Recognise what exporters spelled out: norms, activations, attention, linears."""

_prepared = Pipeline(Repeat(cleanup), raising, FoldNorms(), HoistSlices(), DropZeroChannels(), Repeat(cleanup))
_split = Pipeline(*_prepared.steps, SplitProjections(), HoistSlices())
_integer = Pipeline(*_split.steps, Integerize(), cleanup, DetectSparsity())

RECIPES: Mapping[str, tuple[str, Pipeline]] = {
    "clean": ("cleanup only: simpler, every op still as the exporter spelled it", Pipeline(Repeat(cleanup))),
    "default": (
        "cleanup, raising to high-level ops, folding of norms and scales; lowered to what the target runs fastest",
        Pipeline(*_prepared.steps, DetectSparsity()),
    ),
    "integer": (
        "default, then the whole model in integers, but for float inputs and outputs (needs --calib)",
        _integer,
    ),
    "compress": (
        "default, with fewer tokens from block to block of an encoder (a search needs --calib)",
        Pipeline(
            *(Repeat(cleanup), raising, FoldNorms(), Repeat(cleanup)), CompressTokens(), HoistSlices(), Repeat(cleanup)
        ),
    ),
    "shift-add": (
        "default, with weights as sums of few signed powers of two, in 2 to 8 bits (needs --calib)",
        Pipeline(*_split.steps, ShiftAdd(), cleanup),
    ),
    "prune": (
        "default, with weights set to zero in blocks that compiled kernels skip (needs --calib)",
        Pipeline(*_split.steps, Prune(), cleanup),
    ),
    "shrink": (
        "default, with fewer neurons in MLPs and, if asked for, fewer heads of attention (needs --calib)",
        Pipeline(*_prepared.steps, PruneUnits(), Repeat(cleanup)),
    ),
    "skip-inactive": (
        "default, with layers of ReLU networks for few rows as ops that leave out neurons that give 0 (needs --calib)",
        Pipeline(*_prepared.steps, SkipInactive(), Repeat(cleanup)),
    ),
    "unify": (
        "default, then norms replaced by calibrated linear maps that the next layers take in (needs --calib)",
        Pipeline(*_prepared.steps, UnifyNorms(), Repeat(cleanup)),
    ),
    "add-attention": (
        "default, then attention by signed sums in linear order, trained against the original (needs --calib and"
        " --recover)",
        Pipeline(*_split.steps, AddAttention(), Repeat(cleanup)),
    ),
    "sparse-attention": (
        "default, with heads of long sequences that look at some keys only, chosen on samples (needs --calib)",
        Pipeline(*_prepared.steps, SparsifyAttention(), Repeat(cleanup)),
    ),
    "fast": (
        "default, then linear layers in 8 bits between float ops: the fastest on ONNX Runtime (needs --calib)",
        Pipeline(*_prepared.steps, MergeProjections(), QuantizeProducts(), Repeat(cleanup)),
    ),
    "integer-only": (
        "integer, with integer inputs and outputs too; their scales stand in the manifest (needs --calib)",
        Pipeline(*_integer.steps, IntegerBoundary()),
    ),
}
"""Named pipelines with a line of explanation. Combine them with "+"."""

PASSES: tuple[type[Pass], ...] = (
    *CLEANUP,
    *RAISING,
    *OPTIONAL,
    FoldNorms,
    UnifyNorms,
    AddAttention,
    CompressTokens,
    SparsifyAttention,
    MixExperts,
    ShiftAdd,
    DecodeWeights,
    PruneUnits,
    DropZeroChannels,
    Prune,
    ArmorPrune,
    DetectSparsity,
    SkipInactive,
    HoistSlices,
    SplitProjections,
    Integerize,
    IntegerBoundary,
    QuantizeProducts,
)
"""Every pass that a pipeline text may name, in the order in which they are documented."""


def pass_named(name: str) -> type[Pass]:
    """The pass class of that name. Raises UsageError with the nearest name otherwise."""
    for kind in PASSES:
        if kind.name == name:
            return kind
    raise UsageError(f"there is no pass {name!r}", remedy=_suggest(name, [kind.name for kind in PASSES]))


def recipe(text: str) -> Pipeline:
    """The pipeline of one recipe name, or of several joined with "+" (a shared beginning runs once)."""
    steps: tuple[Pass, ...] = ()
    for name in text.split("+"):
        if name not in RECIPES:
            raise UsageError(f"there is no recipe {name!r}", remedy=_suggest(name, list(RECIPES)))
        more = RECIPES[name][1].steps
        shared = 0
        while shared < min(len(steps), len(more)) and steps[shared] == more[shared]:
            shared += 1
        steps += more[shared:]
    return Pipeline(*steps)


def resolve_pipeline(text: str) -> Pipeline:
    """The pipeline that a recipe name, several joined with "+", or a pipeline text means."""
    return recipe(text) if all(name in RECIPES for name in text.split("+")) else parse_pipeline(text)


def parse_pipeline(text: str) -> Pipeline:
    """The pipeline that `str(pipeline)` prints. Raises UsageError naming the place at fault."""
    tokens = _Tokens(text)
    pipeline = _pipeline(tokens)
    if tokens.current:
        raise UsageError(f"unexpected {tokens.current!r} in pipeline {text!r}", remedy='separate passes with ";"')
    return pipeline


class _Tokens:
    def __init__(self, text: str):
        self.text = text
        self.stream: Iterator[str] = iter(re.findall(r"\{[^}]*\}|[A-Za-z][\w-]*|\S", text))
        self.current = next(self.stream, "")

    def take(self) -> str:
        token, self.current = self.current, next(self.stream, "")
        return token


def _pipeline(tokens: _Tokens) -> Pipeline:
    steps = [_step(tokens)]
    while tokens.current in (";", ","):
        tokens.take()
        if tokens.current in ("", ")"):
            break
        steps.append(_step(tokens))
    return Pipeline(*steps)


def _step(tokens: _Tokens) -> Pass:
    name = tokens.take()
    if not name:
        raise UsageError("the pipeline is empty", remedy=f'name passes, such as "{RECIPES["clean"][1]}"')
    if name == "repeat" and tokens.current == "(":
        tokens.take()
        body = _pipeline(tokens)
        if tokens.take() != ")":
            raise UsageError(f"repeat( is not closed in pipeline {tokens.text!r}")
        return Repeat(body.steps[0] if len(body.steps) == 1 else body)
    kind = pass_named(name)
    options = _options(kind, tokens.take()) if tokens.current.startswith("{") else {}
    return kind(**options)


def _options(kind: type[Pass], text: str) -> dict[str, object]:
    try:
        call = ast.parse(f"f({text[1:-1]})", mode="eval").body
        pairs = {k.arg: ast.literal_eval(k.value) for k in call.keywords}  # type: ignore[attr-defined]
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"options {text} of {kind.name} can't be read", remedy="write {name=value, ...}") from error
    return known_options(kind, {str(name): value for name, value in pairs.items()})


def known_options(kind: type[Pass], options: Mapping[str, object]) -> dict[str, object]:
    """Values of fields of a pass. Raises UsageError with the nearest name for one that it doesn't have."""
    known = sorted(f.name for f in fields(kind))
    for name in options:
        if name not in known:
            raise UsageError(f"{kind.name} has no option {name!r}", remedy=_suggest(name, known))
    return dict(options)


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + "known: " + ", ".join(known)
