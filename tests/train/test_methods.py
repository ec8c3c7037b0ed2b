"""Each method: what the student gets to see, what it is trained on, and that it learns."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_trainer, write_tiny

from train.data.batches import Batch
from train.data.phantom import ensure_phantom
from train.methods import METHODS
from train.parts import Given, View
from train.run import losses
from train.run.config import FitConfig, flatten
from train.run.fit import fit
from train.run.methods import describe
from train.run.recipes import configure

N, K, SIZE, PATCH = 4, 4, 32, 8
GRID = SIZE // PATCH


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(N, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) + 0.5


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(N, K, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def view_of(
    method: str, images: torch.Tensor, logits: torch.Tensor, ratio: float, threshold: float, **changes: object
) -> View:
    changes = {"ratio": (ratio,), "threshold": (threshold,), **changes}
    config = tiny_config(Path("data"), Path("run"), method=method, **changes)
    (view,) = config.strategy.views(given(images, logits), 0.0)
    return view


def given(images: torch.Tensor, logits: torch.Tensor) -> Given:
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(K, (N, SIZE, SIZE), generator=generator).to(torch.uint8)
    return Given(images, logits, logits, Batch(torch.rand(images.shape, generator=generator), labels))


def entropy(logits: torch.Tensor) -> torch.Tensor:
    p = logits.double().softmax(1)
    return -(p * p.log()).sum(1) / math.log(K)


def by_patch(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.reshape(len(pixels), GRID, PATCH, GRID, PATCH).mean((2, 4))


def upscaled(patches: torch.Tensor, size: int) -> torch.Tensor:
    return patches.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, None]


def top(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The k highest of each row of (N, ...)."""
    flat = scores.flatten(1)
    return (flat >= flat.sort(1, descending=True).values[:, k - 1 : k]).reshape(scores.shape)


def expected_patches(method: str, logits: torch.Tensor, ratio: float, threshold: float) -> torch.Tensor:
    h = entropy(logits)
    scores, k = by_patch(h), int(ratio * GRID * GRID)
    if method == "entropy-pixel":
        return h >= threshold
    if method == "entropy-count":
        return by_patch((h >= threshold).double()) >= 0.5
    if method == "entropy-lowr":
        return top(-scores, k)
    if method == "entropy-topr-hint":  # a hint of 0.2 keeps 3 of 16 patches
        return top(scores, k) & ~top(scores, 3)
    return top(scores, k)


@pytest.mark.parametrize(
    "method", ["entropy-pixel", "entropy-count", "entropy-topr", "entropy-lowr", "entropy-topr-hint", "topr"]
)
def test_entropy_methods_mask_what_they_say(method: str, images: torch.Tensor, logits: torch.Tensor) -> None:
    changes = {"hint": 0.2} if method.endswith("hint") else {}
    view = view_of(method, images, logits, 0.5, 0.45, **changes)
    expected = expected_patches(method, logits, 0.5, 0.45)
    assert view.patches is not None and view.patch_size == (1 if method == "entropy-pixel" else PATCH)
    assert torch.equal(view.patches, expected)
    assert 0 < expected.float().mean() < 1
    assert torch.equal(view.images, images.masked_fill(upscaled(expected, view.patch_size), 0.0))
    assert torch.equal(view.labels.long(), logits.argmax(1))


def test_batch_scope_ranks_the_whole_batch(images: torch.Tensor, logits: torch.Tensor) -> None:
    logits = logits * torch.tensor([1.0, 0.5, 0.2, 0.1])[:, None, None, None]
    view = view_of("entropy-topr", images, logits, 0.5, 0.5, scope="batch")
    assert view.patches is not None
    expected = top(by_patch(entropy(logits)).reshape(1, -1), N * GRID * GRID // 2).reshape(N, GRID, GRID)
    assert torch.equal(view.patches, expected)
    assert not view.patches[0].any() and view.patches[3].all()


def test_min_patches_keeps_a_mask_from_vanishing(images: torch.Tensor, logits: torch.Tensor) -> None:
    for method in ("entropy-pixel", "entropy-count"):
        view = view_of(method, images, 1e3 * logits, 0.5, 0.999)
        assert view.patches is not None and not view.patches.any()
        view = view_of(method, images, 1e3 * logits, 0.5, 0.999, min_patches=2)
        assert view.patches is not None and (view.patches.flatten(1).sum(1) == 2).all()


@pytest.mark.parametrize("method", ["random", "mcl"])
def test_random_methods_mask_the_ratio(method: str, images: torch.Tensor, logits: torch.Tensor) -> None:
    torch.manual_seed(0)
    view = view_of(method, images, logits, 0.5, 0.5)
    assert view.patches is not None
    assert (view.patches.flatten(1).sum(1) == GRID * GRID // 2).all()
    assert torch.equal(view.images, images.masked_fill(upscaled(view.patches, PATCH), 0.0))
    assert not torch.equal(view.patches[0], view.patches[1])
    shared = view_of(method, images, logits, 0.5, 0.5, shared=True).patches
    assert shared is not None and (shared == shared[:1]).all()


def test_pair_shuffle_moves_patches_within_pairs_and_back(images: torch.Tensor, logits: torch.Tensor) -> None:
    torch.manual_seed(0)
    view = view_of("pair-shuffle", images, logits, 0.5, 0.5)
    assert not torch.equal(view.images, images)
    for pair in (slice(0, 2), slice(2, 4)):
        assert torch.equal(view.images[pair].flatten().sort().values, images[pair].flatten().sort().values)
    assert not torch.equal(view.images[0].flatten().sort().values, images[0].flatten().sort().values)  # between images
    assert torch.equal(view.restore(view.images), images)
    assert torch.equal(view.labels.long(), logits.argmax(1))


def reference_loss(logits: torch.Tensor, view: View, config: FitConfig) -> torch.Tensor:
    """The consistency loss in float64, written out."""
    logits, labels, loss = logits.double(), view.labels.long(), config.loss
    weight = torch.tensor([loss.background_weight, 1.0, 1.0, 1.0], dtype=torch.float64)[labels]
    ce = -logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    masked = torch.zeros_like(labels, dtype=torch.bool)
    if loss.consistency_ce == "region" and view.patches is not None and view.patch_size is not None:
        masked = upscaled(view.patches, view.patch_size)[:, 0]
    parts = []
    for region in (masked, ~masked):
        total = weight[region].sum()
        offset = loss.denominator_offset
        parts.append((weight * ce)[region].sum() / (total + offset) if total > 0 else torch.zeros(()))
    p, t = logits.softmax(1), torch.nn.functional.one_hot(labels, K).movedim(-1, 1).double()
    axes = (0, 2, 3)
    dice = (1 - (2 * (p * t).sum(axes) + 1e-5) / ((p * p).sum(axes) + t.sum(axes) + 1e-5)).mean()
    ce = loss.mask_weight * parts[0] + parts[1]
    return loss.consistency_ce_weight * ce + loss.consistency_dice_weight * dice


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("mcl", {}),
        ("entropy-topr", {}),
        ("entropy-topr", {"consistency_ce": "unweighted"}),
        ("entropy-topr", {"denominator_offset": 1.0}),
        ("entropy-topr", {"denominator_offset": 1e6}),
        ("entropy-count", {"threshold": (1.0,)}),
        ("pair-shuffle", {}),
    ],
)
def test_loss_variants(method: str, changes: dict[str, object], images: torch.Tensor, logits: torch.Tensor) -> None:
    config = tiny_config(Path("data"), Path("run"), method=method, **changes)
    (view,) = config.strategy.views(given(images, logits), 0.0)
    student = torch.randn(N, K, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    got = losses.unlabelled_loss(student, view, config.loss, losses.class_weights(config.loss, K, torch.device("cpu")))[
        "consistency"
    ]
    torch.testing.assert_close(got.double(), reference_loss(view.restore(student), view, config), rtol=1e-5, atol=1e-7)
    if method == "entropy-count":
        assert view.patches is not None and not view.patches.any()  # the empty region that made NaN of 0 / 0


def test_every_method_goes_on_to_the_bit(tmp_path: Path) -> None:
    """What the state has is all that the next steps depend on."""
    torch.set_num_threads(1)
    root = write_tiny(tmp_path / "data")
    for method in METHODS:
        config = tiny_config(root, tmp_path / "run", method=method, consistency_from=1)
        trainer = tiny_trainer(config)
        for step in range(2):
            trainer.step(step)
        state = copy.deepcopy(trainer.state_dict())
        following = trainer.step(2).device["loss"]
        other = tiny_trainer(config)
        other.load_state_dict(state)
        assert torch.equal(other.step(2).device["loss"], following), method
        for name in ("student", "teacher"):
            for key, value in trainer.state_dict()[name].items():
                assert torch.equal(other.state_dict()[name][key], value), (method, key)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_phantom(tmp_path_factory.mktemp("methods") / "phantom", 4, 1, 1)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_the_phantom(method: str, phantom: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    changes = {
        "size": (40, 40), "patch_size": 4, "channels": (8, 16, 32), "dropout": (0.0, 0.0, 0.0), "threshold": (0.03,),
        "iterations": 120, "validate_every": 60, "lr": 0.1, "consistency_from": 60,
    }  # fmt: skip
    settings = flatten(configure(method))
    changes = {name: value for name, value in changes.items() if name in settings}  # bcp has no patches
    folder = fit(tiny_config(phantom, tmp_path / method, method=method, **changes))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train] == list(range(1, 121))
    supervised = [row["supervised"] for row in train if "supervised" in row]  # bcp: until there are views
    assert sum(supervised[-5:]) < 0.5 * sum(supervised[:5])
    assert [row for row in rows if row["kind"] == "validation"][-1]["dice_mean"] > 0.1  # 0 half-way
    assert ("consistency" in train[-1]) == (not method.startswith("supervised")) and "consistency" not in train[59]
    if "masked" in train[-1]:
        assert 0 <= train[-1]["masked_least"] <= train[-1]["masked"] <= train[-1]["masked_most"] < 1
        assert any(row.get("masked", 0) > 0 for row in train)


def test_names() -> None:
    assert METHODS.full_name("topr") == "entropy-topr"
    with pytest.raises(ValueError, match=r"method must be one of adamix, bcp, .*'toprr'"):
        METHODS.full_name("toprr")
    said = " ".join(describe().split())
    for name, method in METHODS.items():
        assert f"## {name} " in said
        for text in (method.formula, method.source, method.differs):
            assert " ".join(text.split()) in said
