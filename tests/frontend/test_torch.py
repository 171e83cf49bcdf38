"""PyTorch programs: modules, exported programs and their files."""

from __future__ import annotations

import builtins
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reading import types

from planish.frontend import load
from planish.frontend.torch_export import from_torch
from planish.ir.errors import FrontendError, UsageError
from planish.ir.interpret import interpret

HAS_TORCH = all(importlib.util.find_spec(name) is not None for name in ("torch", "onnxscript"))
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="needs the torch extra")


def network() -> Any:
    """A small network with dropout, in training mode, as modules are when they are made."""
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))


def example() -> Any:
    import torch

    return torch.linspace(-1, 1, 8).reshape(2, 4)


def agrees(graph: Any, module: Any) -> None:
    import torch

    x = example()
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    (name,) = [value.hint for value in graph.inputs]
    (found,) = interpret(graph, {name: x.numpy()}).values()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@needs_torch
@pytest.mark.torch
def test_a_module_is_read_for_inference_and_its_mode_is_restored() -> None:
    module = network()
    graph = load(module, example_inputs=(example(),))
    assert module.training
    assert types(graph) == ["f32[2, 3]"]
    agrees(graph, module)


@needs_torch
@pytest.mark.torch
def test_dynamic_shapes_of_a_module_become_symbols() -> None:
    import torch

    graph = load(network(), example_inputs=(example(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert types(graph) == ["f32[batch, 3]"]


@needs_torch
@pytest.mark.torch
def test_an_exported_program_and_its_file_are_read(tmp_path: Path) -> None:
    import torch

    module = network().eval()
    program = torch.export.export(module, (example(),))
    path = tmp_path / "program.pt2"
    torch.export.save(program, path)
    agrees(load(program), module)
    agrees(load(path), module)


@needs_torch
@pytest.mark.torch
def test_nodes_know_the_module_they_stem_from() -> None:
    graph = load(network(), example_inputs=(example(),))
    scopes = {node.loc.scope for node in graph if not node.op.is_return and node.op.name != "Const"}
    assert {"0", "1", "3"} <= scopes


@needs_torch
@pytest.mark.torch
def test_a_module_without_example_inputs_is_refused() -> None:
    with pytest.raises(UsageError, match="example inputs"):
        load(network())


@needs_torch
@pytest.mark.torch
def test_a_module_that_torch_cannot_export_is_refused_with_the_reason() -> None:
    import torch

    class Branching(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    with pytest.raises(FrontendError, match="torch can't export Branching") as caught:
        load(Branching(), example_inputs=(example(),))
    assert "torch.export" in caught.value.remedy


@needs_torch
@pytest.mark.torch
def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    path.write_bytes(b"no archive")
    with pytest.raises(FrontendError, match="no exported PyTorch program"):
        load(path)
    with pytest.raises(FrontendError, match="doesn't exist"):
        load(tmp_path / "none.pt2")


@pytest.mark.parametrize("missing", ["torch", "onnxscript"])
def test_without_torch_the_command_to_install_it_is_told(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.partition(".")[0] == missing:
            raise ImportError(f"No module named {name!r}", name=name)
        return genuine(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="needs") as caught:
        from_torch(Path("program.pt2"))
    assert "pip install 'planish[torch]'" in caught.value.remedy
