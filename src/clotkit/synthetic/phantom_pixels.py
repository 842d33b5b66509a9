"""Paint a synthetic slide: its textures, and its tiles as the bytes of the TIFF.

There are two periodic textures, packed red cells and fibrin; a slide picks one per pixel. Whole tiles of background or
of one texture repeat, so they are encoded once and cached. All other tiles are made as they are written.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clotkit.synthetic.phantom_tissue import TILE_PX, Field, Floats, SlidePlan, generator, interpolate, slide_field

Pixels = NDArray[np.uint8]

PERIODS_PX = (256, 512, 1024)  # sides of a texture: whole tiles of 128 px; a small slide has a small one
CELL_PX = 8  # pitch of red cells, 7 px across with a gap
NUCLEUS_PX = 16  # pitch of the places of nuclei
EDGE_PX = 5.0  # depth at which the clot has its full colour
MIX_PX = (8.0, 160.0)  # minimum and maximum width of the belt in which red cells thin out into fibrin
VARIANTS = 16  # different background tiles of a slide
SPECKS = 6  # pixels per background tile that are one level off: 300 bytes a tile, as on real slides
FAST, SMALL = 1, 9  # deflate levels: for tissue, for the few background tiles that repeat
OUTSIDE, WHOLE, MIXED = 0, 1, 2  # what a tile shows: background, one texture throughout, anything else

RED = np.array([[232, 178, 180], [190, 62, 74]], np.float32)  # plasma between the cells, a cell
FIBRIN = np.array([[243, 214, 222], [206, 128, 160]], np.float32)  # matrix, a strand
NUCLEUS = np.array([90, 60, 140], np.float32)  # haematoxylin


@dataclass(frozen=True)
class Texture:
    """The two periodic textures of a slide; the side is one of PERIODS_PX."""

    red: Pixels  # [side, side, 3]
    fibrin: Pixels  # [side, side, 3]
    pick: Floats  # [side, side], 0 to 1, constant on a red cell: which cells stray into fibrin


class Painter:
    """The painter of one slide's tiles, uint8[128, 128, 3] each, predicted and deflated."""

    def __init__(self, plan: SlidePlan) -> None:
        self.plan = plan
        self.field = slide_field(plan)
        self.texture = make_texture(plan)
        self.blank = _blank_tiles(plan)
        self.blank_bytes = [encode_tile(tile, SMALL) for tile in self.blank]
        self.whole: dict[tuple[bool, int, int], bytes] = {}
        low, high = MIX_PX
        self.belt_px = float(np.clip(np.sqrt(plan.tissue_share * plan.width_px * plan.height_px) / 12, low, high))
        self.kind, self.all_red = _tile_kinds(self.field, self.belt_px)
        self.places = (np.arange(TILE_PX) + 0.5) / self.field.step_px

    def tiles(self) -> Iterator[bytes]:
        """Yield the encoded tiles in the order of a TIFF, row by row."""
        rng = generator(self.plan.seed, self.plan.split, self.plan.image_id, "tiles")
        for row, kinds in enumerate(self.kind):
            variants = rng.integers(VARIANTS, size=len(kinds)).tolist()
            for column, kind in enumerate(kinds.tolist()):
                if kind == OUTSIDE:
                    yield self.blank_bytes[variants[column]]
                elif kind == WHOLE:
                    yield self.whole_tile(bool(self.all_red[row, column]), row, column)
                else:
                    yield encode_tile(self.composed_tile(row, column, self.blank[variants[column]]))

    def bands(self) -> Iterator[Pixels]:
        """Yield the pixels that `tiles` encodes in bands of a tile's height, uint8[h, width, 3]."""
        rng = generator(self.plan.seed, self.plan.split, self.plan.image_id, "tiles")
        for row, kinds in enumerate(self.kind):
            variants = rng.integers(VARIANTS, size=len(kinds)).tolist()
            tiles = [
                self.composed_tile(row, column, self.blank[variant]) if kind != OUTSIDE else self.blank[variant]
                for column, (kind, variant) in enumerate(zip(kinds.tolist(), variants, strict=True))
            ]
            yield np.concatenate(tiles, axis=1)[: self.plan.height_px - row * TILE_PX, : self.plan.width_px]

    def whole_tile(self, red: bool, row: int, column: int) -> bytes:
        """Return an encoded tile that is one texture throughout, from the cache if it is there."""
        tiles = len(self.texture.pick) // TILE_PX
        key = (red, row % tiles, column % tiles)
        if key not in self.whole:
            texture = self.texture.red if red else self.texture.fibrin
            self.whole[key] = encode_tile(texture[self._square(row, column)])
        return self.whole[key]

    def composed_tile(self, row: int, column: int, blank: Pixels) -> Pixels:
        """Return a tile with an outline or a belt, uint8[128, 128, 3]; outside the clot it shows `blank`."""
        square = self._square(row, column)
        chance = 0.5 + self.read_field(self.field.red, row, column) / np.float32(self.belt_px)
        is_red = (chance > self.texture.pick[square])[..., None]
        tissue = np.where(is_red, self.texture.red[square], self.texture.fibrin[square])
        inside = self.read_field(self.field.inside, row, column)
        if inside.min() >= EDGE_PX:
            return tissue
        # The outline itself has half of the colour, so that all tissue of the ground truth is visible.
        cover = np.where(inside > 0, np.clip(0.5 + inside / (2 * EDGE_PX), 0, 1), 0)[..., None].astype(np.float32)
        return np.asarray(np.rint(blank + (tissue - blank.astype(np.float32)) * cover), np.uint8)

    def _square(self, row: int, column: int) -> tuple[slice, slice]:
        side = len(self.texture.pick)
        y, x = row * TILE_PX % side, column * TILE_PX % side
        return slice(y, y + TILE_PX), slice(x, x + TILE_PX)

    def read_field(self, nodes: Floats, row: int, column: int) -> Floats:
        """Return a field at the pixels of one tile, float32[128, 128], as `tissue_mask` has it."""
        count = TILE_PX // self.field.step_px
        block = nodes[row * count : (row + 1) * count + 1, column * count : (column + 1) * count + 1]
        return interpolate(interpolate(block, self.places).T, self.places).T


def encode_tile(tile: Pixels, level: int = FAST) -> bytes:
    """Encode a tile, uint8[h, w, 3], as TIFF stores it: horizontal predictor and deflate."""
    predicted = tile.copy()
    predicted[:, 1:] -= tile[:, :-1]
    return zlib.compress(predicted.tobytes(), level)


def _blank_tiles(plan: SlidePlan) -> list[Pixels]:
    """Return VARIANTS background tiles, uint8[128, 128, 3], a few pixels one level off, as from a scanner."""
    rng = generator(plan.seed, plan.split, plan.image_id, "blank")
    tiles = []
    for _ in range(VARIANTS):
        tile = np.empty((TILE_PX, TILE_PX, 3), np.int16)
        tile[:] = plan.background
        y, x = rng.integers(TILE_PX, size=(2, SPECKS))
        tile[y, x] += rng.choice([-1, 1], (SPECKS, 1)).astype(np.int16)
        tiles.append(np.clip(tile, 0, 255).astype(np.uint8))
    return tiles


def _tile_kinds(field: Field, belt_px: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return what each tile shows, uint8, and which are red, bool, [tile rows, tile columns] each.

    Between nodes a field is bilinear, so a tile's extremes are at nodes.
    """
    low, high = _tile_extremes(field.inside, field.step_px)
    red_low, red_high = _tile_extremes(field.red, field.step_px)
    one = (low >= EDGE_PX) & ((red_low > belt_px / 2) | (red_high < -belt_px / 2))
    kind = np.where(high <= 0, OUTSIDE, np.where(one, WHOLE, MIXED)).astype(np.uint8)
    return kind, red_low > 0


def _tile_extremes(nodes: Floats, step_px: int) -> tuple[Floats, Floats]:
    """Return the smallest and the largest node of each tile: two float32[tile rows, tile columns].

    The nodes on a tile's far borders count too.
    """
    count = TILE_PX // step_px
    rows, columns = (nodes.shape[0] - 1) // count, (nodes.shape[1] - 1) // count
    low, high = np.full((rows, columns), np.inf, np.float32), np.full((rows, columns), -np.inf, np.float32)
    for y in range(count + 1):
        for x in range(count + 1):
            some = nodes[y : y + rows * count : count, x : x + columns * count : count][:rows, :columns]
            np.minimum(low, some, out=low)
            np.maximum(high, some, out=high)
    return low, high


def make_texture(plan: SlidePlan) -> Texture:
    """Return the two textures of a slide, with its stain and background."""
    rng = generator(plan.seed, plan.split, plan.image_id, "texture")
    longer = max(plan.width_px, plan.height_px)
    side = next((side for side in PERIODS_PX if side >= longer), PERIODS_PX[-1])
    distance, shade = _points(rng, side, CELL_PX, 1.0)
    cell = np.clip((4.3 - distance) / 1.6, 0, 1) * (0.84 + 0.24 * shade) * np.clip(0.78 + distance / 10, 0, 1)
    crowd, sway = _noise(rng, side, 90.0, 90.0), _noise(rng, side, 150.0, 150.0)
    strand = _strands(rng, sway)
    crowds = np.clip(crowd[::NUCLEUS_PX, ::NUCLEUS_PX], 0, 2)  # white cells form layers
    few, many = _nuclei(rng, side, 0.05 + 0.04 * crowds), _nuclei(rng, side, 0.12 + 0.25 * crowds)
    gain = rng.normal(1.0, 0.06) * rng.normal(1.0, 0.03, 3)
    clump = 0.015 * (crowd + sway)[..., None]  # more would show the period when downsampled
    grain = rng.normal(0.0, 2.0, (side, side)).astype(np.float32)[..., None]
    red = _blend((_blend(RED, cell) * (1 - clump), NUCLEUS), few)
    fibrin = _blend((_blend(FIBRIN, strand) * (1 - clump), NUCLEUS), many)
    return Texture(_stain(red + grain, gain, plan), _stain(fibrin + grain, gain, plan), shade)


def _points(rng: np.random.Generator, side: int, pitch: int, density: Floats | float) -> tuple[Floats, Floats]:
    """Scatter points and return the distance to the nearest one and its number, float32[side, side] each.

    The square is periodic and divided into cells of `pitch` px. A share `density` of them, which may differ by cell,
    has a point. Distances are in px, inf far from any point; numbers are 0 to 1.
    """
    cells = side // pitch
    py, px = rng.uniform(0.1, 0.9, (2, cells, cells)).astype(np.float32) * pitch
    py[rng.random((cells, cells)) >= density] = np.inf
    number = rng.random((cells, cells)).astype(np.float32)
    at = np.arange(pitch, dtype=np.float32) + 0.5
    nearest = np.full((cells, pitch, cells, pitch), np.inf, np.float32)
    owner = np.zeros_like(nearest)
    for down in (-1, 0, 1):  # the nearest point lies in a neighbouring cell
        for right in (-1, 0, 1):
            shifted = [np.roll(plane, (-down, -right), (0, 1)) for plane in (py, px, number)]
            dy = (at[None, None, :] - shifted[0][..., None] - down * pitch) ** 2
            dx = (at[None, None, :] - shifted[1][..., None] - right * pitch) ** 2
            square = dy.transpose(0, 2, 1)[..., None] + dx[:, None]
            closer = square < nearest
            np.copyto(nearest, square, where=closer)
            np.copyto(owner, np.broadcast_to(shifted[2][:, None, :, None], owner.shape), where=closer)
    return np.sqrt(nearest).reshape(side, side), owner.reshape(side, side)


def _noise(rng: np.random.Generator, side: int, along_px: float, across_px: float, turn: float = 0.0) -> Floats:
    """Return smooth periodic noise of mean 0 and SD 1; its grains have the given sides and angle."""
    ky, kx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    along, across = kx * np.cos(turn) + ky * np.sin(turn), ky * np.cos(turn) - kx * np.sin(turn)
    keep = np.exp(-((np.pi * along * along_px) ** 2 + (np.pi * across * across_px) ** 2) / 2)
    phase = rng.random(keep.shape, dtype=np.float32) * np.float32(2 * np.pi)
    smooth = np.fft.irfft2(keep * np.exp(1j * phase), s=(side, side)).astype(np.float32)
    smooth -= smooth.mean()
    return np.asarray(smooth / smooth.std(), np.float32)


def _strands(rng: np.random.Generator, sway: Floats) -> Floats:
    """Return wavy fibres of fibrin, 0 (matrix) to 1 (strand), float32[side, side].

    `sway`, of that shape, bends them.
    """
    side, turn = len(sway), rng.uniform(0, np.pi)
    fine, coarse = _noise(rng, side, 70.0, 4.0, turn), _noise(rng, side, 160.0, 14.0, turn)
    strand = np.clip(0.7 * np.exp(-((fine / 0.55) ** 2)) + 0.22 * coarse + 0.15, 0, 1)
    at = np.arange(side)
    bend = (34 * sway).astype(np.int64)
    bent: Floats = strand[(at[:, None] + bend) % side, (at[None, :] + np.roll(bend, 300, 0)) % side]
    return bent


def _nuclei(rng: np.random.Generator, side: int, density: Floats) -> Floats:
    """Return nuclei of 4 to 6 px radius, 0 (none) to 0.9, float32[side, side].

    `density` is given per NUCLEUS_PX square.
    """
    distance, number = _points(rng, side, NUCLEUS_PX, density)
    return np.asarray(np.clip((4 + 2 * number - distance) / 1.5, 0, 0.9), np.float32)


def _blend(pair: Floats | tuple[Floats, Floats], share: Floats) -> Floats:
    """Blend from the first colour of `pair` (share 0) to the second (1): float32[h, w, 3]."""
    colours: Floats = pair[0] + (pair[1] - pair[0]) * share[..., None]
    return colours


def _stain(colours: Floats, gain: NDArray[np.float64], plan: SlidePlan) -> Pixels:
    """Convert colours on white to this slide's.

    `gain` scales each channel's dye, the background the light.
    """
    if plan.is_outlier:
        colours = colours[..., ::-1]  # red for blue: cells and strands in violet
    light = np.clip(colours, 8, 250) / np.float32(255)
    dyed = light ** gain.astype(np.float32) * np.array(plan.background, np.float32)
    return np.asarray(np.clip(np.rint(dyed), 1, 255), np.uint8)
