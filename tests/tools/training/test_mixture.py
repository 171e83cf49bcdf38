"""The mixture of products and shifts: its balance loss, what it routes, and what the compiler makes of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from planish.backends.ort.taps import taps  # noqa: E402
from planish.ir import dtypes, ops  # noqa: E402
from planish.ir.codebooks import CODEBOOKS  # noqa: E402
from planish.ir.errors import UsageError  # noqa: E402
from planish.ir.graph import Graph  # noqa: E402
from planish.ir.loc import Loc  # noqa: E402
from planish.ir.types import TensorType  # noqa: E402
from planish.passes.shiftadd.mix_experts import route_experts  # noqa: E402
from planish.tools.training.mixture import (  # noqa: E402
    MixtureLinear,
    balance_loss,
    balance_of,
    expert_latencies,
    mix_linears,
    rounded,
    staying,
)

pytestmark = pytest.mark.torch


def mixture(latencies=(3.0, 2.0), codebook="apot4", bias=True) -> MixtureLinear:
    torch.manual_seed(0)
    return MixtureLinear(torch.nn.Linear(6, 5, bias), latencies, codebook)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def shares(first: float, count: int = 100) -> torch.Tensor:
    """Gates of tokens of which the first expert gets a share."""
    return torch.tensor([[first, 1 - first]], dtype=torch.float64).repeat(count, 1)


def test_the_balance_loss_has_a_gradient_at_the_router():
    layer = mixture().train()
    layer(tokens(2, 50, 6))
    layer.balance.backward()
    gradient = layer.router.weight.grad
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    assert layer.router.bias.grad.abs().sum() > 0


def test_the_loss_of_the_task_reaches_the_router_too():
    layer = mixture().train()
    layer(tokens(2, 50, 6)).square().sum().backward()
    assert layer.router.weight.grad.abs().sum() > 0
    assert layer.multiply.weight.grad.abs().sum() > 0
    assert layer.shift.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("latencies", [(1.0, 1.0), (3.0, 2.0), (1.0, 5.0)])
def test_the_loss_is_least_where_tokens_go_as_one_over_the_latency(latencies):
    best = (1 / latencies[0]) / (1 / latencies[0] + 1 / latencies[1])
    losses = {
        share: float(balance_loss(shares(share), shares(share), latencies)) for share in np.linspace(0.01, 0.99, 99)
    }
    assert min(losses, key=losses.__getitem__) == pytest.approx(best, abs=0.01)
    assert float(balance_loss(shares(best), shares(best), latencies)) == pytest.approx(0, abs=1e-9)


def test_the_loss_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    p, q = rng.random((7, 2)), rng.random((7, 2))
    alpha = np.array([3.0, 2.0]) / 5

    def scv(parts: np.ndarray) -> float:
        load = alpha * parts.sum(axis=0)
        return float(np.var(load, ddof=1) / load.mean() ** 2)

    found = balance_loss(torch.from_numpy(p), torch.from_numpy(q), (3.0, 2.0))
    assert float(found) == pytest.approx(scv(p) + scv(q), rel=1e-6)


def test_latencies_enter_the_loss():
    even = shares(0.5)
    found = [float(balance_loss(even, even, latencies)) for latencies in ((1.0, 1.0), (2.0, 1.0), (8.0, 1.0))]
    assert found[0] < found[1] < found[2]


def test_training_by_the_loss_alone_moves_tokens_to_the_faster_expert():
    layer = mixture((4.0, 1.0)).train()
    x = tokens(4, 64, 6)
    optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.05)
    torch.manual_seed(2)
    for _ in range(150):
        optimizer.zero_grad()
        layer(x)
        layer.balance.backward()
        optimizer.step()
    first = float(layer.router(x).softmax(-1)[..., 0].mean().detach())
    assert first == pytest.approx(0.2, abs=0.07)


def test_staying_is_how_often_new_noise_leaves_an_expert_first():
    torch.manual_seed(0)
    logits, noisy = torch.tensor([0.3, -0.1]), torch.tensor([0.5, 0.2])
    draws = logits[:, None] + 0.5 * torch.randn(2, 200_000)
    often = (draws > noisy.flip(0)[:, None]).double().mean(1)
    np.testing.assert_allclose(staying(logits, noisy).numpy(), often.numpy(), atol=5e-3)


def test_a_token_has_the_result_of_one_expert():
    layer = mixture().train()
    x = tokens(3, 9, 6)
    y = layer(x)
    first, second = (
        layer.multiply(x),
        torch.nn.functional.linear(x, rounded(layer.shift.weight, "apot4"), layer.shift.bias),
    )
    apart = [(y - option).abs().amax(-1) for option in (first, second)]
    assert torch.minimum(*apart).max() < 1e-5
    assert all(part.max().item() > 1e-3 for part in apart)


@pytest.mark.parametrize("codebook", ["apot4", "pot4", "csd2"])
def test_weights_of_the_shift_expert_are_codes(codebook):
    w = tokens(5, 6).requires_grad_()
    real = rounded(w, codebook)
    values = np.asarray(CODEBOOKS[codebook].values)
    for row in real.detach().numpy():
        unit = [row / scale for scale in np.abs(row).max() / values[values > 0]]
        assert any(np.allclose(u, np.rint(u), atol=1e-3) and set(np.rint(u)) <= set(values) for u in unit)
    real.sum().backward()
    assert torch.equal(w.grad, torch.ones_like(w))


@pytest.mark.parametrize(("bias", "latencies"), list(itertools.product([True, False], [(3.0, 2.0), (1.0, 6.0)])))
def test_the_compiled_mixture_computes_what_the_layer_does(bias, latencies):
    layer = mixture(latencies, bias=bias).eval()
    with torch.no_grad():
        layer.router.weight.copy_(tokens(2, 6))
    graph = Graph("g")
    x = graph.add_input("x", TensorType(dtypes.f32, ("n", 11, 6)))
    parameters = [p.detach().numpy().T.copy() for p in layer.multiply.parameters()]
    y = ops.Linear()(x, *parameters)
    graph.attach(y, None, Loc(("layer",)))
    graph.add(ops.Return(("y",)), y)
    route_experts(graph, graph.nodes(ops.Linear)[0], layer.routing(11))
    data = tokens(4, 11, 6)
    (found,) = taps(graph, list(graph.outputs))({"x": data.numpy()})
    np.testing.assert_allclose(found, layer(data).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_experts_of_different_biases_are_refused():
    layer = mixture()
    with torch.no_grad():
        layer.shift.bias += 1
    with pytest.raises(UsageError, match="different biases"):
        layer.routing(11)


def test_latencies_are_measured_on_graphs_of_both_experts():
    seen = []

    def clock(graphs):
        seen.extend([node.op.name for node in graph if node.op.name.endswith("Linear")] for graph in graphs)
        return [0.2, 0.1]

    linear = torch.nn.Linear(6, 5)
    assert expert_latencies(linear, 17, clock) == (0.2, 0.1)
    assert seen == [["Linear"], ["ShiftLinear"]]


def test_every_linear_of_a_model_becomes_a_mixture_and_their_losses_add_up():
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.GELU(), torch.nn.Linear(6, 2)).train()
    assert mix_linears(model, lambda linear: MixtureLinear(linear, (3.0, 2.0))) == ("0", "2")
    model(tokens(2, 20, 6))
    assert balance_of(model).item() == pytest.approx(sum(model[i].balance.item() for i in (0, 2)))
    with pytest.raises(UsageError, match=r"no nn\.Linear"):
        mix_linears(torch.nn.Sequential(torch.nn.GELU()), lambda linear: MixtureLinear(linear, (1.0, 1.0)))
