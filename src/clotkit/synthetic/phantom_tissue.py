"""Define where the clot of a synthetic slide lies, and the red cells in it: geometry alone, no pixels.

The two are functions of place on a coarse grid of nodes, interpolated bilinearly. A slide's pixels and its ground truth
(`tissue_mask`) come from the same numbers.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

TILE_PX = 128
MAX_NODES = 300_000  # of a slide's grid: bounds memory and time
MARGIN = 0.02  # of the smaller side, kept free of tissue, so that the border shows the background

BACKGROUNDS = (  # of the competition's slides; most are white
    (255, 255, 255),
    (255, 250, 255),
    (255, 241, 255),
    (244, 244, 243),
    (234, 216, 254),
    (196, 211, 192),
    (211, 226, 207),
)


@dataclass(frozen=True)
class SlidePlan:
    """The plan of one synthetic slide; everything on the slide follows from these fields."""

    seed: int
    split: str
    image_id: str
    width_px: int
    height_px: int
    background: tuple[int, int, int]
    tissue_share: float  # of all pixels
    sections: int  # number of copies of the same clot
    red_share: float  # of the tissue; the rest is fibrin
    is_outlier: bool = False  # of the class that train lacks: drawn in another stain


@dataclass(frozen=True)
class Field:
    """Depths on a grid of nodes; the first node is the slide's corner, the last lies past its far corner."""

    step_px: int  # distance between nodes
    inside: Floats  # [rows, columns] depth inside the clot's outline, px; at most 0 outside
    red: Floats  # [rows, columns] depth inside a patch of red cells, px; at most 0 in fibrin


def generator(*parts: object) -> np.random.Generator:
    """Return a random generator for a name, so that no draw for one thing changes another's."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest))


def slide_plan(
    seed: int,
    split: str,
    image_id: str,
    width_px: int,
    height_px: int,
    *,
    red_share: float = 0.5,
    is_outlier: bool = False,
) -> SlidePlan:
    """Draw background, tissue share and sections of a slide; the same arguments give the same slide.

    `red_share` and `is_outlier` only choose textures: the outline does not depend on them.
    """
    rng = generator(seed, split, image_id, "plan")
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    normal = rng.standard_normal()
    # Log-normal in two halves: the real shares fall off faster above their median, 12.45 %, than below it.
    share = 0.1245 * np.exp(normal * (0.789 if normal < 0 else 0.471))
    sections = int(rng.integers(2, 4)) if rng.random() < 0.4 else 1
    share = round(float(np.clip(share, 0.0011, 0.495)), 6)
    return SlidePlan(seed, split, image_id, width_px, height_px, background, share, sections, red_share, is_outlier)


def tissue_mask(plan: SlidePlan, downsample: int) -> NDArray[np.bool_]:
    """Return where the tissue is, bool[h, w]: one value per box of `downsample` pixels, at its centre.

    h and w are the slide's sides over `downsample`, rounded up. With `downsample` 1 the mask is exact.
    """
    field = slide_field(plan)
    rows = (np.arange(-(-plan.height_px // downsample)) + 0.5) * downsample
    columns = (np.arange(-(-plan.width_px // downsample)) + 0.5) * downsample
    return interpolate(interpolate(field.inside, rows / field.step_px).T, columns / field.step_px).T > 0


@lru_cache(maxsize=2)
def slide_field(plan: SlidePlan) -> Field:
    """Return the geometry of a slide, on a grid that ends with its last tile."""
    high, wide = (-(-side // TILE_PX) * TILE_PX for side in (plan.height_px, plan.width_px))
    step = next(step for step in (8, 16, 32, 64, TILE_PX) if step == TILE_PX or high * wide <= MAX_NODES * step * step)
    y = np.arange(0, high + 1, step, dtype=np.float32)[:, None]
    x = np.arange(0, wide + 1, step, dtype=np.float32)[None, :]
    inside, red = _clot(plan, y, x)
    border = np.minimum(np.minimum(x, plan.width_px - x), np.minimum(y, plan.height_px - y))
    border = border - MARGIN * min(plan.width_px, plan.height_px)
    wanted = max(1, round(plan.tissue_share * plan.width_px * plan.height_px / step**2))
    free = inside[border > 0]
    inside = np.minimum(inside - _threshold(free, wanted), border)
    tissue = red[inside > 0]
    red = red - _threshold(tissue, round(plan.red_share * tissue.size))
    return Field(step, inside.astype(np.float32), red.astype(np.float32))


def interpolate(nodes: Floats, places: NDArray[np.float64]) -> Floats:
    """Interpolate `nodes` linearly along their first axis at fractional `places`."""
    low = np.minimum(places.astype(np.int64), len(nodes) - 2)
    part = np.minimum(places - low, 1.0).astype(np.float32)[:, None]
    mixed: Floats = nodes[low] * (1 - part) + nodes[low + 1] * part
    return mixed


def _threshold(values: Floats, above: int) -> float:
    """Return a value that `above` of `values` exceed; past the ends, one far from all of them."""
    if above <= 0:
        return float(values.max(initial=0.0)) + 1e6
    if above >= values.size:
        return float(values.min(initial=0.0)) - 1e6
    two = np.partition(values, (values.size - above - 1, values.size - above))
    return float((two[values.size - above - 1] + two[values.size - above]) / 2)


def _clot(plan: SlidePlan, y: Floats, x: Floats) -> tuple[Floats, Floats]:
    """Return depth inside the clot and inside red patches, float32[len(y), len(x)], px up to a constant."""
    rng = generator(plan.seed, plan.split, plan.image_id, "clot")
    blobs, waves = _draw_blobs(rng), _draw_waves(rng)
    grid = np.linspace(-2.5, 2.5, 160, dtype=np.float32)
    unit = _outline(blobs, grid[:, None], grid[None, :]) > 0
    area = unit.mean() * 25.0
    middle = [float(grid[unit.any(axis=axis)][[0, -1]].mean()) for axis in (1, 0)]
    along_y = plan.height_px >= plan.width_px
    tall, wide = plan.height_px / (plan.sections if along_y else 1), plan.width_px / (1 if along_y else plan.sections)
    scale = float(np.sqrt(plan.tissue_share * tall * wide / area))
    stretch = (tall / wide) ** 0.35  # stretches the clot towards the shape of its area
    depth = np.full((y.size, x.size), -np.inf, np.float32)
    red = np.zeros_like(depth)
    for number in range(plan.sections):
        place = number + 0.5
        centre_y = (place if along_y else 0.5) * tall + rng.normal(0, 0.03) * tall
        centre_x = (0.5 if along_y else place) * wide + rng.normal(0, 0.03) * wide
        turn = rng.normal(0, 0.08)  # each section is slightly rotated
        down, right = (y - centre_y) / (scale * stretch), (x - centre_x) / (scale / stretch)
        v = (down * np.cos(turn) - right * np.sin(turn) + middle[0]).astype(np.float32)
        u = (down * np.sin(turn) + right * np.cos(turn) + middle[1]).astype(np.float32)
        here = _outline(blobs, v, u)
        red = np.where(here > depth, _wave_sum(waves, v, u), red)
        depth = np.maximum(depth, here)
    return depth * scale, red * scale


def _draw_blobs(rng: np.random.Generator) -> list[tuple[float, float, Floats]]:
    """Draw two to four blobs in the unit plane: centre y, centre x, and radius by angle, float32[4096]."""
    angle = np.linspace(0, 2 * np.pi, 4096, endpoint=False)
    blobs = []
    for number in range(int(rng.integers(2, 5))):
        away, bearing = (0.0, 0.0) if number == 0 else (rng.uniform(0.5, 1.0), rng.uniform(0, 2 * np.pi))
        radius = np.full(angle.shape, rng.uniform(0.5, 0.85))
        for wave in range(2, 32):  # low frequencies shape it, high ones roughen its edge
            radius += rng.normal(0, 0.3 / wave**1.35) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
        blobs.append((away * np.sin(bearing), away * np.cos(bearing), np.maximum(radius, 0.1).astype(np.float32)))
    return blobs


def _outline(blobs: list[tuple[float, float, Floats]], v: Floats, u: Floats) -> Floats:
    """Return depth inside the union of the blobs, in units of their plane."""
    depth = np.full(np.broadcast_shapes(v.shape, u.shape), -np.inf, np.float32)
    for centre_v, centre_u, radius in blobs:
        down, right = v - np.float32(centre_v), u - np.float32(centre_u)
        turn = np.arctan2(down, right) * np.float32(len(radius) / (2 * np.pi))
        depth = np.maximum(depth, radius[turn.astype(np.int64) % len(radius)] - np.hypot(down, right))
    return depth


def _draw_waves(rng: np.random.Generator) -> Floats:
    """Draw plane waves for the red patches: rows of (amplitude, wave number v, wave number u, phase).

    The slope of their sum is about 1.
    """
    length = np.concatenate([rng.uniform(0.5, 1.4, 14), rng.uniform(0.12, 0.3, 8)])
    amplitude = np.concatenate([np.ones(14), np.full(8, 0.12)])
    bearing, phase = rng.uniform(0, 2 * np.pi, (2, length.size))
    number = 2 * np.pi / length
    amplitude /= np.sqrt((amplitude**2 * number**2 / 2).sum())
    return np.stack([amplitude, number * np.sin(bearing), number * np.cos(bearing), phase], 1).astype(np.float32)


def _wave_sum(waves: Floats, v: Floats, u: Floats) -> Floats:
    total = np.zeros(np.broadcast_shapes(v.shape, u.shape), np.float32)
    for amplitude, number_v, number_u, phase in waves:
        total += amplitude * np.cos(number_v * v + number_u * u + phase)
    return total
