"""Energy of one inference under a named model of a chip: as fp32, as int8, and as shifts and additions, side by side.

An estimate for chips that have a unit for each kind of operation; no CPU or GPU saves energy by shifting. Products are
counted (linear layers, convolutions, matrices), and what they read and write; everything else is left out in all forms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from planish.ir.graph import Graph
from planish.passes.shiftadd.energy_model import HOROWITZ_45NM, EnergyModel
from planish.tools.product_layers import ProductLayer, product_layers, skipped_ops

Form = Literal["fp32", "int8", "shift-add"]
FORMS: tuple[Form, ...] = ("fp32", "int8", "shift-add")
_PUBLISHED_BITS = 10  # (16 + 5) / 2, at which ShiftAddViT charges all traffic of a shift layer


@dataclass(frozen=True)
class Energy:
    """pJ: of operations alone, with traffic, and as ShiftAddViT counts (None: it has no such form)."""

    operations: float
    total: float
    published: float | None

    def plus(self, other: Energy) -> Energy:
        known = self.published is not None and other.published is not None
        return Energy(
            self.operations + other.operations,
            self.total + other.total,
            (self.published or 0.0) + (other.published or 0.0) if known else None,
        )


@dataclass(frozen=True)
class LayerEnergy:
    """A layer, and its energy in each form."""

    layer: ProductLayer
    forms: Mapping[Form, Energy]


@dataclass(frozen=True)
class EnergyReport:
    """Energy by layer and in total, and all that was assumed. skipped: ops that aren't counted though they multiply."""

    model: EnergyModel
    layers: tuple[LayerEnergy, ...]
    assumptions: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    @property
    def totals(self) -> Mapping[Form, Energy]:
        """The sum over all layers, by form."""
        found = {form: Energy(0.0, 0.0, None if form == "int8" else 0.0) for form in FORMS}
        for row in self.layers:
            found = {form: found[form].plus(row.forms[form]) for form in FORMS}
        return found

    @property
    def weight_bits(self) -> float:
        """Bits of an integer weight, on average over all that are constant."""
        layers = [row.layer for row in self.layers]
        return sum(x.bits * x.weights for x in layers) / max(sum(x.weights for x in layers), 1)

    def to_dict(self) -> dict[str, Any]:
        totals = {form: asdict(energy) for form, energy in self.totals.items()}
        return {**asdict(self), "totals": totals, "weight_bits": self.weight_bits, "unit": "pJ"}


def energy_of(
    graph: Graph, binding: Mapping[str, int] | None = None, model: EnergyModel = HOROWITZ_45NM
) -> EnergyReport:
    """Energy of one inference of a graph of real numbers or of integers.

    binding: extents of symbolic dimensions; others count as 1.
    """
    layers = tuple(
        LayerEnergy(layer, {form: _energy(layer, form, model) for form in FORMS})
        for layer in product_layers(graph, binding)
    )
    return EnergyReport(model, layers, _assumptions(model), skipped_ops(graph))


def _energy(layer: ProductLayer, form: Form, model: EnergyModel) -> Energy:
    multiply_add = model.fp32_multiply + model.fp32_add
    if form == "fp32":
        wide = _traffic(layer, 32, 32, model)
        operations = layer.macs * multiply_add
        return Energy(operations, operations + wide, layer.macs * model.fp32_multiply + wide)
    if form == "int8":
        operations = layer.macs * (model.int8_multiply + model.int32_add)
        return Energy(operations, operations + _traffic(layer, 8, 8, model), None)
    step = model.int32_add + (0.0 if layer.ternary else model.int8_shift)
    operations = layer.macs * layer.digits * step
    return Energy(operations, operations + _traffic(layer, layer.bits, 8, model), _published(layer, model))


def _traffic(layer: ProductLayer, weight_bits: float, data_bits: float, model: EnergyModel) -> float:
    """Weights, with a scale per channel where they are integers, once from memory; data through the buffer; registers.

    A bias of 32 bits per channel comes with the weights. Both operands of each product are read from registers.
    """
    weights = 0.0
    if layer.weights:
        weights = layer.weights * weight_bits / 8 + layer.channels * (4 if weight_bits == 32 else 8)
    data = (layer.inputs + layer.outputs) * data_bits / 8
    operand = weight_bits if layer.weights else data_bits
    registers = layer.macs * (operand + data_bits) / 8
    return model.memory * weights + model.buffer * (weights + data) + model.register * registers


def _published(layer: ProductLayer, model: EnergyModel) -> float:
    """ShiftAddViT's own count: a shift per weight, without its addition; products of data as additions."""
    if layer.weights:
        return layer.macs * model.int32_shift + _traffic(layer, _PUBLISHED_BITS, _PUBLISHED_BITS, model)
    return layer.macs * (model.fp32_add + 8 * model.register) + layer.outputs * 4 * model.buffer


def _assumptions(model: EnergyModel) -> tuple[str, ...]:
    multiply_add = model.fp32_multiply + model.fp32_add
    return (
        f"model: {model.name}; one inference, symbolic extents that aren't bound count as 1",
        f"A, operations: fp32 {multiply_add:g} pJ per product and addition; int8 {model.int8_multiply:g}"
        f" + {model.int32_add:g} pJ with sums of 32 bits",
        f"A, shift-add: {model.int8_shift:g} + {model.int32_add:g} pJ per signed digit of each weight, nothing for a"
        f" weight of 0; {model.int32_add:g} pJ where all weights are -1, 0 or 1",
        "digits: of the constants themselves; real weights are first rounded to 8 bits per channel; where both operands"
        " are data, the mean over all codes of the second one",
        f"B, with traffic: weights once from memory at {model.memory:g} pJ per byte, with 32 bits of bias and, as"
        " integers, 32 bits of scale per channel; no weight is kept on the chip",
        f"B: weights, inputs and outputs once through the buffer at {model.buffer:g} pJ per byte; both operands of each"
        f" product from registers at {model.register:g} pJ per byte; sums stay where they are",
        "B: 32 bits per number for fp32, 8 bits for integer data, weights in 8 bits or those of their codebook",
        f"C, as ShiftAddViT counts: fp32 {model.fp32_multiply:g} pJ without its addition; a weight is one shift of"
        f" {model.int32_shift:g} pJ without its addition, however many digits it has; all traffic of such a layer at"
        f" {_PUBLISHED_BITS} bits",
        f"C: products of data are additions of {model.fp32_add:g} pJ, whose inputs cost nothing but registers; there is"
        " no int8 form. C flatters shifts: compare by A and B",
        "left out in all forms: norms, softmax, activations, additions of tensors, requantization, control",
    )
