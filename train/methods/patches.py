"""The settings that all methods with patches share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from typing_extensions import Self

from train.ramps import ramped


@dataclass(frozen=True, kw_only=True)
class PatchSettings:
    #: Side of a patch in pixels.
    patch_size: int
    #: Share of the patches that is masked (random and top-r methods); two numbers: ramped from one to the other.
    ratio: tuple[float, ...]
    #: Normalised entropy from which a pixel counts as unsure (entropy-pixel, entropy-count); two numbers: ramped.
    threshold: tuple[float, ...] = (0.75,)
    #: Fewest patches of an image that the threshold methods mask, so that their mask cannot vanish.
    min_patches: int = 0
    #: Share of the patches, the most uncertain of those selected, that stays visible.
    hint: float = 0.0
    #: Patches compete within their image, or over the whole batch.
    scope: Literal["image", "batch"] = "image"
    #: Random masks: one for the batch instead of one an image.
    shared: bool = False

    @classmethod
    def of(cls, settings: PatchSettings) -> Self:
        """A strategy with these settings."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(PatchSettings)})

    def at(self, t: float) -> dict[str, float]:
        return {"ratio": ramped(self.ratio, t), "threshold": ramped(self.threshold, t)}

    def check(self, size: tuple[int, int], batch: int, processes: int) -> None:
        if self.patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, got {self.patch_size}")
        for name, bounds in (("ratio", self.ratio), ("threshold", self.threshold)):
            if len(bounds) not in (1, 2) or not all(0 <= v <= 1 for v in bounds):
                raise ValueError(f"{name} must be one number or two in [0, 1], got {bounds}")
        if not 0 <= self.hint <= 1:
            raise ValueError(f"hint must be in [0, 1], got {self.hint}")
        if self.min_patches < 0:
            raise ValueError(f"min_patches must be at least 0, got {self.min_patches}")
