"""LayerNorms of a torch model exchanged for norms that end up as constants, and those fitted to trained weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planish.ir.errors import UsageError
from planish.tools.training.unified_norm import UnifiedNorm


def replace_norms(model: nn.Module, make: Callable[[nn.LayerNorm], nn.Module]) -> tuple[str, ...]:
    """Put what `make` returns in place of every LayerNorm over the last axis; the names of those replaced.

    A replacement with parameters `weight` and `bias` of its own takes the LayerNorm's over. A LayerNorm used in
    several places is replaced by one norm in all of them.
    Raises UsageError if the model holds no such LayerNorm.
    """
    made: dict[nn.Module, nn.Module] = {}
    names = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
            if module not in made:
                made[module] = _with_parameters_of(module, make(module))
            model.set_submodule(name, made[module])
            names.append(name)
    if not names:
        raise UsageError(
            f"{type(model).__name__} has no nn.LayerNorm over its last axis to replace",
            remedy="pass the module that holds them; norms written out in a forward aren't found",
        )
    return tuple(names)


def _with_parameters_of(norm: nn.LayerNorm, replacement: nn.Module) -> nn.Module:
    own = dict(replacement.named_parameters(recurse=False))
    with torch.no_grad():
        for name, source in (("weight", norm.weight), ("bias", norm.bias)):
            if source is not None and name in own:
                own[name].copy_(source)
    return replacement.train(norm.training)


@dataclass
class _Sums:
    """Over tokens, f64 [C] each: of input, output, squares of the input, and products of both."""

    tokens: int = 0
    x: Tensor | float = 0.0
    y: Tensor | float = 0.0
    xx: Tensor | float = 0.0
    xy: Tensor | float = 0.0

    def take(self, x: Tensor, y: Tensor) -> None:
        x, y = (t.detach().reshape(-1, t.shape[-1]).double() for t in (x, y))
        self.tokens += len(x)
        self.x, self.y = self.x + x.sum(0), self.y + y.sum(0)
        self.xx, self.xy = self.xx + (x * x).sum(0), self.xy + (x * y).sum(0)

    def fit(self, norm: UnifiedNorm) -> None:
        """Set the norm to the least-squares y = a * x + d of each channel."""
        x, y, xx, xy = (torch.as_tensor(sums) / self.tokens for sums in (self.x, self.y, self.xx, self.xy))
        a = (xy - x * y) / (xx - x * x).clamp_min(norm.eps)
        norm.moment.copy_(xx)
        norm.weight.copy_(a * (xx + norm.eps).sqrt())
        norm.bias.copy_(y - a * x)


@torch.no_grad()
def initialize_from(model: nn.Module, batches: Iterable[Tensor], eps: float = 1e-6) -> None:
    """Fit each UnifiedNorm of a model, still holding the parameters of a LayerNorm, to that LayerNorm.

    The batches run through the model as it was, `eps` included. A UN can't follow the deviation of single tokens:
    the fit is where training starts, not a conversion.
    """
    sums: dict[UnifiedNorm, _Sums] = {m: _Sums() for m in model.modules() if isinstance(m, UnifiedNorm)}

    def as_layer_norm(norm: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        assert isinstance(norm, UnifiedNorm)
        y = F.layer_norm(inputs[0], norm.weight.shape, norm.weight, norm.bias, eps)
        sums[norm].take(inputs[0], y)
        return y

    training = model.training
    with ExitStack() as hooks:
        for norm in sums:
            hooks.enter_context(norm.register_forward_hook(as_layer_norm))
        model.eval()
        for batch in batches:
            model(batch)
    model.train(training)
    for norm, found in sums.items():
        found.fit(norm)
