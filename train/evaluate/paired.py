"""Groups of runs compared patient by patient, with an interval."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

from scipy import stats

from train.data.layout import patient_of
from train.evaluate.runs import LAST, Group, Run

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Paired:
    """Dice of a group minus Dice of the reference, by patient."""

    group: Group
    reference: Group
    seeds: list[int]  # that both have
    differences: dict[str, float]

    @property
    def mean(self) -> float:
        return fmean(self.differences.values())

    @property
    def interval(self) -> tuple[float, float]:
        """Where the mean difference of all such patients lies, with 95 % confidence, for these trained networks.

            mean -+ t s / sqrt(n), t = the 97.5th percentile of Student's t with n - 1 degrees of freedom

        and s the standard deviation of the n patients' differences. A bootstrap over few patients is too narrow; how
        often both hold the true mean in simulated samples is in docs/training.md.
        """
        values = list(self.differences.values())
        t = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
        half = t * stdev(values) / sqrt(len(values))
        return self.mean - half, self.mean + half


def find(groups: Sequence[Group], against: str) -> Group:
    """The group of this name, or of this method, or with this run folder.

    Raises:
        ValueError: none or several are, or it has not ended or has too few validations.
    """
    folder = Path(against).resolve()
    found = (
        [each for each in groups if each.name == against]
        or [each for each in groups if each.method == against and not each.unfinished]
        or [each for each in groups if each.method == against]
        or [each for each in groups if any(run.folder.path.resolve() == folder for run in each.runs)]
    )
    if len(found) != 1:
        some = found or groups
        raise ValueError(
            f"against must name one group by its method or by a folder of its runs; {against!r} names "
            f"{len(found) or 'none'} of: {'; '.join(each.name for each in some)}"
        )
    reason = incomparable(found[0])
    if reason:
        raise ValueError(f"against: nothing can be compared with {found[0].name}: {reason}")
    return found[0]


def incomparable(group: Group) -> str | None:
    if group.unfinished:
        return "it has not ended"
    short = [run for run in group.runs if not run.last_validations()]
    return f"{short[0].folder} has fewer than {LAST} validations" if short else None


def compare(group: Group, reference: Group) -> Paired | str:
    """Or why they cannot be compared.

    Raises:
        ValueError: there is one patient.
    """
    reason = incomparable(group)
    mine, its = ({run.config.seed: run for run in each.runs} for each in (group, reference))
    seeds = sorted(set(mine) & set(its))
    if reason or not seeds:
        return reason or f"it has no seed that {reference.name} has"
    dice, others = ([by_patient(runs[seed]) for seed in seeds] for runs in (mine, its))
    if len(dice[0]) < 2:
        raise ValueError(f"against: there must be two validation patients or more, got {', '.join(dice[0])} alone")
    differences = {
        patient: fmean(one[patient] - other[patient] for one, other in zip(dice, others, strict=True))
        for patient in sorted(dice[0])
    }
    return Paired(group, reference, seeds, differences)


def by_patient(run: Run) -> dict[str, float]:
    """Mean Dice of a patient's volumes over the last validations."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in run.last_validations():
        for name, dice in run.cases(row).items():
            values[patient_of(name)].append(dice)
    return {patient: fmean(dice) for patient, dice in values.items()}
