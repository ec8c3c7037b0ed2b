"""The strategy that most methods are a preset of: strong view, mix, gate and mask, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field

from typing_extensions import Self

from train.data.batches import Batch
from train.parts import Given, Strategy, View
from train.parts.masking import Masking
from train.parts.mixing import Mixing
from train.parts.strong_view import StrongView


@dataclass(frozen=True, kw_only=True)
class Composed(Strategy):
    strong_view: StrongView = field(default_factory=StrongView)
    mixing: Mixing = field(default_factory=Mixing)
    #: Probability of its class from which the teacher's label of a pixel is believed; None: every label is.
    min_confidence: float | None = None
    masking: Masking

    @classmethod
    def of(cls, masking: Masking) -> Self:
        return cls(masking=masking)

    @property
    def by_rank(self) -> bool:
        return self.masking.mask in ("topr", "lowr")

    @property
    def remedy(self) -> str:
        if self.masking.mask in ("count", "pixel"):
            return "lower --threshold or ramp it (--threshold 0.75 0.6), set --min-patches, or take --mask topr"
        return super().remedy

    def at(self, t: float) -> dict[str, float]:
        return self.mixing.at(t) | self.masking.at(t)

    def check(self, size: tuple[int, int], batch: int, processes: int) -> None:
        self.strong_view.check()
        self.mixing.check(batch, processes)
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence must be in [0, 1], got {self.min_confidence}")
        self.masking.check(size, batch, processes)

    def views(self, given: Given, t: float) -> list[View]:
        images, labelled = self.strong_view(given.images), given.labelled
        if self.mixing.mix_with == "labelled" and self.mixing.mix != "none":
            labelled = Batch(self.strong_view(labelled.images), labelled.labels)
        images, logits, mixed = self.mixing(images, given.logits, labelled, self.masking.patch_size, t)
        return [self.masking(images, logits, self.min_confidence, t)._replace(mixed=mixed)]
