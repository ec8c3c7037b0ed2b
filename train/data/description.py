"""What a data set states about itself, in data_set.json beside its lists.

    {"scaling": "min-max", "classes": ["background", "right ventricle", "myocardium", "left ventricle"]}

A root without the file is scaled by minimum and maximum, as ACDC is in the field, and names no classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.data.scaling import MIN_MAX, SCALINGS
from train.files import parse_json, reason, there, write_atomically


@dataclass(frozen=True)
class Description:
    #: How every volume's intensities are scaled, see train/data/scaling.py.
    scaling: str = MIN_MAX
    #: Names of the classes, background first; none: not stated.
    classes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """For json and for checkpoints."""
        return {"scaling": self.scaling, "classes": list(self.classes)}


def description_path(root: Path) -> Path:
    return root / "data_set.json"


def read_description(root: Path, num_classes: int | None = None) -> Description:
    """What the data set states; num_classes: how many classes it must have, where it names them.

    Raises:
        ValueError: the file is damaged or says something else than expected.
    """
    path = description_path(root)
    if not there(path):
        return Description()
    try:
        values = parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no JSON: {reason(error)}") from None
    description = from_plain(values, path)
    if num_classes is not None and description.classes and len(description.classes) != num_classes:
        raise ValueError(f"{path} names {len(description.classes)} classes, the run has {num_classes}: see --classes")
    return description


def write_description(root: Path, description: Description) -> None:
    write_atomically(description_path(root), (json.dumps(description.plain(), indent=2) + "\n").encode())


def from_plain(values: Any, where: object) -> Description:
    """The description from what plain() gave; `where` names its file in messages.

    Raises:
        ValueError: an unknown field or scaling, or classes that are not at least two different names.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold an object with 'scaling' and 'classes', got {values!r}")
    unknown = sorted(set(values) - {"scaling", "classes"})
    if unknown:
        raise ValueError(f"{where} may have the fields 'scaling' and 'classes', got '{unknown[0]}'")
    scaling, classes = values.get("scaling", MIN_MAX), values.get("classes", [])
    if not isinstance(scaling, str) or scaling not in SCALINGS:
        raise ValueError(f"{where}: 'scaling' must be one of {', '.join(SCALINGS)}, got {scaling!r}")
    names = isinstance(classes, list) and all(isinstance(name, str) and name for name in classes)
    if not names or len(set(classes)) != len(classes) or len(classes) == 1:
        raise ValueError(f"{where}: 'classes' must be different names, background first, got {classes!r}")
    return Description(scaling, tuple(classes))
