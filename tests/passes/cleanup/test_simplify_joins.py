"""Concat, Split and Slice against each other."""

import pytest
from rewriting import check_rewrite, check_unchanged

from planish.passes.base import Pipeline
from planish.passes.cleanup import EliminateDeadCode, SimplifyJoins

JOINS = SimplifyJoins()


def graph(*lines: str, inputs: str = "x: f32[n, 6], z: f32[n, 2]", returns: str = "y") -> str:
    return "\n".join([f"def g({inputs}):", *(f"    {line}" for line in lines), f"    return {{'y': {returns}}}"])


def test_concat_of_one_part_is_dropped():
    check_rewrite(JOINS, graph("y = Concat(axis=1)(x)"), graph(returns="x"))


def test_concat_of_two_values_stays():
    check_unchanged(JOINS, graph("y = Concat(axis=1)(x, z)"))


def test_nested_concats_are_flattened():
    before = graph("a = Concat(axis=1)(z, x)", "b = Concat(axis=1)(a, z)", "y = Concat(axis=1)(x, b)")
    check_rewrite(JOINS, before, graph("y = Concat(axis=1)(x, z, x, z)"))


def test_nested_concat_along_another_axis_stays():
    check_unchanged(JOINS, graph("a = Concat(axis=0)(x, x)", "b = Concat(axis=0)(z, z)", "y = Concat(axis=1)(a, b)"))


def test_nested_concat_with_another_reader_stays():
    before = """
        def g(x: f32[n, 6], z: f32[n, 2]):
            a = Concat(axis=1)(x, z)
            y = Concat(axis=1)(a, x)
            return {'y': y, 'a': a}
    """
    check_unchanged(JOINS, before)


def test_empty_parts_are_dropped():
    before = graph("y = Concat(axis=1)(x, e, z)", inputs="x: f32[2, 6], z: f32[2, 2], e: f32[2, 0]")
    after = graph("y = Concat(axis=1)(x, z)", inputs="x: f32[2, 6], z: f32[2, 2], e: f32[2, 0]")
    check_rewrite(JOINS, before, after)


def test_split_that_is_joined_again_is_dropped():
    before = graph("a, b, c = Split(axis=1, sizes=(1, 2, 3))(x)", "y = Concat(axis=1)(a, b, c)")
    check_rewrite(JOINS, before, graph(returns="x"))


def test_split_that_is_joined_in_another_order_stays():
    check_unchanged(JOINS, graph("a, b, c = Split(axis=1, sizes=(1, 2, 3))(x)", "y = Concat(axis=1)(a, c, b)"))


def test_split_that_is_joined_along_another_axis_stays():
    check_unchanged(JOINS, graph("a, b = Split(axis=1, sizes=(3, 3))(x)", "y = Concat(axis=0)(a, b)"))


def test_adjacent_parts_become_one_slice():
    before = graph("a, b, c = Split(axis=1, sizes=(1, 2, 3))(x)", "y = Concat(axis=1)(b, c)")
    after = graph("y = Slice(starts=(1,), ends=(6,), axes=(1,), steps=(1,))(x)")
    check_rewrite(JOINS, before, after)


def test_adjacent_slices_of_a_symbolic_axis_are_dropped():
    before = graph(
        "a = Slice(starts=(0,), ends=(1,), axes=(0,), steps=(1,))(x)",
        "b = Slice(starts=(1,), ends=(9223372036854775807,), axes=(0,), steps=(1,))(x)",
        "y = Concat(axis=0)(a, b)",
    )
    check_rewrite(JOINS, before, graph(returns="x"))


def test_slices_with_a_gap_stay():
    before = graph(
        "a = Slice(starts=(0,), ends=(2,), axes=(1,), steps=(1,))(x)",
        "b = Slice(starts=(3,), ends=(6,), axes=(1,), steps=(1,))(x)",
        "y = Concat(axis=1)(a, b)",
    )
    check_unchanged(JOINS, before)


def test_slices_of_two_values_stay():
    before = graph(
        "a = Slice(starts=(0,), ends=(1,), axes=(1,), steps=(1,))(x)",
        "b = Slice(starts=(1,), ends=(2,), axes=(1,), steps=(1,))(z)",
        "y = Concat(axis=1)(a, b)",
    )
    check_unchanged(JOINS, before)


@pytest.mark.parametrize(
    ("start", "end", "result"),
    [
        (6, 8, "z"),
        (0, 6, "x"),
        (7, 8, "Slice(starts=(1,), ends=(2,), axes=(1,), steps=(1,))(z)"),
        (-8, -2, "x"),
    ],
)
def test_slice_of_a_concat_inside_one_part_reads_the_part(start, end, result):
    cut = f"Slice(starts=({start},), ends=({end},), axes=(1,), steps=(1,))"
    before = graph("a = Concat(axis=1)(x, z)", f"y = {cut}(a)")
    after = graph(returns=result) if len(result) == 1 else graph(f"y = {result}")
    check_rewrite(JOINS, before, after)


def test_slice_of_a_concat_along_several_parts_joins_fewer():
    before = graph("a = Concat(axis=1)(x, z, x)", "y = Slice(starts=(6,), ends=(14,), axes=(1,), steps=(1,))(a)")
    check_rewrite(JOINS, before, graph("y = Concat(axis=1)(z, x)"))


def test_slice_of_a_concat_behind_its_first_part_reads_the_rest():
    inputs = "x: f32[1, 3], z: f32[n, 3]"
    before = graph(
        "a = Concat(axis=0)(x, z)",
        "y = Slice(starts=(1,), ends=(9223372036854775807,), axes=(0,), steps=(1,))(a)",
        inputs=inputs,
    )
    check_rewrite(JOINS, before, graph(inputs=inputs, returns="z"))


@pytest.mark.parametrize(("starts", "ends", "axis", "step"), [(5, 7, 1, 1), (0, 6, 1, 2), (0, 1, 0, 1)])
def test_slice_of_a_concat_across_seams_stays(starts, ends, axis, step):
    cut = f"Slice(starts=({starts},), ends=({ends},), axes=({axis},), steps=({step},))"
    check_unchanged(JOINS, graph("a = Concat(axis=1)(x, z)", f"y = {cut}(a)"))


def test_split_into_one_part_is_dropped():
    check_rewrite(JOINS, graph("a, = Split(axis=1, sizes=(6,))(x)", returns="a"), graph(returns="x"))


def test_split_of_a_concat_at_its_seams_is_dropped():
    before = """
        def g(x: f32[n, 6], z: f32[n, 2]):
            a = Concat(axis=1)(x, z, z, x)
            b, c, d = Split(axis=1, sizes=(6, 4, 6))(a)
            return {'b': b, 'c': c, 'd': d}
    """
    after = """
        def g(x: f32[n, 6], z: f32[n, 2]):
            c = Concat(axis=1)(z, z)
            return {'b': x, 'c': c, 'd': x}
    """
    check_rewrite(JOINS, before, after)


def test_split_of_a_concat_elsewhere_stays():
    before = """
        def g(x: f32[n, 6], z: f32[n, 2]):
            a = Concat(axis=1)(x, z)
            b, c = Split(axis=1, sizes=(4, 4))(a)
            return {'b': b, 'c': c}
    """
    check_unchanged(JOINS, before)


def test_what_is_left_of_a_round_trip_is_dead():
    before = graph(
        "a = Concat(axis=1)(x, z)",
        "b, c = Split(axis=1, sizes=(6, 2))(a)",
        "d = Concat(axis=1)(b, c)",
        "y = Slice(starts=(0,), ends=(6,), axes=(1,), steps=(1,))(d)",
    )
    check_rewrite(Pipeline(JOINS, EliminateDeadCode()), before, graph(returns="x"))
