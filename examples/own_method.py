"""A method of one's own, whole in one file: patches are masked like the squares of a chessboard.

Put into train/methods/, this file makes `python -m train fit --method chessboard` work; nothing else has to be edited.
As a script, `python -m examples.own_method` in the checkout, it trains the method on a small phantom.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

import entmask_ext
from train.methods import METHODS, Method, Strategy, View, pseudo_labels


@dataclass(frozen=True)
class Chessboard(Strategy):
    def view(self, images: Tensor, logits: Tensor, settings: SimpleNamespace, ratio: float, threshold: float) -> View:
        size = settings.patch_size
        rows, columns = (torch.arange(-(-n // size), device=images.device) for n in images.shape[2:])
        colour = torch.randint(2, (len(images), 1, 1), device=images.device)  # an image starts with black or with white
        black = ((rows[:, None] + columns + colour) % 2).float()
        masked = entmask_ext.patch_mask_from_scores(images, black, size, min_score=1.0)
        return View(masked.image, pseudo_labels(logits), masked.patches, size)


METHODS.add(
    "chessboard", Method("every other patch", "patch (i, j) is masked where i + j is odd, or even", Chessboard())
)


def main() -> None:
    from train.data.phantom import ensure_phantom
    from train.run.config import DataConfig, FitConfig, ScheduleConfig
    from train.run.fit import fit

    with tempfile.TemporaryDirectory() as folder:
        data = DataConfig(ensure_phantom(Path(folder) / "phantom", 2, 1, 1), labelled=1, size=(32, 32))
        schedule = ScheduleConfig(iterations=8, consistency_from=4)
        fit(FitConfig(method="chessboard", output=Path(folder) / "run", data=data, schedule=schedule))


if __name__ == "__main__":
    main()
