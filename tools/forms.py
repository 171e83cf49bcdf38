"""One model in several number formats, side by side: bits, bytes, accuracy, speed on both runtimes, energy.

On ONNX Runtime a form is the fastest that stock kernels have for it, with activations in floats (int8: in 8 bits); on
TVM everything is integers. Speeds are of one interleaved measurement, against the original on ONNX Runtime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planish.backends.targets import target_named
from planish.frontend.calibration import CalibrationSet
from planish.ir.errors import UnsupportedOp
from planish.ir.graph import Graph
from planish.passes.base import Pipeline
from planish.passes.pipelines import recipe
from planish.passes.shiftadd import ShiftAdd
from planish.tools.bench.quality import quality_of
from planish.tools.bench.quantizers import ort_nbits4
from planish.tools.compiling import optimize
from planish.tools.energy import EnergyReport, Form, energy_of
from planish.tools.measure import measure_models
from planish.tools.writing import write_for

ORIGINAL = "fp32"
NBITS = "MatMulNBits, 4 bits"
NBITS_STORED = 5.0  # bits per weight: a float scale for each 32 rows
ASKED = "as asked for"
_SECONDS_EACH = 1.5  # of timing, per file
Stage = Callable[[str], None]


@dataclass(frozen=True)
class OnRuntime:
    """A form on a runtime.

    bytes: of the model's files. accuracy: top-1, None without labels. speed: times as fast as the original on ONNX
    Runtime, at batch 1.
    """

    bytes: int
    accuracy: float | None
    speed: float


@dataclass(frozen=True)
class FormRow:
    """A number format. bits: stored per weight, with scales. ort, tvm: None where it isn't run.

    operations, total: energy of one inference in µJ, of operations and with traffic (`planish.tools.energy`); None
    where it isn't modelled.
    """

    name: str
    bits: float
    ort: OnRuntime | None
    tvm: OnRuntime | None
    operations: float | None
    total: float | None


@dataclass(frozen=True)
class FormsReport:
    """The comparison. model: that energies are estimated by. threads: of all runtimes while timing."""

    rows: tuple[FormRow, ...]
    model: str
    threads: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Form:
    """ort, tvm: what makes it of the model; `tvm` goes on from what `ort` made if `joined`."""

    name: str
    ort: Pipeline
    tvm: Pipeline
    energy: Form
    joined: bool = False


def compare_forms(
    source: Path,
    asked: ShiftAdd | None,
    calibration: CalibrationSet,
    evaluation: CalibrationSet,
    sample: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    seed: int = 0,
    on_stage: Stage = lambda name: None,
) -> FormsReport:
    """Make all forms of a model, and measure them. Without TVM, its columns stay empty.

    asked: the pass with the user's options, beside the codebooks that are compared in any case.
    """
    files: dict[str, Path] = {ORIGINAL: source}
    graphs: dict[str, Graph] = {}
    sizes = {ORIGINAL: source.stat().st_size}
    with tempfile.TemporaryDirectory(prefix="planish-") as name:
        folder = Path(name)
        for number, form in enumerate(_forms(asked)):
            for target in ("ort-cpu", "tvm-cpu"):
                on_stage(f"{form.name} for {target}")
                pipeline = form.ort if target == "ort-cpu" else form.tvm
                start = graphs[f"{form.name}/ort-cpu"] if form.joined and target == "tvm-cpu" else source
                graph = optimize(start, pipeline, calibration=calibration, seed=seed)
                place = folder / f"{number}-{target}"
                place.mkdir()
                try:
                    written = write_for(graph, place, target_named(target))
                except UnsupportedOp:
                    if target == "ort-cpu":
                        raise
                    continue
                key = f"{form.name}/{target}"
                files[key], graphs[key] = written.model, graph
                sizes[key] = sum(path.stat().st_size for path in written.files)
        on_stage(NBITS)
        files[NBITS] = ort_nbits4(source, folder, calibration)
        sizes[NBITS] = files[NBITS].stat().st_size
        on_stage("compare accuracy")
        quality = quality_of(source, files, evaluation)
        on_stage("time all forms")
        timed = measure_models(files, sample, threads=threads, baseline=ORIGINAL, seconds=_SECONDS_EACH * len(files))

    def figures(key: str) -> OnRuntime | None:
        if key not in files:
            return None
        return OnRuntime(sizes[key], quality[key]["accuracy"], timed.ratio(key))

    rows = []
    for form in _forms(asked):
        on_ort, on_tvm = f"{form.name}/ort-cpu", f"{form.name}/tvm-cpu"
        energies = energy_of(graphs.get(on_tvm, graphs[on_ort]))
        spent = energies.totals[form.energy]
        bits = 32.0 if form.energy == "fp32" else weight_bits(energies)
        rows.append(FormRow(form.name, bits, figures(on_ort), figures(on_tvm), *_micro(spent.operations, spent.total)))
    floats = energy_of(graphs[f"{_forms(asked)[0].name}/ort-cpu"])
    rows.insert(2, FormRow(NBITS, NBITS_STORED, figures(NBITS), None, *_micro(*_weight_only(floats))))
    return FormsReport(tuple(rows), floats.model.name, threads)


def _micro(*picojoules: float) -> tuple[float, float]:
    operations, total = (energy / 1e6 for energy in picojoules)
    return operations, total


def _weight_only(floats: EnergyReport) -> tuple[float, float]:
    """Energy of products in float32 whose weights alone are small: what isn't read of these is saved."""
    spent, model = floats.totals["fp32"], floats.model
    saved = 0.0
    for layer in (row.layer for row in floats.layers if row.layer.weights):
        narrower = (32 - NBITS_STORED) / 8
        saved += narrower * (layer.weights * (model.memory + model.buffer) + layer.macs * model.register)
    return spent.operations, spent.total - saved


def weight_bits(energies: EnergyReport) -> float:
    """Stored bits per weight of layers by constants, with a scale of 32 bits for each channel."""
    layers = [row.layer for row in energies.layers if row.layer.weights]
    stored = sum(layer.bits * layer.weights + 32 * layer.channels for layer in layers)
    return stored / max(sum(layer.weights for layer in layers), 1)


def _forms(asked: ShiftAdd | None) -> list[_Form]:
    codebooks = {name: ShiftAdd(codebook=name) for name in ("csd2", "apot6", "apot4")}
    if asked is not None and asked not in codebooks.values():
        codebooks[ASKED] = asked
    real = recipe("shift-add")
    integers = Pipeline(*recipe("shift-add+integer").steps[len(real.steps) :])
    return [
        _Form("fp32, planish", recipe("default"), recipe("default"), "fp32"),
        _Form("int8", recipe("fast"), recipe("integer"), "int8"),
        *(_Form(name, _with(real, step), integers, "shift-add", joined=True) for name, step in codebooks.items()),
    ]


def _with(pipeline: Pipeline, step: ShiftAdd) -> Pipeline:
    return Pipeline(*(step if isinstance(each, ShiftAdd) else each for each in pipeline.steps))
