"""Survey a slide whose background has several colours: find its padding and its glass.

The whole slide is read once, downsampled. Padding is a region of one exact colour that touches the slide's border. It
is told from glass of one exact colour, as saturated or synthetic glass is, by what lies along its edge: along glass
lies tissue, along padding lies glass, behind a straight edge. A colour that no glass has, such as black, is padding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clotkit.slides.pixels import Colour, Pixels, blank, box_mean, evenly_spread
from clotkit.slides.reader import Slide
from clotkit.tissue.rules import distance

Mask = npt.NDArray[np.bool_]

MAX_SURVEY_PX = 2**20
BLOCK_PX = 1024  # side of the blocks that are read
SAMPLES = 4  # along the side of a survey's pixel: their range tells texture from flat colour
JPEG_PX = 16  # around an edge, JPEG's blocks ring
MIN_LIGHT, MAX_CHROMA = 130, 64  # grey levels of a glass colour: the least channel, and the channels' range
MAX_COLOURS, MIN_BORDER_PX = 16, 2  # of padding: how many colours are tried; pixels of each along the border
MIN_ISLAND_PX = 64
HUE, HUE_MARGIN = 1.25, 0.02  # optical density in green over that in red of dyes, and how far that in blue may be above
DYED_BORDER = 0.35  # share of the border that padding or glass of such a hue has, at least
MIN_PADDING = 5e-4  # of a slide
PATCHES = 16  # places of a region that are read at full resolution
STRAIGHT_PX, MIN_STRAIGHT = 10, 0.6  # of an edge: length of a straight run, share of the edge in such runs
NEAR_BLACK = 12  # grey levels of JPEG's noise on black, which counts as one exact colour
DIFFERS = 3  # grey levels between padding and glass, at least
MIN_GLASS_SHARE, SLANTING_SHARE = 0.1, 0.8  # of what lies along padding: with straight edges, with others
MIN_HOLE_PX = 32  # of the ring inside a hole of tissue
NEUTRAL = 12  # grey levels of chroma between padding with slanting edges and its glass, at most


@dataclass(frozen=True)
class Survey:
    """A downsampled slide; what is beyond the last whole pixel is left out."""

    pixels: Pixels  # [h, w, 3]
    spread: npt.NDArray[np.uint8]  # [h, w] range of the samples in a pixel, over all channels
    downsample: int

    def smooth(self, ignored: Mask) -> Mask:
        """Return where neither samples nor neighbours differ much, bool[h, w]: glass or smooth tissue.

        Places within two pixels of `ignored` are not smooth.
        """
        from scipy import ndimage

        flat = self.spread <= MAX_SPREAD
        for channel in range(3):
            plane = self.pixels[..., channel]
            highest, lowest = ndimage.maximum_filter(plane, 5), ndimage.minimum_filter(plane, 5)
            flat &= highest - lowest <= MAX_STEP
        return np.asarray(flat & ~grown(ignored, 2))


MAX_SPREAD, MAX_STEP = 24, 8  # grey levels of smooth places: among samples of a pixel, among 5 x 5 pixels


@dataclass(frozen=True)
class Region:
    """A region of one exact colour."""

    mask: Mask  # [h, w] of the survey
    colour: Colour


def survey_slide(slide: Slide) -> Survey:
    """Read a whole slide, downsampled to at most MAX_SURVEY_PX pixels."""
    downsample = SAMPLES
    while (slide.width_px // downsample) * (slide.height_px // downsample) > MAX_SURVEY_PX:
        downsample *= 2
    width, height = slide.width_px // downsample, slide.height_px // downsample
    view, spread = blank(width, height, (0, 0, 0)), np.zeros((height, width), np.uint8)
    side = max(BLOCK_PX, downsample)
    xy = [(x, y) for y in range(0, height * downsample, side) for x in range(0, width * downsample, side)]
    fine = downsample // SAMPLES
    for (x, y), block in zip(xy, slide.tiles(xy, side // fine, fine, (0, 0, 0)), strict=True):
        left, top = x // downsample, y // downsample
        part = view[top : top + side // downsample, left : left + side // downsample]
        part[:] = box_mean(block, SAMPLES)[: part.shape[0], : part.shape[1]]
        spread[top : top + part.shape[0], left : left + part.shape[1]] = _ranges(block)[
            : part.shape[0], : part.shape[1]
        ]
    black = (view.max(axis=2) <= NEAR_BLACK) & (spread <= NEAR_BLACK)
    view[black], spread[black] = 0, 0
    return Survey(view, spread, downsample)


def _ranges(block: Pixels) -> npt.NDArray[np.uint8]:
    """Return the range of each box of SAMPLES pixels: uint8[h, w, 3] -> uint8[h / SAMPLES, w / SAMPLES]."""
    rows = [block[i::SAMPLES] for i in range(SAMPLES)]
    highest, lowest = np.maximum.reduce(rows), np.minimum.reduce(rows)
    highest = np.maximum.reduce([highest[:, i::SAMPLES] for i in range(SAMPLES)])
    lowest = np.minimum.reduce([lowest[:, i::SAMPLES] for i in range(SAMPLES)])
    return np.asarray((highest - lowest).max(axis=2))


def padding_of(slide: Slide, survey: Survey, sampled: Colour) -> list[Region]:
    """Return the padding of a slide, one region a colour; `sampled` is the colour of its border samples.

    Of two light colours that border on each other, the one along which less tissue lies goes first: without it, the
    other one has only tissue along its edge, and is glass.
    """
    uniform = [
        region
        for region in _uniform_regions(survey)
        if not _may_be_tissue(region, sampled) and _is_exact(slide, survey, region)
    ]
    padding = [region for region in uniform if not is_light(np.array(region.colour))]
    light = [region for region in uniform if is_light(np.array(region.colour))]
    while light:
        covered = union(padding, survey)
        smooth = survey.smooth(covered)
        shares = [_glass_share(survey, region.mask, covered, smooth, region.colour) for region in light]
        best = int(np.argmax(shares))
        if not shares[best]:
            break
        padding.append(light.pop(best))
    return _merged(padding)


def _merged(regions: list[Region]) -> list[Region]:
    """Return regions of nearly one colour as one, as JPEG leaves them, without those of a few pixels."""
    merged: list[Region] = []
    for region in sorted(regions, key=lambda region: -int(region.mask.sum())):
        alike = [
            n for n, other in enumerate(merged) if np.abs(np.subtract(other.colour, region.colour)).max() <= DIFFERS
        ]
        if alike:
            merged[alike[0]] = Region(merged[alike[0]].mask | region.mask, merged[alike[0]].colour)
        else:
            merged.append(region)
    return [region for region in merged if region.mask.mean() >= MIN_PADDING]


def _may_be_tissue(region: Region, sampled: Colour) -> bool:
    """Return whether a region may be flat tissue: it has a dye's hue, and little of the border."""
    glass = sampled if is_light(np.array(sampled)) else (255, 255, 255)
    density = np.log10((np.array(glass) + 1) / (np.array(region.colour) + 1))
    border = border_of(region.mask)
    return bool(is_dyed(density) and region.mask[border].mean() < DYED_BORDER)


def is_dyed(density: npt.NDArray[np.floating]) -> Mask:
    """Return which optical densities, [..., 3], have the hue of dyes: they absorb green most."""
    red, green, blue = density[..., 0], density[..., 1], density[..., 2]
    return np.asarray((green > 0) & (green > HUE * red) & (green > blue - HUE_MARGIN))


def union(regions: list[Region], survey: Survey) -> Mask:
    """Return what any of the regions covers, bool[h, w]."""
    covered = np.zeros(survey.spread.shape, bool)
    for region in regions:
        covered |= region.mask
    return covered


def rim_px(survey: Survey) -> int:
    """Return the survey's pixels around padding in which it may mix with what was scanned."""
    return -(-JPEG_PX // survey.downsample) + 1


def is_light(colours: npt.NDArray[np.integer]) -> Mask:
    """Return which colours, [..., 3], glass may have."""
    least, most = colours.min(axis=-1).astype(np.int16), colours.max(axis=-1).astype(np.int16)
    return np.asarray((least >= MIN_LIGHT) & (most - least <= MAX_CHROMA))


def grown(mask: Mask, px: int) -> Mask:
    """Return a mask, bool[h, w], grown by `px` in all eight directions."""
    from scipy import ndimage

    return np.asarray(ndimage.maximum_filter(mask, 2 * px + 1)) if px and mask.any() else mask


def border_of(mask: Mask) -> Mask:
    """Return the pixels along the border of a picture of a mask's shape."""
    border = np.zeros(mask.shape, bool)
    border[[0, -1]] = border[:, [0, -1]] = True
    return border


def _uniform_regions(survey: Survey) -> Iterator[Region]:
    """Yield regions of one colour that touch the border; the longest border comes first."""
    from scipy import ndimage

    constant, border = survey.spread == 0, border_of(survey.spread == 0)
    colours, counts = np.unique(survey.pixels[border & constant], axis=0, return_counts=True)
    for number in np.argsort(-counts, kind="stable")[:MAX_COLOURS]:
        if counts[number] < MIN_BORDER_PX:
            break
        labels, _ = ndimage.label(constant & (survey.pixels == colours[number]).all(axis=2))
        chosen = np.bincount(labels.ravel()) >= MIN_ISLAND_PX  # islands of the same colour are padding, too
        chosen[labels[border]] = True
        chosen[0] = False
        red, green, blue = (int(value) for value in colours[number])
        yield Region(chosen[labels], (red, green, blue))


def _is_exact(slide: Slide, survey: Survey, region: Region) -> bool:
    """Return whether a region has one colour at full resolution, too: glass has noise."""
    side = survey.downsample
    places = np.argwhere(region.mask)  # by row, as a slide in strips needs them
    chosen = places[evenly_spread(len(places), PATCHES)]
    xy = [(int(column) * side, int(row) * side) for row, column in chosen]
    most = NEAR_BLACK if not any(region.colour) else 0
    tiles = slide.tiles(xy, side, 1, region.colour)
    return all(int(distance(tile, region.colour).max()) <= most for tile in tiles)


def _glass_share(survey: Survey, region: Mask, covered: Mask, smooth: Mask, colour: Colour) -> float:
    """Return the share of other glass along a light region's edge; 0.0 if the region is glass itself."""
    rim = rim_px(survey) + 2
    ring = grown(region, rim + 3) & ~grown(region | covered, rim)
    away = np.abs(survey.pixels.astype(np.int16) - np.array(colour)).max(axis=2) >= DIFFERS
    glass = ring & smooth & away & is_light(survey.pixels)
    share = float(glass.sum() / ring.sum()) if ring.any() else 0.0
    if share < MIN_GLASS_SHARE or _encloses_tissue(region, ring, glass):
        return 0.0
    if _straight_share(region) >= MIN_STRAIGHT:
        return share
    beside = np.median(survey.pixels[glass], axis=0) - colour
    return share if share >= SLANTING_SHARE and np.ptp(beside) <= NEUTRAL else 0.0


def _encloses_tissue(region: Mask, ring: Mask, glass: Mask) -> bool:
    """Return whether a region has a hole of tissue: its edge is not straight, and no glass lies along it."""
    from scipy import ndimage

    holes, count = ndimage.label(ndimage.binary_fill_holes(region) & ~region)
    along = np.bincount(holes[ring], minlength=count + 1)
    bare = np.bincount(holes[glass], minlength=count + 1)
    for number in np.flatnonzero((along >= MIN_HOLE_PX) & (bare < MIN_GLASS_SHARE * along)):
        if number and _straight_share(holes == number) < MIN_STRAIGHT:
            return True
    return False


def _straight_share(mask: Mask) -> float:
    """Return the share of a mask's edge, off the border, that runs straight along rows or columns."""
    straight = total = 0
    for turned in (mask, mask.T):
        for edge in (turned[1:] & ~turned[:-1], turned[:-1] & ~turned[1:]):
            lengths = _run_lengths(edge)
            total += int(lengths.sum())
            straight += int(lengths[lengths >= STRAIGHT_PX].sum())
    return straight / total if total else 0.0


def _run_lengths(edge: Mask) -> npt.NDArray[np.int64]:
    """Return the lengths of the runs of True along the rows of bool[h, w]."""
    flat = np.pad(edge, ((0, 0), (1, 1))).ravel().astype(np.int8)
    steps = np.diff(flat)
    return np.flatnonzero(steps < 0) - np.flatnonzero(steps > 0)
