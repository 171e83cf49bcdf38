"""Where tokens may be reduced: encoders of real exporters are, and what depends on positions is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoders import Model, Shape

import planish
from planish.backends.ort.taps import taps
from planish.ir import dtypes, ops
from planish.ir.graph import Graph, Value
from planish.ir.interpret import interpret
from planish.ir.loc import Loc
from planish.ir.types import tensor
from planish.passes.base import Context, Pipeline, Repeat
from planish.passes.norms import FoldNorms
from planish.passes.pipelines import cleanup, raising
from planish.passes.tokens import CompressTokens
from planish.passes.tokens.applying import compress, compressed, prove_order_free
from planish.passes.tokens.encoder import find_encoder
from planish.passes.tokens.methods import METHODS, Choice
from planish.passes.tokens.refusal import CONDITIONS, Refusal

ZOO = Path(__file__).parents[2] / "zoo"
PREPARED = Pipeline(Repeat(cleanup), raising, FoldNorms(), Repeat(cleanup))
VITS = sorted(path.name for kind in ("vit", "timm") for path in ZOO.glob(f"{kind}_*.onnx"))
BERTS = sorted(path.name for path in ZOO.glob("bert_*.onnx"))


def prepared(name: str) -> Graph:
    return planish.optimize(ZOO / name, PREPARED)


def feed_of(graph: Graph, batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feed = {}
    for value in graph.inputs:
        shape = [batch if isinstance(dim, str) else dim for dim in value.tensor.dims]
        if value.tensor.dtype.is_float:
            feed[value.hint] = rng.normal(size=shape).astype(value.tensor.dtype.storage)
        elif "mask" in value.hint:
            feed[value.hint] = np.tile(np.arange(shape[1]) < shape[1] - 2, (shape[0], 1)).astype(np.int64)
        else:
            feed[value.hint] = rng.integers(0, 2, shape).astype(value.tensor.dtype.storage)
    return feed


def refused(graph: Graph, choice: Choice | None = None) -> str:
    with pytest.raises(Refusal) as caught:
        encoder = find_encoder(graph)
        compressed(graph, choice or Choice("merge", (1,) * len(encoder.blocks)))
    assert caught.value.condition in CONDITIONS
    return str(caught.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", VITS)
def test_vision_transformers_of_every_exporter(name, method):
    graph = prepared(name)
    encoder = find_encoder(graph)
    assert (encoder.tokens, encoder.protected, len(encoder.blocks)) == (17, 1, 2)
    feed = feed_of(graph)
    assert prove_order_free(graph, Context(taps=taps), [feed]) < 1e-5
    small = compressed(graph, Choice(method, (3, 2)))
    expected = interpret(small, feed)
    for name_, found in zip(expected, taps(small, list(small.outputs))(feed), strict=True):
        np.testing.assert_allclose(found, expected[name_], atol=1e-5)


def test_every_exporter_finds_the_same_tokens():
    """One model, exported in many ways: equal weights, so equal results."""
    for family in ("vit", "timm"):
        results = []
        for name in (n for n in VITS if n.startswith(family + "_")):
            graph = prepared(name)
            compress(graph, Choice("merge", (4, 0)))
            results.append(taps(graph, list(graph.outputs))(feed_of(graph))[0])
        for result in results[1:]:
            np.testing.assert_allclose(result, results[0], atol=1e-4)


@pytest.mark.parametrize("name", BERTS)
def test_masked_encoders_eliminate_and_do_not_merge(name):
    graph = prepared(name)
    feed = feed_of(graph)
    assert prove_order_free(graph, Context(taps=taps), [feed]) < 1e-5
    small = compressed(graph, Choice("eliminate", (2, *(0,) * (len(find_encoder(graph).blocks) - 1))))
    before, after = (taps(g, list(g.outputs))(feed)[0] for g in (graph, small))
    np.testing.assert_allclose(after[:, :5], before[:, :5], atol=1e-5)  # two of seven tokens are padding: those went
    assert refused(graph).startswith("T5")


@pytest.mark.parametrize(
    ("pattern", "condition"),
    [("swin_*.onnx", "T4"), ("llama*.onnx", "T14"), ("multihead*.onnx", "T2"), ("convnext*.onnx", "T11")],
)
def test_what_is_no_encoder_is_refused(pattern, condition):
    names = [path.name for path in ZOO.glob(pattern)]
    assert names
    for name in names:
        assert refused(prepared(name)).startswith(condition), name


def mixer() -> Graph:
    """Two blocks that mix tokens by a linear layer over them."""
    graph = Graph()
    rng = np.random.default_rng(0)
    x: Value = graph.add_input("x", tensor(dtypes.f32, "batch", 9, 8))
    for _ in range(2):
        turned = ops.Transpose((0, 2, 1))(ops.LayerNorm()(x))
        mixed = ops.Linear()(turned, rng.normal(size=(9, 9)).astype(np.float32))
        x = ops.Add()(x, ops.Transpose((0, 2, 1))(mixed))
    graph.attach(x, None, Loc(("mixer",)))
    graph.add(ops.Return(("y",)), x)
    return graph


def test_a_mixer_has_nothing_to_choose_by():
    assert refused(mixer()).startswith("T11")


def edited(change, **shape) -> Graph:  # type: ignore[no-untyped-def]
    graph = Model(Shape(head="dense", **shape)).graph()
    for attention in graph.nodes(ops.Attention):
        change(graph, attention)
    graph.erase_dead()
    return graph


def with_mask(array: np.ndarray):  # type: ignore[no-untyped-def]
    def change(graph: Graph, attention) -> None:  # type: ignore[no-untyped-def]
        made = attention.op(*attention.operands[:3], array)
        graph.attach(made, attention, attention.loc)
        graph.replace(attention.result, made)

    return change


def test_relative_position_bias_is_refused():
    bias = np.random.default_rng(0).normal(size=(1, 2, 13, 13)).astype(np.float32)
    assert refused(edited(with_mask(bias))).startswith("T3")


def test_causal_attention_is_refused_in_each_spelling():
    causal = np.where(np.tri(13, dtype=bool), 0, -1e9).astype(np.float32)
    for mask in (causal, np.tri(13, dtype=bool)[None]):
        assert refused(edited(with_mask(mask))).startswith("T14")

    def flagged(graph: Graph, attention) -> None:  # type: ignore[no-untyped-def]
        made = ops.Attention(attention.op.scale, True)(*attention.operands)
        graph.attach(made, attention, attention.loc)
        graph.replace(attention.result, made)

    assert refused(edited(flagged)).startswith("T14")


def test_windows_by_a_constant_mask_are_refused():
    window = np.abs(np.arange(13)[:, None] - np.arange(13)) < 3
    assert refused(edited(with_mask(window))).startswith("T4")


def test_a_mask_that_says_nothing_is_no_mask():
    model = Model(Shape(head="dense"))
    graph = edited(with_mask(np.zeros((1, 1, 13, 13), np.float32)))
    feed = model.feed()
    small = compressed(graph, Choice("merge", (4, 0, 0)))
    np.testing.assert_allclose(interpret(small, feed)["y"], model.run(feed, "merge", (4, 0, 0)), rtol=1e-3, atol=2e-5)


def after_last_start(graph: Graph, skip: Value) -> Graph:
    """A value added to what the last norm before an attention reads, behind where a stage gives all tokens back."""
    norm = find_encoder(graph).blocks[-1].attention.inputs[0]
    while not isinstance(norm.op, ops.LayerNorm):
        norm = norm.node.inputs[0]
    read = norm.node.inputs[0]
    made = ops.Add()(read, skip)
    graph.attach(made, norm.node, Loc(("skip",)))
    graph.set_operand(norm.node, 0, made)
    return graph


def before_last_block(graph: Graph, make) -> Graph:  # type: ignore[no-untyped-def]
    """The stream that enters the last block replaced by what `make` makes of it."""
    start = find_encoder(graph).blocks[-1].start
    made = make(start)
    reads = list(start.uses)
    graph.attach(made, start.node.next, Loc(("inserted",)))
    for node, index in reads:
        graph.set_operand(node, index, made)
    return graph


def test_a_convolution_between_blocks_is_refused():
    why = refused(before_last_block(Model(Shape(head="dense")).graph(), lambda x: ops.Add()(x, conv(x))))
    assert why.startswith("T4")
    assert "Conv" in why


def test_a_convolution_that_everything_passes_ends_the_encoder():
    graph = before_last_block(Model(Shape(head="dense")).graph(), conv)
    feed = Model(Shape(head="dense")).feed()
    assert len(find_encoder(graph).blocks) == 2
    small = compressed(graph, Choice("merge", (3, 2)))
    assert graph.outputs[0].tensor.dims == small.outputs[0].tensor.dims
    (found,) = taps(small, list(small.outputs))(feed)
    np.testing.assert_allclose(found, interpret(small, feed)["y"], rtol=1e-3, atol=2e-5)


def conv(x: Value) -> Value:
    """A depthwise convolution over neighbouring tokens."""
    w = np.ones((8, 1, 3), np.float32)
    y: Value = ops.Transpose((0, 2, 1))(ops.Conv((1,), (1, 1), (1,), 8)(ops.Transpose((0, 2, 1))(x), w))
    return y


def test_positions_that_are_added_later_are_gathered_or_refused():
    table = np.random.default_rng(3).normal(size=(1, 13, 8)).astype(np.float32)
    graph = before_last_block(Model(Shape(head="dense")).graph(), lambda x: ops.Add()(x, table))
    assert refused(graph).startswith("T3")
    feed = Model(Shape(head="dense")).feed()
    assert prove_order_free(graph, Context(taps=taps), [feed]) < 1e-5  # they follow their tokens
    small = compressed(graph, Choice("eliminate", (3, 2, 0)))
    (found,) = taps(small, list(small.outputs))(feed)
    np.testing.assert_allclose(found, interpret(small, feed)["y"], atol=1e-5)


def test_a_hidden_dependence_on_order_is_found_by_running():
    def cumulated(x: Value) -> Value:
        weights = np.linspace(0, 1, 2 * 8, dtype=np.float32).reshape(2, 8)
        return ops.Add()(x, ops.Mul()(x, ops.Slice((0,), (1,), (0,), (1,))(weights)))

    graph = before_last_block(Model(Shape(head="dense")).graph(), cumulated)
    feed = Model(Shape(head="dense")).feed()
    assert prove_order_free(graph, Context(taps=taps), [feed]) < 1e-5

    # a runtime that gives something else for the copy stands for a dependence that no rule sees
    def odd(g: Graph, values):  # type: ignore[no-untyped-def]
        run = taps(g, values)
        return (lambda f: run(f)) if g is graph else (lambda f: [array + 0.1 for array in run(f)])

    with pytest.raises(Refusal, match="T3"):
        prove_order_free(graph, Context(taps=odd), [feed])


def test_a_long_skip_takes_the_tokens_that_are_left():
    """The stream behind the first block is added before the last one, as in U-shaped encoders."""
    graph = Model(Shape(head="dense")).graph()
    first = find_encoder(graph).blocks[0].start
    graph = before_last_block(graph, lambda x: ops.Add()(x, first))
    feed = Model(Shape(head="dense")).feed()
    for method in METHODS:
        small = compressed(graph, Choice(method, (3, 0, 0)))
        (found,) = taps(small, list(small.outputs))(feed)
        np.testing.assert_allclose(found, interpret(small, feed)["y"], rtol=1e-3, atol=2e-5)


def test_a_skip_out_of_a_routed_segment_is_refused():
    """All tokens are back where it joins, and it has only some."""
    graph = Model(Shape(head="dense")).graph()
    after_last_start(graph, find_encoder(graph).blocks[1].cut)
    compressed(graph, Choice("route", (0, 4, 0)))  # one segment to the end: both have the same tokens
    assert refused(graph, Choice("route", (0, 4, 4))).startswith("T2")


def test_hidden_states_that_are_outputs_get_all_tokens_back():
    model = Model(Shape(head="dense"))
    graph = model.graph()
    inner = find_encoder(graph).blocks[1].end
    y = graph.outputs[0]
    graph.erase(graph.tail)
    graph.add(ops.Return(("y", "hidden")), y, inner)
    small = compressed(graph, Choice("merge", (4, 0, 0)))
    assert [value.tensor.dims for value in small.outputs] == [("batch", 13, 5), ("batch", 13, 8)]


def test_an_unknown_number_of_tokens_is_refused():
    graph = Graph()
    q = graph.add_input("q", tensor(dtypes.f32, 1, 2, "tokens", 4))
    y = ops.Attention(1.0)(q, q, q)
    graph.attach(y, None, Loc(("attention",)))
    graph.add(ops.Return(("y",)), y)
    assert "--shape" in refused(graph)


def test_the_pass_leaves_what_is_refused_and_says_why():
    graph = prepared("swin_dyn18.onnx")
    nodes = len(graph)
    changes = CompressTokens(schedule=2).run(graph, Context())
    assert not changes
    assert len(graph) == nodes
    ((where, why),) = changes.skipped
    assert where
    assert why.startswith("T4: Reshape")
