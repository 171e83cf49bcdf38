"""ReluMLP on compiled code: the same bits whether neurons are left out or not, and those left out aren't read."""

from __future__ import annotations

import numpy as np
import pytest

from planish.backends.tvm.build import Executable, assembly
from planish.backends.tvm.isa import ISAS, Isa, isa_named
from planish.backends.tvm.program import Program, lower
from planish.backends.tvm.regions import regions
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.errors import UnsupportedOp
from planish.ir.graph import Graph
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import TensorType
from tests.backends.tvm.floats import float_isas
from tests.backends.tvm.running import HOST

SPECIAL = [0.0, -0.0, 1e-40, 1e-20, 1e10, 1e16, 1e30, 3e38, np.inf, -np.inf, np.nan]


def layer(
    shape: tuple[int, ...], neurons: int, columns: int, gated: bool, biased: bool, shift: float
) -> list[Data | None]:
    """Operands behind x; values that the rectifier reads are normal, moved by -shift."""
    rng, depth = np.random.default_rng(neurons + columns), shape[-1]

    def normal(*of: int) -> Data:
        return Data((rng.standard_normal(of) / np.sqrt(of[0])).astype(np.float32))

    moved = Data((rng.standard_normal(neurons) * 0.1 - shift).astype(np.float32))
    up, down = normal(depth, neurons), normal(neurons, columns)
    if gated:
        small = (normal(neurons), normal(columns)) if biased else (None, None)
        return [up, down, *small, normal(depth, neurons), moved]
    return [up, down, moved, *([normal(columns)] if biased else [])]


def graph_of(shape: tuple[int, ...], operands: list[Data | None], skip: bool = True, after: bool = False) -> Graph:
    graph = Graph()
    x = graph.add_input("x", TensorType(dtypes.f32, shape))
    y = ops.ReluMLP(skip)(x, *operands)
    if after:
        y = ops.Mul()(ops.Add()(y, y if y.tensor.dims != x.tensor.dims else x), np.float32(0.5))
    graph.attach(y, None, Loc(("mlp",)))
    graph.add(Return(("y",)), y)
    return graph


def rows_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def compiled(graph: Graph, isa: Isa) -> Executable:
    return Executable(lower(graph, isa), isa.target())


CASES = [
    # x, F, N, gated, biased, shift
    ((1, 64), 256, 64, False, True, 1.28),
    ((1, 1, 100), 300, 37, False, False, 1.28),
    ((1, 1, 33), 130, 33, True, True, 1.0),
    ((2, 33), 130, 65, True, False, 2.0),
    ((4, 96), 384, 96, False, True, 1.28),
    ((3, 1, 40), 5, 3, True, True, 0.5),
    ((1, 1), 1, 1, False, True, 0.1),
    ((7,), 9, 200, False, False, 0.3),
    ((6, 70), 140, 70, False, True, 1.0),
    ((9, 20), 50, 10, True, True, 1.0),
]


@pytest.mark.parametrize("isa", float_isas())
@pytest.mark.parametrize("case", CASES, ids=[str(case[0]) + "x" + str(case[1]) for case in CASES])
def test_bits_are_the_same_whether_neurons_are_left_out_or_not(isa, case):
    shape, neurons, columns, gated, biased, shift = case
    operands = layer(shape, neurons, columns, gated, biased, shift)
    skipping, dense = (compiled(graph_of(shape, operands, skip, after=True), isa) for skip in (True, False))
    wanted = graph_of(shape, operands, after=True)
    for factor in (1.0, 1e-12, 1e12):
        x = rows_of(*shape) * np.float32(factor)
        found = skipping(x=x)["y"]
        assert found.tobytes() == dense(x=x)["y"].tobytes()
        expected = interpret(wanted, {"x": x})["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * max(1.0, factor))


@pytest.mark.parametrize("gated", [False, True])
def test_numbers_out_of_range_give_the_same_bits(gated):
    shape = (2, 48)
    operands = layer(shape, 200, 40, gated, True, 1.0)
    skipping, dense = (compiled(graph_of(shape, operands, skip), HOST) for skip in (True, False))
    wanted = graph_of(shape, operands)
    for number in SPECIAL:
        for whole in (False, True):
            x = rows_of(*shape)
            x[1, slice(None) if whole else 5] = number
            found, expected = skipping(x=x)["y"], interpret(wanted, {"x": x})["y"]
            assert found.tobytes() == dense(x=x)["y"].tobytes()
            np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-5)
            if np.isfinite(expected[1]).all():
                np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-5 * max(1, abs(number)))
            else:
                assert not np.isfinite(found[1]).all()


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("bad", [np.inf, np.nan, 1e30])
def test_weights_out_of_range_give_the_same_bits(place, bad):
    """A neuron that is left out must not be one that adds NaN."""
    shape = (1, 32)
    operands = layer(shape, 64, 16, True, True, 1.0)
    array = operands[place].numpy().copy()
    array[(3,) * array.ndim] = bad
    operands[place] = Data(array)
    skipping, dense = (compiled(graph_of(shape, operands, skip), HOST) for skip in (True, False))
    for factor in (1.0, 1e14):
        x = rows_of(*shape) * np.float32(factor)
        assert skipping(x=x)["y"].tobytes() == dense(x=x)["y"].tobytes()


def poisoned(program: Program, shape: tuple[int, ...], rows: np.ndarray) -> int:
    """Make those rows of the float32 constants of that shape NaN; how many constants there are."""
    (call,) = program.calls
    count = 0
    constants = program.constants.copy()
    for argument, offset in zip(call.kernel.arguments, call.offsets, strict=True):
        if isinstance(argument, np.ndarray) and argument.shape == shape and argument.dtype == np.float32:
            view = constants[offset : offset + argument.nbytes].view(np.float32).reshape(shape)
            view[rows] = np.nan
            count += 1
    object.__setattr__(program, "constants", constants)
    return count


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_weights_of_inactive_neurons_are_not_read(rows, gated):
    shape, neurons = (rows, 128), 256
    operands = layer(shape, neurons, 128, gated, True, 1.5)
    x = rows_of(*shape)
    layer_of = (4, 5) if gated else (0, 2)
    weights, bias = (operands[place].numpy() for place in layer_of)
    clearly = np.all(x @ weights + bias < -0.7, axis=0)  # of values that spread by 1, and are proved to 0.5
    assert clearly.mean() > 0.3
    wanted = compiled(graph_of(shape, operands), HOST)(x=x)["y"]
    for skip in (True, False):
        program = lower(graph_of(shape, operands, skip), HOST)
        assert poisoned(program, (256, 128), np.flatnonzero(clearly)) == (3 if gated else 2)
        found = Executable(program, HOST.target())(x=x)["y"]
        assert (found.tobytes() == wanted.tobytes()) == skip
        assert np.isnan(found).all() != skip


def test_targets_without_a_multiplier_compute_all_neurons():
    shape = (1, 32)
    operands = layer(shape, 64, 16, False, True, 1.0)
    isa = isa_named(f"{HOST.name}-shift")
    assert not any(
        isinstance(a, np.ndarray) and a.dtype == np.int8
        for a in lower(graph_of(shape, operands), isa).calls[0].kernel.arguments
    )


def test_weights_must_be_known():
    graph = Graph()
    x = graph.add_input("x", TensorType(dtypes.f32, (1, 4)))
    w = graph.add_input("w", TensorType(dtypes.f32, (4, 4)))
    y = ops.ReluMLP()(x, w, w)
    graph.attach(y, None, Loc(("mlp",)))
    graph.add(Return(("y",)), y)
    with pytest.raises(UnsupportedOp, match="ReluMLP of weights that aren't constant"):
        regions(graph)


@pytest.mark.parametrize("name", list(ISAS))
def test_every_instruction_set_has_code_without_calls(name):
    operands = layer((1, 32), 64, 16, True, True, 1.0)
    text = assembly(lower(graph_of((1, 32), operands), ISAS[name]), ISAS[name].target())
    assert "fmaf" not in text  # of the C library
