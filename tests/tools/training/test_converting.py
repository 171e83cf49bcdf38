"""LayerNorms exchanged in a model, and the fit that training starts from."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from planish.ir.errors import UsageError  # noqa: E402
from planish.tools.training.converting import initialize_from, replace_norms  # noqa: E402
from planish.tools.training.rep_batch_norm import ProgressiveNorm  # noqa: E402
from planish.tools.training.unified_norm import UnifiedNorm  # noqa: E402

pytestmark = pytest.mark.torch


def unified(norm: torch.nn.LayerNorm) -> UnifiedNorm:
    return UnifiedNorm(norm.normalized_shape[0])


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    nn = torch.nn
    inner = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.LayerNorm(6, elementwise_affine=False))
    model = nn.Sequential(nn.Linear(4, 6), inner, nn.LayerNorm(6, bias=False), nn.LayerNorm((3, 6)))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def test_every_norm_over_the_last_axis_is_replaced_and_hands_its_parameters_over():
    model = network()
    weight, bias, alone = model[1][0].weight.clone(), model[1][0].bias.clone(), model[2].weight.clone()
    assert replace_norms(model, unified) == ("1.0", "1.2", "2")
    assert torch.equal(model[1][0].weight, weight)
    assert torch.equal(model[1][0].bias, bias)
    assert torch.equal(model[1][2].weight, torch.ones(6))
    assert torch.equal(model[2].weight, alone)
    assert torch.equal(model[2].bias, torch.zeros(6))
    assert isinstance(model[3], torch.nn.LayerNorm)


def test_the_mode_of_what_was_replaced_is_kept():
    model = network().eval()
    replace_norms(model, unified)
    assert not any(module.training for module in model.modules())


def test_a_norm_in_two_places_stays_one():
    norm = torch.nn.LayerNorm(4)
    model = torch.nn.ModuleDict({"a": norm, "b": norm})
    replace_norms(model, unified)
    assert model["a"] is model["b"]
    assert isinstance(model["a"], UnifiedNorm)


def test_a_replacement_may_hold_the_layer_norm_itself():
    model = network()
    norm = model[1][0]
    replace_norms(model, lambda layer_norm: ProgressiveNorm(layer_norm, 10))
    assert model[1][0].layer_norm is norm


def test_a_model_without_layer_norms_is_refused():
    with pytest.raises(UsageError, match=r"Linear has no nn\.LayerNorm"):
        replace_norms(torch.nn.Linear(2, 2), unified)


def test_the_fit_is_least_squares_of_what_layer_norm_did():
    model, plain = network()[:3], network()[:3]
    replace_norms(model, unified)
    x = torch.randn(64, 3, 4)
    seen = {}
    for name in ("1.0", "2"):
        plain.get_submodule(name).register_forward_hook(lambda *call, name=name: seen.update({name: call}))
    plain(x)
    initialize_from(model, x.split(16), eps=1e-5)
    for name in ("1.0", "2"):
        _, (taken,), given = seen[name]
        taken, given = (t.detach().reshape(-1, 6).double() for t in (taken, given))
        norm = model.get_submodule(name)
        torch.testing.assert_close(norm.moment.double(), taken.square().mean(0), rtol=1e-4, atol=1e-5)
        norm.eval()
        for channel in range(6):
            design = torch.stack([taken[:, channel], torch.ones(len(taken), dtype=torch.float64)], 1)
            slope, offset = torch.linalg.lstsq(design, given[:, channel, None]).solution[:, 0]
            expected = slope * taken[:, channel] + offset
            torch.testing.assert_close(norm(taken.float())[:, channel].double(), expected, rtol=1e-3, atol=1e-3)


def test_fitting_leaves_the_mode_and_no_hooks():
    model = network()[:3]
    replace_norms(model, unified)
    model.train()
    initialize_from(model, [torch.randn(8, 3, 4)])
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(int(module.step) == 0 for module in model.modules() if isinstance(module, UnifiedNorm))
