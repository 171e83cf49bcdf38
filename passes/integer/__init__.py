"""Integer-only rewriting (I-ViT and successors): from a float graph and samples to a graph of integers."""

from planish.passes.integer.integer_boundary import IntegerBoundary as IntegerBoundary
from planish.passes.integer.integerize import Integerize as Integerize
from planish.passes.integer.quantize_products import QuantizeProducts as QuantizeProducts
from planish.passes.integer.split_projections import SplitProjections as SplitProjections
