"""What the manifest says of an artifact: everything about it that is reproducible."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import planish
from planish.ir.graph import Graph
from planish.ir.types import TensorType
from planish.passes.judging import Distance
from planish.passes.shiftadd.report import ShiftAddReport
from planish.passes.sparse.report import PruneReport
from planish.passes.sparse.units_report import UnitsReport
from planish.passes.tokens.report import CompressReport
from planish.tools import manifest as manifests
from planish.tools.boundary import Boundary

if TYPE_CHECKING:
    from planish.tools.compiling import Outcome


def source_ops(graph: Graph) -> Mapping[str, int]:
    """Nodes of the source model by op type, as the reader counted them."""
    found = graph.extras.get("source_ops", {})
    return found if isinstance(found, Mapping) else {}


def source_files(source: Path, graph: Graph) -> tuple[Path, ...]:
    """The source model's file and its external data files."""
    external = graph.extras.get("external_files", ())
    return (source, *external) if isinstance(external, tuple) else (source,)


def describe(outcome: Outcome, folder: Path, graph: Graph) -> manifests.Manifest:
    """The manifest of the artifact in `folder`: everything about it that is reproducible."""
    job = outcome.job

    metadata = graph.extras.get("metadata")
    codes = Boundary.of(metadata if isinstance(metadata, dict) else {}).codes

    def entry(name: str, type_: object) -> manifests.ValueEntry:
        if isinstance(type_, TensorType):
            scale, zero = codes.get(name, (None, None))
            return manifests.ValueEntry(name=name, dtype=type_.dtype.name, shape=type_.shape, scale=scale, zero=zero)
        return manifests.ValueEntry(name=name, dtype=str(type_), shape=None)

    names = getattr(graph.tail.op, "names", ()) if graph.tail is not None else ()
    passes = []
    for record in outcome.context.records:
        skipped: dict[str, int] = {}
        for _, reason in record.changes.skipped:
            skipped[reason] = skipped.get(reason, 0) + 1
        passes.append(manifests.PassEntry(name=record.name, rewrites=record.changes.count, skipped=skipped))
    data = outcome.data
    return manifests.Manifest(
        planish=planish.__version__,
        versions=manifests.package_versions(),
        model=manifests.OriginalModel(file=job.source.name, sha256=manifests.sha256_file(job.source)),
        files=manifests.describe_files(folder),
        pipeline=str(job.pipeline),
        target=job.target.name,
        opset=dict(graph.opsets) if outcome.written.opset is None else {**graph.opsets, "": outcome.written.opset},
        compiled=None if outcome.written.compiled is None else manifests.CompiledEntry(**outcome.written.compiled),
        inputs=tuple(entry(v.hint, v.type) for v in graph.inputs),
        outputs=tuple(entry(n, v.type) for n, v in zip(names, graph.outputs, strict=True)),
        passes=tuple(passes),
        tokens=tuple(_tokens(report) for report in outcome.context.reports if isinstance(report, CompressReport)),
        codebooks=tuple(_codebooks(r) for r in outcome.context.reports if isinstance(r, ShiftAddReport)),
        zeros=tuple(_zeros(r) for r in outcome.context.reports if isinstance(r, PruneReport)),
        units=tuple(_units(r) for r in outcome.context.reports if isinstance(r, UnitsReport)),
        sparsity=None if (label := outcome.written.sparsity) is None else manifests.SparsityEntry(**label.to_dict()),
        seed=job.seed,
        calibration=None if data is None else manifests.CalibrationEntry(source=data.source, digest=data.digest()),
        verification=None if outcome.verification is None else outcome.verification.to_dict(),
    )


def _tokens(report: CompressReport) -> manifests.TokensEntry:
    """Without speeds, which differ from run to run."""
    choice, result = report.choice, report.result
    return manifests.TokensEntry(
        method=choice.method,
        signal=choice.signal,
        proportional=choice.proportional,
        tokens=report.tokens,
        removed=choice.removed,
        left=report.counts,
        budget=report.budget,
        chosen=None if result is None else _distance(result.chosen),
        reported=None if result is None or result.reported is None else _distance(result.reported),
        refused=report.refused,
    )


def _codebooks(report: ShiftAddReport) -> manifests.CodebooksEntry:
    return manifests.CodebooksEntry(
        layers=tuple((layer.name, layer.codebook) for layer in report.layers),
        bits=report.bits,
        energy=report.energy,
        budget=report.budget,
        chosen=_distance(report.chosen),
        reported=_distance(report.reported),
    )


def _zeros(report: PruneReport) -> manifests.ZerosEntry:
    return manifests.ZerosEntry(
        layers=tuple((layer.name, layer.density) for layer in report.layers),
        method=report.method,
        structure=report.structure,
        density=report.density,
        budget=report.budget,
        chosen=_distance(report.chosen),
        reported=_distance(report.reported),
    )


def _units(report: UnitsReport) -> manifests.UnitsEntry:
    return manifests.UnitsEntry(
        layers=tuple((layer.name, layer.kind, layer.units, layer.kept) for layer in report.layers),
        density=report.density,
        budget=report.budget,
        chosen=_distance(report.chosen),
        reported=_distance(report.reported),
    )


def _distance(distance: Distance) -> dict[str, float | None]:
    return {"nmse": distance.nmse, "drop": distance.drop}
