"""A procedural short-axis cardiac phantom, so that everything runs with no data to fetch.

Each patient is drawn from random anatomy (chest, lungs, diaphragm, liver, stomach, spine, aorta, and a heart from
apex to base whose wall, cavities and orientation differ from patient to patient) at end-diastole and end-systole.
What makes it a task: blood is as bright in the atria and the aorta as in the ventricles, myocardium as dark as liver
and muscle, papillary muscles lie inside the cavity, the coil's bias, the contrast and the noise (Rician) differ
between patients, and slices are shifted against each other as by breath-holds. Classes: 0 background, 1 right
ventricle, 2 myocardium, 3 left ventricle.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

SLICE_DISTANCE = 10.0  # mm


def draw_patient(seed: int, number: int) -> list[tuple[np.ndarray, np.ndarray, tuple[float, float, float]]]:
    """Image (D, H, W) float32 in [0, 1], label (D, H, W) uint8 and spacing (mm), at end-diastole and at end-systole."""
    rng = np.random.default_rng((seed, number))
    chest, heart, scan = Chest(rng), Heart(rng), Scan(rng)
    volumes = []
    for systole in (False, True):
        slices = [scan.slice(chest, heart, z, systole, rng) for z in scan.positions]
        image, label = (np.stack(part) for part in zip(*slices, strict=True))
        image = (image - image.min()) / (image.max() - image.min())
        volumes.append((image.astype(np.float32), label, (SLICE_DISTANCE, scan.pixel, scan.pixel)))
    return volumes


class Scan:
    """The grid, the coil, the contrast and the noise of one examination."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.size = (int(rng.integers(64, 79)) * 2, int(rng.integers(60, 75)) * 2)
        self.pixel = float(rng.uniform(1.7, 2.0))
        count = int(rng.integers(8, 11))
        self.positions = np.linspace(rng.uniform(-0.02, 0.08), rng.uniform(0.96, 1.06), count)  # 0 apex, 1 base
        self.coil = rng.uniform(-90, 90), rng.uniform(-150, -60)  # mm; the anterior chest is up
        self.reach = rng.uniform(120, 220)
        self.drift = Waves(rng, 4, 260)
        self.noise = rng.uniform(0.008, 0.025)
        self.blur = rng.uniform(0.4, 0.7)
        self.gamma = rng.uniform(0.8, 1.2)

    def slice(
        self, chest: Chest, heart: Heart, z: float, systole: bool, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.size
        y = (np.arange(height)[:, None] - height / 2) * self.pixel
        x = (np.arange(width)[None] - width / 2) * self.pixel
        canvas = Canvas(x, y, 1.3 * self.pixel)
        chest.paint(canvas, z)
        label = heart.paint(canvas, z, systole, rng.normal(0, 1.2, 2))
        distance = np.hypot(x - self.coil[0], y - self.coil[1])
        image = np.clip(canvas.image, 0, None) ** self.gamma
        image *= (0.4 + np.exp(-((distance / self.reach) ** 2))) * (1 + 0.12 * self.drift(x, y, 0))
        image = gaussian_filter(image * (1 + 0.05 * rng.normal(0, 1, self.size)), self.blur)
        real, imaginary = rng.normal(0, self.noise, (2, *self.size))
        return np.hypot(image + real, imaginary), label


class Canvas:
    """Structures painted over each other with the soft edge of a partly filled voxel; x (1, W) and y (H, 1) in mm."""

    def __init__(self, x: np.ndarray, y: np.ndarray, edge: float) -> None:
        self.x, self.y, self.edge = x, y, edge
        self.image = np.zeros((y.size, x.size))

    def paint(self, distance: np.ndarray, value: np.ndarray | float, opacity: float = 1.0) -> None:
        """distance: mm to the structure's border, negative inside."""
        cover = opacity * np.clip(0.5 - distance / self.edge, 0, 1)
        self.image += cover * (value - self.image)

    def disc(self, x: float, y: float, radius: float, value: float, opacity: float = 1.0) -> None:
        """A disc, painted in its own window."""
        rows = np.flatnonzero(np.abs(self.y[:, 0] - y) < radius + self.edge)
        columns = np.flatnonzero(np.abs(self.x[0] - x) < radius + self.edge)
        if rows.size and columns.size:
            window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            distance = np.hypot(self.x[:, window[1]] - x, self.y[window[0]] - y) - radius
            part = self.image[window]
            part += opacity * np.clip(0.5 - distance / self.edge, 0, 1) * (value - part)


class Waves:
    """A smooth random field over (x, y, z) in mm: cosines of about this wavelength, standard deviation 1."""

    def __init__(self, rng: np.random.Generator, count: int, length: float) -> None:
        direction = rng.normal(0, 1, (count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        self.k = direction * (2 * np.pi / (length * rng.uniform(0.7, 1.4, (count, 1))))
        self.phase = rng.uniform(0, 2 * np.pi, count)

    def __call__(self, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
        """x (1, W), y (H, 1) -> (H, W)."""
        across = x.T * self.k[:, 0]
        down = y * self.k[:, 1] + z * self.k[:, 2] + self.phase
        rows = np.concatenate([np.cos(down), -np.sin(down)], 1)
        columns = np.concatenate([np.cos(across), np.sin(across)], 1)
        # einsum and not BLAS: the same bits whatever BLAS there is and however many threads it has
        return np.einsum("hk,wk->hw", rows, columns) * np.sqrt(2 / len(self.phase))


def ellipse(x: np.ndarray, y: np.ndarray, a: float, b: float, power: float = 2.0) -> np.ndarray:
    """About the distance to an ellipse (power 2) or a squarer oval with half axes a, b; negative inside."""
    radius = (np.abs(x / a) ** power + np.abs(y / b) ** power) ** (1 / power)
    return (radius - 1) * min(a, b)


class Chest:
    """Everything but the heart: it moves with neither the heartbeat nor the heart's own variation."""

    def __init__(self, rng: np.random.Generator) -> None:
        u = rng.uniform
        self.body = u(118, 145), u(125, 150), u(2.0, 2.5)
        self.centre = u(-10, 20), u(10, 35)
        self.rim = u(9, 24)
        self.lung = u(85, 105), u(85, 105)
        self.lung_centre = u(10, 35), u(-20, 5)
        self.diaphragm = u(34, 52), u(-0.25, 0.2), u(120, 260)
        self.spine = u(-20, 15), u(88, 108)
        self.aorta = u(8, 30), u(58, 72), u(9, 13)
        self.stomach = u(45, 70), u(62, 82), u(24, 40), u(16, 28)
        self.fat, self.muscle, self.lung_value = u(0.75, 1.0), u(0.16, 0.28), u(0.03, 0.08)
        self.liver, self.gut, self.blood = u(0.17, 0.34), u(0.15, 0.6), u(0.45, 0.65)
        self.wobble, self.texture, self.fine = Waves(rng, 6, 110), Waves(rng, 10, 45), Waves(rng, 24, 11)
        self.ribs = np.sort(u(-np.pi, np.pi, 14))
        self.lung_vessels = spots(rng, 90, (-90, 110), (-110, 40), (0.15, 0.5))
        self.liver_vessels = spots(rng, 50, (-130, 10), (40, 120), (1.3, 2.2))

    def paint(self, canvas: Canvas, z: float) -> None:
        x, y, depth = canvas.x, canvas.y, 90 * z
        warp, texture, fine = self.wobble(x, y, depth), self.texture(x, y, depth), self.fine(x, y, depth)
        bx, by = x - self.centre[0], y - self.centre[1]
        body = ellipse(bx, by, *self.body) + 5 * warp
        rim = self.rim * (1 + 0.3 * texture - 0.3 * by / self.body[1])
        canvas.paint(body, self.fat * (1 - 0.08 * texture))
        canvas.paint(body + rim, self.muscle * (1 + 0.1 * fine))
        canvas.paint(np.maximum(body + rim + 4, -(body + rim + 7)) + 2 * texture, 0.7 * self.fat)

        lung = ellipse(x - self.lung_centre[0], y - self.lung_centre[1], *self.lung, 2.3) + 4 * warp
        lung = np.maximum(lung, body + rim + 11)
        canvas.paint(lung, self.lung_value)
        for angle in self.ribs:  # cut obliquely: dark cortex, fatty marrow
            inset = 1 - (self.rim + 9) / self.body[0]
            rx = self.centre[0] + self.body[0] * inset * np.cos(angle + 0.5 * z)
            ry = self.centre[1] + self.body[1] * inset * np.sin(angle + 0.5 * z)
            canvas.disc(rx, ry, 6.5, 0.08)
            canvas.disc(rx, ry, 4, 0.5 * self.fat)
        for vx, vy, vz, radius, value in self.lung_vessels:
            inside = ellipse(vx - self.lung_centre[0], vy - self.lung_centre[1], *self.lung) < -18
            if inside and abs(z - vz) < 0.2:
                canvas.disc(vx, vy, radius, value, 1 - abs(z - vz) / 0.2)

        height, slope, curve = self.diaphragm
        dome = height + 22 * (z - 0.4) + slope * x + (x + 10) ** 2 / curve - y + 4 * warp
        abdomen = np.maximum(dome, body + rim + 8)
        canvas.paint(abdomen, 0.6 * self.fat * (1 + 0.4 * texture))
        liver = np.maximum(abdomen + 2.5, x + 5 + 0.25 * y + 12 * warp)
        canvas.paint(liver, self.liver * (1 + 0.06 * fine))
        floor = height + 22 * (z - 0.4) + 12
        for vx, vy, vz, radius, value in self.liver_vessels:
            if vy > floor + slope * vx + (vx + 10) ** 2 / curve and vx + 0.25 * vy < -18 and abs(z - vz) < 0.3:
                canvas.disc(vx, vy, radius, value * self.liver, 1 - abs(z - vz) / 0.3)
        sx, sy, a, b = self.stomach
        grow = 1.25 - 0.5 * z
        stomach = np.maximum(ellipse(x - sx, y - sy, a * grow, b * grow) + 6 * texture, abdomen + 3)
        canvas.paint(stomach, self.muscle * 1.3)
        canvas.paint(stomach + 4, self.gut * (1 + 0.4 * texture))
        spine = ellipse(x - self.spine[0], y - self.spine[1], 21, 17, 3) + 2 * warp
        canvas.paint(spine - 2, 0.08)
        canvas.paint(spine, 0.34 * (1 + 0.15 * fine))
        canvas.disc(self.spine[0], self.spine[1] + 26, 7, 0.6)
        ax, ay, radius = self.aorta
        canvas.disc(ax, ay, radius + 2, self.muscle)
        canvas.disc(ax, ay, radius, self.blood)


def spots(
    rng: np.random.Generator,
    count: int,
    x: tuple[float, float],
    y: tuple[float, float],
    value: tuple[float, float],
) -> np.ndarray:
    """Vessels as discs: (count, 5) of x, y (mm), z (apex 0, base 1), radius (mm) and brightness."""
    u = rng.uniform
    return np.stack([u(*x, count), u(*y, count), u(0, 1, count), u(0.8, 2.8, count), u(*value, count)], 1)


class Heart:
    """Both ventricles from apex (0) to base (1), the atria above, and how they move."""

    def __init__(self, rng: np.random.Generator) -> None:
        u = rng.uniform
        self.centre = u(-12, 16), u(-12, 16)
        self.lean = u(-14, 14), u(-14, 14)  # mm that the axis drifts from apex to base
        self.turn = u(-0.45, 0.45)  # of the septum against the image
        self.outer = u(29, 39)  # mm, myocardium's outside at the base, end-diastole
        self.wall = u(7, 14)
        self.ejection = u(0.2, 0.7)
        self.shortening = u(0.04, 0.16)
        self.right = u(18, 36), u(28, 42), u(0.25, 0.5)  # half axes at the base, share lost in systole
        self.oval = u(0.92, 1.08)
        self.septal = u(0.8, 1.5)  # septum's thickness against the free wall's
        self.blood, self.right_blood, self.muscle = u(0.48, 0.72), u(0.88, 1.05), u(0.15, 0.32)
        self.fat = u(0.3, 0.85)
        self.wobble, self.texture, self.fine = Waves(rng, 6, 55), Waves(rng, 8, 28), Waves(rng, 24, 9)
        self.papillary = (u(0.4, 1.3), u(2.0, 4.5)), (u(2.0, 3.0), u(2.0, 4.5))
        self.depth = u(0.68, 0.9)  # of the papillary muscles in the cavity, of its radius

    def paint(self, canvas: Canvas, z: float, systole: bool, shift: np.ndarray) -> np.ndarray:
        """Paints the slice at z and returns its label (H, W) uint8; shift (x, y) in mm is the breath-hold's."""
        level = z / (1 - self.shortening) if systole else z  # in systole the base comes down towards the apex
        x = canvas.x - self.centre[0] - self.lean[0] * (z - 0.5) - shift[0]
        y = canvas.y - self.centre[1] - self.lean[1] * (z - 0.5) - shift[1]
        depth = 90 * level
        warp, texture, fine = self.wobble(x, y, depth), self.texture(x, y, depth), self.fine(x, y, depth)
        c, s = np.cos(self.turn), np.sin(self.turn)
        x, y = c * x + s * y + 1.3 * warp, (c * y - s * x) * self.oval + 0.8 * texture
        label = np.zeros(canvas.image.shape, np.uint8)
        if level < -0.03:
            return label

        outside, inside, right = self.ventricles(x, y, level, systole)
        both = np.minimum(outside, right)
        canvas.paint(both - 2.5 - 2.5 * texture, self.fat * (1 + 0.2 * texture), 0.8)
        if level > 1.02:  # above the valves: atria and outflow, as bright as ventricles, labelled as nothing
            canvas.paint(right + 4, self.blood * self.right_blood * (1 + 0.08 * texture))
            canvas.paint(outside, self.muscle)
            canvas.paint(outside + 3, self.blood * (1 + 0.1 * texture))
            return label

        canvas.paint(right - 2.5, self.muscle)
        canvas.paint(right, self.blood * self.right_blood * (1 + 0.1 * texture + 0.05 * fine))
        trabeculae = np.maximum(right + 1, 4.5 * (1.6 - fine))
        canvas.paint(trabeculae, self.muscle * 1.5)
        canvas.paint(outside, self.muscle * (1 + 0.1 * texture))
        canvas.paint(inside + 0.8 * np.clip(fine, 0, None), self.blood * (1 + 0.1 * texture + 0.05 * fine))
        radius = max(-float(inside.min()), 0.0)
        for angle, size in self.papillary:
            px, py = self.depth * radius * np.cos(angle), self.depth * radius * np.sin(angle)
            muscle = np.hypot(x - px, y - py) - min(size, 0.3 * radius) * (1 - 0.6 * max(level - 0.5, 0))
            canvas.paint(np.maximum(muscle, inside), self.muscle * 1.15)
        label[right < 0] = 1
        label[outside < 0] = 2
        label[inside < 0] = 3
        return label

    def ventricles(
        self, x: np.ndarray, y: np.ndarray, level: float, systole: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distances to the left ventricle's outside, its cavity, and the right ventricle's cavity."""
        taper = np.sqrt(np.clip(1 - (1 - min(level + 0.1, 1.0)) ** 2.2, 0.02, 1))
        outer = self.outer * taper
        cavity = max(outer - self.wall * (0.55 + 0.45 * taper), 0.0) * min(1.0, (level + 0.05) / 0.2)
        right_a, right_b, loss = self.right
        wide = np.sqrt(np.clip((level - 0.05) / 0.95, 0, 1))
        right_a, right_b = right_a * wide, right_b * (0.35 + 0.65 * wide)
        if systole:  # the wall keeps its area, up to the bit that twists in from above
            muscle = outer**2 - cavity**2
            cavity *= np.sqrt(1 - self.ejection)
            outer = np.sqrt(cavity**2 + 1.08 * muscle)
            right_a, right_b = right_a * (1 - loss), right_b * (1 - 0.5 * loss)
        outside = np.hypot(x, y) - outer
        shift = 0.5 * (self.septal - 1) * (outer - cavity)
        inside = np.hypot(x - shift, y) - cavity if cavity > 1.5 else np.full_like(x, 99.0)
        right = np.full_like(x, 99.0)
        if right_a > 4:
            bend = 0.004 * (right_b / 20) * y**2  # a crescent: its ends wrap round the septum
            right = ellipse(x + outer + 0.35 * right_a - bend, y + 2, right_a, right_b, 2.4)
            right = np.maximum(right, 1.0 - outside)
        return outside, inside, right
