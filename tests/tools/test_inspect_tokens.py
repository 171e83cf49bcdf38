"""Where tokens go, traced on a sample and drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from planish.frontend.calibration import InputSpec
from planish.ir import ops
from planish.passes.calibration.collect import numpy_taps
from planish.tools.cli import app
from planish.tools.patches import Picture, picture_of, read_picture
from planish.tools.token_pictures import panel, write_picture
from planish.tools.token_trace import GONE, BlockTokens, Trace, compressed_for_tracing, trace

SMALL = Path(__file__).parent.parent / "zoo" / "timm_dyn18.onnx"  # two blocks, a class token and 4 x 4 patches
ZOO = Path(__file__).parent.parent.parent / "tools/zoo/fashion_vit"


def inspect(*options: object):
    return CliRunner().invoke(app, ["inspect", *map(str, options)])


def sample() -> dict[str, np.ndarray]:
    return {"pixel_values": np.random.default_rng(5).standard_normal((1, 3, 16, 16)).astype(np.float32)}


def members(method: str, graph, tokens: int) -> list[list[set[int]]]:
    """Original tokens in each token behind each cut, by the numpy references, as sets that are united."""
    chosen = [node for node in graph if isinstance(node.op, ops.MatchTokens | ops.TopTokens)]
    arrays = iter(numpy_taps(graph, [value for node in chosen for value in node.results])(sample()))
    sets, found = [{token} for token in range(tokens)], []
    for node in chosen:
        sets = [{token} for token in range(tokens)] if method == "route" else sets  # all come back before each cut
        keep, source, *into = (next(arrays)[0] for _ in node.results)
        after = [set(sets[i]) for i in keep]
        if method == "fuse":
            after.append(set().union(*(sets[i] for i in source)))
        elif method == "merge":
            for token, place in zip(source, into[0], strict=True):
                after[place] |= sets[token]
        elif method == "route":
            after.append(set())  # the bridge
        sets = after
        found.append(sets)
    return found


@pytest.mark.parametrize("method", ["merge", "fuse", "eliminate", "route"])
def test_groups_are_those_of_the_references(method):
    graph, report = compressed_for_tracing(SMALL, None, method, (5, 3))
    followed = trace(graph, report, sample())
    expected = members(method, graph, report.tokens)
    assert [here.block for here in followed.blocks] == [1, 2]
    for here, sets in zip(followed.blocks, expected, strict=True):
        assert [set(np.flatnonzero(here.places == place)) for place in range(here.count)] == sets
        assert (here.places == GONE).sum() == report.tokens - sum(map(len, sets))
    lost = sum(block is not None for block in followed.gone_at())
    assert lost == sum(not all(here.own[token] for here in followed.blocks) for token in range(report.tokens))
    assert followed.gone_at()[0] is None  # the class token


def test_a_picture_is_drawn_of_a_plain_model(tmp_path):
    from matplotlib.image import imread

    drawn = tmp_path / "tokens.png"
    options = ("--tokens", "--image", ZOO / "test.npz", "--tokens-method", "merge", "--schedule", "40,0,40,0,0,0")
    found = inspect(ZOO / "model.onnx", *options, "-o", drawn, "--json")
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)
    assert [(block["block"], block["left"]) for block in result["blocks"]] == [(1, 157), (3, 117)]
    assert len(set(result["blocks"][-1]["places"])) == 117
    pixels = imread(drawn)
    assert pixels.shape[1] > 2.5 * pixels.shape[0]  # the picture and two panels side by side
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 100
    again = tmp_path / "again.png"
    assert inspect(ZOO / "model.onnx", *options, "-o", again).exit_code == 0
    assert again.read_bytes() == drawn.read_bytes()


def followed(places: list[int], method: str = "merge") -> Trace:
    here = BlockTokens(1, "attention", 3, np.array([0, *places]), np.array([True] * 5))
    return Trace(method, 5, 1, (here,))


def test_groups_have_their_mean_colour_and_what_is_gone_is_pale():
    pixels = np.zeros((40, 40, 3), np.float32)
    pixels[:20, :20], pixels[:20, 20:], pixels[20:, :20], pixels[20:, 20:] = 0.2, 0.6, 0.3, 0.0
    found = followed([1, 1, 2, GONE])
    shown = panel(Picture(pixels, 2, 2), found, found.blocks[0])
    high = shown.shape[0] // 2
    middles = [shown[y, x] for y in (high // 2, 3 * high // 2) for x in (high // 2, 3 * high // 2)]
    assert middles[0] == pytest.approx([0.4] * 3, abs=1e-6)
    assert middles[1] == pytest.approx([0.4] * 3, abs=1e-6)
    assert middles[2] == pytest.approx([0.3] * 3, abs=1e-6)  # alone: as it is
    assert middles[3].min() > 0.6
    frame = shown[1, high // 2]
    assert frame.max() - frame.min() > 0.5  # in a strong colour
    inner = shown[high // 2, high - 1 : high + 1]
    assert inner == pytest.approx(np.full((2, 3), 0.4), abs=1e-6)  # no line inside a group


def test_texts_have_a_strip_and_a_table_of_positions(tmp_path):
    write_picture(tmp_path / "tokens.html", followed([1, GONE, 2, GONE], "eliminate"), None)
    page = (tmp_path / "tokens.html").read_text()
    assert "data:image/png;base64," in page
    assert len(re.findall(r"<td>stays</td>", page)) == 5
    assert "<td>attention</td><td>3</td>" in page


def test_a_text_model_is_followed_too(tmp_path):
    options = ("--tokens", "--image", "random:1", "--tokens-method", "eliminate", "--schedule", "2,1")
    found = inspect(SMALL.parent / "bert_dyn18.onnx", *options, "-o", tmp_path / "tokens.html", "--json")
    assert found.exit_code == 0, found.output
    gone = json.loads(found.stdout)["gone_at"]
    assert sorted(gone, key=lambda block: block or 9) == [1, 1, 2, None, None, None, None]
    page = (tmp_path / "tokens.html").read_text()
    assert all(f"<td>{place}</td><td>block {block}</td>" in page for place, block in enumerate(gone) if block)


def test_the_grid_comes_from_the_shape_of_the_picture():
    wide = picture_of({"x": np.zeros((1, 3, 16, 32), np.float32)}, 8)
    assert wide is not None
    assert (wide.rows, wide.columns) == (2, 4)
    last = picture_of({"x": np.zeros((1, 28, 28, 1), np.uint8)}, 49)
    assert last is not None
    assert last.pixels.shape == (28, 28, 3)
    assert picture_of({"ids": np.zeros((1, 7), np.int64)}, 7) is None
    assert picture_of({"x": np.zeros((1, 3, 16, 16), np.float32)}, 7) is None


def test_picture_files_are_cut_and_scaled_as_the_model_takes_them(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((30, 60, 3), 255, np.uint8)).save(tmp_path / "white.png")
    for spec, value in (
        (InputSpec(np.dtype("u1"), ("n", 1, 8, 8)), 255),
        (InputSpec(np.dtype("f4"), ("n", 1, 8, 8)), 1.0),
        (InputSpec(np.dtype("f4"), (1, 8, 8, 3)), (1 - 0.485) / 0.229),
    ):
        feed = read_picture(tmp_path / "white.png", {"x": spec})["x"]
        assert feed.dtype == spec.dtype
        assert feed.shape == (1, *spec.shape[1:])
        assert feed.reshape(-1)[0] == pytest.approx(value)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--tokens"], 2, "--image photo.jpg"),
        (["--image", "random:1"], 2, "add --tokens"),
        (["--tokens", "--image", "random:1", "-o", "tokens.gif"], 2, "neither .png nor .html"),
        (["--tokens", "--image", "nothing.png"], 2, "can't be read"),
    ],
)
def test_usage_errors(options, code, message):
    found = inspect(SMALL, *options)
    assert found.exit_code == code, found.output
    assert message in re.sub(r"\s+", " ", found.output)


def test_a_refused_model_says_why():
    found = inspect(SMALL.parent / "swin_dyn18.onnx", "--tokens", "--image", "random:1")
    assert found.exit_code == 4
    assert "T4" in found.output
    assert "node_view_5" in found.output
