"""What a core can do at most: its integer products and float multiply-adds, measured without touching memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import tvm
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from planish.backends.tvm import amx
from planish.backends.tvm.isa import Isa
from planish.backends.tvm.scope import Expr
from planish.ir import dtypes

_STEPS, _ROUNDS = 20_000, 15


def integer_peak(isa: Isa) -> float:
    """Operations per second of one core (a multiply-accumulate is two) with u8 by s8 products."""
    product = isa.product(dtypes.u8)

    def step(acc: Expr, row: Expr, panel: Expr) -> Expr:
        word = product.word(row, 0)
        return product(acc, word, panel[T.Ramp(0, 1, isa.lanes * product.group)], isa.lanes)

    return _measured(isa, "int32", product.dtype, "int8", step) * product.group


def float_peak(isa: Isa) -> float | None:
    """The same with fused multiply-adds in float32; None where the instruction set has none."""
    if "fma" not in isa.features:
        return None

    def step(acc: Expr, row: Expr, panel: Expr) -> Expr:
        every, kind = T.Ramp(0, 1, isa.lanes), f"float32x{isa.lanes}"
        return T.call_llvm_pure_intrin(kind, T.llvm_lookup_intrinsic_id("llvm.fma"), row[every], panel[every], acc)

    return _measured(isa, "float32", "float32", "float32", step)


def tile_peak(isa: Isa) -> float | None:
    """The same with u8 by s8 products in tile registers; None where there are none."""
    if not isa.tiles:
        return None
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        shapes = T.arg("shapes", T.Buffer((64,), "uint8"))
        with T.parallel(0, 1):
            amx.do("ldtilecfg", T.address_of(shapes[0]))
            for register in range(8):
                amx.do("tilezero", T.int8(register))
            with T.serial(0, _STEPS):
                for register in range(4):
                    amx.do("tdpbusd", T.int8(register), T.int8(4 + register // 2), T.int8(6 + register % 2))
            amx.do("tilerelease")
    seconds = _seconds(builder.get(), isa, [amx.tile_shapes()])
    return 2.0 * amx.ROWS * amx.ROWS * amx.DEPTH * 4 * _STEPS / seconds


def _measured(isa: Isa, total: str, row: str, panel: str, step: Callable[[Expr, Expr, Expr], Expr]) -> float:
    """Twice the lanes that `step` brings forward per second, with as many sums under way as registers allow."""
    lanes, count = isa.lanes, isa.registers - 6
    every = T.Ramp(0, 1, lanes)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        rows, panels = T.arg("rows", T.Buffer((256,), row)), T.arg("panels", T.Buffer((256,), panel))
        out = T.arg("out", T.Buffer((count * lanes,), total))
        with T.parallel(0, 1):
            sums = [T.alloc_buffer((lanes,), total, scope="global") for _ in range(count)]
            for acc in sums:
                T.buffer_store(acc, T.Broadcast(T.Cast(total, 0), lanes), [every])
            with T.serial(0, _STEPS):
                for acc in sums:
                    T.buffer_store(acc, step(acc[every], rows, panels), [every])
            for i, acc in enumerate(sums):
                T.buffer_store(out, acc[every], [T.Ramp(i * lanes, 1, lanes)])
    arrays = [np.ones(256, row), np.ones(256, panel), np.zeros(count * lanes, total)]
    return 2.0 * lanes * count * _STEPS / _seconds(builder.get(), isa, arrays)


def _seconds(function: Expr, isa: Isa, arrays: list[np.ndarray]) -> float:
    """The median time of a function on arrays."""
    with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True}):
        main = tvm.compile(tvm.IRModule({"main": function}), target=tvm.target.Target(isa.target()))["main"]
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        main(*tensors)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
