"""What the options of `planish optimize` mean: targets, durations, and fields of the passes that they set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from planish.backends.targets import Target, target_named
from planish.ir.errors import UsageError
from planish.passes.base import Pipeline
from planish.passes.integer import Integerize
from planish.passes.shiftadd import ShiftAdd
from planish.passes.sparse import Prune, PruneUnits
from planish.passes.tokens import CompressTokens
from planish.passes.tokens.schedule import Schedule
from planish.tools.bars import has
from planish.tools.buckets import parse_buckets


def implied_recipe(given: Mapping[str, Sequence[object]]) -> str | None:
    """The recipe whose options were given, by recipe; several are joined as "+" does."""
    return "+".join(name for name, values in given.items() if any(value is not None for value in values)) or None


def chosen_target(name: str, isa: str | None, tune: str | None, buckets: list[str], *, multiply: bool = True) -> Target:
    """The target of that name, for that instruction set and those sizes, with its tilings measured for so long.

    multiply: False writes integer graphs without multiplications.
    """
    target = target_named(name)
    if not multiply:
        if target.compiled:
            raise UsageError("--no-multiply writes ONNX", remedy="add --target ort-cpu")
        target = replace(target, spellings=replace(target.spellings, multiply=False))
    for option, value in (("--isa", isa), ("--tune", tune), ("--buckets", buckets or None)):
        if value is not None and not target.compiled:
            raise UsageError(f"{option} is for targets that compile", remedy="add --target tvm-cpu")
    time = 0.0 if tune is None else seconds(tune)
    return replace(target, isa=isa or "", tune=time, buckets=parse_buckets(buckets) if buckets else {})


def seconds(text: str) -> float:
    """The duration that `90`, `90s` or `2m` names."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("s", "m") else (text, "s")
    try:
        found = float(number) * {"s": 1, "m": 60}[unit]
    except ValueError:
        found = -1.0
    if not 0 < found < float("inf"):
        raise UsageError(f"can't read {text!r} as a duration", remedy="give seconds or minutes: 60s, 2m")
    return found


def with_integer_options(pipeline: Pipeline, profile: str | None, strict: bool) -> Pipeline:
    """The pipeline with --profile and --strict set on its integerize pass."""
    if profile is None and not strict:
        return pipeline
    if not has(pipeline, Integerize):
        raise UsageError("--profile and --strict are for recipes that integerize", remedy="add --recipe integer")
    options = {"strict": strict} | ({} if profile is None else {"profile": profile})
    return pipeline.with_options(Integerize.name, **options)


def schedule(text: str) -> Schedule:
    """The schedule that `13`, `0.7`, `60,0,40,0` or a name means. Raises UsageError for a number that is none."""
    try:
        if "," in text:
            return tuple(int(part) for part in text.split(","))
        if text[:1].isdigit() or text[:1] in ("-", "."):
            return float(text) if "." in text else int(text)
    except ValueError:
        remedy = "write 13, linear:13, 0.7, 60,0,40,0 or search"
        raise UsageError(f"can't read {text!r} as a schedule", remedy=remedy) from None
    return text


def with_token_options(
    pipeline: Pipeline, method: str | None, plan: str | None, latency: float | None, speedup: float | None
) -> Pipeline:
    """The pipeline with --tokens, --schedule, --latency and --target-speedup set on the pass that they are for.

    Raises UsageError without such a pass, and where they contradict each other.
    """
    given = {"--tokens": method, "--schedule": plan, "--latency": latency, "--target-speedup": speedup}
    named = [option for option, value in given.items() if value is not None]
    if not named:
        return pipeline
    if not has(pipeline, CompressTokens):
        remedy = "add compress to the recipe, as in --recipe compress+integer, or leave --recipe and --passes out"
        raise UsageError(f"{named[0]} is for recipes that compress tokens", remedy=remedy)
    options: dict[str, object] = {} if method is None else {"method": method}
    if plan is not None:
        options["schedule"] = schedule(plan)
    fixed = latency is not None or options.get("schedule", "search") != "search"
    if latency is not None:
        if options.get("schedule", "search") != "search":
            raise UsageError("--schedule and --latency both say how many tokens go", remedy="leave one of them out")
        if not 0 <= latency < float("inf"):
            raise UsageError(
                f"--latency {latency:g} is no knob", remedy="0 keeps all tokens, 1 those that get attention"
            )
        options["latency"] = latency
    if speedup is not None:
        if fixed:
            remedy = "leave --schedule and --latency out; for a bar on the result take --min-speedup"
            raise UsageError("--target-speedup searches for a schedule, and one is given", remedy=remedy)
        options["target_speedup"] = speedup
    return pipeline.with_options(CompressTokens.name, **options)


def with_codebook_options(
    pipeline: Pipeline, codebook: str | None, bits: float | None, energy: float | None
) -> Pipeline:
    """The pipeline with --codebook, --weight-bits and --energy set on the pass that they are for.

    Raises UsageError without such a pass, and for budgets that are none.
    """
    given = {"codebook": codebook, "bits": bits, "energy": energy}
    options = {name: value for name, value in given.items() if value is not None}
    if not options:
        return pipeline
    if not has(pipeline, ShiftAdd):
        remedy = "add shift-add to the recipe, as in --recipe shift-add+integer, or leave --recipe and --passes out"
        raise UsageError("--codebook, --weight-bits and --energy are for weights in codebooks", remedy=remedy)
    for option, value in (("--weight-bits", bits), ("--energy", energy)):
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{option} {value:g} is no budget", remedy="--weight-bits 4.5, or --energy 0.6 of int8")
    return pipeline.with_options(ShiftAdd.name, **options)


def with_pruning_options(
    pipeline: Pipeline, sparsity: float | None, structure: str | None, method: str | None
) -> Pipeline:
    """The pipeline with --sparsity, --structure and --prune-by set on the pass that they are for.

    Raises UsageError without such a pass, and for a share that is none.
    """
    given = {"sparsity": sparsity, "structure": structure, "method": method}
    options = {name: value for name, value in given.items() if value is not None}
    if not options:
        return pipeline
    if not has(pipeline, Prune):
        remedy = "add prune to the recipe, as in --recipe prune+integer, or leave --recipe and --passes out"
        raise UsageError("--sparsity, --structure and --prune-by are for pruned weights", remedy=remedy)
    if sparsity is not None and not 0 < sparsity < 1:
        raise UsageError(f"--sparsity {sparsity:g} is no share", remedy="--sparsity 0.5 takes half of the products off")
    return pipeline.with_options(Prune.name, **options)


def with_unit_options(pipeline: Pipeline, neurons: float | None, heads: float | None) -> Pipeline:
    """The pipeline with --neurons and --heads set on the pass that they are for: one alone leaves the other kind.

    Raises UsageError without such a pass, and for a share that is none.
    """
    if neurons is None and heads is None:
        return pipeline
    if not has(pipeline, PruneUnits):
        remedy = "add shrink to the recipe, as in --recipe shrink+integer, or leave --recipe and --passes out"
        raise UsageError("--neurons and --heads are for recipes that take them out", remedy=remedy)
    for option, share in (("--neurons", neurons), ("--heads", heads)):
        if share is not None and not 0 <= share < 1:
            raise UsageError(f"{option} {share:g} is no share", remedy=f"{option} 0.25 takes a quarter of them out")
    return pipeline.with_options(PruneUnits.name, neurons=neurons or 0.0, heads=heads or 0.0)
