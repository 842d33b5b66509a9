"""Assemble a slide's thumbnail for the report from what the tilers decode anyway.

No pixel is read for it alone. Where nothing was read, the byte counts of the file's tiles estimate how much tissue
there is; such places get a colour between the background and the tissue that was read near them. This module needs
numpy only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clotkit.slides.header.table import background_bytes, median
from clotkit.slides.index import CONTENT_SIZED_CODECS
from clotkit.slides.levels import Level
from clotkit.slides.pixels import Colour, Pixels
from clotkit.slides.reader import Slide
from clotkit.tissue.glass import Glass
from clotkit.tissue.rules import TissueRule

MOSTLY = 0.5  # estimated tissue share from which an unread place counts as tissue
COARSE = 4  # every COARSE-th pixel is used to fill in others
LONG_PX = 320  # maximum of the long side; as downsamples are powers of 2, it is more than half of that

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Thumbnail:
    """A downsampled slide and the tissue on it, partly read and partly filled in."""

    width_px: int  # of the slide
    height_px: int
    pixels: Pixels  # [h, w, 3]
    downsample: int  # slide pixels per thumbnail pixel
    tissue: Mask  # [h, w]
    read_share: float  # of the thumbnail, read and not filled in


class ThumbnailRecorder:
    """A recorder of what is read of one slide, by one tiler after the other."""

    def __init__(self) -> None:
        """Start with nothing recorded."""
        self._slide: Slide | None = None
        self._glass: Glass | None = None
        self._downsample = 1
        self._view: Pixels = np.zeros((0, 0, 3), np.uint8)
        self._known: Mask = np.zeros((0, 0), bool)

    def watch(self, slide: Slide) -> "RecordedSlide":
        """Return a slide that records here every tile read of it."""
        size = (slide.width_px, slide.height_px)
        if self._slide is None or size != (self._slide.width_px, self._slide.height_px):
            self._downsample = thumbnail_downsample(*size)
            shape = (-(-size[1] // self._downsample), -(-size[0] // self._downsample))
            self._view, self._known = np.zeros((*shape, 3), np.uint8), np.zeros(shape, bool)
        self._slide = slide
        return RecordedSlide(slide, self)

    def record(self, corner: tuple[int, int], tile: Pixels, downsample: int) -> None:
        """Draw a tile, uint8[n, n, 3], into the thumbnail.

        `corner` is its top left corner (x, y) at full resolution, `downsample` the slide pixels per tile pixel.
        """
        (columns, x), (rows, y) = (
            _places(start, tile.shape[0], downsample, self._downsample, length)
            for start, length in zip(corner, self._known.shape[::-1], strict=True)
        )
        samples = tile.take(y, axis=0).take(x, axis=1)  # nine times as fast as indexing both at once
        samples = samples.reshape(len(y) // 2, 2, len(x) // 2, 2, 3)
        pairs = samples[:, 0].astype(np.uint16) + samples[:, 1]
        self._view[rows, columns] = (pairs[:, :, 0] + pairs[:, :, 1] + 2) >> 2
        self._known[rows, columns] = True

    def see_glass(self, glass: Glass) -> None:
        """Take the slide's glass, on which its tissue is judged."""
        self._glass = glass

    def thumbnail(self, background: Colour, rule: TissueRule | None) -> Thumbnail | None:
        """Return the thumbnail of what was read so far, with holes filled in; None if nothing was.

        Without a rule there is no tissue.
        """
        slide, view, known = self._slide, self._view, self._known
        if slide is None or not known.any():
            return None
        read_share = float(known.mean())
        shares = tissue_shares(slide, self._downsample, known.shape)
        filled = np.where(known[..., None], view, np.array(background, np.uint8))
        holes = ~known & (shares > 0)
        if holes.any():
            tissue = known & _tissue(self._judged(view), background, rule)
            colours = _nearby_colours(view, tissue if tissue.any() else known)[holes]
            glass = np.array(background, np.float32)
            filled[holes] = np.rint(glass + (colours - glass) * shares[holes, None])
        tissue = _tissue(self._judged(filled), background, rule) & (known | (shares >= MOSTLY))
        return Thumbnail(slide.width_px, slide.height_px, filled, self._downsample, tissue, read_share)

    def _judged(self, view: Pixels) -> Pixels:
        """Return the thumbnail without padding, and with all glass of one colour."""
        if self._slide is None or self._glass is None:
            return view
        left, top = self._glass.origin
        corner, size = (-left, -top), (self._slide.width_px - left, self._slide.height_px - top)
        view = self._glass.filled(view, corner, self._downsample)
        view = self._glass.flattened(view, corner, size, self._downsample)
        return self._glass.framed(view, corner, self._downsample)


class RecordedSlide:
    """A slide that passes the tiles read of it to a recorder.

    If drawing fails, only the thumbnail is lost.
    """

    def __init__(self, slide: Slide, recorder: ThumbnailRecorder) -> None:
        """Wrap `slide`."""
        self._slide, self._recorder, self._drawing = slide, recorder, True
        self.decoder, self.sequential, self.table = slide.decoder, slide.sequential, slide.table
        self.width_px, self.height_px = slide.width_px, slide.height_px
        self.facts = slide.facts

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """Yield tiles; see `reader.Slide.tiles`."""
        for corner, tile in zip(xy, self._slide.tiles(xy, tile_px, downsample, background), strict=True):
            if self._drawing:
                try:
                    self._recorder.record(corner, tile, downsample)
                except Exception:  # noqa: BLE001 - a failed thumbnail must not cost the slide
                    self._drawing = False
            yield tile

    def level(self, downsample: int) -> Level:
        """Return the level from which tiles are read; see `levels.Slide.level`."""
        return self._slide.level(downsample)


def thumbnail_downsample(width_px: int, height_px: int) -> int:
    """Return the smallest power of 2 that brings a slide's long side to LONG_PX or below."""
    return 1 << (-(-max(width_px, height_px) // LONG_PX) - 1).bit_length()


def _places(
    start_px: int, tile_px: int, downsample: int, coarse: int, length: int
) -> tuple[slice, npt.NDArray[np.int64]]:
    """Return where a tile goes along one axis of the thumbnail, and which rows of it are averaged there.

    The places are the thumbnail's rows (or columns) whose centres the tile covers, or else the one that it lies in. Two
    rows of the tile are taken for each. The thumbnail has `length` rows at the downsample `coarse`.
    """
    end_px = start_px + tile_px * downsample
    first, last = (-((coarse // 2 - edge) // coarse) for edge in (start_px, end_px))
    if first >= last:
        first = (start_px + end_px) // (2 * coarse)
        last = first + 1
    first, last = min(max(first, 0), length), min(last, length)
    samples = first * coarse + (2 * np.arange((last - first) * 2) + 1) * coarse // 4
    return slice(first, last), np.clip((samples - start_px) // downsample, 0, tile_px - 1)


def _tissue(view: Pixels, background: Colour, rule: TissueRule | None) -> Mask:
    return np.zeros(view.shape[:2], bool) if rule is None else rule.mask(view, background)


def tissue_shares(slide: Slide, downsample: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Estimate the tissue share of each pixel of a thumbnail from the byte counts of a tiled file.

    0 is what the tile index takes for background, 1 the median of the rest. Without byte counts all is 1.

    Args:
        slide: The slide.
        downsample: Slide pixels per thumbnail pixel.
        shape: Height and width of the thumbnail.

    Returns:
        float32[shape], 0 to 1.
    """
    table = slide.table
    if table is None or not table.tiled or slide.sequential or table.codec not in CONTENT_SIZED_CODECS:
        return np.ones(shape, np.float32)
    limit = background_bytes(table.counts.ravel())[1]
    over = np.maximum(table.counts - limit, 0)
    typical = float(median(over[over > 0])) if over.any() else 1.0
    shares = np.minimum(over / typical, 1).astype(np.float32)
    rows, columns = (
        np.minimum((np.arange(length) * downsample + downsample // 2) // side, count - 1)
        for length, side, count in zip(shape, (table.height_px, table.width_px), shares.shape, strict=True)
    )
    return np.asarray(shares[rows[:, None], columns])


def _nearby_colours(view: Pixels, known: Mask) -> npt.NDArray[np.float32]:
    """Return for every pixel of uint8[h, w, 3] the colour of the `known` ones near it, float32[h, w, 3].

    Colours are found in blocks of COARSE pixels.
    """
    step = COARSE if known[::COARSE, ::COARSE].any() else 1
    colours = _pull_push(view[::step, ::step].astype(np.float32), known[::step, ::step])
    return colours.repeat(step, axis=0).repeat(step, axis=1)[: known.shape[0], : known.shape[1]]


def _pull_push(view: npt.NDArray[np.float32], known: Mask) -> npt.NDArray[np.float32]:
    """Fill each unknown pixel of float32[h, w, 3] with the mean of the known ones near it.

    The mean is over the smallest block of 2, 4, 8, ... px that has a known pixel: the pull-push algorithm of Gortler et
    al. 1996, "The lumigraph".
    """
    height, width = known.shape
    if known.all() or height * width == 1:
        return view
    even = ((0, height % 2), (0, width % 2))
    weights = np.pad(known, even).reshape(-(-height // 2), 2, -(-width // 2), 2)
    sums = np.pad(view * known[..., None], (*even, (0, 0))).reshape(*weights.shape, 3).sum(axis=(1, 3))
    counts = weights.sum(axis=(1, 3))
    coarse = _pull_push(sums / np.maximum(counts, 1)[..., None].astype(np.float32), counts > 0)
    return np.where(known[..., None], view, coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width])
