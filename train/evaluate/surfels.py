"""The surface between voxels as small elements: where they are and how much area each has.

A surface element (surfel) sits on the corner where 2x2x2 voxels meet that are not all alike. Which of the eight are
inside is a code of eight bits, and the area is that of the polygons which marching cubes (Lorensen and Cline,
SIGGRAPH 1987) puts between them, with vertices half-way along the edges. Two choices are open there; these give the
areas of DeepMind's surface-distance for every code and spacing: on a face whose diagonal corners are alike, the kind
of corner that is rarer in the cube is cut off on its own (so that a code and its complement have one surface), and a
polygon that is not flat is split into the triangles that have the most area.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np

Vertex = tuple[float, float, float]  # the middle of a cube's edge
CORNERS = list(product((0, 1), repeat=3))
FACES = [
    [tuple(np.insert(corner, axis, side).tolist()) for corner in ((0, 0), (0, 1), (1, 1), (1, 0))]
    for axis in range(3)
    for side in (0, 1)
]  # corners in cyclic order


def surfels(inside: np.ndarray, spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """inside (D, H, W) bool -> where there is an element, bool, and its area, float64, both (D + 1, H + 1, W + 1)."""
    codes = np.zeros([n + 1 for n in inside.shape], np.uint8)
    padded = np.pad(inside, 1)
    for bit, corner in enumerate(CORNERS):
        window = tuple(slice(c, c + n) for c, n in zip(corner, codes.shape, strict=True))
        codes |= padded[window].astype(np.uint8) << bit
    return (codes != 0) & (codes != 255), areas(spacing)[codes]


def areas(spacing: tuple[float, float, float]) -> np.ndarray:
    """Area of each of the 256 codes' surface, in the square of the unit of spacing."""
    d, h, w = spacing
    stretch = np.array([h * w, d * w, d * h])
    return np.array([sum((np.linalg.norm(t * stretch) for t in triangles(code)), 0.0) for code in range(256)])


@cache
def triangles(code: int) -> list[np.ndarray]:
    """Area vectors (unit voxels) of the triangles between the corners that are inside and those outside."""
    return [t for polygon in polygons(code) for t in split([np.array(v) for v in polygon])]


def polygons(code: int) -> list[list[Vertex]]:
    inside = {corner: bool(code >> bit & 1) for bit, corner in enumerate(CORNERS)}
    rarer = sum(inside.values()) <= 4
    links: dict[Vertex, list[Vertex]] = {}
    for face in FACES:
        middles = [
            tuple(np.mean([a, b], axis=0).tolist()) for a, b in zip(face, face[1:] + face[:1], strict=True)
        ]  # middles[i] follows corner i
        cut = [m for m, a, b in zip(middles, face, face[1:] + face[:1], strict=True) if inside[a] != inside[b]]
        pairs = [cut] if len(cut) == 2 else []
        if len(cut) == 4:
            pairs = [[middles[i - 1], middles[i]] for i in range(4) if inside[face[i]] == rarer]
        for a, b in pairs:
            links.setdefault(a, []).append(b)
            links.setdefault(b, []).append(a)
    found = []
    while links:  # every vertex has two neighbours: walk round
        start = next(iter(links))
        polygon, following = [start], links.pop(start)[0]
        while following != start:
            polygon.append(following)
            one, other = links.pop(following)
            following = other if one == polygon[-2] else one
        found.append(polygon)
    return found


def split(polygon: list[np.ndarray]) -> list[np.ndarray]:
    """Area vectors of the triangles between the polygon's corners that have the largest area in all."""
    if len(polygon) < 3:
        return []
    first, last = polygon[0], polygon[-1]
    ways = [
        [np.cross(polygon[k] - first, last - first) / 2, *split(polygon[: k + 1]), *split(polygon[k:])]
        for k in range(1, len(polygon) - 1)
    ]
    return max(ways, key=lambda way: sum(np.linalg.norm(t) for t in way))
