"""The strategy that most methods are a preset of: strong view, mix, mask and gate, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from typing_extensions import Self

import entmask_ext
from train.data.batches import Batch
from train.parts import Given, Strategy, View
from train.parts.gate import Gate, pseudo_labels
from train.parts.masking import Masking
from train.parts.mixing import Mixing
from train.parts.strong_view import StrongView


@dataclass(frozen=True, kw_only=True)
class Composed(Strategy):
    soft: ClassVar[bool] = True
    strong_view: StrongView = field(default_factory=StrongView)
    mixing: Mixing = field(default_factory=Mixing)
    masking: Masking
    gate: Gate = field(default_factory=Gate)
    #: Views of an unlabelled slice: one; two, each drawn for itself; or what the mask leaves and what it takes. The
    #: consistency loss is their mean.
    views_per_slice: Literal["one", "two", "complementary"] = "one"
    #: Probability that the student's encoder loses a channel, in one more view: of the slice as the teacher saw it. The
    #: consistency loss is then the mean of this view's and of the others'. 0: there is no such view.
    channel_dropout: float = 0.0

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
        return self.mixing.at(t) | self.masking.at(t) | self.gate.at(t)

    def check(self, size: tuple[int, int], labelled: int, unlabelled: int, processes: int) -> None:
        self.strong_view.check()
        self.mixing.check(size, self.masking.patch_size, unlabelled, processes)
        self.masking.check(size, unlabelled, processes)
        self.gate.check()
        if not 0 <= self.channel_dropout < 1:
            raise ValueError(f"channel_dropout must be in [0, 1), got {self.channel_dropout}")
        if self.views_per_slice == "complementary" and self.masking.mask in ("none", "shuffle"):
            raise ValueError(f"mask must hide patches where views are complementary, got {self.masking.mask!r}")

    def views(self, given: Given, t: float) -> list[View]:
        views = self.hidden_and_mixed(given, t)
        if self.views_per_slice == "two":
            views += self.hidden_and_mixed(given, t)
        share = 1 / len(views)
        if self.channel_dropout > 0:
            share /= 2
            whole = View(given.images, pseudo_labels(given.logits, self.gate.min_confidence), target=given.logits)
            whole = self.gate(whole, given.logits, given.doubt, t)
            whole = whole._replace(weight=whole.weight / 2, channel_dropout=self.channel_dropout)
            return [*(view._replace(weight=view.weight * share) for view in views), whole]
        return [view._replace(weight=view.weight * share) for view in views]

    def hidden_and_mixed(self, given: Given, t: float) -> list[View]:
        """One view, or the two that complement each other."""
        labelled = given.labelled
        if self.mixing.uses_labels:
            labelled = Batch(self.strong_view(labelled.images), labelled.labels)
        given = given._replace(images=self.strong_view(given.images), labelled=labelled)
        given, mixed, size = self.mixing(given, self.masking.patch_size, t)
        view = self.masking(given.images, given.logits, self.gate.min_confidence, t)
        view = view._replace(mixed=mixed, mixed_patch_size=size, target=given.logits)
        view = self.gate(view, given.logits, given.doubt, t)
        if self.views_per_slice != "complementary":
            return [view]
        assert view.patches is not None and view.patch_size is not None
        other = entmask_ext.patch_where(view.patches, given.images, 0.0, view.patch_size)
        return [view, view._replace(images=other, patches=~view.patches)]
