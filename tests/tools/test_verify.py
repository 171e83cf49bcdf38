"""Verification finds every kind of difference, passes what is equal, and names the value where a difference starts."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from planish.ir.errors import CalibrationError, FrontendError, LoweringError
from planish.tools.verify import EXACT, ROUNDING, Tolerance, correspondence, first_divergence, verify

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def tensor(name: str, dtype: int = FLOAT, shape=("n", 4)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def save(folder, name, nodes, inputs=None, outputs=None, constants=None):
    arrays = [numpy_helper.from_array(np.asarray(array), key) for key, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs or [tensor("x")], outputs or [tensor("y")], arrays)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), folder / name)
    return folder / name


def node(op, inputs, output, *, name="", sources="", **attributes):
    made = helper.make_node(op, inputs, [output], name=name, **attributes)
    if sources:
        made.metadata_props.add(key="planish.sources", value=sources)
    return made


def plus(folder, name, amount, dtype=np.float32):
    constants = {"c": np.array([amount], dtype)}
    return save(folder, name, [node("Add", ["x", "c"], "y", name="add")], constants=constants)


def feeds(count=3, rows=2):
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((rows, 4)).astype(np.float32)} for _ in range(count)]


def test_a_model_equals_itself_bit_for_bit(tmp_path):
    model = plus(tmp_path, "a.onnx", 1.0)
    calls = []
    result = verify(model, model, feeds(), tolerance=EXACT, on_progress=lambda done, total: calls.append((done, total)))
    (row,) = result.rows
    assert result.passed
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert (row.max_abs, row.cosine, row.sqnr_db, row.top1_agreement) == (0.0, pytest.approx(1.0), np.inf, 1.0)
    assert result.minimum_tolerance == EXACT
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["outputs"][0]["sqnr_db"] is None


def test_rounding_passes_its_tolerance_and_fails_bit_for_bit(tmp_path):
    a, b = plus(tmp_path, "a.onnx", 1.0), plus(tmp_path, "b.onnx", 1.00001)
    result = verify(a, b, feeds())
    assert result.passed
    assert result.rows[0].max_abs == pytest.approx(1e-5, rel=0.1)
    exact = verify(a, b, feeds(), tolerance=EXACT)
    assert not exact.passed
    assert exact.rows[0].over_tolerance == exact.rows[0].elements == 24


def test_a_difference_fails_and_the_minimum_tolerance_would_pass(tmp_path):
    a, b = plus(tmp_path, "a.onnx", 1.0), plus(tmp_path, "b.onnx", 1.01)
    result = verify(a, b, feeds())
    assert not result.passed
    assert "output 'y' differs: 24 of 24 elements" in result.summary
    minimum = result.minimum_tolerance
    assert minimum is not None
    assert ROUNDING.atol < minimum.atol < 0.0101
    wider = Tolerance(minimum.atol * 1.0001, minimum.rtol)
    assert verify(a, b, feeds(), tolerance=wider).passed
    assert not verify(a, b, feeds(), tolerance=Tolerance(minimum.atol * 0.99, minimum.rtol)).passed


def test_the_absolute_part_grows_with_the_size_of_the_output(tmp_path):
    a, b = plus(tmp_path, "a.onnx", 1000.0), plus(tmp_path, "b.onnx", 1000.05)
    assert verify(a, b, feeds(), tolerance=Tolerance(atol=1e-4)).passed
    assert not verify(a, b, feeds(), tolerance=Tolerance(atol=1e-5)).passed


def test_approximate_results_are_judged_by_their_signal_to_noise_ratio(tmp_path):
    a, b = plus(tmp_path, "a.onnx", 10.0), plus(tmp_path, "b.onnx", 10.1)  # 40 dB
    result = verify(a, b, feeds(), tolerance=Tolerance(min_sqnr_db=35))
    assert result.passed
    assert result.rows[0].sqnr_db == pytest.approx(40, abs=1)
    assert not verify(a, b, feeds(), tolerance=Tolerance(min_sqnr_db=45)).passed


def test_labels_give_the_accuracy_of_both(tmp_path):
    identity = save(tmp_path, "a.onnx", [node("Identity", ["x"], "y")])
    flip = save(tmp_path, "b.onnx", [node("Neg", ["x"], "y")])
    data = [{"x": np.eye(4, dtype=np.float32)[[0, 1]]}, {"x": np.eye(4, dtype=np.float32)[[2, 3]]}]
    result = verify(identity, flip, data, labels=np.array([0, 1, 2, 0]))
    (row,) = result.rows
    assert (row.accuracy_original, row.top1_agreement) == (0.75, 0.0)
    assert row.accuracy_artifact == 0.25  # the largest of (0, 0, 0, -1) is its first
    assert verify(identity, identity, data).rows[0].accuracy_original is None


def test_nan_at_other_places_fails_whatever_the_tolerance(tmp_path):
    root = save(tmp_path, "a.onnx", [node("Sqrt", ["x"], "y")])
    safe = save(tmp_path, "b.onnx", [node("Abs", ["x"], "a"), node("Sqrt", ["a"], "y")])
    result = verify(root, safe, feeds(), tolerance=Tolerance(min_sqnr_db=-1000))
    assert not result.passed
    assert result.rows[0].nan_mismatches > 0
    assert result.minimum_tolerance is None
    assert verify(root, root, feeds(), tolerance=EXACT).passed


def test_integers_must_be_the_same(tmp_path):
    def cast(name, mode):
        nodes = [node(mode, ["x"], "r"), node("Cast", ["r"], "y", to=INT64)]
        return save(tmp_path, name, nodes, outputs=[tensor("y", INT64)])

    floor, ceil = cast("a.onnx", "Floor"), cast("b.onnx", "Ceil")
    assert verify(floor, floor, feeds()).passed
    result = verify(floor, ceil, feeds(), tolerance=Tolerance(min_sqnr_db=0))
    assert not result.passed
    assert result.rows[0].over_tolerance == 24
    assert result.minimum_tolerance is None


def test_other_dtypes_and_shapes_are_named(tmp_path):
    plain = save(tmp_path, "a.onnx", [node("Identity", ["x"], "y")])
    double = save(
        tmp_path, "b.onnx", [node("Cast", ["x"], "y", to=TensorProto.DOUBLE)], outputs=[tensor("y", TensorProto.DOUBLE)]
    )
    turned = save(tmp_path, "c.onnx", [node("Transpose", ["x"], "y")], outputs=[tensor("y", shape=(4, "n"))])
    assert verify(plain, double, feeds()).rows[0].problem == "dtype float64 instead of float32"
    assert verify(plain, turned, feeds()).rows[0].problem == "shape (4, 2) instead of (2, 4)"
    assert not verify(plain, turned, feeds()).passed


def test_a_lost_output_and_a_lost_input_are_problems(tmp_path):
    inputs = [tensor("x"), tensor("z")]
    both = [node("Add", ["x", "z"], "y"), node("Sub", ["x", "z"], "w")]
    a = save(tmp_path, "a.onnx", both, inputs=inputs, outputs=[tensor("y"), tensor("w")])
    b = save(tmp_path, "b.onnx", [node("Add", ["x", "x"], "y")])
    data = [{"x": feed["x"], "z": feed["x"]} for feed in feeds()]
    result = verify(a, b, data)
    assert result.problems == ("the artifact lacks input 'z'", "the artifact lacks output 'w'")
    assert not result.passed


def test_sequences_and_strings_are_compared_element_by_element(tmp_path):
    outputs = [helper.make_tensor_sequence_value_info("y", FLOAT, None)]
    a = save(tmp_path, "a.onnx", [node("SequenceConstruct", ["x", "x"], "y")], outputs=outputs)
    negated = [node("Neg", ["x"], "n"), node("SequenceConstruct", ["x", "n"], "y")]
    b = save(tmp_path, "b.onnx", negated, outputs=outputs)
    c = save(tmp_path, "c.onnx", [node("SequenceConstruct", ["x"], "y")], outputs=outputs)
    assert verify(a, a, feeds(), tolerance=EXACT).passed
    assert verify(a, b, feeds()).rows[0].over_tolerance == 24
    assert verify(a, c, feeds()).rows[0].problem == "a sequence of 1 instead of 2 elements"
    string = [tensor("x", TensorProto.STRING, (2,))], [tensor("y", TensorProto.STRING, (2,))]
    d = save(tmp_path, "d.onnx", [node("Identity", ["x"], "y")], *string)
    e = save(tmp_path, "e.onnx", [node("StringConcat", ["x", "x"], "y")], *string)
    words = [{"x": np.array(["a", "B"], dtype=object)}]
    assert verify(d, d, words).passed
    assert verify(d, e, words).rows[0].over_tolerance == 2


def test_a_model_that_is_random_itself_is_not_held_against_the_artifact(tmp_path):
    def noisy(name, seed):
        return save(tmp_path, name, [node("RandomNormalLike", ["x"], "r", seed=seed), node("Add", ["x", "r"], "y")])

    result = verify(noisy("a.onnx", 1.0), noisy("b.onnx", 2.0), feeds())
    assert result.passed
    assert "change from run to run" in result.rows[0].note


def test_the_worst_feed_is_found(tmp_path):
    a = save(tmp_path, "a.onnx", [node("Identity", ["x"], "y")])
    b = save(tmp_path, "b.onnx", [node("Mul", ["x", "c"], "y")], constants={"c": np.array([1.5], np.float32)})
    data = [{"x": np.full((1, 4), value, np.float32)} for value in (0.1, 0.9, 0.3)]
    assert verify(a, b, data).worst_feed == 1


def test_faults_are_blamed_on_the_right_side(tmp_path):
    good, bad = plus(tmp_path, "a.onnx", 1.0), tmp_path / "bad.onnx"
    bad.write_bytes(b"junk")
    with pytest.raises(FrontendError, match="the original model"):
        verify(bad, good, feeds())
    with pytest.raises(LoweringError, match="the artifact"):
        verify(good, bad, feeds())
    with pytest.raises(CalibrationError, match="no feeds"):
        verify(good, good, [])


def original_chain(folder):
    nodes = [
        node("Mul", ["x", "two"], "a", name="scale"),
        node("Relu", ["a"], "b", name="relu"),
        node("Add", ["b", "two"], "c", name="bias"),
        node("Tanh", ["c"], "y", name="out"),
    ]
    return save(folder, "original.onnx", nodes, constants={"two": np.array([2], np.float32)})


def artifact_chain(folder, bias):
    nodes = [
        node("Mul", ["x", "two"], "v0", name="n0", sources="scale"),
        node("Relu", ["v0"], "v1", name="n1", sources="relu"),
        node("Add", ["v1", "bias"], "v2", name="n2", sources="relu,bias"),
        node("Tanh", ["v2"], "y", name="n3", sources="out"),
    ]
    constants = {"two": np.array([2], np.float32), "bias": np.array([bias], np.float32)}
    return save(folder, "artifact.onnx", nodes, constants=constants)


def test_sources_connect_values_of_both_models(tmp_path):
    pairs = correspondence(original_chain(tmp_path), artifact_chain(tmp_path, 2.0))
    assert pairs == {"v0": "a", "v1": "b", "v2": "c", "y": "y"}


def test_the_first_diverging_value_and_its_sources_are_named(tmp_path):
    original = original_chain(tmp_path)
    found = first_divergence(original, artifact_chain(tmp_path, 2.5), feeds()[0])
    assert found is not None
    assert (found.value, found.original_value, found.sources) == ("v2", "c", ("relu", "bias"))
    assert found.max_abs == pytest.approx(0.5, rel=1e-5)
    assert "'v2' of Add 'n2'" in str(found)
    assert first_divergence(original, artifact_chain(tmp_path, 2.0), feeds()[0]) is None


def test_a_value_that_differs_but_leads_to_equal_ones_is_not_blamed(tmp_path):
    original = original_chain(tmp_path)
    moved = [
        node("Mul", ["x", "four"], "v0", name="n0", sources="scale"),  # another scale ...
        node("Mul", ["v0", "half"], "v0b", name="n0b"),
        node("Relu", ["v0b"], "v1", name="n1", sources="relu"),  # ... which is made good here
        node("Add", ["v1", "three"], "v2", name="n2", sources="bias"),
        node("Tanh", ["v2"], "y", name="n3", sources="out"),
    ]
    numbers = {"four": 4, "half": 0.5, "three": 3}
    constants = {name: np.array([value], np.float32) for name, value in numbers.items()}
    found = first_divergence(original, save(tmp_path, "b.onnx", moved, constants=constants), feeds()[0])
    assert found is not None
    assert found.value == "v2"
