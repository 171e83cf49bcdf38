"""UnifiedNorm against the formulas of the paper written out in numpy, step by step."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnxscript = pytest.importorskip("onnxscript")

from planish.frontend.torch_export import from_torch  # noqa: E402
from planish.ir.errors import UsageError  # noqa: E402
from planish.ir.interpret import interpret  # noqa: E402
from planish.ir.op import Const, Return  # noqa: E402
from planish.tools.training import unified_norm  # noqa: E402
from planish.tools.training.unified_norm import UnifiedNorm  # noqa: E402

pytestmark = pytest.mark.torch
CHANNELS = 6


class Reference:
    """The formulas in f64, one training step a call, on tokens [N, C] of which all count."""

    def __init__(self, window: int, warmup: int, eps: float, filters: bool, unscaled: int, momentum: float = 0.9):
        self.window, self.warmup, self.eps, self.filters, self.unscaled = window, warmup, eps, filters, unscaled
        self.momentum = momentum
        self.running, self.ema = np.ones(CHANNELS), np.zeros(CHANNELS)
        self.moments: list[np.ndarray] = []
        self.slopes: list[np.ndarray] = []
        self.t = self.skipped = 0

    def step(self, x, dy, gamma, beta):
        self.t += 1
        m = (x**2).mean(0)
        before, self.moments = self.moments, [*self.moments, m][-self.window :]
        settled = self.t > self.window and self.t >= self.warmup
        skip = False
        if self.filters and settled:
            rho = np.var(np.sqrt(np.stack(before)), ddof=1)
            skip = bool((self.arithmetic() - self.geometric() > self.window * rho).any())
            if skip:
                self.moments[-1] = self.running.copy()
                self.skipped += 1
        v = self.geometric() if settled and not skip else m
        r = np.clip(np.sqrt(v + self.eps) / np.sqrt(self.running + self.eps), 0.2, 5)
        if skip or self.t <= max(self.unscaled, self.warmup):
            r = np.ones(CHANNELS)
        self.running = self.momentum * self.running + (1 - self.momentum) * v
        z = x / np.sqrt(v + self.eps)

        g = dy * gamma * r
        psi = (g * z).mean(0)
        self.slopes = [*self.slopes, self.ema if skip else psi][-self.window :]
        mean = np.mean(self.slopes, 0) if settled and not skip else psi
        self.ema = self.momentum * self.ema + (1 - self.momentum) * mean
        dx = (g - (mean if skip else self.ema) * z) / np.sqrt(v + self.eps)
        return gamma * z + beta, dx, (dy * r * z).sum(0), dy.sum(0)

    def arithmetic(self):
        return np.mean(self.moments, 0)

    def geometric(self):
        return np.exp(np.mean(np.log(self.moments), 0))


def batches(steps: int, outlier_at: tuple[int, ...] = (), tokens: int = 10):
    """Inputs and output gradients f64 [2, tokens / 2, C]; the scale wanders, and jumps at outliers."""
    rng = np.random.default_rng(0)
    spread = np.linspace(0.5, 2, CHANNELS)
    for step in range(steps):
        scale = 20.0 if step in outlier_at else 1 + 0.3 * np.sin(step)
        yield (
            scale * spread * rng.normal(size=(2, tokens // 2, CHANNELS)),
            rng.normal(size=(2, tokens // 2, CHANNELS)),
        )


def train_step(norm, x, dy, padding=None):
    """Output, and gradients of input, weight and bias."""
    x = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    norm.zero_grad()
    y = norm(x, padding)
    y.backward(torch.tensor(dy, dtype=torch.float32))
    return [t.detach().numpy().reshape(-1, CHANNELS) for t in (y, x.grad, norm.weight.grad, norm.bias.grad)]


def randomized(**options) -> UnifiedNorm:
    torch.manual_seed(0)
    norm = UnifiedNorm(CHANNELS, **options)
    torch.nn.init.normal_(norm.weight, 1.0, 0.2)
    torch.nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("filters", [True, False])
@pytest.mark.parametrize(("window", "warmup", "unscaled"), [(4, 10, 15), (4, 0, 0), (3, 2, 0), (2, 100, 1000)])
def test_every_step_is_that_of_the_formulas(window, warmup, unscaled, filters, monkeypatch):
    monkeypatch.setattr(unified_norm, "_UNSCALED_STEPS", unscaled)
    norm = randomized(window=window, warmup=warmup, filter_outliers=filters)
    reference = Reference(window, warmup, norm.eps, filters, unscaled)
    gamma, beta = norm.weight.detach().double().numpy(), norm.bias.detach().double().numpy()
    for x, dy in batches(40, outlier_at=(5, 20, 33)):
        found = train_step(norm, x, dy)
        expected = reference.step(x.reshape(-1, CHANNELS), dy.reshape(-1, CHANNELS), gamma, beta)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, np.reshape(theirs, ours.shape), rtol=2e-4, atol=2e-5)
        assert int(norm.outliers) == reference.skipped
    np.testing.assert_allclose(norm.moment, reference.running, rtol=1e-4)
    np.testing.assert_allclose(norm.slope, reference.ema, rtol=1e-3, atol=1e-6)
    if filters and warmup < 20:
        assert 0 < reference.skipped < 40  # else the test above wouldn't have seen both kinds of step


def test_evaluation_is_a_constant_affine_by_channel():
    norm = randomized(warmup=2)
    for x, dy in batches(5):
        train_step(norm, x, dy)
    norm.eval()
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    x = torch.randn(3, 5, CHANNELS)
    scale = norm.weight / (norm.moment + norm.eps).sqrt()
    torch.testing.assert_close(norm(x), x * scale + norm.bias)
    assert all(torch.equal(value, state[name]) for name, value in norm.state_dict().items())


def test_a_window_of_one_has_the_exact_gradient():
    norm = randomized(window=1, warmup=0)
    for x, dy in batches(3):
        _, *found = train_step(norm, x, dy)
        x, dy = torch.tensor(x, requires_grad=True), torch.tensor(dy)
        weight, bias = (p.detach().double().requires_grad_() for p in (norm.weight, norm.bias))
        y = weight * x / (x.square().mean((0, 1)) + norm.eps).sqrt() + bias
        expected = torch.autograd.grad(y, (x, weight, bias), dy)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy().reshape(ours.shape), rtol=1e-4, atol=1e-5)


def test_a_step_is_smoothed_as_itself_even_if_another_one_runs_before_its_backward():
    (first, second), (x, dy) = (randomized(warmup=0, window=2) for _ in range(2)), next(batches(1))
    train_step(first, x, dy)
    y = second(torch.tensor(x, dtype=torch.float32, requires_grad=True))
    second(torch.tensor(x, dtype=torch.float32))
    y.backward(torch.tensor(dy, dtype=torch.float32))
    torch.testing.assert_close(second.slopes, first.slopes)


def test_padding_counts_in_no_statistic():
    padded, plain = randomized(warmup=3, window=2), randomized(warmup=3, window=2)
    padding = torch.zeros(2, 8, dtype=torch.bool)
    padding[:, 5:] = True
    for x, dy in batches(8):
        noise, silence = 100 * np.ones((2, 3, CHANNELS)), np.zeros((2, 3, CHANNELS))
        found = train_step(padded, np.concatenate([x, noise], 1), np.concatenate([dy, silence], 1), padding)
        expected = train_step(plain, x, dy)
        real = ~padding.flatten().numpy()
        for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            np.testing.assert_allclose(ours[real] if i < 2 else ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded.moment, plain.moment)
    torch.testing.assert_close(padded.slope, plain.slope)


def test_reset_warms_up_anew_and_keeps_what_was_learnt():
    norm = randomized(warmup=6, window=2)
    seen = list(batches(12))
    for x, dy in seen:
        train_step(norm, x, dy)
    moment = norm.moment.clone()
    norm.reset()
    assert int(norm.step) == 0
    assert torch.equal(norm.moment, moment)
    for x, dy in seen[:5]:
        y, *_ = train_step(norm, x, dy)
        own = np.sqrt((x**2).mean((0, 1)) + norm.eps)
        np.testing.assert_allclose(
            y,
            (norm.weight.detach().numpy() * x / own + norm.bias.detach().numpy()).reshape(y.shape),
            rtol=1e-4,
            atol=1e-5,
        )


def test_training_goes_on_from_a_saved_state_as_if_never_stopped(tmp_path):
    through, first = randomized(warmup=3), randomized(warmup=3)
    seen = list(batches(14))
    for x, dy in seen[:7]:
        train_step(through, x, dy)
        train_step(first, x, dy)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = UnifiedNorm(CHANNELS, warmup=3)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for x, dy in seen[7:]:
        for ours, theirs in zip(train_step(second, x, dy), train_step(through, x, dy), strict=True):
            assert np.array_equal(ours, theirs)


def test_half_precision_comes_back_as_it_was():
    norm = randomized()
    assert norm(torch.randn(2, 3, CHANNELS).bfloat16()).dtype == torch.bfloat16
    assert norm.moment.dtype == torch.float32


def test_it_exports_as_one_multiplication_and_one_addition():
    norm = randomized(warmup=2)
    for x, dy in batches(4):
        train_step(norm, x, dy)
    norm.eval()
    x = torch.randn(2, 3, CHANNELS)
    graph = from_torch(norm, (x,), input_names=["x"])
    assert sorted(type(node.op).__name__ for node in graph if not isinstance(node.op, Const | Return)) == ["Add", "Mul"]
    (found,) = interpret(graph, {"x": x.numpy()}).values()
    np.testing.assert_allclose(found, norm(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_window_holds_at_least_one_batch():
    with pytest.raises(UsageError, match="holds none"):
        UnifiedNorm(4, window=0)
