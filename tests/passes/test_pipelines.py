"""Patterns, the driver and pipelines: what they promise to those who write rules and passes."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from planish.ir.errors import MismatchError, RewriteError, UsageError
from planish.ir.ops import Add, Cast, Mul, Neg, Relu, Sigmoid, Sub
from planish.ir.text import parse_graph, print_graph
from planish.passes.base import Context, Observer, Pass, Pipeline, Property, Repeat, RulePass, pipeline_exactness
from planish.passes.cleanup import EliminateDeadCode, FoldConstants
from planish.passes.exactness import EXACT, ROUNDING, approximate, weakest
from planish.passes.observers import DumpText, NumericsCheck, VerifyEach
from planish.passes.pattern import Array, Scalar, either
from planish.passes.pipelines import RECIPES, parse_pipeline, recipe
from planish.passes.rewrite import Changes, Fuel, apply_rules, explain, reject, rule

PROGRAM = """
def g(x: f32[2, 4]):
    two: f32[()] = Const(f32, 2.0)
    a: f32[2, 4] = Mul()(two, x)
    b: f32[2, 4] = Sigmoid()(a)
    y: f32[2, 4] = Mul()(b, a)
    return y
"""


def graph_of(text=PROGRAM):
    graph = parse_graph(text)
    for node in graph:
        node.loc = type(node.loc)((f"{node.op.name}_source",))
    return graph


def gated(x):
    return x * Sigmoid()(x)


@rule(gated)
def gate_to_relu(x):
    """x * sigmoid(x) -> relu(x)"""
    return Relu()(x)


def doubled(x, c: Scalar):
    return x * c


@rule(doubled)
def double_to_sum(x, c):
    """x * 2 -> x + x"""
    if c != 2:
        reject(f"{c} is not two")
    return Add()(x, x)


def test_a_rule_matches_commutative_operands_in_both_orders():
    graph = graph_of()
    assert apply_rules(graph, [gate_to_relu]).rewrites == {"gate_to_relu": 1}
    assert [node.op.name for node in graph] == ["Const", "Mul", "Relu", "Return"]


def test_a_rewrite_keeps_the_sources_of_all_matched_nodes_and_names_the_rule():
    graph = graph_of()
    apply_rules(graph, [gate_to_relu])
    (relu,) = graph.nodes(Relu)
    assert set(relu.loc.sources) == {"Mul_source", "Sigmoid_source"}
    assert relu.loc.via == ("gate_to_relu",)


def test_a_scalar_parameter_arrives_as_a_number_and_reject_gives_the_reason():
    graph = graph_of(PROGRAM.replace("2.0", "3.0"))
    assert not apply_rules(graph, [double_to_sum])
    (product, _) = graph.nodes(Mul)
    assert "3.0 is not two" in explain(double_to_sum, product.results[0])


def test_explain_names_the_node_where_the_best_attempt_ended():
    graph = graph_of(PROGRAM.replace("Sigmoid", "Tanh"))
    text = explain(gate_to_relu, graph.outputs[0])
    assert "Sigmoid is expected here" in text
    assert "after 1 matching nodes" in text


def test_an_interior_value_with_other_readers_blocks_a_match_and_says_so():
    graph = graph_of(PROGRAM.replace("return y", 'return {"y": y, "b": b}'))
    assert not apply_rules(graph, [gate_to_relu])
    assert "outside the match" in explain(gate_to_relu, graph.outputs[0])


def test_a_rule_that_changes_the_type_is_an_error_naming_it():
    from planish.ir import dtypes

    @rule(gated)
    def widen(x):
        """x * sigmoid(x) -> float64(x)"""
        return Cast(to=dtypes.f64)(x)

    with pytest.raises(RewriteError, match="widen replaced a value of type"):
        apply_rules(graph_of(), [widen])


def test_rules_that_produce_their_own_left_side_are_stopped_with_an_error():
    @rule(lambda x, y: x - y)
    def swap(x, y):
        """x - y -> -(y - x)"""
        return Neg()(Sub()(y, x))

    graph = graph_of(PROGRAM.replace("Mul()(two, x)", "Sub()(x, two)"))
    with pytest.raises(RewriteError, match="swap doesn't come to an end"):
        apply_rules(graph, [swap])


def test_fuel_stops_after_that_many_rewrites():
    fuel = Fuel(1)
    assert apply_rules(graph_of(), [double_to_sum, gate_to_relu], fuel=fuel).count == 1
    assert fuel.left == 0


def test_either_takes_the_first_alternative_that_matches():
    @rule(lambda x: either(Relu()(x), Sigmoid()(x)))
    def drop(x):
        """relu(x) or sigmoid(x) -> x"""
        return x

    graph = graph_of(PROGRAM.replace("Mul()(b, a)", "Relu()(b)"))
    assert apply_rules(graph, [drop]).count == 2
    assert [node.op.name for node in graph] == ["Const", "Mul", "Return"]


def test_an_array_parameter_arrives_as_numpy():
    seen = []

    @rule(array_pattern)
    def take(x, c):
        """x * c -> x"""
        seen.append(c)
        return x

    apply_rules(graph_of(), [take])
    assert any(isinstance(c, np.ndarray) and c == 2 for c in seen)


def array_pattern(x, c: Array):
    return x * c


@dataclass(frozen=True)
class Shout(Pass):
    """Does nothing, with options."""

    name: ClassVar[str] = "shout"
    loud: bool = False
    words: int = 3

    def run(self, graph, context):
        return Changes()


def test_a_pass_prints_only_options_that_were_changed():
    assert str(Shout()) == "shout"
    assert str(Shout(loud=True)) == "shout{loud=True}"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_prints_to_text_that_parses_back(name):
    pipeline = RECIPES[name][1]
    assert str(parse_pipeline(str(pipeline))) == str(pipeline)


def test_a_pipeline_text_with_repetition_parses():
    pipeline = parse_pipeline("repeat(fold-constants; eliminate-dead-code); fold-constants")
    assert pipeline.steps == (Repeat(Pipeline(FoldConstants(), EliminateDeadCode())), FoldConstants())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("fold-constant", "no pass"),
        ("repeat(fold-constants", "not closed"),
        ("fold-constants)", "unexpected"),
        ("fold-constants{size=3}", "no option 'size'"),
        ("fold-constants{=}", "can't be read"),
    ],
)
def test_a_bad_pipeline_text_is_a_usage_error(text, words):
    with pytest.raises(UsageError, match=words):
        parse_pipeline(text)


def test_recipes_join_with_plus_and_run_their_shared_beginning_once():
    assert recipe("clean+default").steps == RECIPES["default"][1].steps


def test_without_takes_a_pass_out_of_nested_pipelines():
    pipeline = Pipeline(Repeat(Pipeline(FoldConstants(), EliminateDeadCode())), FoldConstants())
    assert [leaf.name for leaf in pipeline.without("fold-constants").leaves()] == ["eliminate-dead-code"]


def test_a_pipeline_is_as_exact_as_its_least_exact_pass():
    assert pipeline_exactness(Pipeline(EliminateDeadCode())) == EXACT
    assert weakest(EXACT, ROUNDING, approximate(30)).min_sqnr_db == 30


def test_a_property_that_does_not_hold_is_an_error_naming_pass_and_offender():
    never = Property("silence", lambda graph: ["somebody spoke"])

    @dataclass(frozen=True)
    class Picky(Shout):
        """Needs silence."""

        name: ClassVar[str] = "picky"
        requires: ClassVar[tuple[Property, ...]] = (never,)

    with pytest.raises(RewriteError, match="picky needs silence, which doesn't hold: somebody spoke"):
        Pipeline(Picky()).run(graph_of(), Context())


def test_a_pass_that_needs_calibration_says_how_to_give_it():
    @dataclass(frozen=True)
    class Hungry(Shout):
        """Needs data."""

        name: ClassVar[str] = "hungry"
        needs_calibration: ClassVar[bool] = True

    with pytest.raises(RewriteError) as caught:
        Pipeline(Hungry()).run(graph_of(), Context())
    assert "--calib" in caught.value.remedy


@dataclass(frozen=True)
class Wrong(RulePass):
    """Claims to be exact and isn't."""

    name: ClassVar[str] = "wrong"
    rule_set: ClassVar[tuple] = (gate_to_relu,)


def test_the_numerics_check_names_the_pass_that_broke_its_promise():
    feeds = {"x": np.full((2, 4), -1.0, np.float32)}
    with pytest.raises(MismatchError, match="wrong changed output 'y'"):
        Pipeline(Wrong()).run(graph_of(), Context(observers=(NumericsCheck((feeds,)),)))


def test_observers_are_told_of_passes_and_rewrites_in_order():
    seen = []

    class Log(Observer):
        def before(self, step, graph):
            seen.append(f"before {step.name}")

        def rewrote(self, rule, old, new):
            seen.append(rule)

        def after(self, step, graph, changes):
            seen.append(f"after {step.name}")

    Pipeline(Wrong()).run(graph_of(), Context(observers=(VerifyEach(), Log())))
    assert seen == ["before wrong", "gate_to_relu", "after wrong"]


def test_dumped_texts_parse_back(tmp_path):
    graph = graph_of()
    Pipeline(Wrong()).run(graph, Context(observers=(DumpText(tmp_path),)))
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["00-input.txt", "01-wrong.txt"]
    assert print_graph(parse_graph((tmp_path / "01-wrong.txt").read_text())) == print_graph(graph)
