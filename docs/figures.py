"""Draws the pictures of docs/ops.md: `python docs/figures.py` writes docs/img/*.png.

The images are the embedded phantom's, the masks and numbers are the ops' own. The teacher is made up: the logarithm of
the blurred truth, so that it is unsure along borders, and smooth noise, so that it is also unsure and sometimes wrong
elsewhere.
"""

import functools
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # train is no installed package

import entmask_ext as em  # noqa: E402
from train.data.anatomy import draw_patient  # noqa: E402
from train.files import write_atomically  # noqa: E402

FOLDER = ROOT / "docs" / "img"
SLICES = ((1, 4), (4, 5))  # patient, slice
SIDE = 96  # pixels of the square cut out around the heart
PATCH = 8
MASKED = "#e4572e"
CLASSES = ListedColormap(["#e4572e", "#f3c623", "#3c91e6"])  # right ventricle, myocardium, left ventricle
SOURCES = ("#3c91e6", "#f3c623")


def slices() -> tuple[Tensor, Tensor]:
    """Images (2, 1, SIDE, SIDE) in [0, 1] and labels (2, SIDE, SIDE) of two patients at end-diastole."""
    images, labels = [], []
    for patient, number in SLICES:
        (volume, truth, _), _ = draw_patient(0, patient)
        rows, columns = np.nonzero(truth[number])
        image, label = (
            x[number, int(rows.mean()) - SIDE // 2 :, int(columns.mean()) - SIDE // 2 :][:SIDE, :SIDE]
            for x in (volume, truth)
        )
        images.append(torch.from_numpy(np.clip(image / np.quantile(image, 0.995), 0, 1))[None])
        labels.append(torch.from_numpy(label.astype(np.int64)))
    return torch.stack(images), torch.stack(labels)


def network(labels: Tensor, blur: tuple[float, ...], noise: float, seed: int) -> Tensor:
    """Logits (N, 4, H, W) of a network that has learnt labels (N, H, W) so far; blur in pixels, one per image."""
    rng = np.random.default_rng(seed)
    one_hot = F.one_hot(labels, 4).permute(0, 3, 1, 2).double().numpy()
    logits = np.empty_like(one_hot)
    for image, (truth, width) in enumerate(zip(one_hot, blur, strict=True)):
        for k, plane in enumerate(truth):
            waves = gaussian_filter(rng.normal(0, 1, plane.shape), 3)
            logits[image, k] = np.log(gaussian_filter(plane, width) + 3e-3) + noise * waves / waves.std()
    return torch.from_numpy(logits).float()


def grid_of(*titles: str, rows: int = 1, width: float = 1.75) -> tuple[Figure, list[Axes]]:
    """A figure of equal squares, as many columns as it takes; one title per square, row by row."""
    columns = len(titles) // rows
    height = width + 0.17 * (max(title.count("\n") for title in titles) + 1)
    figure = Figure(figsize=(width * columns, height * rows + 0.05), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=8)
        axis.set_axis_off()
    return figure, axes


def gray(axis: Axes, image: Tensor) -> None:
    axis.imshow(image.squeeze().numpy(), cmap="gray", vmin=0, vmax=1)


def heat(axis: Axes, values: Tensor, top: float = 1.0) -> None:
    """A map of pixels or of patches, stretched over the image; 0 is black."""
    axis.imshow(values.squeeze().numpy(), cmap="magma", vmin=0, vmax=top, extent=(0, SIDE, SIDE, 0), aspect="equal")


def squares(axis: Axes, chosen: Tensor, colour: str, patch: int = PATCH, alpha: float = 0.5) -> None:
    """Tints the chosen (Gh, Gw) patches of an image."""
    for row, column in chosen.nonzero().tolist():
        corner = (column * patch - 0.5, row * patch - 0.5)
        axis.add_patch(Rectangle(corner, patch, patch, facecolor=colour, alpha=alpha, linewidth=0))


def outline(axis: Axes, mask: Tensor) -> None:
    """The border of the masked patches."""
    edges = np.kron(mask.squeeze().numpy(), np.ones((4, 4)))
    axis.contour(edges, levels=[0.5], colors=MASKED, linewidths=0.6, extent=(-0.5, SIDE - 0.5, -0.5, SIDE - 0.5))


def student_view(axis: Axes, masked: em.PatchMask, image: int = 0) -> None:
    gray(axis, masked.image[image])
    outline(axis, masked.mask[image])


def lines(axis: Axes, patch: int = PATCH, offset: float = -0.5) -> None:
    for at in range(patch, SIDE, patch):
        axis.axhline(at + offset, color="white", linewidth=0.3, alpha=0.6)
        axis.axvline(at + offset, color="white", linewidth=0.3, alpha=0.6)


def classes(axis: Axes, image: Tensor, labels: Tensor) -> None:
    gray(axis, image)
    shown = np.ma.masked_equal(labels.numpy(), 0)
    axis.imshow(shown, cmap=CLASSES, vmin=0.5, vmax=3.5, alpha=0.65, interpolation="nearest")


def save(figure: Figure, name: str) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", pad_inches=0.04)
    small = io.BytesIO()  # 256 colours: half the size
    Image.open(buffer).convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE).save(
        small, format="png", optimize=True
    )
    write_atomically(FOLDER / f"{name}.png", small.getvalue())
    print(f"docs/img/{name}.png  {len(small.getvalue()) / 1000:.0f} kB")


def patch_mask(image: Tensor, logits: Tensor) -> None:
    masked = em.patch_mask(image, logits, PATCH, ratio=0.25, label_dtype=torch.uint8)
    assert masked.labels is not None
    figure, axes = grid_of("image", "entropy of the logits", "scores", "patches", "image, masked", "labels")
    gray(axes[0], image)
    heat(axes[1], em.entropy_map(logits))
    heat(axes[2], masked.scores)
    lines(axes[2], offset=0)
    gray(axes[3], image)
    squares(axes[3], masked.patches[0], MASKED)
    lines(axes[3])
    student_view(axes[4], masked)
    classes(axes[5], image, masked.labels[0])
    save(figure, "patch_mask")


def scores(image: Tensor, logits: Tensor) -> None:
    threshold = 0.4
    entropy = em.entropy_map(logits)
    figure, axes = grid_of(
        "image",
        "entropy_map",
        'patch_scores\nscore="mean"',
        f"pixels with\nentropy >= {threshold}",
        'patch_scores\nscore="count"',
    )
    gray(axes[0], image)
    heat(axes[1], entropy)
    heat(axes[2], em.patch_scores(logits, PATCH))
    heat(axes[3], (entropy >= threshold).float())
    heat(axes[4], em.patch_scores(logits, PATCH, score="count", threshold=threshold))
    for axis in (axes[2], axes[4]):
        lines(axis, offset=0)
    save(figure, "scores")


def uncertainty(logits: Tensor) -> None:
    kinds = ("entropy", "least_confidence", "margin")
    figure, axes = grid_of(*(f'"{kind}"' for kind in kinds), *(f'patch_scores\n"{kind}"' for kind in kinds))
    for i, kind in enumerate(kinds):
        heat(axes[i], em.uncertainty_map(logits, kind))
        heat(axes[3 + i], em.patch_scores(logits, PATCH, uncertainty=kind))
        lines(axes[3 + i], offset=0)
    save(figure, "uncertainty")


def pseudo_labels(image: Tensor, logits: Tensor) -> None:
    limit = 0.7
    sure = em.pseudo_labels(logits, min_confidence=limit)
    figure, axes = grid_of(
        "image",
        "p1, the probability\nof the label",
        "labels",
        f"min_confidence={limit}\norange: ignored (255)",
        f"{sure.accepted.item():.0%} accepted:\nlabels that are kept",
    )
    ignored = sure.labels == 255
    gray(axes[0], image)
    heat(axes[1], logits.softmax(1).amax(1))
    classes(axes[2], image, em.pseudo_labels(logits).labels[0])
    tinted(axes[3], image, ignored)
    classes(axes[4], image, sure.labels[0].masked_fill(ignored[0], 0))
    save(figure, "pseudo_labels")


def selection(image: Tensor, logits: Tensor) -> None:
    count = functools.partial(em.patch_mask, score="count", threshold=0.4)
    variants = {
        "ratio=0.25": em.patch_mask(image, logits, PATCH, 0.25),
        'ratio=0.25\norder="lowest"': em.patch_mask(image, logits, PATCH, 0.25, order="lowest"),
        "ratio=0.25, hint=0.05\nblue: left visible": em.patch_mask(image, logits, PATCH, 0.25, hint=0.05),
        "min_score=0.35": em.patch_mask(image, logits, PATCH, min_score=0.35),
        'score="count", threshold=0.4\nmin_score=0.5': count(image, logits, PATCH, min_score=0.5),
        "patch_size=1\nmin_score=0.4": em.patch_mask(image, logits, 1, min_score=0.4),
        "patch_size=(12, 32)\nratio=0.25": em.patch_mask(image, logits, (12, 32), 0.25),
    }
    figure, axes = grid_of("entropy", *variants, rows=2, width=2.0)
    heat(axes[0], em.entropy_map(logits))
    for axis, masked in zip(axes[1:], variants.values(), strict=True):
        tinted(axis, image, masked.mask)
    plain, _, hinted, *_ = variants.values()
    squares(axes[3], (plain.patches & ~hinted.patches)[0], SOURCES[0])
    save(figure, "selection")


def tinted(axis: Axes, image: Tensor, mask: Tensor) -> None:
    gray(axis, image)
    shown = np.ma.masked_equal(mask.squeeze().numpy(), 0)
    axis.imshow(shown, cmap=ListedColormap([MASKED]), alpha=0.5, interpolation="nearest")


def scope(images: Tensor, logits: Tensor) -> None:
    masked = {rows: em.patch_mask(images, logits, PATCH, 0.2, scope=rows) for rows in ("image", "batch")}
    titles = []
    for i in (0, 1):
        titles += [f"entropy, image {i}"]
        titles += [f'scope="{rows}"\n{int(m.patches[i].sum())} patches of image {i}' for rows, m in masked.items()]
    figure, axes = grid_of(*titles, rows=2, width=2.0)
    for i in (0, 1):
        heat(axes[3 * i], em.entropy_map(logits[i : i + 1]))
        tinted(axes[3 * i + 1], images[i], masked["image"].mask[i])
        tinted(axes[3 * i + 2], images[i], masked["batch"].mask[i])
    save(figure, "scope")


def from_scores(image: Tensor) -> None:
    gradient = torch.linalg.vector_norm(torch.stack(torch.gradient(image[:, 0], dim=(1, 2))), dim=0)
    pooled = F.avg_pool2d(gradient, PATCH, ceil_mode=True)
    masked = em.patch_mask_from_scores(image, pooled, PATCH, ratio=0.25)
    figure, axes = grid_of(
        "image", "a map of your own\n(here: gradient's length)", "avg_pool2d", "patches", "image, masked"
    )
    gray(axes[0], image)
    heat(axes[1], gradient, float(gradient.quantile(0.99)))
    heat(axes[2], pooled, float(pooled.max()))
    lines(axes[2], offset=0)
    tinted(axes[3], image, masked.mask)
    student_view(axes[4], masked)
    save(figure, "from_scores")


def random(images: Tensor) -> None:
    figure, axes = grid_of(*(f"shared={s}\nimage {i}" for s in (False, True) for i in (0, 1)), width=1.9)
    for first, shared in ((0, False), (2, True)):
        generator = torch.Generator().manual_seed(0)
        masked = em.random_patch_mask(images, 16, 0.5, shared=shared, generator=generator)
        for i in (0, 1):
            student_view(axes[first + i], masked, i)
    save(figure, "random")


def loss(image: Tensor, teacher: Tensor, student: Tensor) -> None:
    masked = em.patch_mask(image, teacher, PATCH, ratio=0.25, label_dtype=torch.int64)
    assert masked.labels is not None
    result = em.consistency_loss(student, masked.labels, masked.patches, PATCH)
    entropy = F.cross_entropy(student, masked.labels, reduction="none")
    inside = F.interpolate(masked.patches[:, None].float(), size=(SIDE, SIDE))[:, 0].bool()
    figure, axes = grid_of(
        "the student sees",
        "labels\n(teacher)",
        f"student's argmax\ndice = {result.dice.item():.3f}",
        "cross entropy l",
        f"l in masked patches\nce_masked = {result.ce_masked.item():.3f}",
        f"l outside\nce_visible = {result.ce_visible.item():.3f}",
    )
    student_view(axes[0], masked)
    classes(axes[1], image, masked.labels[0])
    classes(axes[2], image, student.argmax(1)[0])
    top = float(entropy.quantile(0.99))
    heat(axes[3], entropy, top)
    for axis, region in ((axes[4], inside), (axes[5], ~inside)):
        axis.set_facecolor("0.8")
        shown = np.ma.masked_where(~region[0].numpy(), entropy[0].numpy())
        axis.imshow(np.full((SIDE, SIDE), 0.82), cmap="gray", vmin=0, vmax=1)
        axis.imshow(shown, cmap="magma", vmin=0, vmax=top)
    save(figure, "loss")


def soft_loss(image: Tensor, teacher: Tensor, student: Tensor) -> None:
    sure = em.entropy_map(teacher) < 0.4
    p, q = student.softmax(1), teacher.softmax(1)
    kl = (q * (q.log() - p.log())).sum(1)
    means = [em.soft_consistency_loss(student, teacher, where, kind="kl").item() for where in (None, sure)]
    figure, axes = grid_of(
        "student's argmax",
        "teacher's argmax",
        f"mse = {em.soft_consistency_loss(student, teacher).item():.3f}",
        f"kl = {means[0]:.3f}",
        f"kl where the teacher\nis sure = {means[1]:.3f}",
    )
    classes(axes[0], image, student.argmax(1)[0])
    classes(axes[1], image, teacher.argmax(1)[0])
    heat(axes[2], (p - q).square().sum(1))
    top = float(kl.quantile(0.99))
    heat(axes[3], kl, top)
    axes[4].imshow(np.full((SIDE, SIDE), 0.82), cmap="gray", vmin=0, vmax=1)
    axes[4].imshow(np.ma.masked_where(~sure[0].numpy(), kl[0].numpy()), cmap="magma", vmin=0, vmax=top)
    save(figure, "soft_loss")


def shuffle(images: Tensor) -> None:
    patch = 24
    side = SIDE // patch
    generator = torch.Generator().manual_seed(3)
    permutation = torch.randperm(2 * side * side, generator=generator)
    mixed = em.shuffle_patches(images, patch, permutation)
    back = em.shuffle_patches(mixed, patch, permutation, inverse=True)
    numbers = torch.arange(2 * side * side)
    columns = {"x": (images, numbers), "shuffle_patches": (mixed, permutation), "inverse=True": (back, numbers)}
    figure, axes = grid_of(*(f"{name}\nimage {i}" for i in (0, 1) for name in columns), rows=2, width=2.0)
    for place, axis in enumerate(axes):
        i, column = divmod(place, len(columns))
        shown, order = list(columns.values())[column]
        gray(axis, shown[i])
        sources = order.view(2, side, side)[i]
        for source in (0, 1):
            squares(axis, sources // (side * side) == source, SOURCES[source], patch, alpha=0.22)
        lines(axis, patch)
        for y in range(side):
            for x in range(side):
                number = axis.text(
                    x * patch + 1, y * patch + 1, f"{sources[y, x]}", color="white", fontsize=7, va="top"
                )
                number.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
    save(figure, "shuffle")


def where(images: Tensor, logits: Tensor) -> None:
    """The second image's least sure patches replaced by the first image's, labels along."""
    image, partner = images[1:], images[:1]
    labels, others = logits[1:].argmax(1), logits[:1].argmax(1)
    unsure = em.select_patches(em.patch_scores(logits[1:], 16), 0.25)
    figure, axes = grid_of(
        "outside", "its labels", "inside", "its labels", "patches:\nleast sure", "images\nmixed", "labels\nmixed"
    )
    gray(axes[0], image)
    classes(axes[1], image, labels[0])
    gray(axes[2], partner)
    classes(axes[3], partner, others[0])
    gray(axes[4], image)
    squares(axes[4], unsure[0], MASKED, 16)
    mixed = em.patch_where(unsure, partner, image, 16)
    gray(axes[5], mixed)
    classes(axes[6], mixed, em.patch_where(unsure, others, labels, 16)[0])
    save(figure, "where")


def components(image: Tensor, logits: Tensor) -> None:
    labels = logits.argmax(1)
    kept = em.largest_components(labels, 4)
    figure, axes = grid_of("pseudo-labels", "largest\ncomponents", "what went", width=1.9)
    classes(axes[0], image, labels[0])
    classes(axes[1], image, kept[0])
    classes(axes[2], image, (labels - kept)[0])
    save(figure, "components")


def main() -> None:
    images, truth = slices()
    teacher = network(truth, (2.0, 2.0), 0.9, seed=1)
    uneven = network(truth, (0.8, 3.0), 0.7, seed=1)
    student = network(truth, (3.0, 3.0), 1.3, seed=2)
    pictures: list[Callable[[], None]] = [
        lambda: patch_mask(images[1:], teacher[1:]),
        lambda: scores(images[1:], teacher[1:]),
        lambda: uncertainty(teacher[1:]),
        lambda: pseudo_labels(images[1:], teacher[1:]),
        lambda: selection(images[1:], teacher[1:]),
        lambda: scope(images, uneven),
        lambda: from_scores(images[1:]),
        lambda: random(images),
        lambda: loss(images[1:], teacher[1:], student[1:]),
        lambda: soft_loss(images[1:], teacher[1:], student[1:]),
        lambda: shuffle(images),
        lambda: where(images, teacher),
        lambda: components(images[1:], network(truth, (2.5, 2.5), 1.7, seed=3)[1:]),
    ]
    for draw in pictures:
        draw()


if __name__ == "__main__":
    main()
