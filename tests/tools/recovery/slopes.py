"""Gradients of leaves against differences of a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def check_slopes(coordinates: Any, module: Any, loss: Callable[[], Any]) -> None:
    """Assert that a small step along the sign of each leaf's gradient changes the loss as the gradient says."""
    import torch

    coordinates.push()
    module.zero_grad()
    loss().backward()
    coordinates.pull()
    for leaf in coordinates.leaves:
        step = 1e-3 * torch.sign(leaf.grad)
        around = []
        for sign in (1, -1):
            leaf += sign * step
            coordinates.push()
            around.append(float(loss().detach()))
            leaf -= sign * step
        slope = (around[0] - around[1]) / 2
        assert slope == pytest.approx(float((leaf.grad * step).sum()), rel=2e-2, abs=1e-6)
