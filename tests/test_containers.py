"""The public functions with what else torch has for tensors: subclasses, modes, proxies, files, batches, packages.

And what they return, as values that go through all of these.
"""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import assert_same_bits
from torch import Tensor
from torch.overrides import TorchFunctionMode

import entmask_ext
from entmask_ext import ConsistencyLoss, PatchMask

IMAGE, LOGITS, LABELS = torch.randn(4, 1, 16, 24), torch.randn(4, 3, 16, 24), torch.randint(3, (4, 16, 24))
PATCHES, ORDER, SCORES = torch.rand(4, 4, 6) < 0.5, torch.randperm(24), torch.rand(4, 4, 6)
SOURCE = torch.randint(4 * 24, (4, 4, 6))

# Each public function of one of its tensors.
CALLS: dict[str, tuple[Callable[[Any], Any], Tensor]] = {
    "patch_mask": (lambda x: entmask_ext.patch_mask(x, LOGITS, 4), IMAGE),
    "patch_mask of logits": (lambda x: entmask_ext.patch_mask(IMAGE, x, 4, 0.5, label_dtype=torch.uint8), LOGITS),
    "patch_mask of a ratio": (lambda x: entmask_ext.patch_mask(IMAGE, LOGITS, (4, 4), x), torch.tensor(0.3)),
    "patch_mask_from_scores": (lambda x: entmask_ext.patch_mask_from_scores(IMAGE, x, 4, hint=0.1), SCORES),
    "random_patch_mask": (lambda x: entmask_ext.random_patch_mask(x, 4, 1.0)[:3], IMAGE),
    "select_patches": (lambda x: entmask_ext.select_patches(x, min_score=0.5, min_patches=2), SCORES),
    "patch_where": (lambda x: entmask_ext.patch_where(PATCHES, -1, x, 4), LABELS),
    "entropy_map": (lambda x: entmask_ext.entropy_map(x, normalize=False), LOGITS),
    "uncertainty_map": (lambda x: entmask_ext.uncertainty_map(x, "least_confidence"), LOGITS),
    "pseudo_labels": (lambda x: entmask_ext.pseudo_labels(x, min_confidence=0.6), LOGITS),
    "patch_scores": (lambda x: entmask_ext.patch_scores(x, 4, score="count", threshold=0.5), LOGITS),
    "consistency_loss": (lambda x: entmask_ext.consistency_loss(x, LABELS, PATCHES, 4, smooth=1), LOGITS),
    "soft_consistency_loss": (lambda x: entmask_ext.soft_consistency_loss(x, LOGITS.flip(0), LABELS > 0), LOGITS),
    "largest_components": (lambda x: entmask_ext.largest_components(x, 3), LABELS),
    "gather_patches": (lambda x: entmask_ext.gather_patches(x, SOURCE, 4), IMAGE),
    "shuffle_patches": (lambda x: entmask_ext.shuffle_patches(x, 4, ORDER), IMAGE),
}
calls = pytest.mark.parametrize(("call", "argument"), CALLS.values(), ids=CALLS)


def tensors(results: Any) -> list[Tensor]:
    results = (results,) if isinstance(results, Tensor) else results
    return [result for result in results if result is not None]


def assert_same(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected) or isinstance(actual, Tensor)
    for got, want in zip(tensors(actual), tensors(expected), strict=True):
        assert_same_bits(got.as_subclass(Tensor), want)


class Named(Tensor):
    """A subclass that keeps torch's own __torch_function__."""


@calls
def test_a_subclass_is_kept(call: Callable[[Any], Any], argument: Tensor) -> None:
    got, want = call(argument.as_subclass(Named)), call(argument)
    assert all(type(result) is Named for result in tensors(got))
    assert_same(got, want)


def test_monai_images_keep_their_metadata() -> None:
    data = pytest.importorskip("monai.data")
    image = data.MetaTensor(IMAGE, meta={"filename": "patient.nii.gz"})
    masked, want = entmask_ext.patch_mask(image, LOGITS, 4), entmask_ext.patch_mask(IMAGE, LOGITS, 4)
    assert isinstance(masked.image, data.MetaTensor)
    assert masked.image.meta["filename"] == "patient.nii.gz"
    assert masked.labels is None
    for got, expected in zip(masked[:4], want[:4], strict=True):
        assert_same_bits(got.as_tensor(), expected)
    assert isinstance(entmask_ext.patch_where(PATCHES, 0, image, 4), data.MetaTensor)


@calls
def test_a_mode_sees_the_op(call: Callable[[Any], Any], argument: Tensor) -> None:
    class Recording(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    with Recording():
        got = call(argument)
    assert any(name.startswith("entmask.") for name in seen), seen
    assert_same(got, call(argument))


@calls
def test_symbolic_trace(call: Callable[[Any], Any], argument: Tensor) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Any:
            return call(x)

    traced = torch.fx.symbolic_trace(Module())
    assert_same(traced(argument), call(argument))


class Step(torch.nn.Module):
    def forward(self, image: Tensor, logits: Tensor) -> tuple[PatchMask, ConsistencyLoss]:
        masked = entmask_ext.patch_mask(image, logits, 4, label_dtype=torch.uint8)
        assert masked.labels is not None
        unlabelled = entmask_ext.patch_mask(image, logits, 4, min_score=0.5)
        return unlabelled, entmask_ext.consistency_loss(logits, masked.labels, masked.patches, 4)


def test_an_exported_program_is_saved_and_loaded() -> None:
    file = io.BytesIO()
    torch.export.save(torch.export.export(Step(), (IMAGE, LOGITS)), file)
    file.seek(0)
    masked, losses = torch.export.load(file).module()(IMAGE, LOGITS)
    want = Step()(IMAGE, LOGITS)
    assert masked.labels is None
    assert_same(masked, want[0])
    assert_same(losses, want[1])


@pytest.mark.long
def test_ahead_of_time_packages(tmp_path: Path) -> None:
    program = torch.export.export(Step(), (IMAGE, LOGITS))
    package = torch._inductor.aoti_compile_and_package(
        program,
        package_path=str(tmp_path / "step.pt2"),
        inductor_configs={"aot_inductor.compile_wrapper_opt_level": "O0"},
    )
    for got, want in zip(torch._inductor.aoti_load_package(package)(IMAGE, LOGITS), Step()(IMAGE, LOGITS), strict=True):
        assert type(got) is type(want)
        for actual, expected in zip(tensors(got), tensors(want), strict=True):
            torch.testing.assert_close(actual, expected)


def test_results_are_loaded_with_weights_only() -> None:
    for results in Step()(IMAGE, LOGITS):
        file = io.BytesIO()
        torch.save(results, file)
        file.seek(0)
        assert_same(torch.load(file, weights_only=True), results)


def test_results_are_collated() -> None:
    """Masks that a data set made, with their labels, or what there is without."""
    labelled = [entmask_ext.patch_mask(IMAGE, LOGITS, 4, label_dtype=torch.uint8) for _ in range(3)]
    batch = torch.utils.data.default_collate(labelled)
    assert isinstance(batch, PatchMask)
    assert_same_bits(batch.patches, torch.stack([masked.patches for masked in labelled]))
    unlabelled = [entmask_ext.patch_mask(IMAGE, LOGITS, 4) for _ in range(3)]
    assert len(torch.utils.data.default_collate([masked[:4] for masked in unlabelled])) == 4
    with pytest.raises(TypeError, match="NoneType"):  # torch stacks no None
        torch.utils.data.default_collate(unlabelled)


def test_compiled_autograd() -> None:
    """The backward of every op, as a graph that torch makes of it."""
    gradients = []
    for context in (contextlib.nullcontext(), torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager"))):
        image, logits = IMAGE.clone().requires_grad_(), LOGITS.clone().requires_grad_()
        with context:
            masked = entmask_ext.patch_mask(image, logits, 4, fill=1)
            mixed = entmask_ext.patch_where(PATCHES, masked.image, entmask_ext.shuffle_patches(image, 4, ORDER), 4)
            losses = entmask_ext.consistency_loss(logits, LABELS, masked.patches, 4)
            total = mixed.square().sum() + masked.scores.sum() + entmask_ext.entropy_map(logits).sum() + losses.total
            total.backward()
        gradients.append((image.grad, logits.grad))
    for got, want in zip(*gradients, strict=True):
        assert_same_bits(got, want)
