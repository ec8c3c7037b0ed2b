"""One step's mixing, gating and unsupervised loss of each method, written out in float64, slice by slice.

Both sides get the same random draws: those that the method takes from torch.rand and torch.randint are recorded. The
images are float32, as in a run, and the logits float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from tiny import tiny_config
from torch import Tensor

from train.data.batches import Batch
from train.parts import IGNORED, Given, View
from train.run import losses
from train.run.config import FitConfig
from train.run.schedule import Schedule
from train.run.step import Trainer
from train.run.timing import StepTimer

N, K, H, W, PATCH = 4, 4, 32, 48, 8
STEPS, STEP = 100, 60
T = STEP / STEPS


def teacher_logits(seed: int) -> Tensor:
    """Sure inside of regions, unsure at their borders; the slices differ in how sure."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(N, K, 6, 8, generator=generator, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(coarse, (H, W), mode="bicubic", align_corners=True)
    fine = torch.randn(N, K, H, W, generator=generator, dtype=torch.float64)
    return (5 * smooth + fine) * torch.tensor([2.0, 1.0, 0.4, 3.0]).double()[:, None, None, None]


@pytest.fixture
def given() -> Given:
    generator = torch.Generator().manual_seed(1)
    images, labelled = torch.rand(2, N, 1, H, W, generator=generator) + 0.5
    logits = teacher_logits(2)
    labels = torch.randint(K, (N, H, W), generator=generator).to(torch.uint8)
    return Given(images, logits, logits, Batch(labelled, labels))


class Draws:
    """What torch.rand and torch.randint gave, in order; numbers() takes the next of a shape."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drawn: list[Tensor] = []
        for name in ("rand", "randint"):
            monkeypatch.setattr(torch, name, self.recorded(getattr(torch, name)))
        torch.manual_seed(5)

    def recorded(self, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def record(*args: Any, **options: Any) -> Tensor:
            self.drawn.append(draw(*args, **options))
            return self.drawn[-1]

        return record

    def numbers(self, *shape: int) -> Tensor:
        drawn = self.drawn.pop(0)
        assert tuple(drawn.shape) == shape
        return drawn.double()


def configured(method: str, **changes: Any) -> FitConfig:
    changes = {"size": (H, W), "iterations": STEPS, **changes}
    return tiny_config(Path("data"), Path("run"), method=method, **changes)


class Step:
    """A method's views and, for random logits of the student, the loss and its gradient as a step has them."""

    def __init__(self, config: FitConfig, given: Given) -> None:
        self.views = config.strategy.views(given, T)
        trainer = Trainer.__new__(Trainer)
        trainer.config, trainer.device = config, torch.device("cpu")
        trainer.class_weight = losses.class_weights(config.loss, K, trainer.device)
        trainer.timer = StepTimer(trainer.device)
        trainer.timer.start()
        trainer.parallel = self.student  # type: ignore[assignment]
        weight = Schedule(STEPS, config).consistency_weight(STEP)
        self.loss = trainer.losses(None, self.views, weight)["loss"]
        (self.gradient,) = torch.autograd.grad(self.loss, self.logits)

    def student(self, images: Tensor, **options: Tensor) -> Tensor:
        self.images, self.options = images, options
        generator = torch.Generator().manual_seed(3)
        self.logits = torch.randn(len(images), K, H, W, generator=generator, dtype=torch.float64, requires_grad=True)
        return self.logits

    def is_of(self, images: list[Tensor], loss: Callable[[list[Tensor]], Tensor]) -> None:
        """The same images, and the same loss and gradient for the student's logits of each view."""
        for view, expected in zip(self.views, images, strict=True):
            torch.testing.assert_close(view.images.double(), expected.double(), rtol=1e-5, atol=1e-5)
        assert torch.equal(self.images, torch.cat([view.images for view in self.views]))
        leaf = self.logits.detach().clone().requires_grad_()
        expected = loss(list(leaf.split([len(view.images) for view in self.views])))
        torch.testing.assert_close(self.loss, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(self.gradient, torch.autograd.grad(expected, leaf)[0], rtol=1e-8, atol=1e-14)
        assert self.gradient.abs().max() > 0


def strong(images: Tensor, draws: Draws) -> Tensor:
    """Brightness, then contrast, of 80 % of the slices, then a blur of half of them."""
    jitter, blur = draws.numbers(3, N), draws.numbers(2, N)
    out = []
    for i, x in enumerate(images.double()):
        if jitter[0, i] < 0.8:
            x = x * (0.5 + jitter[1, i])
            x = x.mean() + (0.5 + jitter[2, i]) * (x - x.mean())
        if blur[0, i] < 0.5:
            x = torch.from_numpy(blurred(x[0].numpy(), 0.1 + 1.9 * blur[1, i].item()))[None]
        out.append(x)
    return torch.stack(out)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Beyond the edge there is nothing, and the weights of what is there add up to 1."""
    options: dict[str, Any] = {"sigma": sigma, "mode": "constant", "truncate": 12.0}
    return ndimage.gaussian_filter(image, **options) / ndimage.gaussian_filter(np.ones_like(image), **options)


def hard_labels(logits: Tensor, least: float) -> Tensor:
    """int64, IGNORED where the class is less probable than least."""
    p = logits.softmax(1)
    return torch.where(p.amax(1) >= least, p.argmax(1), IGNORED)


def entropy(logits: Tensor) -> Tensor:
    """In nats."""
    return -torch.special.xlogy(logits.softmax(1), logits.softmax(1)).sum(1)


def by_patch(pixels: Tensor) -> Tensor:
    """(N, H, W) -> (N, P), the mean of each patch, row by row."""
    n = len(pixels)
    return pixels.reshape(n, H // PATCH, PATCH, W // PATCH, PATCH).mean((2, 4)).flatten(1)


def patch_box(p: int) -> tuple[slice, slice]:
    row, column = divmod(p, W // PATCH)
    return slice(row * PATCH, (row + 1) * PATCH), slice(column * PATCH, (column + 1) * PATCH)


def dice(logits: Tensor, labels: Tensor, where: Tensor) -> Tensor:
    """Of the pixels in `where`, over the batch, with squares in the denominator."""
    p = logits.softmax(1).movedim(1, -1)[where]
    t = torch.nn.functional.one_hot(labels[where], K).double()
    return (1 - (2 * (p * t).sum(0) + 1e-5) / ((p**2).sum(0) + t.sum(0) + 1e-5)).mean()


def cross_entropy(logits: Tensor, labels: Tensor, where: Tensor) -> Tensor:
    return -logits.log_softmax(1).movedim(1, -1)[where].gather(1, labels[where][:, None]).mean()


def squares(logits: Tensor, target: Tensor) -> Tensor:
    return ((logits.softmax(1) - target.softmax(1)) ** 2).sum(1)


def cutmix(images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Half of the slices get a box of the slice so many places on, with its labels and its gate."""
    used, box, shift = draws.numbers(N), draws.numbers(4, N), int(draws.numbers(1))
    new_images, new_labels = images.clone(), labels.clone()
    for i in (used < 0.5).nonzero().flatten().tolist():
        area, aspect = (0.02 + 0.38 * box[0, i].item()) * H * W, 0.3 + (1 / 0.3 - 0.3) * box[1, i].item()
        height, width = min(int(math.sqrt(area * aspect)), H), min(int(math.sqrt(area / aspect)), W)
        top, left = int(box[2, i].item() * (H - height + 1)), int(box[3, i].item() * (W - width + 1))
        inside = (slice(top, top + height), slice(left, left + width))
        partner = (i + shift) % N
        new_images[i, 0][inside] = images[partner, 0][inside]
        new_labels[i][inside] = labels[partner][inside]
    assert shift and not torch.equal(new_labels, labels)
    return new_images, new_labels


def same_labels(view: View, labels: Tensor) -> None:
    assert torch.equal(view.labels.long(), labels)
    assert 0 < (labels == IGNORED).double().mean() < 0.9


def test_fixmatch(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(monkeypatch)
    step = Step(configured("fixmatch"), given)
    images, labels = cutmix(strong(given.images, draws), hard_labels(given.logits, 0.95), draws)
    same_labels(step.views[0], labels)
    step.is_of([images], lambda student: dice(student[0], labels, labels != IGNORED))


def test_unimatch(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """(Two strong views and one with dropped channels) 1/4, 1/4 and 1/2."""
    draws = Draws(monkeypatch)
    step = Step(configured("unimatch"), given)
    labels = hard_labels(given.logits, 0.95)
    pairs = [cutmix(strong(given.images, draws), labels, draws) for _ in range(2)]
    pairs.append((given.images.double(), labels))
    for view, (_, expected) in zip(step.views, pairs, strict=True):
        same_labels(view, expected)
    assert step.options["channel_dropout"].tolist() == [0.0] * 2 * N + [0.5] * N
    step.is_of(
        [images for images, _ in pairs],
        lambda student: sum(
            weight * dice(logits, labels, labels != IGNORED)
            for weight, logits, (_, labels) in zip((0.25, 0.25, 0.5), student, pairs, strict=True)
        ),
    )


def test_entropy_mix(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of half of the slices the 4 (of 24) patches of highest entropy are the partner's."""
    draws = Draws(monkeypatch)
    step = Step(configured("entropy-mix"), given)
    images, gated = strong(given.images, draws), hard_labels(given.logits, 0.95)
    used = draws.numbers(N) < 0.5
    shift, scores = int(draws.numbers(1)), by_patch(entropy(given.logits))
    mixed, labels = images.clone(), gated.clone()
    assert 0 < used.sum() < N
    for i in used.nonzero().flatten().tolist():
        for p in scores[i].argsort(descending=True)[:4].tolist():
            mixed[i, 0][patch_box(p)] = images[(i + shift) % N, 0][patch_box(p)]
            labels[i][patch_box(p)] = gated[(i + shift) % N][patch_box(p)]
    same_labels(step.views[0], labels)
    step.is_of([mixed], lambda student: dice(student[0], labels, labels != IGNORED))


@pytest.mark.parametrize("t", [0.05, 0.14, 0.6])
def test_adamix(t: float, given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches by the loss of a slice against its age; at first all slices are hard, in the end all are easy."""
    monkeypatch.setattr("test_methods_parity.T", t)
    draws = Draws(monkeypatch)
    step = Step(configured("adamix", mix_probability=0.8), given)
    images, gated = strong(given.images, draws), hard_labels(given.logits, 0.95)
    shift, used = int(draws.numbers(1)), draws.numbers(N) < 0.8
    age = math.exp(-5 * max(0.0, 1 - t / 0.25) ** 2)
    ascending = by_patch(entropy(given.logits)).argsort(1).tolist()
    mixed, labels, exchanged = images.clone(), gated.clone(), []
    for i in used.nonzero().flatten().tolist():
        partner = (i + shift) % N
        loss = entropy(given.logits)[i].mean().item()
        count = min(6, math.floor(6 * abs(1 - loss / age)))  # a quarter of 24
        own, theirs = ascending[i], ascending[partner][::-1]
        for r in range(count):
            at, source = (own[r], theirs[r]) if loss < age else (own[-1 - r], theirs[-1 - r])
            mixed[i, 0][patch_box(at)] = images[partner, 0][patch_box(source)]
            labels[i][patch_box(at)] = gated[partner][patch_box(source)]
        exchanged.append((loss < age, count))
    assert len({easy for easy, _ in exchanged}) == (2 if t == 0.14 else 1)
    assert any(count for _, count in exchanged)
    same_labels(step.views[0], labels)
    accepted = labels != IGNORED
    step.is_of(
        [mixed],
        lambda student: (cross_entropy(student[0], labels, accepted) + dice(student[0], labels, accepted)) / 2,
    )


def test_bcp(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(monkeypatch)
    step = Step(configured("bcp"), given)
    height, width = int(H * 2 / 3), int(W * 2 / 3)
    u = draws.numbers(2).tolist()
    top, left = int(u[0] * (H - height + 1)), int(u[1] * (W - width + 1))
    inside = torch.zeros(H, W, dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    pseudo = given.logits.argmax(1)
    for labels in pseudo:
        for k in range(1, K):
            components, count = ndimage.label(labels == k, np.ones((3, 3)))
            sizes = [(components == c).sum() for c in range(1, count + 1)]
            labels[torch.from_numpy((components > 0) & (components != 1 + int(np.argmax(sizes))))] = 0
    assert not torch.equal(pseudo, given.logits.argmax(1))
    true, half = given.labelled.labels.long(), N // 2
    into_unlabelled = torch.where(inside, true[:half], pseudo[:half])
    into_labelled = torch.where(inside, pseudo[half:], true[half:])
    for view, labels in zip(step.views, (into_unlabelled, into_labelled), strict=True):
        assert torch.equal(view.labels.long(), labels)
    images, theirs = given.images, given.labelled.images
    within = inside.expand(half, H, W)

    def loss(student: list[Tensor]) -> Tensor:
        parts = [
            weight * (cross_entropy(logits, labels, where) + dice(logits, labels, where)) / 2
            for logits, labels, weights in zip(
                student, (into_unlabelled, into_labelled), ((1.0, 0.5), (0.5, 1.0)), strict=True
            )
            for weight, where in zip(weights, (within, ~within), strict=True)
        ]
        return torch.stack(parts).sum()

    step.is_of(
        [torch.where(inside, theirs[:half], images[:half]), torch.where(inside, images[half:], theirs[half:])], loss
    )


def ramp(t: float) -> float:
    return math.exp(-5 * (1 - t) ** 2)


def test_mean_teacher(given: Given) -> None:
    step = Step(configured("mean-teacher", consistency_from=0, rampup=1.0), given)
    weight = 0.1 * ramp(T)
    step.is_of([given.images], lambda student: weight * squares(student[0], given.logits).mean() / K)


def test_ua_mt(given: Given) -> None:
    """The pixels that count are those where the mean of the passes is sure, in nats."""
    passes = given.logits + torch.randn(8, N, K, H, W, generator=torch.Generator().manual_seed(6)).double()
    mean = passes.softmax(2).mean(0)
    given = given._replace(doubt=mean.log())
    step = Step(configured("ua-mt", consistency_from=0, rampup=1.0), given)
    sure = -(mean * mean.log()).sum(1) < (0.75 + 0.25 * ramp(T)) * math.log(2)
    assert 0.01 < sure.double().mean() < 0.9
    assert torch.equal(step.views[0].labels != IGNORED, sure)
    weight = 0.1 * ramp(T)
    step.is_of(
        [given.images],
        lambda student: weight * (squares(student[0], given.logits) * sure).sum() / (2 * sure.sum()),
    )


def test_mic(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(monkeypatch)
    step = Step(configured("mic", ratio=(0.7,)), given)
    images, patches = strong(given.images, draws), step.views[0].patches
    assert patches is not None and patches.flatten(1).sum(1).tolist() == [16] * N  # floor(0.7 * 24)
    for i, p in patches.flatten(1).nonzero().tolist():
        images[i, 0][patch_box(p)] = 0.0
    share = (given.logits.softmax(1).amax(1) >= 0.968).double().mean()
    labels, everywhere = given.logits.argmax(1), torch.ones(N, H, W, dtype=torch.bool)
    assert torch.equal(step.views[0].labels.long(), labels)
    # The share is a float32 in the code, and so a number to 6e-8.
    step.is_of([images], lambda student: share.float() * cross_entropy(student[0], labels, everywhere))


def test_complementary(given: Given) -> None:
    config = configured("complementary", rampup=0.0)
    step = Step(config, given)
    patches = step.views[0].patches
    assert patches is not None and patches.flatten(1).sum(1).tolist() == [12] * N
    masked = torch.zeros(N, H, W, dtype=torch.bool)
    for i, p in patches.flatten(1).nonzero().tolist():
        masked[i][patch_box(p)] = True
    labels = given.logits.argmax(1)
    everywhere = torch.ones_like(masked)

    def loss(student: list[Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for logits, hidden in zip(student, (masked, ~masked), strict=True):
            ce = 1.5 * cross_entropy(logits, labels, hidden) + cross_entropy(logits, labels, ~hidden)
            total = total + 0.1 * (ce + dice(logits, labels, everywhere)) / 2 / 2
        return total

    images = given.images
    step.is_of([images.masked_fill(masked[:, None], 0.0), images.masked_fill(~masked[:, None], 0.0)], loss)
