"""ONNX Runtime's quantizers as contenders of `planish bench`, and the comparison of results beside the times."""

import json

import numpy as np
import pytest
from test_cli import run

from planish.frontend import load
from planish.frontend.calibration import open_calibration
from planish.tools.bench.command import model_file
from planish.tools.bench.contenders import CONTENDERS
from planish.tools.bench.quality import quality_of
from planish.tools.cli import app
from planish.tools.samples import input_specs

pytest.importorskip("sympy")
VIT = model_file("fashion-vit")
QUANTIZERS = [name for name in CONTENDERS if name.startswith("ort-") and name != "ort-fp32"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """32 labelled images to calibrate on, 64 others to compare on."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("calibration", 32), ("test", 64)):
        data = np.load(VIT.with_name(f"{name}.npz"))
        np.savez(folder / f"{name}.npz", **{key: data[key][:count] for key in data})
    return folder


@pytest.mark.parametrize("name", QUANTIZERS)
def test_each_quantizer_makes_a_smaller_model_that_predicts_nearly_the_same(name, samples, tmp_path):
    inputs = input_specs(load(VIT))
    calibration = open_calibration(str(samples / "calibration.npz"), inputs, batch=8)
    test = open_calibration(str(samples / "test.npz"), inputs, batch=32)
    made = CONTENDERS[name](VIT, tmp_path, calibration)
    figures = quality_of(VIT, {name: made}, test)[name]
    assert made.stat().st_size < 0.5 * VIT.stat().st_size
    assert figures["top1_agreement"] >= 0.9
    assert 15 < figures["sqnr_db"] < 60


def test_the_model_itself_agrees_with_itself_and_has_its_own_accuracy(samples):
    test = open_calibration(str(samples / "test.npz"), input_specs(load(VIT)), batch=32)
    figures = quality_of(VIT, {"same": VIT}, test)["same"]
    assert figures["top1_agreement"] == 1
    assert figures["accuracy"] == figures["accuracy_original"] > 0.8
    assert figures["sqnr_db"] is None


def test_unlabelled_data_gives_agreement_but_no_accuracy(tmp_path):
    test = open_calibration("random:2", input_specs(load(VIT)), batch=4)
    figures = quality_of(VIT, {"same": VIT}, test)["same"]
    assert figures["accuracy"] is None
    assert figures["top1_agreement"] == 1


def test_bench_tells_the_accuracy_of_artifact_and_contender(samples):
    arguments = ["bench", "fashion-vit", "--calib", str(samples / "calibration.npz"), "--against", "ort-dynamic"]
    arguments += ["--evaluate-with", str(samples / "test.npz"), "--seconds", "0.1", "--json"]
    result = run.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    quality = json.loads(result.stdout)["quality"]
    assert set(quality) == {"artifact", "ort-dynamic"}
    assert quality["artifact"]["accuracy"] == quality["artifact"]["accuracy_original"]
