"""Decide what a slide's background is: one glass colour, or more than that.

A few dozen samples decide whether one colour will do, as on most slides. Only if they have flat places of another
colour, the whole slide is surveyed.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from clotkit.slides.header.table import background_bytes, median
from clotkit.slides.pixels import Colour, Pixels, blank, evenly_spread
from clotkit.slides.reader import Slide
from clotkit.tissue.glass import BRIGHTEST, COLOUR, LOCAL, Glass, GlassMap
from clotkit.tissue.rules import Samples, background_samples, distance, mode
from clotkit.tissue.surround import ScannedSlide, scanned_box
from clotkit.tissue.survey import (
    DYED_BORDER,
    NEAR_BLACK,
    Region,
    Survey,
    border_of,
    grown,
    is_dyed,
    is_light,
    padding_of,
    rim_px,
    survey_slide,
    union,
)

Mask = npt.NDArray[np.bool_]

MIN_SIDE_PX = 128  # of a slide that is surveyed
OTHER = 8  # grey levels from the background, above which glass or padding has another colour
MOSTLY_FLAT = 0.6  # share of a sample: if so much of it is flat, its colour is taken for that of glass or padding
EXACT_SHARE = 1 / 32  # share of a sample that has one exact colour: padding at the slide's border
TINTED_SHARE = 0.4  # of the samples inside: if more are flat and tinted, they may be glass within white padding
SMALL_BYTES, SMALL_TILES = 0.5, 8  # of the commonest tile size: what padding may have; how many such tiles are decoded
GREY_CHROMA = 6  # grey levels between the channels, at most, on a grey slide: JPEG's noise
GREY_FAR, GREY_SHARE, GREY_PX = 16, 0.99, 64  # from the background: tissue; share of it without colour; its pixels
BUSY_TILES, BUSY_DOWNSAMPLE, BUSY_GRID = 32, 8, 17  # read to see whether tissue has colour
MIN_GLASS_PX = 16  # of a piece of glass on a survey
MIN_CONTACT = 0.1  # share of its edge along border or padding, from which a piece is glass whatever its colour
NEAR_GLASS = 12  # grey levels: how far the colour of glass amid tissue may be from that of the glass near it
SEAM = 12  # grey levels between neighbours
UNEVEN_SHARE = 0.02  # of the glass: if more of it is OTHER than the slide's colour, there is more than one
MAX_LISTED = 6  # glass colours in the facts
BRIGHT_PERCENT = 98
WHITE: Colour = (255, 255, 255)


def find_glass(slide: Slide) -> Glass:
    """Return the glass of a slide, its padding, and what a black surround leaves of it."""
    samples = background_samples(slide)
    box = scanned_box(slide) if samples.black_side else None
    if box is None:
        return _glass_of(slide, samples)
    scanned = ScannedSlide(slide, box)
    glass = _glass_of(scanned, background_samples(scanned))
    share = box[2] * box[3] / (slide.width_px * slide.height_px)
    return replace(
        glass,
        scanned=box,
        padding_share=1 - share * (1 - glass.padding_share),
        padding_colours=tuple(dict.fromkeys(((0, 0, 0), *glass.padding_colours))),
    )


def _glass_of(slide: Slide, samples: Samples) -> Glass:
    """Return the glass of a slide without a surround, and its padding."""
    colour = samples.colour()
    surveyed = None
    if min(slide.width_px, slide.height_px) >= MIN_SIDE_PX and (
        max(colour) <= NEAR_BLACK or _has_other_colours(samples, colour) or _has_small_tiles(slide, colour)
    ):
        surveyed = survey_slide(slide)
        glass = surveyed_glass(slide, surveyed, colour)
    else:
        glass = Glass(colour)
    if glass.model == COLOUR and not is_light(np.array(glass.colour)) and _is_dyed(np.array(glass.colour), WHITE):
        pixels = np.concatenate([part.reshape(-1, 3) for part in samples.parts])
        glass = replace(glass, colour=_brightest(pixels), model=BRIGHTEST)  # tissue from side to side
    return replace(glass, grey=_is_grey(slide, samples, surveyed, glass))


def _brightest(pixels: Pixels) -> Colour:
    """Return the colour of the brightest of uint8[n, 3]."""
    red, green, blue = (int(value) for value in np.percentile(pixels, BRIGHT_PERCENT, axis=0))
    return red, green, blue


def _has_other_colours(samples: Samples, colour: Colour) -> bool:
    """Return whether samples show glass or padding of another colour.

    Flat places with the hue of tissue do not count, unless much of the border has it, or most of the inside and it may
    be tinted glass.
    """
    dyed = tinted = 0
    for part, flat, outer in zip(samples.parts, samples.flat, samples.outer, strict=True):
        other = distance(part, colour) > OTHER
        found = _flat_colour(part, other & flat, other & outer) if other.sum() >= EXACT_SHARE * other.size else None
        if found is None:
            continue
        if not _is_dyed(found, colour):
            return True
        dyed += int((other & outer).sum())
        tinted += not outer.any() and bool(is_light(found))
    inside = sum(not outer.any() for outer in samples.outer)
    return dyed >= DYED_BORDER * sum(int(outer.sum()) for outer in samples.outer) or tinted > TINTED_SHARE * inside


def _flat_colour(part: Pixels, flat: Mask, outer: Mask) -> npt.NDArray[np.uint8] | None:
    """Return the colour of a sample that is mostly flat, or whose one colour reaches the border.

    Args:
        part: The sample, uint8[h, w, 3].
        flat: Its flat pixels of another colour than the background, bool[h, w].
        outer: Its pixels of another colour on the slide's border, bool[h, w].
    """
    if flat.sum() >= MOSTLY_FLAT * flat.size:
        return np.asarray(median(part[flat]), np.uint8)
    if not outer.any():
        return None
    colours, counts = np.unique(part[outer], axis=0, return_counts=True)
    colour: npt.NDArray[np.uint8] = colours[counts.argmax()]
    return colour if (part[flat] == colour).all(axis=1).sum() >= EXACT_SHARE * flat.size else None


def _is_dyed(pixel: npt.NDArray[np.uint8], colour: Colour) -> bool:
    """Return whether a colour, uint8[3], has a hue of tissue on glass of the other colour."""
    darker = (pixel <= np.array(colour, np.int16) + OTHER).all()
    return bool(darker and is_dyed(np.log10((np.array(colour) + 1) / (pixel.astype(np.int16) + 1))))


def _has_small_tiles(slide: Slide, colour: Colour) -> bool:
    """Return whether tiles of the file that compress better than bare glass have another colour."""
    table = slide.table
    if table is None or slide.sequential or not table.tiled or table.width_px % BUSY_DOWNSAMPLE:
        return False
    if not table.counts.any():
        return False
    limit = SMALL_BYTES * background_bytes(table.counts[table.counts > 0])[0]
    rows, columns = np.nonzero((table.counts < limit) & (table.counts > 0))
    chosen = evenly_spread(len(rows), SMALL_TILES)
    xy = [(int(columns[i]) * table.width_px, int(rows[i]) * table.height_px) for i in chosen]
    side = table.width_px // BUSY_DOWNSAMPLE
    tiles = slide.tiles(xy, side, BUSY_DOWNSAMPLE, colour) if xy else iter(())
    return any((distance(tile, colour) > OTHER).mean() >= EXACT_SHARE for tile in tiles)


def _is_grey(slide: Slide, samples: Samples, survey: Survey | None, glass: Glass) -> bool:
    """Return whether glass and tissue have no colour beyond noise."""
    pixels = np.concatenate([part.reshape(-1, 3) for part in samples.parts])
    if np.ptp(glass.colour) > GREY_CHROMA:
        return False
    if survey is not None:
        outside = glass.places.outside if glass.places is not None else np.zeros(survey.spread.shape, bool)
        return _has_no_colour(survey.pixels[~outside], glass.colour)
    far = distance(pixels[None], glass.colour)[0] >= GREY_FAR
    if (chroma(pixels[far]) > GREY_CHROMA).sum() >= GREY_PX:
        return False
    parts = list[Pixels]()
    for part in _busy_tiles(slide, glass.colour):
        tissue = part[distance(part[None], glass.colour)[0] >= GREY_FAR]
        if len(tissue) >= GREY_PX and (chroma(tissue) > GREY_CHROMA).mean() > 0.5:
            return False  # nearly always the first one: the others need not be read
        parts.append(part)
    return _has_no_colour(np.concatenate(parts), glass.colour)


def _has_no_colour(pixels: Pixels, colour: Colour) -> bool:
    """Return whether pixels, uint8[n, 3], that differ from the background are grey, and there are some."""
    far = pixels[distance(pixels[None], colour)[0] >= GREY_FAR]
    return len(far) >= GREY_PX and float((chroma(far) <= GREY_CHROMA).mean()) >= GREY_SHARE


def chroma(pixels: Pixels) -> npt.NDArray[np.uint8]:
    """Return the range of the channels: uint8[n, 3] -> uint8[n]."""
    return np.asarray(pixels.max(axis=-1) - pixels.min(axis=-1))


def _busy_tiles(slide: Slide, colour: Colour) -> Iterator[Pixels]:
    """Yield the pixels, uint8[n, 3], of each of the tiles that compress worst, or of a grid without sizes."""
    table = slide.table
    if table is None or slide.sequential or not table.tiled or table.width_px % BUSY_DOWNSAMPLE:
        side = max(1, min(slide.width_px, slide.height_px) // 64)
        xs, ys = (evenly_spread(max(px - side, 0) + 1, BUSY_GRID) for px in (slide.width_px, slide.height_px))
        xy, side_px, downsample = [(int(x), int(y)) for y in ys for x in xs], min(side, 32), 1
    else:
        counts = table.counts
        busy = np.flatnonzero(counts > background_bytes(counts[counts > 0])[1]) if counts.any() else np.zeros(0, int)
        busy = busy[np.argsort(-counts.ravel()[busy], kind="stable")]
        chosen = busy[evenly_spread(len(busy), BUSY_TILES)]
        rows, columns = np.unravel_index(chosen, counts.shape)
        xy = [(int(c) * table.width_px, int(r) * table.height_px) for r, c in zip(rows, columns, strict=True)]
        side_px, downsample = table.width_px // BUSY_DOWNSAMPLE, BUSY_DOWNSAMPLE
    tiles = slide.tiles(xy, side_px, downsample, colour) if xy else iter([blank(1, 1, colour)])
    yield from (tile.reshape(-1, 3) for tile in tiles)


def surveyed_glass(slide: Slide, survey: Survey, sampled: Colour) -> Glass:
    """Return the glass of a surveyed slide; `sampled` is the colour of its border samples."""
    regions = padding_of(slide, survey, sampled)
    padding = union(regions, survey)
    outside = grown(padding, rim_px(survey))
    bare = _bare_glass(survey, padding)
    if not bare.any():
        return _without_glass(survey, regions, outside, sampled)
    colour = mode(survey.pixels[bare])
    uneven = distance(survey.pixels, colour) > OTHER
    if (uneven & bare).sum() <= UNEVEN_SHARE * bare.sum():
        if not regions and np.abs(np.subtract(colour, sampled)).max() <= OTHER:
            return Glass(sampled)  # one colour does, and it is the one that samples alone give
        places = GlassMap(survey.downsample, outside, np.zeros_like(outside), None)
        return _beside(Glass(colour, places=places if regions else None), regions)
    local, seams = _local_colours(survey, bare)
    places = GlassMap(survey.downsample, outside, seams, local)
    listed = _listed_colours(survey.pixels[bare])
    return _beside(Glass(colour, model=LOCAL, places=places, colours=listed), regions)


def _beside(glass: Glass, regions: list[Region]) -> Glass:
    """Return the glass with its padding."""
    return replace(
        glass,
        padding_share=float(sum(region.mask.mean() for region in regions)),
        padding_colours=tuple(region.colour for region in regions),
    )


def _without_glass(survey: Survey, regions: list[Region], outside: Mask, sampled: Colour) -> Glass:
    """Return the glass of a slide that shows none: beside padding, the brightest of its tissue."""
    if not regions or outside.all():
        return Glass(sampled)
    places = GlassMap(survey.downsample, outside, np.zeros_like(outside), None)
    return _beside(Glass(_brightest(survey.pixels[~outside]), model=BRIGHTEST, places=places), regions)


def _bare_glass(survey: Survey, padding: Mask) -> Mask:
    """Return where a survey shows glass: light, smooth, and in a piece that is not tissue."""
    from scipy import ndimage

    smooth = survey.smooth(padding) & is_light(survey.pixels)
    labels, count = ndimage.label(smooth)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    numbers = np.flatnonzero(areas >= MIN_GLASS_PX)
    numbers = numbers[numbers > 0]
    if not len(numbers):
        return np.asarray(smooth)
    medians = ndimage.median  # of a label, channel by channel
    colours = np.stack([medians(survey.pixels[..., i], labels, numbers) for i in range(3)], axis=1)
    contact, along = (share[numbers] for share in _contact(labels, count, padding, rim_px(survey)))
    accepted = _pieces_of_glass(areas[numbers], colours, contact, along)
    chosen = np.zeros(count + 1, bool)
    chosen[numbers[accepted]] = True
    for _ in range(3):  # glass amid tissue, and scan tiles away from the border
        bare = chosen[labels]
        if not bare.any():
            break
        rest = [(n, c) for n, c in zip(numbers, colours, strict=True) if not chosen[n]]
        near = ndimage.distance_transform_edt(~bare, return_distances=False, return_indices=True)
        glass = survey.pixels[tuple(near)]
        places = ndimage.find_objects(labels)
        added = [n for n, c in rest if _is_near(glass[places[n - 1]], labels[places[n - 1]] == n, c)]
        chosen[added] = True
        if not added:
            break
    return np.asarray(chosen[labels])


def _is_near(glass: Pixels, piece: Mask, colour: npt.NDArray[np.float64]) -> bool:
    return bool(np.abs(np.median(glass[piece], axis=0) - colour).max() <= NEAR_GLASS)


def _contact(
    labels: npt.NDArray[np.int32], count: int, padding: Mask, rim: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return how far each piece lies along the border or padding: the share of its edge, and of theirs."""
    from scipy import ndimage

    pieces, border = labels > 0, border_of(padding)
    edge = pieces & ((ndimage.minimum_filter(labels, 3) != labels) | border)
    along = grown(padding, rim + 5) | border
    edges = np.bincount(labels[edge], minlength=count + 1)
    touching = np.bincount(labels[along & edge], minlength=count + 1)
    return touching / np.maximum(edges, 1), touching / max(1, int(touching.sum()))


def _pieces_of_glass(
    areas: npt.NDArray[np.int64],
    colours: npt.NDArray[np.float64],
    contact: npt.NDArray[np.float64],
    along: npt.NDArray[np.float64],
) -> Mask:
    """Return which smooth pieces are glass by themselves, bool[n].

    The lightest large one is. Others are if they lie along the border or padding; those with the hue of tissue need
    much of it.
    """
    large = np.flatnonzero(areas >= 0.1 * areas.max())
    lightest = large[np.argmax(colours[large].sum(axis=1))]
    density = np.log10((colours[lightest] + 1) / (colours + 1))  # [n, 3]
    accepted = np.where(is_dyed(density), along >= DYED_BORDER, contact >= MIN_CONTACT)
    accepted[lightest] = True
    return np.asarray(accepted)


def _local_colours(survey: Survey, bare: Mask) -> tuple[Pixels, Mask]:
    """Return the nearest glass colour at each place, uint8[h, w, 3], and the seams between glasses."""
    from scipy import ndimage

    away, near = ndimage.distance_transform_edt(~bare, return_indices=True)
    local = survey.pixels[tuple(near)]
    jump = np.zeros(bare.shape, bool)
    wide = local.astype(np.int16)
    jump[1:] |= np.abs(np.diff(wide, axis=0)).max(axis=2) > SEAM
    jump[:, 1:] |= np.abs(np.diff(wide, axis=1)).max(axis=2) > SEAM
    return local, grown(jump & (away <= 4), 3)


def _listed_colours(pixels: Pixels) -> tuple[Colour, ...]:
    """Return the commonest glass colours, at least OTHER apart."""
    left, colours = pixels, list[Colour]()
    while len(left) >= UNEVEN_SHARE * len(pixels) and len(left) and len(colours) < MAX_LISTED:
        colours.append(mode(left))
        left = left[distance(left[None], colours[-1])[0] > OTHER]
    return tuple(colours)
