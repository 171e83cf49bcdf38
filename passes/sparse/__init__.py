"""Weights with zeros in structures that kernels can skip."""

from planish.passes.sparse.detect_sparsity import DetectSparsity as DetectSparsity
from planish.passes.sparse.prune import Prune as Prune
