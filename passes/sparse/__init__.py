"""Zeros of weights that kernels can skip, fewer neurons and heads, and attention to some of the keys."""

from planish.passes.sparse.armor_prune import ArmorPrune as ArmorPrune
from planish.passes.sparse.detect_sparsity import DetectSparsity as DetectSparsity
from planish.passes.sparse.drop_zero_channels import DropZeroChannels as DropZeroChannels
from planish.passes.sparse.prune import Prune as Prune
from planish.passes.sparse.prune_units import PruneUnits as PruneUnits
from planish.passes.sparse.skip_inactive import SkipInactive as SkipInactive
from planish.passes.sparse.sparsify_attention import SparsifyAttention as SparsifyAttention
