"""RepBN: what evaluation merges equals what training computed, and how LayerNorm's share falls."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnxscript = pytest.importorskip("onnxscript")

from planish.frontend.torch_export import from_torch  # noqa: E402
from planish.ir.errors import UsageError  # noqa: E402
from planish.ir.op import Const, Return  # noqa: E402
from planish.tools.training.rep_batch_norm import ProgressiveNorm, RepBatchNorm  # noqa: E402

pytestmark = pytest.mark.torch


def trained(x: torch.Tensor) -> tuple[RepBatchNorm, torch.Tensor]:
    """A norm whose running statistics are those of x, and what it made of x while training."""
    torch.manual_seed(0)
    norm = RepBatchNorm(x.shape[-1], gain=0.7, momentum=0.0)
    torch.nn.init.normal_(norm.weight, 1.0, 0.2)
    torch.nn.init.normal_(norm.bias)
    return norm, norm(x)


def test_merged_parameters_are_those_of_both_paths():
    norm, _ = trained(3 + 2 * torch.randn(4, 6, 5))
    norm.eval()
    weight, bias, mean, variance = (t.detach().double() for t in (norm.weight, norm.bias, norm.mean, norm.variance))
    sigma, eta = (variance + norm.eps).sqrt(), norm.gain.detach().double()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    expected = weight * (x - mean) / sigma + bias + eta * x
    scale, offset = norm.affine()
    torch.testing.assert_close(scale.double(), weight / sigma + eta)
    torch.testing.assert_close(offset.double(), bias - weight * mean / sigma)
    torch.testing.assert_close(norm(x.float()).double(), expected, rtol=1e-5, atol=1e-5)


def test_evaluation_agrees_with_training_once_statistics_have_settled():
    x = 3 + 2 * torch.randn(40, 50, 5)
    norm, y = trained(x)
    torch.testing.assert_close(norm.eval()(x), y, rtol=1e-3, atol=1e-3)


def test_the_share_of_layer_norm_falls_linearly_after_a_hold():
    norm = ProgressiveNorm(torch.nn.LayerNorm(4), 10, hold=2, start=0.8)
    shares = []
    for _ in range(12):
        shares.append(norm.share())
        norm(torch.randn(3, 4))
    np.testing.assert_allclose(shares, [1, 1, *(0.8 * (1 - i / 8) for i in range(8)), 0, 0])


def test_training_mixes_and_evaluation_takes_batch_norm_alone():
    norm = ProgressiveNorm(torch.nn.LayerNorm(4), 4)
    x = torch.randn(2, 7, 4)
    first = norm(x)
    torch.testing.assert_close(first, norm.layer_norm(x))
    expected = 0.75 * norm.layer_norm(x) + 0.25 * norm.batch_norm(x)
    torch.testing.assert_close(norm(x), expected)
    norm.eval()
    assert torch.equal(norm(x), norm.batch_norm(x))
    assert int(norm.step) == 2
    again = ProgressiveNorm(torch.nn.LayerNorm(4), 4)
    again.load_state_dict(norm.state_dict())
    assert again.share() == norm.share() == 0.5


def test_it_exports_as_one_multiplication_and_one_addition():
    norm = ProgressiveNorm(torch.nn.LayerNorm(4), 4).eval()
    graph = from_torch(norm, (torch.randn(2, 3, 4),))
    assert sorted(type(node.op).__name__ for node in graph if not isinstance(node.op, Const | Return)) == ["Add", "Mul"]


def test_a_hold_as_long_as_training_is_refused():
    with pytest.raises(UsageError, match="leaves none"):
        ProgressiveNorm(torch.nn.LayerNorm(4), 5, hold=5)
