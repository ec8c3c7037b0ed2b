"""A method of one's own, whole in one file: patches are masked like the squares of a chessboard.

Put into train/methods/, this file makes `python -m train fit --method chessboard` work; nothing else has to be edited.
As a script, `python -m examples.own_method` in the checkout, it trains the method on a small phantom.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

import entmask_ext
from train.methods import METHODS, Method
from train.parts import Given, Strategy, View
from train.parts.gate import pseudo_labels


@dataclass(frozen=True, kw_only=True)
class Chessboard(Strategy):
    #: Side of a square in pixels.
    patch_size: int

    def check(self, size: tuple[int, int], labelled: int, unlabelled: int, processes: int) -> None:
        if self.patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, got {self.patch_size}")

    def views(self, given: Given, t: float) -> list[View]:
        images = given.images
        rows, columns = (torch.arange(-(-n // self.patch_size), device=images.device) for n in images.shape[2:])
        first = torch.randint(2, (len(images), 1, 1), device=images.device)  # an image starts with black or with white
        black = ((rows[:, None] + columns + first) % 2).float()
        masked = entmask_ext.patch_mask_from_scores(images, black, self.patch_size, min_score=1.0)
        return [View(masked.image, pseudo_labels(given.logits), masked.patches, self.patch_size)]


METHODS.add(
    "chessboard",
    Method(
        "every other patch",
        "patch (i, j) is masked where i + j is odd, or where it is even",
        lambda recipe: Chessboard(patch_size=recipe.patch_size),
    ),
)


def main() -> None:
    from train.data.phantom import ensure_phantom
    from train.run.fit import fit
    from train.run.recipes import configure

    with tempfile.TemporaryDirectory() as folder:
        root = ensure_phantom(Path(folder) / "phantom", patients=2, val_patients=1, test_patients=1)
        settings = {"labelled": 1, "size": (32, 32), "iterations": 8, "consistency_from": 4}
        fit(configure("chessboard", root=root, output=Path(folder) / "run", **settings))


if __name__ == "__main__":
    main()
