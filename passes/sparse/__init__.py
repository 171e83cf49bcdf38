"""Weights with zeros in structures that kernels can skip, and attention to some of the keys."""

from planish.passes.sparse.sparsify_attention import SparsifyAttention as SparsifyAttention
