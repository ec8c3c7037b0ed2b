"""What a run is trained and validated on, in words and in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.data.description import read_description
from train.data.layout import enumerated, patient_of, read_list, shared_patients
from train.files import parse_json, there


def summarise(root: Path, labelled: Sequence[str], unlabelled: Sequence[str]) -> dict[str, Any]:
    """Patients and slices with and without labels, validation volumes, the scaling, and what is to be warned of."""
    return {
        "labelled_patients": list(dict.fromkeys(map(patient_of, labelled))),
        "labelled_slices": len(labelled),
        "unlabelled_patients": list(dict.fromkeys(map(patient_of, unlabelled))),
        "unlabelled_slices": len(unlabelled),
        "validation_volumes": read_list(root / "val.list"),
        "scaling": read_description(root).scaling,
        "warnings": shared_patients(root),
    }


def summary_lines(summary: dict[str, Any]) -> list[str]:
    parts = [
        f"{kind}: {len(summary[f'{kind}_patients'])} patients, {summary[f'{kind}_slices']} slices"
        for kind in ("labelled", "unlabelled")
        if summary[f"{kind}_slices"]
    ]
    parts.append(f"validation: {len(summary['validation_volumes'])} volumes")
    parts.append(f"intensities: {summary['scaling']}")
    return ["; ".join(parts), *(f"warning: {text}" for text in summary["warnings"])]


def read_summary(path: Path) -> dict[str, Any]:
    """What summarise gave, from a run's file; raises ValueError if it is damaged or a part is of another type."""
    names = ("labelled_patients", "unlabelled_patients", "validation_volumes")
    try:
        values = parse_json(path.read_bytes())
        whole = (
            all(isinstance(values[key], list) and all(isinstance(name, str) for name in values[key]) for key in names)
            and all(type(values[key]) is int for key in ("labelled_slices", "unlabelled_slices"))
            and isinstance(values["scaling"], str)
        )
    except (ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged: remove it, the next start writes it again")
    return dict(values)


def check_same_data(path: Path, summary: dict[str, Any]) -> None:
    """Raises ValueError if a run's file of this says that it was trained on other data, or is damaged."""
    if not there(path):
        return
    before = read_summary(path)
    changed = [key for key in summary if key != "warnings" and before[key] != summary[key]]
    if changed:
        key = changed[0]
        was, now = (
            f"{len(value)} ({enumerated(value)})" if isinstance(value, list) else value
            for value in (before[key], summary[key])
        )
        raise ValueError(
            f"{path} is of other data, {key} {was} -> {now}: give another --output, or the data as they were"
        )
