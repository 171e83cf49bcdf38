"""Linear layers with two experts, products and shifts, and a router that is trained to keep both equally long busy.

The mixture of ShiftAddViT (arXiv 2306.06446), section 4.3. Its published code trains no router: the balance loss is set
to 0, and the default gate has no gradient. Here the loss is written from its formula, the gate's gradient reaches the
router, and the latencies that weigh it are measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planish.ir import dtypes, ops
from planish.ir.errors import UsageError
from planish.ir.graph import Graph, Node, Value
from planish.ir.types import TensorType
from planish.passes.base import Clock
from planish.passes.shiftadd.mix_experts import Routing, capacity, coded_weight, latencies, share_of

NOISE = 0.5  # standard deviation of the noise on logits while training: 1 / number of experts
BALANCE = 0.01  # weight of the balance loss, as published
_EPS = 1e-10


class MixtureLinear(nn.Module):
    """f32 [..., N, K] to [..., N, M]: each of N tokens through a linear layer, or through its twin made of shifts.

    While training, the noisy logits of the router choose for each token alone; the result is that of the chosen expert,
    and the router's gradient is that of the result times the gate. In evaluation, as many tokens are multiplied as the
    latencies say, those of the greatest margins, which is what `routing` hands to the compiler.
    codebook: of the shift expert's weights, which are trained straight through their rounding.
    latencies: seconds that the multiplication expert and the shift expert take, see `expert_latencies`.
    balance: the balance loss of the last batch, times its weight; add it to the loss of the task.
    """

    def __init__(self, linear: nn.Linear, latencies: tuple[float, float], codebook: str = "apot4"):
        super().__init__()
        self.share, self.latencies, self.codebook = share_of(latencies), latencies, codebook
        self.multiply = linear
        self.shift = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None)
        self.shift.load_state_dict(linear.state_dict())
        self.router = nn.Linear(linear.in_features, 2)
        nn.init.normal_(self.router.weight, std=0.02)
        nn.init.zeros_(self.router.bias)
        self.balance: Tensor = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)  # [..., N, 2]
        shifted = F.linear(x, rounded(self.shift.weight, self.codebook), self.shift.bias)
        if not self.training:
            return torch.where(self._most(logits)[..., None], self.multiply(x), shifted)
        noisy = logits + NOISE * torch.randn_like(logits)
        p = noisy.softmax(-1)
        self.balance = BALANCE * balance_loss(p, staying(logits, noisy), self.latencies)
        multiplied = noisy[..., :1] > noisy[..., 1:]
        gate = torch.where(multiplied, p[..., :1], p[..., 1:])
        y: Tensor = torch.where(multiplied, self.multiply(x), shifted) * (gate / gate.detach())
        return y

    def routing(self, tokens: int) -> Routing:
        """The experts and the router for `route_experts`, on so many tokens. The biases of both must be the same.

        Raises UsageError if they aren't: the compiled mixture has one.
        """
        if self.shift.bias is not None and not torch.equal(self.shift.bias, self.multiply.bias):
            raise UsageError(
                "the experts have different biases", remedy="set mixture.shift.bias to mixture.multiply.bias"
            )
        w, b = (p.detach().numpy() for p in self.router.parameters())
        codes = coded_weight(self.shift.weight.detach().numpy().T, self.codebook)
        return Routing(w[0] - w[1], float(b[0] - b[1]), capacity(tokens, self.share), codes)

    def _most(self, logits: Tensor) -> Tensor:
        """Which tokens are multiplied: bool [..., N]; of equal margins the first."""
        margin = logits[..., 0] - logits[..., 1]
        order = margin.argsort(dim=-1, descending=True, stable=True)
        chosen = order[..., : capacity(margin.shape[-1], self.share)]
        return torch.zeros_like(margin, dtype=torch.bool).scatter(-1, chosen, True)


def balance_loss(p: Tensor, stays: Tensor, latencies: tuple[float, float]) -> Tensor:
    """SCV(alpha * sum of p) + SCV(alpha * sum of q) over tokens, with alpha_i = Lat_i / sum of Lat; 0 at its least.

    p: f32 [..., 2], the gates. stays: f32 [..., 2], q: how likely each expert is to stay the first under new noise.
    SCV is the squared coefficient of variation, by the sample variance of the two experts. It is least where the
    tokens that an expert gets go as 1 / Lat_i, so that both take as long.
    """
    alpha = torch.tensor(latencies, dtype=p.dtype, device=p.device)
    alpha = alpha / alpha.sum()
    loads = [alpha * parts.reshape(-1, 2).sum(0) for parts in (p, stays)]
    return torch.stack([load.var() / (load.mean() ** 2 + _EPS) for load in loads]).sum()


def staying(logits: Tensor, noisy: Tensor, noise: float = NOISE) -> Tensor:
    """Probability that each of two experts has the greater logit if its own noise is drawn anew: f32 [..., 2].

    With the other's noisy logit as the threshold, Phi((logit - threshold) / noise) (Shazeer et al. 2017, appendix A).
    """
    z = (logits - noisy.flip(-1)) / noise
    return 0.5 * (1 + torch.erf(z / math.sqrt(2)))


def rounded(weight: Tensor, codebook: str) -> Tensor:
    """Weights [M, K] as codes of a codebook times their scales, with the gradient of the weights themselves."""
    data = coded_weight(weight.detach().cpu().numpy().T, codebook)
    assert data.type.quant is not None
    real = (data.numpy() * data.type.quant.scales).T
    return weight + (torch.from_numpy(np.ascontiguousarray(real)).to(weight) - weight).detach()


def mix_linears(model: nn.Module, make: Callable[[nn.Linear], MixtureLinear]) -> tuple[str, ...]:
    """Put what `make` returns in place of every nn.Linear of a model; the names of those replaced.

    Raises UsageError if there is none.
    """
    names = [name for name, module in model.named_modules() if name and isinstance(module, nn.Linear)]
    if not names:
        raise UsageError(f"{type(model).__name__} has no nn.Linear", remedy="pass the module that holds them")
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, make(linear))
    return tuple(names)


def balance_of(model: nn.Module) -> Tensor:
    """The balance losses of all mixtures of a model in their last batch, added up."""
    return torch.stack([m.balance for m in model.modules() if isinstance(m, MixtureLinear)]).sum()


def expert_latencies(linear: nn.Linear, tokens: int, clock: Clock, codebook: str = "apot4") -> tuple[float, float]:
    """Seconds of both experts of a layer on so many tokens, measured in turns on the target of the clock."""
    w = linear.weight.detach().numpy().T.copy()
    bias = [] if linear.bias is None else [linear.bias.detach().numpy()]
    graph = Graph("layer")
    x = graph.add_input("x", TensorType(dtypes.f32, (1, tokens, linear.in_features)))
    layer: Value = ops.Linear()(x, w, *bias)
    assert isinstance(layer.node, Node)
    return latencies(layer.node, coded_weight(w, codebook), clock)
