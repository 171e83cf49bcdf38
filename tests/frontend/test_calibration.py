"""Data sets are checked completely when they are opened, and every fault names input, file and remedy."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import numpy_helper

from planish.frontend.calibration import CalibrationSet, InputSpec, open_calibration
from planish.ir.errors import CalibrationError

F32 = np.dtype(np.float32)
I64 = np.dtype(np.int64)
IMAGE = {"x": InputSpec(F32, (1, 3, 4))}
DYNAMIC = {"x": InputSpec(F32, ("batch", 3, 4))}
TWO = {"ids": InputSpec(I64, ("batch", "seq")), "mask": InputSpec(I64, ("batch", "seq"))}


def images(count: int, dtype: type = np.float32) -> np.ndarray:
    return np.arange(count * 12).reshape(count, 3, 4).astype(dtype)


def npz(folder: Path, name: str = "data.npz", **arrays: np.ndarray) -> str:
    np.savez(folder / name, **arrays)
    return str(folder / name)


def error(spec: str, inputs: dict[str, InputSpec], **options: int) -> CalibrationError:
    with pytest.raises(CalibrationError) as caught:
        open_calibration(spec, inputs, **options)
    assert caught.value.exit_code == 3
    assert caught.value.remedy
    return caught.value


def shapes(data: CalibrationSet) -> list[tuple[int, ...]]:
    return [feed["x"].shape for feed in data]


def test_npz_is_cut_into_samples_for_a_fixed_batch_of_one(tmp_path):
    data = open_calibration(npz(tmp_path, x=images(5)), IMAGE)
    assert len(data) == 5
    assert np.array_equal(np.concatenate([feed["x"] for feed in data]), images(5))
    assert shapes(data) == [(1, 3, 4)] * 5
    assert data.source == "data.npz"
    assert data.labels is None


def test_a_symbolic_batch_takes_the_size_asked_for_and_a_shorter_rest(tmp_path):
    assert shapes(open_calibration(npz(tmp_path, x=images(5)), DYNAMIC, batch=2)) == [(2, 3, 4), (2, 3, 4), (1, 3, 4)]


def test_a_fixed_batch_must_divide_the_number_of_samples(tmp_path):
    fixed = {"x": InputSpec(F32, (2, 3, 4))}
    assert shapes(open_calibration(npz(tmp_path, x=images(4)), fixed)) == [(2, 3, 4)] * 2
    assert "multiple of 2" in error(npz(tmp_path, x=images(5)), fixed).remedy


def test_data_with_one_axis_more_holds_one_whole_feed_per_entry(tmp_path):
    inputs = {"x": InputSpec(F32, (3, 4)), "scale": InputSpec(F32, ())}
    spec = npz(tmp_path, x=images(5), scale=np.arange(5, dtype=np.float32))
    feeds = list(open_calibration(spec, inputs))
    assert [feed["x"].shape for feed in feeds] == [(3, 4)] * 5
    assert [float(feed["scale"]) for feed in feeds] == [0, 1, 2, 3, 4]


def test_a_scalar_goes_into_every_feed(tmp_path):
    inputs = {**IMAGE, "scale": InputSpec(F32, ())}
    data = open_calibration(npz(tmp_path, x=images(3), scale=np.float32(7)), inputs)
    assert [float(feed["scale"]) for feed in data] == [7, 7, 7]


def test_a_sample_without_its_batch_axis_is_refused_with_the_remedy(tmp_path):
    fault = error(npz(tmp_path, x=images(1)[0]), IMAGE)
    assert "'x' has shape (3, 4)" in fault.what
    assert "array[None]" in fault.remedy


def test_labels_stay_with_their_samples(tmp_path):
    data = open_calibration(npz(tmp_path, x=images(5), labels=np.arange(5, dtype=np.uint8)), DYNAMIC, batch=2)
    assert data.labels is not None
    assert data.labels.dtype == np.int64
    assert data.labels.tolist() == [0, 1, 2, 3, 4]
    assert set(next(iter(data))) == {"x"}


def test_a_model_input_called_labels_is_an_input(tmp_path):
    inputs = {"labels": InputSpec(I64, ("n",))}
    data = open_calibration(npz(tmp_path, labels=np.arange(3)), inputs)
    assert data.labels is None
    assert [feed["labels"].tolist() for feed in data] == [[0], [1], [2]]


@pytest.mark.parametrize("labels", [np.arange(4), np.ones(5, np.float32), np.ones((5, 1), np.int64)])
def test_labels_that_do_not_fit_are_refused(tmp_path, labels):
    assert "labels" in error(npz(tmp_path, x=images(5), labels=labels), IMAGE).what


def test_npy_feeds_a_model_with_one_input(tmp_path):
    np.save(tmp_path / "x.npy", images(2))
    assert len(open_calibration(str(tmp_path / "x.npy"), IMAGE)) == 2
    assert "2 inputs: ids, mask" in error(str(tmp_path / "x.npy"), TWO).what


def test_columns_first_and_compressed_arrays_read_the_same(tmp_path):
    plain = open_calibration(npz(tmp_path, x=images(5)), IMAGE)
    np.savez_compressed(tmp_path / "packed.npz", x=np.asfortranarray(images(5)))
    packed = open_calibration(str(tmp_path / "packed.npz"), IMAGE)
    assert packed.digest() == plain.digest()
    assert [np.array_equal(a["x"], b["x"]) for a, b in zip(plain, packed, strict=True)] == [True] * 5


def test_a_folder_of_files_is_one_batch_per_file_in_name_order(tmp_path):
    npz(tmp_path, "b.npz", x=images(2), labels=np.array([3, 4]))
    npz(tmp_path, "a.npz", x=images(1), labels=np.array([2]))
    data = open_calibration(str(tmp_path), DYNAMIC)
    assert shapes(data) == [(1, 3, 4), (2, 3, 4)]
    assert data.labels is not None
    assert data.labels.tolist() == [2, 3, 4]
    assert data.source == tmp_path.name


def test_a_folder_names_the_file_at_fault(tmp_path):
    npz(tmp_path, "a.npz", x=images(1))
    npz(tmp_path, "b.npz", x=images(2))
    assert error(str(tmp_path), IMAGE).where.endswith("b.npz")


def test_labels_in_only_some_files_are_refused(tmp_path):
    npz(tmp_path, "a.npz", x=images(1), labels=np.array([2]))
    npz(tmp_path, "b.npz", x=images(1))
    assert "1 of 2 feeds have labels" in error(str(tmp_path), IMAGE).what


def write_case(folder: Path, *arrays: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for index, array in enumerate(arrays):
        (folder / f"input_{index}.pb").write_bytes(numpy_helper.from_array(array).SerializeToString())
    return folder


def test_onnx_test_cases_feed_inputs_in_graph_order(tmp_path):
    ids, mask = np.array([[1, 2]]), np.array([[1, 0]])
    for index in (10, 2):
        write_case(tmp_path / f"test_data_set_{index}", ids * index, mask)
    data = open_calibration(str(tmp_path), TWO)
    assert [feed["ids"].tolist() for feed in data] == [[[2, 4]], [[10, 20]]]
    assert [feed["mask"].tolist() for feed in data] == [[[1, 0]]] * 2
    assert len(open_calibration(str(tmp_path / "test_data_set_2"), TWO)) == 1


def test_onnx_test_cases_name_the_missing_and_the_damaged_file(tmp_path):
    case = write_case(tmp_path / "test_data_set_0", np.array([[1]]))
    assert "'mask' has no file input_1.pb" in error(str(case), TWO).what
    (case / "input_1.pb").write_bytes(b"\xff\xffgarbage")
    assert "can't read a tensor for input 'mask'" in error(str(case), TWO).what


def script(folder: Path, body: str, name: str = "feeds.py") -> str:
    (folder / name).write_text("import numpy as np\n" + body)
    return f"{folder / name}:make"


def test_a_function_yields_feeds_and_leaves_the_import_path_alone(tmp_path):
    before, modules = list(sys.path), set(sys.modules)
    (tmp_path / "neighbour.py").write_text("COUNT = 3\n")
    spec = script(
        tmp_path,
        "from neighbour import COUNT\ndef make():\n    for i in range(COUNT):\n"
        "        yield {'x': np.full((1, 3, 4), i, np.float32), 'labels': np.array([i])}\n",
    )
    data = open_calibration(spec, IMAGE)
    sys.modules.pop("neighbour")
    assert [float(feed["x"][0, 0, 0]) for feed in data] == [0, 1, 2]
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2]
    assert data.source == "feeds.py:make"
    assert sys.path == before
    assert set(sys.modules) == modules
    assert not (tmp_path / "__pycache__" / "feeds.cpython-311.pyc").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def make():\n    yield {'x': [1.0]}\n", "yielded {'x': 'list'}"),
        ("def make():\n    yield 3\n", "yielded int"),
        ("def make():\n    return 3\n", "TypeError"),
        ("def make():\n    raise RuntimeError('no disk')\n    yield\n", "RuntimeError: no disk"),
        ("def make(:\n", "SyntaxError"),
        ("def other():\n    pass\n", "no function 'make'"),
        ("def make():\n    return iter(())\n", "empty"),
    ],
)
def test_a_faulty_function_is_reported_as_a_fault_of_the_data(tmp_path, body, message):
    assert message in error(script(tmp_path, body), IMAGE).what


def test_a_function_that_ends_earlier_the_second_time_is_noticed(tmp_path):
    body = "LEFT = [2, 1]\ndef make():\n    for _ in range(LEFT.pop(0)):\n"
    body += "        yield {'x': np.ones((1, 3, 4), np.float32)}\n"
    data = open_calibration(script(tmp_path, body), IMAGE)
    with pytest.raises(CalibrationError, match="2 feeds when it was opened and 1 now"):
        list(data)


def test_random_data_is_explicit_seeded_and_recorded():
    inputs = {**DYNAMIC, "ids": InputSpec(I64, ("batch", 8)), "on": InputSpec(np.dtype(bool), (4,))}
    data = open_calibration("random:3", inputs, seed=5)
    assert len(data) == 3
    assert data.source == "random:3 seed=5"
    feed = next(iter(data))
    assert feed["x"].shape == (1, 3, 4)
    assert feed["x"].dtype == F32
    assert set(feed["ids"].ravel()) <= {0, 1}
    assert feed["on"].dtype == bool
    assert data.digest() == open_calibration("random:3", inputs, seed=5).digest()
    assert data.digest() != open_calibration("random:3", inputs, seed=6).digest()


def test_random_data_covers_bfloat16():
    feed = next(iter(open_calibration("random:1", {"x": InputSpec(np.dtype(ml_dtypes.bfloat16), (3,))})))
    assert feed["x"].dtype == ml_dtypes.bfloat16


def test_bfloat16_survives_a_numpy_file(tmp_path):
    array = np.arange(4).astype(ml_dtypes.bfloat16)
    data = open_calibration(npz(tmp_path, x=array[None]), {"x": InputSpec(np.dtype(ml_dtypes.bfloat16), (1, 4))})
    assert np.array_equal(next(iter(data))["x"][0], array)


def test_strings_become_objects_without_pickle(tmp_path):
    inputs = {"x": InputSpec(np.dtype(object), ("n",))}
    data = open_calibration(npz(tmp_path, x=np.array(["one", "two"])), inputs)
    assert [feed["x"].tolist() for feed in data] == [["one"], ["two"]]
    assert "can't be drawn at random" in error("random:1", inputs).what


@pytest.mark.parametrize("spec", ["random:0", "random:x", "random:", "random:-1"])
def test_random_needs_a_count(spec):
    assert "random:8" in error(spec, IMAGE).remedy


def test_inputs_of_unknown_rank_take_any_shape(tmp_path):
    data = open_calibration(npz(tmp_path, x=images(2)), {"x": InputSpec(F32, None)})
    assert shapes(data) == [(1, 3, 4)] * 2
    assert "random" in error("random:1", {"x": InputSpec(F32, None)}).what


def test_missing_and_unknown_keys_are_named(tmp_path):
    fault = error(npz(tmp_path, y=images(1)), IMAGE)
    assert fault.what == "no data for input 'x'; found 'y'"
    fault = error(npz(tmp_path, x=images(1), z=images(1)), IMAGE)
    assert fault.what == "the model has no input 'z'; its inputs are 'x'"
    assert fault.where.endswith("data.npz")


def test_a_wrong_dtype_is_never_cast(tmp_path):
    fault = error(npz(tmp_path, x=images(1, np.uint8)), IMAGE)
    assert fault.what == "input 'x' has dtype uint8, expected float32"
    assert "x.astype(numpy.float32)" in fault.remedy


def test_a_wrong_shape_names_both_shapes(tmp_path):
    fault = error(npz(tmp_path, x=np.ones((1, 4, 3), np.float32)), IMAGE)
    assert fault.what == "input 'x' has shape (1, 4, 3), expected float32[1, 3, 4] (one batch)"
    assert "axis 0 = samples" in error(npz(tmp_path, x=np.ones(5, np.float32)), IMAGE).what


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_their_place(tmp_path, value):
    array = images(3)
    array[1, 2, 3] = value
    fault = error(npz(tmp_path, x=array), IMAGE)
    assert "1 NaN or infinite values, the first at (0, 2, 3)" in fault.what
    assert fault.where.endswith("feed 1")


def test_ragged_sample_counts_are_refused(tmp_path):
    ids = np.ones((4, 7), np.int64)
    fault = error(npz(tmp_path, ids=ids, mask=ids[:3]), TWO)
    assert "'ids' (4, 7) gives 4, 'mask' (3, 7) gives 3" in fault.what


def test_an_empty_data_set_is_refused(tmp_path):
    assert "empty" in error(npz(tmp_path, x=images(0)), IMAGE).what


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken"])
def test_an_unreadable_npz_is_refused(tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    assert "can't read the data file" in error(str(tmp_path / "data.npz"), IMAGE).what


def test_a_truncated_array_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", images(3))
    data = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(data[:-10])
    assert "damaged" in error(str(tmp_path / "x.npy"), IMAGE).what
    (tmp_path / "x.npy").write_bytes(data[:40])
    assert "can't read" in error(str(tmp_path / "x.npy"), IMAGE).what


def test_an_array_with_a_wrong_checksum_is_refused(tmp_path):
    path = Path(npz(tmp_path, x=images(3)))
    data = bytearray(path.read_bytes())
    data[data.index(images(3).tobytes()[40:60])] ^= 1
    path.write_bytes(bytes(data))
    assert "Bad CRC-32" in error(str(path), IMAGE).what


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "pickled" in error(str(path), IMAGE).what


@pytest.mark.parametrize("name", ["missing.npz", "missing.py:make", "missing"])
def test_a_missing_file_is_named(tmp_path, name):
    assert "missing" in error(str(tmp_path / name), IMAGE).what


def test_other_files_and_empty_folders_are_refused_with_the_forms(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert "file.py:function" in error(str(tmp_path / "notes.txt"), IMAGE).remedy
    assert "no data in it" in error(str(tmp_path), IMAGE).what
    (tmp_path / "feeds.py").write_text("")
    assert "feeds.py:feeds" in error(str(tmp_path / "feeds.py"), IMAGE).remedy


def test_a_batch_below_one_and_a_model_without_inputs_are_refused(tmp_path):
    assert "at least one" in error(npz(tmp_path, x=images(1)), IMAGE, batch=0).what
    assert "no inputs" in error(npz(tmp_path, x=images(1)), {}).what


def test_streaming_holds_one_feed_at_a_time(tmp_path):
    spec = npz(tmp_path, x=np.zeros((64, 16, 1024), np.float32))  # 4 MiB
    inputs = {"x": InputSpec(F32, (1, 16, 1024))}
    tracemalloc.start()
    count = sum(1 for _ in open_calibration(spec, inputs))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 64
    assert peak < 1_000_000
