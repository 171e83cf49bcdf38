"""All converters, by domain and op type. An op without one is carried as Opaque."""

from __future__ import annotations

from planish.frontend import (
    convert_attention,
    convert_contrib,
    convert_einsum,
    convert_elementwise,
    convert_linalg,
    convert_norm,
    convert_pool,
    convert_reduce,
    convert_shape,
)
from planish.frontend.call import Converter

CONVERTERS: dict[tuple[str, str], Converter] = {
    **convert_elementwise.CONVERTERS,
    **convert_reduce.CONVERTERS,
    **convert_norm.CONVERTERS,
    **convert_linalg.CONVERTERS,
    **convert_pool.CONVERTERS,
    **convert_attention.CONVERTERS,
    **convert_contrib.CONVERTERS,
    **convert_einsum.CONVERTERS,
    **convert_shape.CONVERTERS,
}
