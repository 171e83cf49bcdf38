"""Patterns of attention: their texts, the pairs that they keep, and the blocks that these pairs lie in."""

import numpy as np
import pytest

from planish.ir.attention_patterns import DENSE, SKIP, Pattern
from planish.ir.errors import VerifyError

TEXTS = [
    *("dense", "skip", "window 3", "stripe 0:2,5:6", "window 1 stripe 4:8", "window 2 blocks 4", "window 0 period 6"),
    *(
        "stripe 3:5 blocks 4",
        "window 4 stripe 0:4 blocks 4",
        "window 2 blocks 2 period 4",
        "window 3 stripe 1:2 period 3",
    ),
]
LENGTH = 24


def wanted(pattern: Pattern, causal: bool) -> np.ndarray:
    """The pairs, one by one, as the text of a pattern is explained."""
    n, p = LENGTH, pattern.period
    place = [(i % p) * (n // p) + i // p for i in range(n)]

    def pair(i: int, j: int) -> bool:
        near = pattern.window is not None and abs(place[i] - place[j]) <= pattern.window
        return (near or any(a <= j < b for a, b in pattern.stripe)) and (j <= i or not causal)

    found = np.array([[pattern.dense or pair(i, j) for j in range(n)] for i in range(n)])
    if pattern.blocks:
        b = pattern.blocks
        for row in range(n // b):
            queries = [i for i in range(n) if place[i] // b == row]
            needed = [
                c for c in range(n // b) if any(found[i, j] for i in queries for j in range(n) if place[j] // b == c)
            ]
            for i in queries:
                found[i] = [place[j] // b in needed for j in range(n)]
    return np.tril(found) if causal else found


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_a_pattern_prints_parses_and_keeps_what_its_text_says(text, causal):
    pattern = Pattern.parse(text)
    assert str(pattern) == text
    assert pattern.fault(LENGTH) == ""
    kept = pattern.kept(LENGTH, causal)
    if pattern.skipped:
        assert not kept.any()
        return
    least = wanted(pattern, causal)
    assert not (least & ~kept).any()
    if not pattern.blocks:
        np.testing.assert_array_equal(kept, least)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("text", [text for text in TEXTS if "blocks" in text])
def test_every_block_of_queries_keeps_equally_many_whole_blocks_no_more_than_needed(text, causal):
    pattern = Pattern.parse(text)
    order, b = pattern.order(LENGTH), pattern.blocks
    table = pattern.table(LENGTH, b, causal)
    needed = wanted(pattern, False)[np.ix_(order, order)].reshape(LENGTH // b, b, LENGTH // b, b).any((1, 3))
    if not causal:
        assert table.shape == (LENGTH // b, needed.sum(axis=1).max())
    assert all((np.diff(row) > 0).all() for row in table)
    kept = pattern.kept(LENGTH, causal)[np.ix_(order, order)].reshape(LENGTH // b, b, LENGTH // b, b)
    for row, columns in enumerate(table):
        others = [c for c in range(LENGTH // b) if c not in columns]
        assert not kept[row][:, others].any()
        assert causal or kept[row][:, columns].all()


def test_edge_blocks_of_a_window_keep_the_nearest_ones_besides():
    assert Pattern.parse("window 4 blocks 4").table(24, 4).tolist() == [
        [0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [3, 4, 5],
    ]  # fmt: skip


def test_a_period_puts_positions_of_one_phase_side_by_side():
    assert Pattern.parse("window 0 period 3").order(6).tolist() == [0, 3, 1, 4, 2, 5]


def test_dense_and_skip_have_names():
    assert (str(DENSE), str(SKIP)) == ("dense", "skip")
    assert Pattern.parse("dense") == DENSE
    assert Pattern.parse("skip") == SKIP


@pytest.mark.parametrize(
    "text",
    [
        "",
        "windows 3",
        "window",
        "window x",
        "window 3 window 4",
        "stripe 1",
        "blocks 4 window 3",
        "window 3 x 1",
        " dense",
    ],
)
def test_other_texts_are_refused(text):
    with pytest.raises(VerifyError, match="no pattern of attention"):
        Pattern.parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("window 3 blocks 5", "blocks .* divide"),
        ("window 3 period 7", "period .* divide"),
        ("window -1", "negative"),
        ("stripe 0:25", "ascend"),
        ("stripe 4:4", "ascend"),
        ("stripe 4:8,6:9", "ascend"),
    ],
)
def test_patterns_that_do_not_fit_the_length_say_why(text, words):
    import re

    assert re.search(words, Pattern.parse(text).fault(LENGTH))
