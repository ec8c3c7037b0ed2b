"""Ways to break the kernels, one place a time: exact text of csrc/kernels/cuda, and what replaces it."""

from . import common, components, entropy, loss, select, soft_loss
from .mutant import Mutant

MUTANTS: list[Mutant] = [
    mutant for of in (common, entropy, select, loss, soft_loss, components) for mutant in of.MUTANTS
]
