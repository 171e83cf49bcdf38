"""From a float graph to integers: demands are collected from the outputs backwards, then met from the inputs forwards.

Each reader says in which form it wants a value; each value is then built in the forms that are wanted, and in no other.
What no conversion takes stays in floating point, between a Dequantize and a Quantize.
"""

from __future__ import annotations

from collections.abc import Mapping

from planish.ir import fixedpoint, ops
from planish.ir.data import Data
from planish.ir.graph import Graph, Node, Value
from planish.ir.loc import Loc
from planish.ir.op import Const, Op
from planish.passes.integer.conversion import Conversion, coded
from planish.passes.integer.forms import FLOAT, SUM, Form, Spec
from planish.passes.integer.plan import Plan, is_real, key_of

BY = "integerize"
_METADATA = (ops.Shape, ops.Size)  # they read a value, but none of its numbers


class Driver:
    """One rewrite of one graph. `islands` lists, after `run`, what stayed in floating point and why."""

    def __init__(self, graph: Graph, plan: Plan, conversions: Mapping[type[Op], Conversion], kept: frozenset[str]):
        self.graph, self.plan, self.kept = graph, plan, kept
        self.islands: list[tuple[Node, str]] = []
        self.converted = self.widened = 0
        self.sums: list[tuple[Node, Value]] = []
        self._conversions = conversions
        self._chosen: dict[Node, Conversion] = {}
        self._reasons: dict[Node, str] = {}
        self._demands: dict[Value, dict[Form, None]] = {}
        self._built: dict[tuple[Value, Form], Value] = {}
        self._measured: set[Value] = set()

    def run(self) -> None:
        """Rewrite the graph in place."""
        nodes = list(self.graph)
        for node in nodes:
            self._choose(node)
        for node in reversed(nodes):
            self._collect(node)
        self.islands.reverse()
        for value in self.graph.inputs:
            self._meet(value, nodes[0])
        for node in nodes:
            self._convert(node)
        self.graph.erase_dead()

    # choosing

    def _choose(self, node: Node) -> None:
        if isinstance(node.op, (Const, ops.Return, *_METADATA)) or not any(map(is_real, [*node.inputs, *node.results])):
            return
        conversion = self._conversions.get(type(node.op))
        if key_of(node) in self.kept:
            reason = "it was asked to stay in floating point"
        elif conversion is None:
            reason = f"{_name(node)} has no integer form"
        elif not conversion.heavy and self._reads_only_islands(node):
            reason = "what it reads is in floating point"
        else:
            reason = conversion.refuses(node, self.plan)
        if reason or conversion is None:
            self._reasons[node] = reason
        else:
            self._chosen[node] = conversion

    def _reads_only_islands(self, node: Node) -> bool:
        """True if every real operand is the result of a node that stays in floating point."""
        real = [v for v in node.inputs if is_real(v) and not isinstance(v.op, Const)]
        return bool(real) and all(v.node is not None and v.node not in self._chosen for v in real)

    # demands

    def _collect(self, node: Node) -> None:
        if isinstance(node.op, Const):
            return
        if isinstance(node.op, _METADATA):
            self._measured.update(v for v in node.inputs if is_real(v))
            return
        conversion = self._chosen.get(node)
        if conversion is None:
            self._collect_float(node)
            return
        forms: dict[Form, None] = {}
        for value in node.results:
            if value in self._measured and not self._demands.get(value):
                self._demand(value, SUM)
            forms.update(self._demands.get(value, {}))
        if not any(map(is_real, node.results)):
            forms[SUM] = None
        if forms:
            for index, form in conversion.wants(node, self._specs(forms), self.plan):
                self._demand(node.operands[index], form)
            for value, form in conversion.also_wants(node, self.plan):
                self._demand(value, form)

    def _collect_float(self, node: Node) -> None:
        """An island demands real numbers, if it is needed at all."""
        needed = any(self._demands.get(v) if is_real(v) else v.uses for v in node.results) or not node.results
        if not needed and not any(v in self._measured for v in node.results):
            return
        if (reason := self._reasons.get(node)) is not None:
            self.islands.append((node, reason))
        for value in filter(is_real, node.inputs):
            self._demand(value, FLOAT)

    def _demand(self, value: Value | None, form: Form) -> None:
        if value is None or not is_real(value):
            return
        forms = self._demands.setdefault(value, {})
        forms[form] = None
        if form is FLOAT and not self._is_float(value):
            forms[SUM] = None
        if SUM in forms and not self._accumulates(value):
            forms[self.plan.stream(value)] = None

    @staticmethod
    def _specs(forms: dict[Form, None]) -> list[Spec]:
        """The forms that a conversion has to build itself."""
        specs = [form for form in forms if isinstance(form, Spec)]
        return sorted(specs, key=lambda spec: -spec.dtype.bits)

    def _accumulates(self, value: Value) -> bool:
        conversion = self._chosen.get(value.node) if value.node is not None else None
        return conversion is not None and conversion.accumulates(value.node)  # type: ignore[arg-type]

    def _is_float(self, value: Value) -> bool:
        """True if the value itself stays in floating point: an input, a constant, or the result of an island."""
        return value.node is None or isinstance(value.op, Const) or value.node not in self._chosen

    # building

    def _convert(self, node: Node) -> None:
        conversion = self._chosen.get(node)
        if conversion is None:
            self._rewire(node)
            for value in filter(is_real, node.results):
                self._meet(value, node.next)
            return
        if not any(map(is_real, node.results)):
            for old, new in zip(node.results, self._build(node, conversion, SUM), strict=True):
                self.graph.replace(old, new)
            return
        if conversion.accumulates(node):
            self._from_sum(node, conversion)
        else:
            self._from_widest(node, conversion)
        self.converted += 1
        self.widened += isinstance(node.op, ops.Linear | ops.ShiftLinear) and self.plan.is_wide(node)

    def _from_sum(self, node: Node, conversion: Conversion) -> None:
        if not any(self._demands.get(value) for value in node.results):
            return
        for value, total in zip(node.results, self._build(node, conversion, SUM), strict=True):
            self._built[value, SUM] = total
            if isinstance(node.op, ops.Linear | ops.Conv | ops.MatMul | ops.ShiftLinear | ops.ShiftConv):
                self.sums.append((node, total))
            for form in self._demands.get(value, {}):
                if isinstance(form, Spec):
                    self._keep(node, value, form, coded(total, form))
                elif form is FLOAT:
                    self._keep(node, value, form, ops.Dequantize()(total))

    def _from_widest(self, node: Node, conversion: Conversion) -> None:
        specs = self._specs({f: None for v in node.results for f in self._demands.get(v, {})})
        widest: dict[Value, Value] = {}
        for spec in specs:
            wanted = [v for v in node.results if spec in self._demands.get(v, {})]
            if conversion.each or spec.evened or not all(v in widest for v in wanted):
                results = self._build(node, conversion, spec)
            else:
                results = [coded(widest[v], spec) if v in widest else v for v in node.results]
            for value, result in zip(node.results, results, strict=True):
                if value in wanted:
                    self._keep(node, value, spec, result)
                    if not spec.evened:
                        widest.setdefault(value, self._built[value, spec])
        for value in node.results:
            for form in self._demands.get(value, {}):
                if form is SUM:
                    self._built[value, SUM] = widest[value]
                elif form is FLOAT:
                    self._keep(node, value, form, ops.Dequantize()(widest[value]))

    def _build(self, node: Node, conversion: Conversion, form: Form) -> list[Value]:
        def operand(which: int | Value, want: Form) -> Value:
            return self._get(node.operands[which] if isinstance(which, int) else which, want)

        built = conversion.build(node, form, operand, self.plan)
        results = list(built) if isinstance(built, tuple) else [built]
        for result, value in zip(results, node.results, strict=True):
            if result.node is not None and result.node.graph is None:
                self.graph.attach(result, node, self._loc(node))
                result.hint = result.hint or value.hint
        return results

    def _keep(self, node: Node, value: Value, form: Form, result: Value) -> None:
        if result.node is not None and result.node.graph is None:
            self.graph.attach(result, node, self._loc(node))
            result.hint = result.hint or value.hint
        self._built[value, form] = result

    def _meet(self, value: Value, before: Node | None) -> None:
        """Make the forms of a value that is float itself: quantize it, or, if constant, its contents."""
        for form in self._demands.get(value, {}):
            if form is FLOAT:
                self._built[value, FLOAT] = value
            elif isinstance(form, Spec):
                made = self._constant(value, form) or ops.Quantize(form.scale, form.zero, form.dtype)(value)
                loc = value.node.loc if value.node is not None else Loc((value.hint,))
                self.graph.attach(made, before, loc.made_by(BY))
                made.hint = made.hint or value.hint
                self._built[value, form] = made
        if SUM in self._demands.get(value, {}):
            self._built[value, SUM] = self._built[value, self.plan.stream(value)]

    def _constant(self, value: Value, spec: Spec) -> Value | None:
        op = value.op
        if not isinstance(op, Const):
            return None
        codes = fixedpoint.quantized(op.data.numpy(), spec.dtype, spec.scale, spec.zero)
        return Node(Const(Data(codes, spec.quant)), ()).result

    def _get(self, value: Value | None, form: Form) -> Value:
        assert value is not None
        return self._built[value, form]

    def _rewire(self, node: Node) -> None:
        """Let a node that stays read what its operands have become."""
        for index, value in enumerate(node.operands):
            if value is None or not is_real(value):
                continue
            if isinstance(node.op, _METADATA):
                new = next((v for (old, _), v in self._built.items() if old is value), value)
            else:
                new = self._built.get((value, FLOAT), value)
            if new is not value:
                self.graph.set_operand(node, index, new)

    def _loc(self, node: Node) -> Loc:
        return node.loc.made_by(BY)


def _name(node: Node) -> str:
    return node.op.op_type if isinstance(node.op, ops.Opaque) else node.op.name


def float_values(graph: Graph) -> list[Value]:
    """Real values of the graph that aren't constant."""
    values = [*graph.inputs, *(r for n in graph if not isinstance(n.op, Const) for r in n.results)]
    return [v for v in values if is_real(v)]
