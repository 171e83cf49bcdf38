"""Shapes of the command line are read in every common spelling, and misspellings get an example."""

from __future__ import annotations

import pytest

from planish.ir.errors import UsageError
from planish.tools.shapes import parse_shapes

IMAGE = (1, 3, 224, 224)


@pytest.mark.parametrize(
    "text",
    [
        "x=1x3x224x224",
        "x:1x3x224x224",
        "x=1X3X224X224",
        "x=1,3,224,224",
        "x:1,3,224,224",
        "x:[1,3,224,224]",
        "x=[1, 3, 224, 224]",
        "1x3x224x224",
        "1,3,224,224",
        "[1, 3, 224, 224]",
    ],
)
def test_every_spelling_gives_the_same_shape(text):
    assert parse_shapes([text], ["x"]) == {"x": IMAGE}


def test_several_shapes_in_one_option_or_in_several():
    expected = {"x": IMAGE, "mask": (1, 8)}
    assert parse_shapes(["x=1x3x224x224 mask:[1, 8]"], ["x", "mask"]) == expected
    assert parse_shapes(["x=1x3x224x224", "mask=1,8"], ["x", "mask"]) == expected
    assert parse_shapes(["x=1x3x224x224", "x=1,3,224,224"], ["x"]) == {"x": IMAGE}


def test_the_last_separator_ends_the_name():
    assert parse_shapes(["input:0:1x3"], ["input:0"]) == {"input:0": (1, 3)}
    assert parse_shapes(["serving=a:0=1x3"], ["serving=a:0"]) == {"serving=a:0": (1, 3)}


def test_dimensions_stay_symbolic_under_a_name():
    assert parse_shapes(["x=batch,3,h_1,224"], ["x"]) == {"x": ("batch", 3, "h_1", 224)}
    assert parse_shapes(["[batch]"], ["x"]) == {"x": ("batch",)}


def test_scalars_single_and_empty_dimensions():
    assert parse_shapes(["x=[]"], ["x"]) == {"x": ()}
    assert parse_shapes(["x=8"], ["x"]) == {"x": (8,)}
    assert parse_shapes(["past=1x12x0x64"], ["past"]) == {"past": (1, 12, 0, 64)}


def test_nothing_given_is_nothing_bound():
    assert parse_shapes([], ["x"]) == {}


@pytest.mark.parametrize(
    "text",
    ["x=batchx3x224x224", "x=", "x=1x", "x=1xx3", "x=1,,3", "x=-1x3", "x=1,-1", "x=1.5", "x=[1,3", "", "x=[a b]"],
)
def test_a_shape_that_cannot_be_read_gets_an_example(text):
    with pytest.raises(UsageError) as caught:
        parse_shapes([text], ["x"])
    assert caught.value.exit_code == 2
    assert "x=1x3x224x224" in caught.value.remedy


def test_a_name_without_a_shape_is_refused():
    with pytest.raises(UsageError, match="'input:0' has no shape"):
        parse_shapes(["input:0"], ["input:0"])


def test_an_unknown_input_suggests_the_nearest():
    with pytest.raises(UsageError, match="no input 'pixel_value'") as caught:
        parse_shapes(["pixel_value=1x3"], ["pixel_values", "mask"])
    assert "did you mean 'pixel_values'?" in caught.value.remedy


def test_a_bare_shape_needs_a_model_with_one_input():
    with pytest.raises(UsageError, match="names no input") as caught:
        parse_shapes(["1x3"], ["a", "b"])
    assert "a=1x3" in caught.value.remedy


def test_two_different_shapes_for_one_input_are_refused():
    with pytest.raises(UsageError, match="two shapes for input 'x'"):
        parse_shapes(["x=1x3", "x=1x4"], ["x"])
