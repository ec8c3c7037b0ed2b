"""The bounds: training on labels alone, those of the labelled patients or everybody's."""

from train.methods import METHODS, Method

METHODS.add(
    "supervised",
    Method("labelled slices only: the lower bound", "L = ce_weight CE + dice_weight Dice"),
)
METHODS.add(
    "supervised-all",
    Method("every training patient labelled: the upper bound", "L = ce_weight CE + dice_weight Dice", all_labels=True),
)
