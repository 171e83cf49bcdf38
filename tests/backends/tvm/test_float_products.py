"""Products in float32 over odd shapes, on every instruction set that this CPU has, and what is fused with them.

Sums in another order differ by roundings: `sum_error` is the random walk of as many as there are terms.
"""

from __future__ import annotations

import numpy as np
import pytest

from planish.backends.tvm.build import assembly
from planish.backends.tvm.float_tiles import tiling
from planish.backends.tvm.isa import ISAS
from planish.backends.tvm.program import lower
from planish.backends.tvm.regions import regions
from planish.ir import dtypes, ops
from planish.ir.data import Data
from planish.ir.graph import Graph
from planish.ir.loc import Loc
from planish.ir.op import Return
from planish.ir.types import TensorType
from tests.backends.tvm.floats import EPSILON, RNG, Case, assert_cases, both, float_isas, normal, side_by_side

RUNNABLE = float_isas()


def sum_error(op, depth, *operands):
    sizes = [np.abs(o if isinstance(o, np.ndarray) else o.numpy()) for o in operands]
    return EPSILON * (2 + np.sqrt(depth)) * op.evaluate(*sizes)


def product(op, depth, *operands):
    return Case(op, operands, sum_error(op, depth, *operands))


def linears():
    shapes = [
        *((1, 1, 1), (1, 10, 96), (2, 17, 3), (5, 64, 64), (7, 33, 31), (13, 100, 5), (29, 47, 130), (197, 96, 33)),
        *((3, 2049, 7), (1, 33, 2049), (61, 5, 3)),
    ]
    for rows, columns, depth in shapes:
        w, b = normal(depth, columns), normal(columns)
        yield product(ops.Linear(), depth, normal(1, rows, depth), Data(w), Data(b))
    yield product(ops.Linear(), 19, normal(2, 3, 19), normal(19, 21), normal(21))  # nothing is known beforehand
    yield product(ops.Linear(), 8, normal(8), Data(normal(8, 5)))


@pytest.mark.parametrize("isa", RUNNABLE)
def test_linear_layers(isa):
    assert_cases(list(linears()), isa)


def matmuls():
    shapes = [
        *(((3, 5), (5, 7)), ((2, 3, 4, 5), (2, 3, 5, 6)), ((2, 1, 4, 5), (3, 5, 17)), ((4, 5), (2, 3, 5, 33))),
        *(((5,), (5,)), ((5,), (2, 5, 6)), ((2, 4, 5), (5,)), ((1, 9, 5), (1, 5, 16)), ((2, 3, 4, 5), (5, 6))),
        *(((3, 1, 1, 7), (1, 2, 7, 1)), ((4, 5), (1, 1, 5, 6))),
    ]
    for a, b in shapes:
        yield product(ops.MatMul(), a[-1], normal(*a), normal(*b))
        if min(len(a), len(b)) > 1:
            yield Case(
                ops.AddMatMul(),
                (np.sign(normal(*a)), (bs := normal(*b))),
                sum_error(ops.MatMul(), a[-1], np.ones(a, np.float32), bs),
            )
        yield product(ops.MatMul(), a[-1], normal(*a), Data(normal(*b)))
    yield product(ops.MatMul(), 5, Data(normal(2, 4, 5)), normal(5, 19))


@pytest.mark.parametrize("isa", RUNNABLE)
def test_products_of_matrices(isa):
    assert_cases(list(matmuls()), isa)


def convolutions():
    settings = [  # strides, pads, dilations, group, channels, filters, kernel, image
        ((1, 1), (1, 1, 1, 1), (1, 1), 1, 3, 19, (3, 3), (9, 17)),
        ((2, 2), (0, 1, 1, 0), (1, 1), 2, 6, 8, (3, 2), (8, 9)),
        ((1, 1), (2, 2, 2, 2), (2, 2), 1, 5, 4, (3, 3), (6, 35)),
        ((4, 4), (0, 0, 0, 0), (1, 1), 1, 3, 33, (4, 4), (8, 12)),
        ((1, 1), (0, 0, 0, 0), (1, 1), 1, 12, 20, (1, 1), (5, 7)),
        ((1, 1), (0, 0, 0, 0), (1, 1), 3, 12, 6, (1, 1), (5, 7)),
        ((1, 1), (1, 1, 1, 1), (1, 1), 6, 6, 6, (3, 3), (9, 33)),
        ((2, 2), (1, 1, 1, 1), (1, 1), 6, 6, 6, (3, 3), (9, 8)),
    ]
    for strides, pads, dilations, group, channels, filters, kernel, image in settings:
        op = ops.Conv(strides, pads, dilations, group)
        x, w, b = normal(2, channels, *image), normal(filters, channels // group, *kernel), normal(filters)
        yield product(op, w[0].size, x, Data(w), Data(b))
    yield product(ops.Conv((2,), (1, 0), (1,)), 12, normal(2, 4, 37), normal(5, 4, 3))
    yield product(
        ops.Conv((1, 1, 1), (0, 1, 0, 1, 0, 1), (1, 1, 1)), 16, normal(1, 2, 4, 5, 6), Data(normal(3, 2, 2, 2, 2))
    )


@pytest.mark.parametrize("isa", RUNNABLE)
def test_convolutions(isa):
    assert_cases(list(convolutions()), isa)


def attentions():
    def case(op, batch, heads, shared, rows, tokens, width, depth, mask=None):
        q, k, v = (
            normal(batch, heads, rows, width),
            normal(batch, shared, tokens, width),
            normal(batch, shared, tokens, depth),
        )
        return Case(op, (q, k, v, *(() if mask is None else (mask,))), 4e-6)

    yield case(ops.Attention(0.125), 1, 3, 3, 197, 197, 32, 32)
    yield case(ops.Attention(0.3), 2, 4, 2, 5, 17, 9, 33)
    yield case(ops.Attention(1.0), 1, 1, 1, 1, 1, 1, 1)
    yield case(ops.Attention(0.2, True), 1, 2, 1, 37, 37, 16, 16)
    yield case(ops.Attention(0.2, True), 1, 1, 1, 3, 130, 64, 20)
    yield case(ops.Attention(0.2), 2, 2, 2, 70, 65, 20, 16, normal(2, 1, 1, 65) * 5)
    yield case(ops.Attention(0.2), 1, 2, 2, 9, 19, 8, 40, normal(1, 2, 9, 19))
    yield case(ops.Attention(0.2), 1, 1, 1, 2, 2049, 8, 8)
    keep = RNG.random((2, 1, 1, 40)) < 0.7
    keep[0] = False  # rows of which nothing takes part are NaN
    yield case(ops.Attention(0.2), 2, 2, 2, 5, 40, 8, 8, keep)
    yield case(ops.Attention(0.2, True), 1, 2, 2, 7, 7, 8, 8, RNG.random((7, 7)) < 0.9)
    for interleaved in (False, True):
        angles = RNG.uniform(0, 6, (1, 5, 17))
        tables = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        yield Case(ops.RotaryEmbedding(interleaved), (normal(2, 3, 5, 34), *tables))


@pytest.mark.parametrize("isa", RUNNABLE)
def test_attention(isa):
    assert_cases(list(attentions()), isa)


def test_what_follows_a_product_is_done_in_its_kernel_and_written_to_where_it_goes():
    graph = Graph()
    x = graph.add_input("x", TensorType(dtypes.f32, (1, 9, 24)))
    residual = graph.add_input("r", TensorType(dtypes.f32, (1, 9, 30)))
    y = ops.Gelu()(ops.Linear()(x, Data(normal(24, 30)), Data(normal(30))))
    y = ops.Transpose((0, 2, 1, 3))(ops.Reshape((1, 9, 6, 5))(ops.Add()(residual, y)))
    graph.attach(y, None, Loc(("made",)))
    graph.add(Return(("y",)), y)
    assert len(regions(graph)[0]) == 1
    found, wanted = both(graph, {"x": normal(1, 9, 24), "r": normal(1, 9, 30)})
    np.testing.assert_allclose(found["y"], wanted["y"], atol=1e-5)


def test_patches_become_rows_of_tokens():
    graph = Graph()
    x = graph.add_input("x", TensorType(dtypes.f32, (1, 3, 12, 8)))
    y = ops.Conv((4, 4), (0, 0, 0, 0), (1, 1))(x, Data(normal(18, 3, 4, 4)), Data(normal(18)))
    y = ops.Transpose((0, 2, 1))(ops.Reshape((1, 18, 6))(y))
    graph.attach(y, None, Loc(("made",)))
    graph.add(Return(("y",)), y)
    assert len(regions(graph)[0]) == 1
    found, wanted = both(graph, {"x": normal(1, 3, 12, 8)})
    np.testing.assert_allclose(found["y"], wanted["y"], atol=2e-5)


@pytest.mark.parametrize("name", list(ISAS))
@pytest.mark.parametrize("rows", [1, 3, 13, 128, 197])
@pytest.mark.parametrize("columns", [1, 17, 64, 1000])
def test_tiles_fit_the_registers_and_cover_all_rows(name, rows, columns):
    isa = ISAS[name]
    plan = tiling(rows, columns, isa)
    assert plan.vectors * plan.height + plan.vectors + 1 <= isa.registers
    assert sum(count * height for count, height in plan.spans) == rows


@pytest.mark.parametrize("name", list(ISAS))
def test_code_is_generated_for_every_instruction_set(name):
    graph, _, _ = side_by_side([Case(ops.Linear(), (normal(9, 24), Data(normal(24, 40)))), *list(attentions())[1:2]])
    text = assembly(lower(graph, ISAS[name]), ISAS[name].target())
    fused = {"x86_64": "vfmadd", "aarch64": "fmla"}[ISAS[name].triple.split("-")[0]]
    assert (fused in text) == (name != "x86-64")
