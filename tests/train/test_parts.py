"""The parts that methods are made of, each by itself, then every pair of their switches together."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import ndimage
from tiny import tiny_config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from train.data.batches import Batch
from train.methods import METHODS
from train.networks.unet import UNet
from train.parts import IGNORED, Given, View
from train.parts.gate import Gate, pseudo_labels
from train.parts.mixing import Mixing, labelled_partners, random_boxes, unlabelled_partners
from train.parts.strong_view import StrongView, blurred, jittered
from train.run import losses
from train.run.check import check
from train.run.config import FitConfig
from train.run.statistics import step_statistics
from train.run.step import Trainer

K = 4


def given(n: int = 4, size: tuple[int, int] = (32, 48), labelled: int = 4) -> Given:
    generator = torch.Generator().manual_seed(n)
    images = torch.rand(n, 1, *size, generator=generator)
    logits = 4 * torch.randn(n, K, *size, generator=generator)
    labels = torch.randint(K, (labelled, *size), generator=generator).to(torch.uint8)
    return Given(images, logits, logits, Batch(torch.rand(labelled, 1, *size, generator=generator), labels))


def configured(method: str = "fixmatch", **changes: Any) -> FitConfig:
    return tiny_config(Path("data"), Path("run"), method=method, **changes)


class Calls(TorchDispatchMode):
    """The operators that are called, by name, but for those that only look at a tensor in another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.name() != "aten::_unsafe_view":
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


# the strong view


def test_a_strong_view_that_is_not_drawn_changes_nothing() -> None:
    images = given().images
    assert StrongView()(images) is images
    draws = torch.tensor([0.5, 0.49, 0.9, 0.1])
    other = torch.full((4,), 0.7)
    assert torch.equal(jittered(images, torch.stack([draws, other, other]), 0.5)[[0, 2]], images[[0, 2]])
    torch.testing.assert_close(
        blurred(images, torch.stack([draws, other]), 0.5)[[0, 2]], images[[0, 2]], atol=0, rtol=0
    )
    for changed in (
        jittered(images, torch.stack([draws, other, other]), 0.5),
        blurred(images, torch.stack([draws, other]), 0.5),
    ):
        assert (changed - images)[[1, 3]].abs().amax((1, 2, 3)).min() > 0.01


def test_jitter_is_brightness_then_contrast() -> None:
    images = given().images.double()
    draws = torch.rand(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    draws[0] = 0.0
    got = jittered(images, draws, 0.8)
    for x, y, (_, b, c) in zip(images, got, draws.T.tolist(), strict=True):
        bright = (0.5 + b) * x
        torch.testing.assert_close(y, bright.mean() + (0.5 + c) * (bright - bright.mean()), rtol=1e-12, atol=1e-12)


def test_blur_is_gaussian_inside_and_keeps_a_constant_to_the_edge() -> None:
    images = given(size=(48, 64)).images
    draws = torch.tensor([[0.0] * 4, [0.0, 0.3, 0.7, 1.0]])
    got = blurred(images, draws, 0.5)
    for x, y, u in zip(images, got, draws[1].tolist(), strict=True):
        expected = ndimage.gaussian_filter(x[0].double().numpy(), 0.1 + 1.9 * u, truncate=6.0)
        inside = (slice(12, -12), slice(12, -12))
        torch.testing.assert_close(y[0][inside].double(), torch.from_numpy(expected[inside]), rtol=1e-5, atol=1e-6)
    flat = torch.full((4, 1, 48, 64), 0.3)
    torch.testing.assert_close(blurred(flat, draws, 0.5), flat, rtol=1e-6, atol=0)


def test_a_strong_view_depends_on_the_seed_alone_and_is_cheap() -> None:
    images = given(16, (32, 32)).images
    for view in (StrongView(jitter=0.8), StrongView(blur=0.5), StrongView(jitter=0.8, blur=0.5)):
        results = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            with Calls() as calls:
                results.append(view(images))
        assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert len(calls.names) <= 30, calls.names  # each at most one launch


# mixing


@pytest.mark.parametrize("size", [(256, 256), (33, 70)])
def test_boxes_lie_in_the_image_and_have_2_to_40_percent(size: tuple[int, int]) -> None:
    draws = torch.rand(4, 5000, generator=torch.Generator().manual_seed(0))
    draws[:, :32] = torch.tensor(list(itertools.product([0.0, 1 - 2**-24], repeat=4))).T.repeat(1, 2)
    top, bottom, left, right = random_boxes(draws, size).T
    height, width = (bottom - top).double(), (right - left).double()
    assert top.min() == 0 and left.min() == 0 and bottom.max() == size[0] and right.max() == size[1]
    assert height.min() >= 1 and width.min() >= 1
    area = 0.02 + 0.38 * draws[0].double()
    aspect = 0.3 + (1 / 0.3 - 0.3) * draws[1].double()
    whole = size[0] * size[1]
    assert (height * width <= area * whole * (1 + 1e-6)).all()
    # Sides are whole pixels, rounded down, and no longer than the image's.
    for length, extent, exact in (
        (height, size[0], (area * aspect * whole).sqrt()),
        (width, size[1], (area / aspect * whole).sqrt()),
    ):
        assert (length > exact.clamp(max=extent) * (1 - 1e-6) - 1).all()


def test_the_box_of_a_slice_that_is_not_mixed_is_empty() -> None:
    where, size = Mixing(mix="box", mix_probability=0.0).where(given().logits, 8, 0.0)
    assert size == 1 and not where.any()


@pytest.mark.parametrize("n", [2, 3, 5])
def test_no_slice_is_its_own_partner(n: int) -> None:
    this = Given(torch.arange(n), torch.arange(n), torch.arange(n), given().labelled)
    shifts = set()
    for seed in range(40):
        torch.manual_seed(seed)
        theirs = unlabelled_partners(this).images
        assert sorted(theirs.tolist()) == list(range(n)) and (theirs != this.images).all()
        shifts.add(int(theirs[0]))
    assert shifts == set(range(1, n))


def test_labels_become_logits_without_doubt() -> None:
    this = given(n=5, labelled=2)
    this = this._replace(doubt=this.logits + 1)
    theirs = labelled_partners(this)
    for i in range(5):
        assert torch.equal(theirs.images[i], this.labelled.images[i % 2])
        assert torch.equal(pseudo_labels(theirs.logits, 1.0)[i], this.labelled.labels[i % 2])
    for mix in ("box", "adaptive", "unsure"):
        mixed, where, size = Mixing(mix=mix, mix_with="labelled", mix_ratio=(0.5,))(this, 8, 0.9)
        assert where is not None and size is not None and where.any()
        pixels = where.repeat_interleave(size, 1).repeat_interleave(size, 2)
        assert (
            Gate(max_entropy=(1e-30,))(
                View(mixed.images, pseudo_labels(mixed.logits)), mixed.logits, mixed.doubt, 0.0
            ).labels[pixels]
            != IGNORED
        ).all()


@pytest.mark.parametrize("mix", ["random", "unsure", "sure"])
def test_the_mixed_share_is_ramped_and_exact(mix: Any) -> None:
    """70 of 100 patches, which 0.7 in float32 is short of."""
    logits = given(size=(40, 40)).logits
    part = Mixing(mix=mix, mix_ratio=(0.7,))
    assert part.where(logits, 4, 0.0)[0].flatten(1).sum(1).tolist() == [70] * 4
    part = Mixing(mix=mix, mix_ratio=(0.1, 0.5))
    for t in (0.0, 0.5, 1.0):
        share = 0.1 + 0.4 * math.exp(-5 * (1 - t) ** 2)
        assert part.at(t) == {"mix_ratio": pytest.approx(share)}
        assert part.where(logits, 4, t)[0].flatten(1).sum(1).tolist() == [int(100 * share + 1e-6)] * 4
    assert not Mixing(mix=mix, mix_ratio=(0.0,)).where(logits, 4, 0.0)[0].any()


@pytest.mark.parametrize("mix", ["box", "random", "unsure", "sure", "adaptive"])
def test_slices_are_mixed_with_their_probability(mix: Any) -> None:
    torch.manual_seed(0)
    this = given(n=1000, size=(16, 16))
    _, where, _ = Mixing(mix=mix, mix_probability=0.3, mix_ratio=(0.5,))(this, 4, 0.05)
    assert where is not None
    share = where.flatten(1).any(1).double().mean().item()
    assert abs(share - 0.3) < 0.06  # four standard deviations


# the gate


def test_a_batch_gate_weighs_the_loss_by_the_share_it_believes() -> None:
    config = configured("mic", size=(32, 48))
    this = given()
    (view,) = config.strategy.views(this, 0.0)
    share = (this.logits.softmax(1).amax(1) >= 0.968).float().mean()
    assert 0 < share < 1
    torch.testing.assert_close(view.weight, share)
    assert torch.equal(view.labels.long(), this.logits.argmax(1))
    truth = torch.zeros_like(view.labels)
    torch.testing.assert_close(step_statistics(view, this.logits, truth, None, True)["accepted"], share)
    (view,) = configured(min_confidence=0.968, mix="none", size=(32, 48)).strategy.views(this, 0.0)
    torch.testing.assert_close(step_statistics(view, this.logits, truth, None, True)["accepted"], share)


# the network and the teacher


def test_dropped_channels() -> None:
    """Whole channels of the encoder, of the slices that ask for it, and the expectation stays."""
    torch.manual_seed(0)
    network = UNet(channels=(4, 8), dropout=(0.0, 0.0)).eval()
    x = torch.randn(3, 1, 16, 16)
    probability = torch.tensor([0.0, 0.5, 0.0])
    with torch.no_grad():
        plain, dropped = network(x), network(x, channel_dropout=probability)
    torch.testing.assert_close(dropped[[0, 2]], plain[[0, 2]], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(dropped[1], plain[1], atol=1e-3)

    seen: list[Tensor] = []
    network.up[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network.decoder[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, :4]))
    many = torch.randn(1, 1, 16, 16).expand(2000, -1, -1, -1)
    with torch.no_grad():
        network(many, channel_dropout=torch.full((2000,), 0.2))
        network(many[:1])
    for channels, full in zip(seen[:2], seen[2:], strict=True):  # the bottleneck and the skip connection
        gone = (channels == 0).all(-1).all(-1)
        torch.testing.assert_close(channels, full / 0.8 * ~gone[:, :, None, None], rtol=1e-5, atol=1e-6)
        assert abs(gone.double().mean().item() - 0.2) < 0.02


class Noisy(nn.Module):
    """A teacher whose logits are its input times four numbers; it keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x * torch.tensor([1.0, -2.0, 3.0, 0.5])[:, None, None]


def teaching(**changes: Any) -> tuple[Trainer, Noisy]:
    trainer, teacher = Trainer.__new__(Trainer), Noisy()
    trainer.config, trainer.teacher, trainer.device = configured("ua-mt", **changes), teacher, torch.device("cpu")
    return trainer, teacher


def test_the_teacher_sees_noise_and_its_doubt_is_the_mean_of_its_passes() -> None:
    images = given().images
    before = images.clone()
    trainer, teacher = teaching(teacher_noise=0.1, teacher_passes=3)
    answer, doubt = trainer.teach(images)
    assert torch.equal(images, before) and len(teacher.seen) == 4
    assert torch.equal(answer, Noisy()(teacher.seen[0]))
    for seen in teacher.seen:
        noise = (seen - images).double()
        assert noise.abs().max() < 0.2 + 1e-6 and ((noise.abs() - 0.2).abs() < 1e-6).double().mean() > 0.02
        assert abs(noise.std().item() - 0.1 * math.sqrt(0.7737 + 4 * 0.0455)) < 0.003  # a normal, clamped at 2 sigma
        assert abs(noise.mean().item()) < 0.005
    assert len({seen.sum().item() for seen in teacher.seen}) == 4
    mean = torch.stack([Noisy()(seen).double().softmax(1) for seen in teacher.seen[1:]]).mean(0)
    torch.testing.assert_close(doubt.double().softmax(1), mean, rtol=1e-5, atol=1e-6)

    trainer, teacher = teaching(teacher_noise=0.0, teacher_passes=1)
    answer, doubt = trainer.teach(images)
    assert teacher.seen[0] is images and doubt is answer


# all of them


def test_no_method_waits_for_the_device() -> None:
    this = given(size=(32, 32))
    for name, method in METHODS.items():
        config = configured(name)
        if not config.strategy.unlabelled:
            continue
        with Calls() as calls:
            views = config.strategy.views(this, 0.5)
            for view in views:
                student = torch.randn_like(this.logits[: len(view.images)])
                losses.unlabelled_loss(student, view, config.loss, None)
        waiting = {
            "aten::_local_scalar_dense",
            "aten::nonzero",
            "aten::masked_select",
            "aten::is_nonzero",
            "aten::item",
        }
        assert not waiting & {call.split(".")[0] for call in calls.names}, (name, method.summary)


SWITCHES: dict[str, tuple[Any, ...]] = {
    "mask": ("none", "random", "topr", "lowr", "count", "pixel", "shuffle"),
    "mix": ("none", "box", "random", "unsure", "sure", "adaptive"),
    "mix_with": ("unlabelled", "labelled"),
    "min_confidence": (None, 0.9),
    "max_entropy": (None, 0.6),
    "gate": ("pixel", "batch"),
    "views_per_slice": ("one", "two", "complementary"),
    "channel_dropout": (0.0, 0.5),
    "consistency": ("hard", "mse", "kl"),
    "consistency_ce": ("region", "unweighted"),
    "dice_region": ("all", "each"),
    "scope": ("image", "batch"),
    "blur": (0.0, 1.0),
}


def covering() -> Iterator[dict[str, Any]]:
    """Configurations in which every pair of switches has every pair of values at least once."""
    draw, seen = random.Random(0), set()
    for one, other in itertools.combinations(SWITCHES, 2):
        for pair in itertools.product(SWITCHES[one], SWITCHES[other]):
            if (one, pair[0], other, pair[1]) not in seen:
                chosen = {name: draw.choice(values) for name, values in SWITCHES.items()}
                chosen |= dict(zip((one, other), pair, strict=True))
                seen |= {(a, chosen[a], b, chosen[b]) for a, b in itertools.combinations(SWITCHES, 2)}
                yield chosen


def test_every_pair_of_switches_gives_a_loss_that_trains() -> None:
    this = given(size=(16, 16))
    trained = set()
    for changes in covering():
        config = configured(size=(16, 16), patch_size=4, **changes)
        if changes["views_per_slice"] == "complementary" and changes["mask"] in ("none", "shuffle"):
            with pytest.raises(ValueError, match="mask must hide patches"):
                check(config)
            continue
        check(config)
        total = torch.zeros(())
        student = torch.randn(4, K, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        for view in config.strategy.views(this, 0.5):
            assert view.images.shape == this.images.shape and view.images.isfinite().all()
            total = total + view.weight * losses.unlabelled_loss(student, view, config.loss, None)["consistency"]
        (gradient,) = torch.autograd.grad(total, student)
        assert total.isfinite() and gradient.isfinite().all() and gradient.any(), changes
        trained |= set(changes.items())
    assert trained == {(name, value) for name, values in SWITCHES.items() for value in values}


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("fixmatch", {"jitter": 1.1}, r"jitter must be in \[0, 1\], got 1.1"),
        ("fixmatch", {"blur": -0.1}, r"blur must be in \[0, 1\], got -0.1"),
        ("fixmatch", {"mix_probability": 2.0}, r"mix_probability must be in \[0, 1\], got 2.0"),
        ("fixmatch", {"mix_ratio": (0.1, 1.5)}, r"mix_ratio must be one number or two in \[0, 1\]"),
        ("fixmatch", {"mix_ratio": (0.1, 0.2, 0.3)}, r"mix_ratio must be one number or two"),
        ("fixmatch", {"unlabelled_batch": 1}, "unlabelled_batch must be at least 2 for mix box, a partner"),
        ("adamix", {"patch_size": 12}, r"patch_size must be a divisor of size \(32, 32\) for mix adaptive, got 12"),
        ("fixmatch", {"min_confidence": 1.5}, r"min_confidence must be in \[0, 1\], got 1.5"),
        ("ua-mt", {"max_entropy": (0.1, 0.2, 0.3)}, r"max_entropy must be one number or two in \[0, 1\]"),
        ("ua-mt", {"max_entropy": (-0.1,)}, r"max_entropy must be one number or two in \[0, 1\]"),
        ("unimatch", {"channel_dropout": 1.0}, r"channel_dropout must be in \[0, 1\), got 1.0"),
        ("complementary", {"mask": "none"}, "mask must hide patches where views are complementary, got 'none'"),
        ("fixmatch", {"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ("fixmatch", {"hint": 1.5}, r"hint must be in \[0, 1\], got 1.5"),
        ("fixmatch", {"min_patches": -1}, "min_patches must be at least 0, got -1"),
        ("bcp", {"paste_side": 1.0}, r"paste_side must be in \(0, 1\), got 1.0"),
        ("bcp", {"unlabelled_batch": 3, "labelled_batch": 3}, "unlabelled_batch must be a multiple of 2, two halves"),
        ("bcp", {"labelled_batch": 2}, "labelled_batch must be unlabelled_batch, 4, got 2"),
        ("bcp", {"consistency": "mse"}, "consistency must be hard for method bcp, which has labels only, got 'mse'"),
        ("ua-mt", {"teacher_noise": -0.1}, "teacher_noise must be at least 0, got -0.1"),
        ("ua-mt", {"teacher_passes": 0}, "teacher_passes must be at least 1, got 0"),
    ],
)
def test_each_setting_is_checked(method: str, changes: dict[str, Any], message: str) -> None:
    check(configured(method))
    with pytest.raises(ValueError, match=message):
        check(configured(method, **changes))
