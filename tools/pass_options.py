"""Options of `planish optimize` that set fields of passes, by panel of its help."""

from __future__ import annotations

from typing import Annotated

import typer

_TOKENS, _ZEROS, _UNITS = "Fewer tokens", "Weights with zeros", "Fewer neurons and heads"
_WEIGHTS = "Weights as shifts and additions"

Tokens = Annotated[
    str | None,
    typer.Option(
        help="Fewer tokens from block to block: auto, all (the best of those that are legal), merge, fuse,"
        " eliminate or route. Takes recipe compress, if none is named.",
        rich_help_panel=_TOKENS,
        show_default=False,
    ),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        help="Tokens that go: 13 (in each block), linear:13 (most of them first), 0.7 (the share that stays, at"
        " three stages), 60,0,40,0 (block by block). Default: search, which needs --calib.",
        rich_help_panel=_TOKENS,
        show_default=False,
    ),
]
Latency = Annotated[
    float | None,
    typer.Option(
        help="Instead of a schedule: 0 keeps all tokens, 1 as many as get attention, more is faster.",
        rich_help_panel=_TOKENS,
        show_default=False,
    ),
]
TargetSpeedup = Annotated[
    float | None,
    typer.Option(
        help="Search for the schedule that errs least and is so many times as fast, else exit 6.",
        rich_help_panel=_TOKENS,
        show_default=False,
    ),
]
Sparsity = Annotated[
    float | None,
    typer.Option(
        help="Share of the products that zeros in weights take off, as 0.5. Takes recipe prune, if none is named;"
        " with --max-drop or --max-nmse, as many go as these allow.",
        rich_help_panel=_ZEROS,
        show_default=False,
    ),
]
Structure = Annotated[
    str | None,
    typer.Option(
        help="Recipe prune: zeros in fours or sixteens of neighbouring outputs (ob4, ob16), in fours of inputs"
        " (ib4), two of four inputs (2:4), or unstructured. Default: ob4.",
        rich_help_panel=_ZEROS,
        show_default=False,
    ),
]
PruneBy = Annotated[
    str | None,
    typer.Option(
        help="Recipe prune: magnitude, wanda, sparsegpt, obs (default, the slowest), or all and its best.",
        rich_help_panel=_ZEROS,
        show_default=False,
    ),
]
Neurons = Annotated[
    float | None,
    typer.Option(
        help="Share of the neurons of MLPs that vanishes, as 0.5, on every runtime. Takes recipe shrink, if none is"
        " named; with --max-drop or --max-nmse, as many go as these allow.",
        rich_help_panel=_UNITS,
        show_default=False,
    ),
]
Heads = Annotated[
    float | None,
    typer.Option(
        help="Share of the heads of attention that vanishes; 0 if only --neurons is given.",
        rich_help_panel=_UNITS,
        show_default=False,
    ),
]
CodebookName = Annotated[
    str | None,
    typer.Option(
        help="Weights as sums of few signed powers of two: csd2 (8 bits), apot6, apot5, apot4, int4, pot4, bcq4,"
        " bcq3, bcq2, ternary, or mix (chosen layer by layer). Takes recipe shift-add, if none is named.",
        rich_help_panel=_WEIGHTS,
        show_default=False,
    ),
]
WeightBits = Annotated[
    float | None,
    typer.Option(
        help="Recipe shift-add: stored bits per weight, scales counted, for a mix.",
        rich_help_panel=_WEIGHTS,
        show_default=False,
    ),
]
Energy = Annotated[
    float | None,
    typer.Option(
        help="Recipe shift-add: energy of the operations for a mix, as a share of that of 8-bit integers.",
        rich_help_panel=_WEIGHTS,
        show_default=False,
    ),
]
CompareForms = Annotated[
    bool,
    typer.Option(
        "--compare-forms",
        help="Also make the model in float32, 8 bits, 4 bits (MatMulNBits) and codebooks, and put a table of bits,"
        " bytes, accuracy, speed on both runtimes and energy into the report. Takes minutes.",
        rich_help_panel=_WEIGHTS,
    ),
]
