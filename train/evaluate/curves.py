"""The figure of `python -m train report`: how runs went, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from matplotlib.figure import Figure

from train.evaluate.pictures import new_figure
from train.evaluate.runs import Group

CURVES = {
    "dice_mean": "validation Dice",
    "pseudo_dice": "Dice of the pseudo-labels",
    "accepted": "share of pixels whose pseudo-label is accepted",
    "mixed": "share of pixels from a mixing partner",
    "masked": "share of patches masked",
    "foreground_masked": "share of the teacher's foreground that is masked",
    "above_threshold": "share of pixels above the threshold",
    "threshold": "threshold",
}


def draw(groups: Sequence[Group], patients: str) -> Figure:
    """Those of CURVES that a run logged over the steps; a colour per group. patients: whose Dice, in words.

    The validations of the best and the last checkpoint are marked, and so is a curve of a single point.
    """
    logged = [name for name in CURVES if any(run.curve(name)[0] for each in groups for run in each.runs)]
    columns, rows = min(2, len(logged)), ceil(len(logged) / 2)
    heights = (1.8, *[1.0] * (rows - 1))  # where many lines run close together, more
    picture = new_figure((11, 2.5 * sum(heights) + 0.15 * len(groups)))
    axes = picture.subplots(rows, columns, sharex=True, squeeze=False, height_ratios=heights)
    for name, axis in zip(logged, axes.flat, strict=False):
        for i, each in enumerate(groups):
            style = {"color": f"C{i % 10}", "ls": ("-", "--", ":")[i // 10 % 3], "lw": 1.2, "alpha": 0.85}
            for j, run in enumerate(each.runs):
                steps, values = run.curve(name) if name == "dice_mean" else run.binned(name)
                dot = "." if len(steps) == 1 else None
                axis.plot(steps, values, **style, marker=dot, label=each.name if j == 0 else None)
                if name == "dice_mean":
                    best, last = run.best_and_last()
                    at = dict(zip(steps, values, strict=True))
                    axis.plot(last["step"], at[last["step"]], "s", color=style["color"], mfc="white", ms=6)
                    axis.plot(best["step"], at[best["step"]], "o", color=style["color"], ms=5)
        axis.set_title(CURVES[name], fontsize=10)
        if name != "accepted":  # which is near 1 and tells by its last few per cent
            axis.set_ylim(0, 1.05 * axis.dataLim.y1 or 1)
        axis.grid(alpha=0.3)
    axes.flat[0].set_title(f"{CURVES['dice_mean']}, {patients}\n(dot: best checkpoint, square: last)", fontsize=10)
    for axis in axes.flat[len(logged) :]:
        axis.remove()
    for axis in axes.flat[max(0, len(logged) - columns) : len(logged)]:  # the lowest of each column
        axis.set_xlabel("step")
        axis.tick_params(labelbottom=True)
    picture.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=9)
    return picture
