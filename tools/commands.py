"""The smaller subcommands: inspect, compare, run, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from planish.tools.bench.command import bench
from planish.tools.failure import reported

_Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
_Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output, and nothing else there.")
]
_Shape = Annotated[
    list[str] | None,
    typer.Option("--shape", help="Bind input dimensions: x=1x3x224x224 (repeat per input).", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the subcommands to the application."""
    app.command(rich_help_panel="Look")(inspect)
    app.command(rich_help_panel="Check")(compare)
    app.command(rich_help_panel="Check")(run)
    app.command(rich_help_panel="Check")(bench)
    app.command(rich_help_panel="Check")(doctor)


def inspect(
    model: Annotated[
        Path, typer.Argument(help="An ONNX file, a .pt2 file, or an artifact folder.", show_default=False)
    ],
    ir: Annotated[bool, typer.Option("--ir", help="Print the text IR.")] = False,
    after: Annotated[str | None, typer.Option(help="Run this recipe or pipeline first.", show_default=False)] = None,
    why: Annotated[
        str | None, typer.Option(help="Explain why this rule did or didn't apply ...", show_default=False)
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="... at nodes whose source name contains this.", show_default=False)
    ] = None,
    integer_only: Annotated[
        bool, typer.Option("--integer-only", help="Check that no tensor is floating point; exit 4 if one is.")
    ] = False,
    no_boundary: Annotated[
        bool, typer.Option("--no-boundary", help="... not even inputs and outputs that are codes inside.")
    ] = False,
    no_multiply: Annotated[
        bool,
        typer.Option("--no-multiply", help="Prove op by op that nothing is multiplied; exit 4 if something may be."),
    ] = False,
    energy: Annotated[
        bool, typer.Option("--energy", help="Show the energy of one inference by layer, under a model of 45 nm chips.")
    ] = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Show where the tokens of one input go when they are compressed ...")
    ] = False,
    image: Annotated[
        str | None,
        typer.Option(
            help="... of this picture, or of the first sample of data in any form that --calib takes ...",
            show_default=False,
        ),
    ] = None,
    tokens_method: Annotated[
        str, typer.Option(help="... by merge, fuse, eliminate or route; auto takes what suits the model ...")
    ] = "auto",
    schedule: Annotated[str, typer.Option(help="... so many of them, as for optimize ...")] = "0.7",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="... drawn as .png, or .html with tables.", show_default=False)
    ] = None,
    shape: _Shape = None,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Show what a model consists of, its text IR, why a rule didn't match, what it avoids, its energy, or its tokens.

    Example: planish inspect model.onnx --why fuse_layer_norm --at layer.0/norm1
    """
    with reported(debug):
        from planish.ir.errors import UsageError
        from planish.passes.pipelines import resolve_pipeline
        from planish.tools.cli import _shapes
        from planish.tools.compiling import optimize
        from planish.tools.sessions import MODEL_FILE

        if model.is_dir():
            model = model / MODEL_FILE
        if integer_only or no_multiply:
            from planish.tools.proof_screen import print_certificate, print_integers

            (print_certificate if no_multiply else print_integers)(model, no_boundary, as_json)
            return
        shapes = _shapes(model, shape)
        if tokens:
            from planish.tools.token_inspecting import inspect_tokens

            inspect_tokens(model, shapes, image, tokens_method, schedule, output, as_json)
            return
        if image is not None or output is not None:
            raise UsageError("--image and --output are for looking at tokens", remedy="add --tokens")
        if (why is None) != (at is None):
            raise UsageError("--why and --at go together", remedy="--why RULE --at NODE; see planish passes --rules")
        if why is not None and at is not None:
            _print_why(why, at, model, after or "default", shapes, as_json)
            return
        from planish.frontend import load
        from planish.ir.text import print_graph

        graph = load(model, shapes=shapes)
        if after or energy:  # weights may be packed in the file: what unpacks them isn't part of an inference
            graph = optimize(graph, resolve_pipeline(after or "fold-constants"))
        if ir:
            print(print_graph(graph, locs=True))
            return
        if energy:
            from planish.tools.energy_screen import print_energy

            print_energy(graph, as_json)
            return
        _print_summary(model, graph, as_json)


def _print_why(rule: str, place: str, model: Path, pipeline: str, shapes: Any, as_json: bool) -> None:
    from planish.passes.pipelines import resolve_pipeline
    from planish.tools.inspecting import why

    rows = [
        (node.op.name, str(node.loc), text)
        for node, text in why(rule, place, model, resolve_pipeline(pipeline), shapes)
    ]
    if as_json:
        print(json.dumps([{"op": op, "node": loc, "why": text} for op, loc, text in rows], indent=2))
        return
    console = Console()
    for op, loc, text in rows:
        console.print(Text(op, style="bold").append(f" {loc}\n    {text}", style="not bold"), soft_wrap=True)


def _print_summary(model: Path, graph: Any, as_json: bool) -> None:
    from dataclasses import asdict

    from planish.tools.inspecting import summarize
    from planish.tools.screen import mib

    summary = summarize(graph)
    if as_json:
        print(json.dumps(asdict(summary), indent=2, sort_keys=True))
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    grid.add_row("model", model.name)
    grid.add_row("inputs", Text("\n".join(summary.inputs)))
    grid.add_row("outputs", Text("\n".join(summary.outputs)))
    grid.add_row("weights", f"{summary.parameters:,} parameters, {mib(summary.weight_bytes)}")
    grid.add_row("opsets", ", ".join(f"{domain or 'ai.onnx'} {v}" for domain, v in sorted(summary.opsets.items())))
    grid.add_row("ops", _counts(summary.ops))
    grid.add_row("carried as is", _counts(summary.opaque) or "none: every op is understood")
    Console().print(grid)


def _counts(counts: Any) -> str:
    return ", ".join(f"{op} {n}" for op, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def compare(
    original: Annotated[
        Path, typer.Argument(help="The model that is right: an ONNX file or artifact folder.", show_default=False)
    ],
    candidate: Annotated[Path, typer.Argument(help="The model to hold against it.", show_default=False)],
    calib: Annotated[
        str | None, typer.Option(help="Sample inputs, as for optimize. Default: random:3.", show_default=False)
    ] = None,
    tolerance: Annotated[
        str, typer.Option(help='"exact", "rounding", or a least SQNR in dB such as "30".')
    ] = "rounding",
    seed: Annotated[int, typer.Option(help="Seed of random inputs.")] = 0,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Compare what two models compute. Exit code 5 if they differ by more than the tolerance."""
    with reported(debug):
        from planish.ir.errors import MismatchError
        from planish.tools.agreement import agreement
        from planish.tools.comparing import compare_files, comparison_table

        verification, note = compare_files(_file(original), _file(candidate), calib, tolerance, seed)
        if as_json:
            print(json.dumps(verification.to_dict(), indent=2, sort_keys=True))
        else:
            Console().print(comparison_table(verification))
            Console(stderr=True).print(note, style="dim")
        if not verification.passed:
            raise MismatchError(
                agreement(verification), remedy="allow more with --tolerance, if the difference is acceptable"
            )


def run(
    model: Annotated[Path, typer.Argument(help="An ONNX file or an artifact folder.", show_default=False)],
    inputs: Annotated[
        str,
        typer.Option("--inputs", "-i", help="Inputs, in any form that --calib of optimize takes.", show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write all outputs to this .npz.", show_default=False)
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads; 0 takes all cores.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of random inputs.")] = 0,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output file.")] = False,
    as_json: _Json = False,
    debug: _Debug = False,
) -> None:
    """Run a model on data; show or save what it returns, and its top-1 accuracy if the data has labels."""
    with reported(debug):
        from planish.tools.running import run_file

        result = run_file(_file(model), inputs, output, threads=threads, seed=seed, force=force)
        if as_json:
            print(json.dumps(result, indent=2, sort_keys=True))
            return
        grid = Table.grid(padding=(0, 2))
        for key, value in result.items():
            grid.add_row(key, Text(str(value)))
        Console().print(grid)


def doctor(as_json: _Json = False, debug: _Debug = False) -> None:
    """Check the installation: versions, optional parts with the command that adds them, CPU features."""
    with reported(debug):
        from planish.tools.diagnosis import diagnose

        rows = diagnose()
        if as_json:
            print(json.dumps(rows, indent=2))
            return
        table = Table(box=None, pad_edge=False)
        for column in ("part", "state", "note"):
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(row["part"], row["state"], Text(row["note"]))
        Console().print(table)


def _file(path: Path) -> Path:
    from planish.tools.sessions import model_in

    return model_in(path)
