"""Sparse cores between block-diagonal factors: fits that only get better, and layers that become three products."""

from __future__ import annotations

import numpy as np
import pytest
from rewriting import assert_same_text, check_unchanged, read

from planish.ir.data import Data
from planish.ir.errors import UsageError
from planish.ir.interpret import interpret
from planish.ir.op import constant
from planish.ir.ops import Add, Linear, MatMul
from planish.ir.sparsity import PATTERNS, fault, pattern
from planish.ir.verify import verify
from planish.passes.base import Context
from planish.passes.rewrite import Fuel
from planish.passes.sparse.armor import across, armored, extra_share, left
from planish.passes.sparse.armor_prune import ArmorPrune, ArmorReport
from planish.passes.sparse.masks import Structure
from planish.passes.sparse.pruning import METHODS, damped, error_of, refitted


def layer(depth: int = 32, columns: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and the damped covariance of correlated rows."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(depth, depth)) * 0.3 + np.diag(rng.lognormal(0, 0.8, depth))
    rows = rng.standard_t(6, size=(60 * depth, depth)) @ mixed
    return rng.normal(size=(depth, columns)), damped(np.cov(rows.T))


def diagonal(blocks: np.ndarray) -> np.ndarray:
    """The matrix that has these blocks on its diagonal."""
    count, b, _ = blocks.shape
    found = np.zeros((count * b, count * b))
    for i, block in enumerate(blocks):
        found[i * b : i * b + b, i * b : i * b + b] = block
    return found


def test_blocks_stand_for_a_block_diagonal_matrix():
    rng = np.random.default_rng(1)
    blocks, m = rng.normal(size=(3, 4, 4)), rng.normal(size=(12, 12))
    np.testing.assert_allclose(left(blocks, m), diagonal(blocks) @ m)
    np.testing.assert_allclose(across(m, blocks), m @ diagonal(blocks))


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("seed", range(3))
def test_no_step_makes_the_error_greater(name, seed):
    w, h = layer(seed=seed)
    found = armored(w, h, Structure(name), 0.4, 16)
    losses = np.array(found.losses)
    assert len(losses) > 3
    assert np.all(losses[1:] <= losses[:-1] * (1 + 1e-12))
    assert error_of(found.product, w, h) == pytest.approx(losses[-1], rel=1e-9)
    np.testing.assert_allclose(found.product, diagonal(found.before) @ found.core @ diagonal(found.after))
    rows = 8 if name == "ib4" else 32
    limit = 1.0 if name == "2:4" else round(0.4 * rows) / rows
    assert fault(found.core, pattern(name, density=limit)) == ""


@pytest.mark.parametrize("block", [4, 16])
def test_two_of_four_between_factors_errs_less_than_any_without(block):
    w, h = layer(seed=7)
    structure = Structure("2:4")
    alone = [refitted(method(w, h, structure, 0.5), w, h) for method in METHODS.values()]
    found = armored(w, h, structure, 0.5, block)
    assert error_of(found.product, w, h) < 0.8 * min(error_of(one, w, h) for one in alone)


def test_larger_blocks_err_less_and_cost_more():
    w, h = layer()
    errors = [error_of(armored(w, h, Structure("2:4"), 0.5, block).product, w, h) for block in (4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert [extra_share((768, 768), block) for block in (16, 32)] == pytest.approx([0.0417, 0.0833], abs=1e-4)


def test_the_same_samples_give_the_same_factors():
    w, h = layer()
    first, second = (armored(w, h, Structure("2:4"), 0.5, 8) for _ in range(2))
    for name in ("before", "core", "after"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_it_starts_where_it_is_told_to():
    w, h = layer()
    start = METHODS["magnitude"](w, h, Structure("2:4"), 0.5)
    assert armored(w, h, Structure("2:4"), 0.5, 8, start).losses[0] == pytest.approx(error_of(start, w, h))


def test_factors_that_explain_everything_are_found():
    rng = np.random.default_rng(3)
    core = METHODS["magnitude"](rng.normal(size=(16, 8)), np.eye(16), Structure("2:4"), 0.5)
    factors = [np.stack([np.eye(4) + 0.1 * rng.normal(size=(4, 4)) for _ in range(count)]) for count in (4, 2)]
    w = across(left(factors[0], core), factors[1])
    found = armored(w, np.eye(16), Structure("2:4"), 0.5, 4)
    assert error_of(found.product, w, np.eye(16)) < 1e-3 * np.sum(w**2)


BEFORE = """
def main(x: f32[n, 6, 16]):
    w: f32[16, 32] = Const('w')
    b: f32[32] = Const('b')
    y: f32[n, 6, 32] = Linear()(x, w, b)
    return y
"""
AFTER = """
def main(x: f32[n, 6, 16]):
    c: f32[n, 6, 2, 8] = Reshape(shape=(0, 6, 2, 8))(x)
    t: f32[n, 2, 6, 8] = Transpose(perm=(0, 2, 1, 3))(c)
    p: f32[2, 8, 8] = Const('p')
    m: f32[n, 2, 6, 8] = MatMul()(t, p)
    u: f32[n, 6, 2, 8] = Transpose(perm=(0, 2, 1, 3))(m)
    j: f32[n, 6, 16] = Reshape(shape=(0, 6, 16))(u)
    s: sparse(f32, 'n:m', (2, 4), axis=0, density=0.5)[16, 32] = Const('s')
    i: f32[n, 6, 32] = Linear()(j, s)
    d: f32[n, 6, 4, 8] = Reshape(shape=(0, 6, 4, 8))(i)
    e: f32[n, 4, 6, 8] = Transpose(perm=(0, 2, 1, 3))(d)
    q: f32[4, 8, 8] = Const('q')
    f: f32[n, 4, 6, 8] = MatMul()(e, q)
    g: f32[n, 6, 4, 8] = Transpose(perm=(0, 2, 1, 3))(f)
    h: f32[n, 6, 32] = Reshape(shape=(0, 6, 32))(g)
    b: f32[32] = Const('b')
    y: f32[n, 6, 32] = Add()(h, b)
    return y
"""


def case(lead: tuple[int, ...] = (6,), count: int = 12) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """Constants of the graph, and feeds whose channels have means and share much."""
    rng = np.random.default_rng(5)
    mixed = rng.normal(size=(16, 16)) * 0.3 + np.diag(rng.lognormal(0, 0.5, 16))
    constants = {"w": rng.normal(size=(16, 32)).astype(np.float32), "b": rng.normal(size=32).astype(np.float32)}
    return constants, [{"x": (rng.normal(size=(9, *lead, 16)) @ mixed + 1).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("lead", [(6,), ()])
def test_a_layer_becomes_three_products_that_compute_nearly_the_same(lead):
    constants, feeds = case(lead)
    text = BEFORE if lead else BEFORE.replace("n, 6, ", "n, ")
    graph, context = read(text, constants), Context(calibration=feeds)
    changes = ArmorPrune(block=8, most_extra=0.8).run(graph, context)
    verify(graph)
    assert dict(changes.rewrites) == {"2:4, blocks of 8": 1}
    (report,) = context.reports
    assert isinstance(report, ArmorReport)
    (row,) = report.layers
    assert (row.density, row.extra) == (0.5, 8 * 48 / 512)
    assert row.noise_db > row.plain_db + 3
    _, unseen = case(lead, count=13)
    found = interpret(graph, unseen[-1])["y"]
    wanted = interpret(read(text, constants), unseen[-1])["y"]
    error = np.sum((found - wanted) ** 2) / np.sum((wanted - wanted.reshape(-1, 32).mean(axis=0)) ** 2)
    assert -10 * np.log10(error) == pytest.approx(row.noise_db, abs=2)
    if lead:
        assert_same_text(graph, read(AFTER, dict(zip("psqb", payloads(graph), strict=True))))


def payloads(graph) -> list[Data]:
    (core,) = graph.nodes(Linear)
    before, after = graph.nodes(MatMul)
    (sum_,) = graph.nodes(Add)
    return [constant(value) for value in (before.inputs[1], core.inputs[1], after.inputs[1], sum_.inputs[1])]


def test_layers_stay_with_a_reason():
    constants, feeds = case()
    context = Context(calibration=feeds)
    check_unchanged(
        ArmorPrune(block=8), BEFORE, "75 % of its products, more than 10 %", constants=constants, context=context
    )
    check_unchanged(
        ArmorPrune(block=12, most_extra=9), BEFORE, "don't fit 16 x 32", constants=constants, context=context
    )
    sparse = dict(constants, w=Data(constants["w"] * (np.arange(16) % 4 < 2)[:, None], None, pattern("2:4")))
    text = BEFORE.replace("w: f32[16, 32]", "w: sparse(f32, 'n:m', (2, 4), axis=0)[16, 32]")
    check_unchanged(ArmorPrune(block=8, most_extra=9), text, "sparse already", constants=sparse, context=context)


def test_fuel_ends_it():
    constants, feeds = case()
    graph = read(BEFORE, constants)
    assert not ArmorPrune(block=8, most_extra=0.8).run(graph, Context(calibration=feeds, fuel=Fuel(0)))


@pytest.mark.parametrize("options", [{"structure": "odd"}, {"sparsity": 1.0}, {"structure": "ob16", "block": 8}])
def test_options_that_make_no_sense_are_refused(options):
    constants, feeds = case()
    with pytest.raises(UsageError):
        ArmorPrune(**options).run(read(BEFORE, constants), Context(calibration=feeds))
