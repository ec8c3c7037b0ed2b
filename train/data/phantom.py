"""The phantom as a data set: written whole, in the h5 layout, where somebody asks for it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from train.data.anatomy import draw_patient
from train.data.description import Description, write_description
from train.data.layout import slice_path, volume_path, write_list, write_slice, write_volume
from train.data.scaling import MIN_MAX
from train.files import locked, parse_json, write_atomically

ROOT = Path("data/phantom")
VERSION = 1  # raised when the same settings draw other images
DESCRIPTION = Description(MIN_MAX, ("background", "right ventricle", "myocardium", "left ventricle"))
MARKER = "phantom.json"  # written last: a folder that has it is whole


@dataclass(frozen=True)
class Config:
    """Write the embedded phantom data set in the ACDC h5 layout."""

    #: Folder to write; a folder that already holds this phantom is left as it is.
    root: Path = ROOT
    #: Training patients.
    patients: int = 16
    #: Validation patients.
    val_patients: int = 4
    #: Test patients.
    test_patients: int = 4
    #: Seed of anatomy, contrast and noise.
    seed: int = 0


def main(config: Config) -> None:
    root = ensure_phantom(config.root, config.patients, config.val_patients, config.test_patients, config.seed)
    print(f"phantom: {root}")


def ensure_phantom(
    root: Path, patients: int = 16, val_patients: int = 4, test_patients: int = 4, seed: int = 0
) -> Path:
    """Writes the data set once, whole or not at all, also when several processes ask at the same time; returns root.

    Raises:
        ValueError: a count is below 1, or root is a folder with something else or with a phantom of other settings.
        OSError: root cannot be written.
    """
    counts = {"train": patients, "val": val_patients, "test": test_patients}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} patients must be at least 1, got {count}")
    settings = {"version": VERSION, **counts, "seed": seed}
    with locked(root.parent / f".{root.name}.lock"):
        if not (root.exists() and any(root.iterdir())):
            part = root.parent / f".{root.name}.part"
            shutil.rmtree(part, ignore_errors=True)
            write_phantom(part, counts, seed)
            write_atomically(part / MARKER, json.dumps(settings).encode())
            part.replace(root)
    check_phantom(root, settings)
    return root


def check_phantom(root: Path, settings: dict[str, int]) -> None:
    try:
        found = parse_json((root / MARKER).read_bytes())
    except (OSError, ValueError):
        raise ValueError(f"{root} is not empty and not a phantom: name another folder, or remove it") from None
    if found != settings:
        raise ValueError(f"{root} holds a phantom with {found}, not {settings}: name another folder, or remove it")


def write_phantom(root: Path, counts: dict[str, int], seed: int) -> None:
    write_description(root, DESCRIPTION)
    number = 0
    for split, count in counts.items():
        names: list[str] = []
        slices: list[str] = []
        for _ in range(count):
            number += 1
            for phase, (image, label, spacing) in enumerate(draw_patient(seed, number), 1):
                names.append(f"patient{number:03d}_frame{phase:02d}")
                if split != "train":
                    write_volume(volume_path(root, names[-1]), image, label, spacing)
                    continue
                for k in range(len(image)):
                    slices.append(f"{names[-1]}_slice_{k + 1}")
                    write_slice(slice_path(root, slices[-1]), image[k], label[k])
        write_list(root / f"{split}.list", names)
        if slices:
            write_list(root / "train_slices.list", slices)
