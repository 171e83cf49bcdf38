"""Energies are those that one works out by hand, for layers of known digits and bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import planish
from planish.frontend import load
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.ir.types import Quant, TensorType
from planish.tools.cli import app
from planish.tools.compiling import optimize
from planish.tools.energy import EnergyReport, LayerEnergy, energy_of

ZOO = Path(planish.__file__).parent.parent / "tools" / "zoo"
CODES = np.array([[1, 3], [0, 85], [-64, 7]], np.int8)  # digits 1, 2 / 0, 4 / 1, 2: ten in six weights


def linear(codes: np.ndarray = CODES, codebook: str = "", rows: object = 5) -> Graph:
    graph = Graph("one")
    x = graph.add_input("x", TensorType(dtypes.u8, (rows, codes.shape[0])))
    coded = graph.add(ops.FromCodes(0.1, 7), x).result
    weight = graph.add(ops.Const(Data(codes, Quant((0.1,) * codes.shape[1], 0, 1, codebook)))).result
    graph.add(ops.Return(("y",)), graph.add(ops.IntLinear(), coded, weight).result)
    return graph


def only(graph: Graph, **binding: int) -> LayerEnergy:
    (row,) = energy_of(graph, binding).layers
    return row


def test_a_linear_layer_by_hand():
    row = only(linear())
    layer = row.layer
    assert (layer.macs, layer.weights, layer.channels, layer.inputs, layer.outputs) == (30, 6, 2, 15, 10)
    assert (layer.digits, layer.ternary, layer.bits) == (10 / 6, False, 8)
    fp32, int8, shift = (row.forms[form] for form in ("fp32", "int8", "shift-add"))
    assert fp32.operations == pytest.approx(30 * 4.6)
    assert int8.operations == pytest.approx(30 * 0.3)
    assert shift.operations == pytest.approx(5 * 10 * 0.124)  # five rows, ten digits
    # weights and bias of 4 bytes; as integers weights of 1, bias and scale of 4; registers twice per product
    assert fp32.total == pytest.approx(138 + 100 * 32 + 11.1 * (32 + 100) + 1.85 * 30 * 8)
    assert int8.total == pytest.approx(9 + 100 * 22 + 11.1 * (22 + 25) + 1.85 * 30 * 2)
    assert shift.total == pytest.approx(6.2 + 100 * 22 + 11.1 * (22 + 25) + 1.85 * 30 * 2)
    assert fp32.published == pytest.approx(30 * 3.7 + fp32.total - fp32.operations)
    assert int8.published is None
    moved = 6 * 1.25 + 16
    assert shift.published == pytest.approx(30 * 0.13 + 100 * moved + 11.1 * (moved + 25 * 1.25) + 1.85 * 30 * 2.5)


def test_codebooks_say_how_many_bits_a_weight_takes():
    codes = np.array([[1, 3], [0, 8], [-6, 10]], np.int8)
    row = only(linear(codes, "apot4"))
    assert row.layer.bits == 4
    assert row.forms["shift-add"].total == pytest.approx(
        5 * 8 * 0.124 + 100 * (3 + 16) + 11.1 * (19 + 25) + 1.85 * 30 * 1.5
    )
    assert row.forms["int8"] == only(linear(codes)).forms["int8"]


def test_ternary_weights_are_added_without_a_shift():
    codes = np.array([[1, 0], [-1, 0], [1, 1]], np.int8)
    row = only(linear(codes))
    assert row.layer.ternary
    assert row.forms["shift-add"].operations == pytest.approx(5 * 4 * 0.1)


def test_products_of_data_take_the_mean_digits_of_all_codes():
    graph = Graph("one")
    a, b = (graph.add_input(name, TensorType(dtypes.i8, shape)) for name, shape in (("a", (2, 3, 4)), ("b", (2, 4, 5))))
    coded = [graph.add(ops.FromCodes(0.1, 0), value).result for value in (a, b)]
    graph.add(ops.Return(("y",)), graph.add(ops.IntMatMul(), *coded).result)
    row = only(graph)
    digits = sum(_digits(abs(code)) for code in range(-128, 128)) / 256
    assert (row.layer.macs, row.layer.weights, row.layer.inputs, row.layer.outputs) == (120, 0, 64, 30)
    assert row.layer.digits == pytest.approx(digits)
    shift = row.forms["shift-add"]
    assert shift.total == pytest.approx(120 * digits * 0.124 + 11.1 * 94 + 1.85 * 120 * 2)
    assert shift.published == pytest.approx(120 * (0.9 + 8 * 1.85) + 30 * 4 * 11.1)  # inputs are read for nothing


def test_signs_add_once_per_product():
    graph = Graph("one")
    a, b = (graph.add_input(name, TensorType(dtypes.i8, shape)) for name, shape in (("a", (3, 4)), ("b", (4, 5))))
    coded = [graph.add(ops.FromCodes(scale, 0), value).result for value, scale in ((a, 1.0), (b, 0.1))]
    graph.add(ops.Return(("y",)), graph.add(ops.IntAddMatMul(), *coded).result)
    row = only(graph)
    assert row.forms["shift-add"].operations == pytest.approx(60 * 0.1)
    assert row.forms["int8"].operations == pytest.approx(60 * 0.3)


def _digits(n: int) -> int:
    """Digits of a canonical form, from its definition: round an odd number to the nearer multiple of 4."""
    if n == 0:
        return 0
    return _digits(n // 2) if n % 2 == 0 else 1 + _digits((n - 2 + n % 4) // 2)


def test_convolutions_and_groups():
    graph = Graph("one")
    x = graph.add_input("x", TensorType(dtypes.f32, (1, 4, 6, 6)))
    w = graph.add(ops.Const(Data(np.full((8, 2, 3, 3), -0.5, np.float32)))).result
    y = graph.add(ops.Conv((1, 1), (1, 1, 1, 1), (1, 1), 2), x, w).result
    graph.add(ops.Return(("y",)), y)
    layer = only(graph).layer
    assert (layer.macs, layer.weights, layer.channels) == (8 * 36 * 18, 144, 8)
    assert layer.digits == 2  # -0.5 is the least of its channel, -127 = 1 - 128
    assert (layer.inputs, layer.outputs) == (144, 288)


def test_symbolic_extents_are_bound_or_1():
    assert only(linear(rows="n")).layer.macs == 6
    assert only(linear(rows="n"), n=7).layer.macs == 42


def test_one_model_costs_the_same_from_real_numbers_and_from_integers():
    """The layers are the same; only the digits differ, since integers are scaled by what follows them."""
    model = ZOO / "fashion_vit" / "model.onnx"
    real = energy_of(optimize(model))
    coded = energy_of(optimize(model, "integer", calibration=str(ZOO / "fashion_vit" / "calibration.npz")))
    assert 0.9 < coded.totals["fp32"].total / real.totals["fp32"].total < 1.1
    assert coded.totals["int8"].total < real.totals["fp32"].total / 4
    assert coded.skipped == real.skipped == ()


def test_every_number_of_the_model_is_among_the_assumptions():
    report = energy_of(linear())
    text = " ".join(report.assumptions)
    assert all(
        number in text for number in ("45 nm, Horowitz", "4.6", "0.2", "0.024", "0.1", "0.13", "100", "11.1", "1.85")
    )


def test_integer_files_are_read_and_what_is_not_counted_is_named(tmp_path):
    from planish.backends.onnx.writer import write

    write(linear(), tmp_path / "model.onnx")
    report: EnergyReport = energy_of(load(tmp_path / "model.onnx"))
    assert report.layers[0].layer.op == "MatMulInteger"
    assert report.layers[0].forms == only(linear()).forms
    result = CliRunner().invoke(app, ["inspect", "--energy", "--json", str(tmp_path / "model.onnx")])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["totals"]["fp32"]["operations"] == pytest.approx(138)
    assert found["unit"] == "pJ"
    shown = CliRunner().invoke(app, ["inspect", "--energy", str(tmp_path / "model.onnx")])
    assert "45 nm, Horowitz" in shown.stdout


def test_weights_that_are_packed_in_the_file_are_weights_all_the_same(tmp_path):
    from planish.backends.onnx.writer import write

    write(linear(np.array([[1, 3], [0, 8], [-6, 10]], np.int8), "apot4"), tmp_path / "model.onnx")
    result = CliRunner().invoke(app, ["inspect", "--energy", "--json", str(tmp_path / "model.onnx")])
    (row,) = json.loads(result.stdout)["layers"]
    assert (row["layer"]["weights"], row["layer"]["digits"]) == (6, 8 / 6)
