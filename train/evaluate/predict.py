"""`python -m train predict`: a checkpoint and a raw NIfTI volume give a NIfTI of labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from train.data import nifti
from train.data.description import Description
from train.data.scaling import scale
from train.device import pick_device
from train.evaluate.pictures import class_names, draw_slices, save_figure
from train.evaluate.volumes import predict_volume
from train.files import check_writable, there
from train.run import checkpoint


@dataclass(frozen=True)
class Config:
    """Label a NIfTI volume of short-axis slices with a checkpoint.

    The intensities are scaled as the data set states that the network was trained on.
    """

    #: Checkpoint of `python -m train fit`: RUN/checkpoints/best.pt.
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    #: Volume (X, Y, Z) of finite real numbers, .nii.gz or .nii; the slices are its planes of constant Z.
    image: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    #: Where the labels go, on the image's grid and affine. None: beside the image, as <image>_labels.nii.gz.
    output: Path | None = None
    #: Picture (.png) of every slice with its labels.
    overlay: Path | None = None
    #: Which of the two networks; judged: the one that validation judged during training.
    network: Literal["judged", "student", "teacher"] = "judged"
    #: auto: cuda if there is one, else cpu; or any torch device.
    device: str = "auto"


def main(config: Config) -> None:
    output = config.output or config.image.with_name(f"{nifti.stem(config.image)}_labels.nii.gz")
    nifti.stem(output)
    if config.output is None and there(output):
        raise ValueError(f"output {output} exists already: name it by --output to replace it, or another file")
    if output.resolve() == config.image.resolve():
        raise ValueError(f"output {output} is the image itself")
    if config.overlay is not None and config.overlay.suffix != ".png":
        raise ValueError(f"overlay must end in .png, got {config.overlay}")
    for path in (output, config.overlay):
        if path is not None:
            check_writable(path.parent)
    volume = nifti.read(config.image)
    device = pick_device(config.device)
    state = checkpoint.load(config.checkpoint, (), device)
    network, fit = checkpoint.network_of(config.checkpoint, state, config.network, device)
    description = checkpoint.description_of(config.checkpoint, state)
    if description is None:
        description = Description()
        print(f"{config.checkpoint} does not say how its data were scaled: taken to be {description.scaling}")
    image = scale(volume.voxels, description.scaling, config.image)
    labels = predict_volume(network, image, fit.data.size, fit.autocast)
    nifti.save_labels(output, labels, volume)
    counts = np.bincount(labels.ravel(), minlength=fit.data.classes)
    print(f"{output}: " + ", ".join(f"class {c} {count} voxels" for c, count in enumerate(counts)))
    if config.overlay is not None:
        names = class_names(description.classes, fit.data.classes)
        save_figure(config.overlay, draw_slices(image, labels, names))
        print(f"picture: {config.overlay}")
