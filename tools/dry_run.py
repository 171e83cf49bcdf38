"""What a job would do, without doing it."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_dry_run(job: dict[str, Any], as_json: bool) -> None:
    """The plan of a job on standard output, as a table or as data."""
    plan = {
        "model": str(job["source"]),
        "output": str(job["out"]),
        "target": job["target"].name,
        "pipeline": str(job["pipeline"]),
        "shapes": {name: list(dims) for name, dims in job["shapes"].items()},
        "calib": job["calib"],
        "verify": job["verify"],
        "bench": job["bench"],
        "seed": job["seed"],
    }
    if as_json:
        print(json.dumps(plan, indent=2, sort_keys=True))
        return
    table = Table.grid(padding=(0, 2))
    for key, value in plan.items():
        table.add_row(key, Text(str(value)))
    Console().print(table)
