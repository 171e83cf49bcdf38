"""The command line: `planish` with its subcommands, and `optimize` as a command of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from planish.tools import commands, pass_options

app = typer.Typer(
    name="planish",
    help="A compiler for trained neural networks: ONNX in, a smaller, faster, [bold]verified[/bold] artifact out.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Model = Annotated[
    Path, typer.Argument(help="An ONNX file, or a .pt2 file that torch.export wrote.", show_default=False)
]
_Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
_Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output, and nothing else there.")
]
_Shape = Annotated[
    list[str] | None,
    typer.Option("--shape", help="Bind input dimensions: x=1x3x224x224 (repeat per input).", show_default=False),
]
_Calib = Annotated[
    str | None,
    typer.Option(
        "--calib",
        help="Sample inputs: .npz (keys = input names, axis 0 = samples), .npy, a folder of them, an ONNX "
        "test_data_set_* folder, file.py:function, or random:N.",
        show_default=False,
    ),
]


@app.command(rich_help_panel="Make")
def optimize(
    model: Annotated[
        Path | None,
        typer.Argument(help="An ONNX file, or a .pt2 file that torch.export wrote.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to make for the artifact.", show_default=False)
    ] = None,
    target: Annotated[str, typer.Option(help="Runtime to optimize for.")] = "ort-cpu",
    isa: Annotated[
        str | None,
        typer.Option(
            help="Target tvm-cpu: instruction set to use, such as avx2. Default: the best of this CPU.",
            show_default=False,
        ),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            help="Target tvm-cpu: time to measure tilings of products for, such as 60s. Kept for next time.",
            show_default=False,
        ),
    ] = None,
    buckets: Annotated[
        list[str] | None,
        typer.Option(
            help="Target tvm-cpu: sizes to compile a varying dimension for: sequence=32,64,128 (repeat per dimension).",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help='Named recipe, several joined with "+", or a recipe file (.yaml). Default: default.',
            show_default=False,
        ),
    ] = None,
    passes: Annotated[
        str | None,
        typer.Option(help='Pipeline of your own: "raise-norms; repeat(fold-constants)".', show_default=False),
    ] = None,
    skip_pass: Annotated[
        list[str] | None, typer.Option(help="Leave a pass out (repeat for several).", show_default=False)
    ] = None,
    shape: _Shape = None,
    calib: _Calib = None,
    calib_cache: Annotated[
        Path | None,
        typer.Option(help="File to keep calibration statistics in, or to read them from.", show_default=False),
    ] = None,
    verify_with: Annotated[
        str | None,
        typer.Option(help="Other samples to verify on, in any form that --calib takes.", show_default=False),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="file.py:function(outputs, labels) that judges what recipes change. Default: top-1 in percent.",
            show_default=False,
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="By how much the metric may fall: recipe integer gives the worst layers more bits, then floats, else"
            " exit 6; others go as far as that allows: unify replaces norms, compress lets tokens go, shrink neurons"
            " and heads, prune weights, sparse-attention keys, and shift-add takes bits off.",
            show_default=False,
        ),
    ] = None,
    max_nmse: Annotated[
        float | None,
        typer.Option(
            help="The same recipes but integer, without a metric: error of the outputs, over their variance, that they"
            " may cause. Default: that of the pass.",
            show_default=False,
        ),
    ] = None,
    recover: Annotated[
        str | None,
        typer.Option(
            help="Recipes unify, add-attention and prune: train the layers concerned against the original for so long"
            " (3m, 90s), on unlabelled samples of --calib; needs the torch extra.",
            show_default=False,
        ),
    ] = None,
    tokens: pass_options.Tokens = None,
    schedule: pass_options.Schedule = None,
    latency: pass_options.Latency = None,
    target_speedup: pass_options.TargetSpeedup = None,
    sparsity: pass_options.Sparsity = None,
    structure: pass_options.Structure = None,
    prune_by: pass_options.PruneBy = None,
    neurons: pass_options.Neurons = None,
    heads: pass_options.Heads = None,
    codebook: pass_options.CodebookName = None,
    weight_bits: pass_options.WeightBits = None,
    energy: pass_options.Energy = None,
    compare_forms: pass_options.CompareForms = False,
    profile: Annotated[
        str | None,
        typer.Option(
            help='Recipe integer: functions by exact tables ("table", default) or by the paper\'s shifts ("ivit").',
            show_default=False,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail (exit 4) if recipe integer has to leave something in float.")
    ] = False,
    no_multiply: Annotated[
        bool,
        typer.Option(
            "--no-multiply",
            help="Write an integer model in shifts, additions, comparisons and look-ups only, and prove it: the same"
            " integers, slower. Exit 4 if something has no such form.",
        ),
    ] = False,
    verify: Annotated[bool, typer.Option(help="Compare the artifact with the original.")] = True,
    bench: Annotated[bool, typer.Option(help="Time the artifact against the original.")] = True,
    threads: Annotated[int, typer.Option(help="Threads while timing; 0 takes all cores.")] = 1,
    min_speedup: Annotated[
        float | None,
        typer.Option(help="Fail (exit 6) unless the artifact is that many times as fast.", show_default=False),
    ] = None,
    opset: Annotated[int | None, typer.Option(help="Operator set to write.", show_default="chosen")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing artifact.")] = False,
    print_ir_after: Annotated[
        list[str] | None,
        typer.Option(
            help='Print the text IR after this pass ("all": after each that changed something).', show_default=False
        ),
    ] = None,
    dump_dir: Annotated[
        Path | None, typer.Option(help="Write the text IR after each pass into this folder.", show_default=False)
    ] = None,
    fuel: Annotated[
        int | None, typer.Option(help="Stop after that many rewrites, to find a faulty one.", show_default=False)
    ] = None,
    time_passes: Annotated[bool, typer.Option("--time-passes", help="Show the time of each pass and stage.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    list_passes: Annotated[bool, typer.Option("--list-passes", help="List passes and recipes, and exit.")] = False,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Optimize a model, verify that it still computes the same, and time it.

    Example: planish optimize model.onnx -o out/ --calib samples.npz
    """
    from planish.tools.failure import reported

    with reported(debug):
        if list_passes:
            from planish.tools.listing import print_passes

            print_passes(as_json)
            return
        from planish.ir.errors import UsageError
        from planish.passes.observers import DumpText, PrintAfter
        from planish.tools import job_options
        from planish.tools.dry_run import print_dry_run
        from planish.tools.recipe_file import chosen_pipeline

        if model is None or output is None:
            missing = "MODEL" if model is None else "--output"
            raise UsageError(f"{missing} is missing", remedy="planish optimize model.onnx --output out/")
        given = {
            "compress": (tokens, schedule, latency, target_speedup),
            "shrink": (neurons, heads),
            "prune": (sparsity, structure, prune_by),
            "shift-add": (codebook, weight_bits, energy),
        }
        if recipe is None and passes is None:
            recipe = job_options.implied_recipe(given)
        pipeline, shapes = chosen_pipeline(recipe, passes, skip_pass or [])
        pipeline = job_options.with_integer_options(pipeline, profile, strict)
        pipeline = job_options.with_token_options(pipeline, tokens, schedule, latency, target_speedup)
        pipeline = job_options.with_unit_options(pipeline, neurons, heads)
        pipeline = job_options.with_pruning_options(pipeline, sparsity, structure, prune_by)
        pipeline = job_options.with_codebook_options(pipeline, codebook, weight_bits, energy)
        job: dict[str, Any] = {
            "source": model,
            "out": output,
            "pipeline": pipeline,
            "target": job_options.chosen_target(target, isa, tune, buckets or [], multiply=not no_multiply),
            "shapes": {**shapes, **_shapes(model, shape)},
            "calib": calib,
            "calib_cache": calib_cache,
            "metric": metric,
            "max_drop": max_drop,
            "max_nmse": max_nmse,
            "recover": None if recover is None else job_options.seconds(recover),
            "verify_with": verify_with,
            "compare_forms": compare_forms,
            "verify": verify,
            "bench": bench or min_speedup is not None,
            "threads": threads,
            "seed": seed,
            "force": force,
            "opset": opset,
            "fuel": fuel,
            "min_speedup": min_speedup,
        }
        if dry_run:
            print_dry_run(job, as_json)
            return
        observers: list[Any] = []
        if dump_dir is not None:
            observers.append(DumpText(dump_dir))
        if print_ir_after:
            observers.append(PrintAfter(frozenset(print_ir_after)))
        _run_job({**job, "observers": tuple(observers)}, as_json, time_passes)


def _run_job(job: dict[str, Any], as_json: bool, time_passes: bool) -> None:
    from planish.tools import screen
    from planish.tools.compiling import Job, run_job

    bars = screen.Bars(Console(stderr=True))
    with bars.bars:
        outcome = run_job(Job(**job), bars)
    if as_json:
        print(json.dumps(screen.to_json(outcome), indent=2, sort_keys=True))
    else:
        Console().print(screen.render(outcome, times=time_passes))


def _shapes(model: Path, texts: list[str] | None) -> dict[str, tuple[int | str, ...]]:
    if not texts:
        return {}
    from planish.frontend import input_names
    from planish.tools.shapes import parse_shapes

    return parse_shapes(texts, input_names(model))


@app.command(rich_help_panel="Look")
def passes(
    rules: Annotated[bool, typer.Option("--rules", help="List the rules of each pass, too.")] = False,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """List the passes and recipes."""
    from planish.tools.failure import reported

    with reported(debug):
        from planish.tools.listing import print_passes, print_rules

        print_passes(as_json)
        if rules and not as_json:
            print_rules()


def main() -> None:
    """Entry point of `planish`."""
    app()


commands.register(app)


def optimize_main() -> None:
    """Entry point of `optimize`: the same as `planish optimize`."""
    sys.argv.insert(1, "optimize")
    main()
