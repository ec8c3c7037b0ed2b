"""Ways to break the kernels, one place a time: exact text of csrc/kernels/cuda, and what replaces it."""

from . import common, components, entropy, loss, select
from .mutant import Mutant

MUTANTS: list[Mutant] = [*common.MUTANTS, *entropy.MUTANTS, *select.MUTANTS, *loss.MUTANTS, *components.MUTANTS]
