"""A slide's picture for the report, put together from what the tilers decode anyway: no pixel is read for it alone.

Where nothing was read, the byte counts of the file's tiles say how much tissue there is: such places lie between the
background and the colours of the tissue that was read near them. numpy only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clotkit.slides.index import CONTENT_SIZED_CODECS, background_bytes
from clotkit.slides.pixels import Colour, Pixels
from clotkit.slides.reader import Slide
from clotkit.tiling.tissue import TissueRule

MOSTLY = 0.5  # of a place that was not read: from here on it lies within the tissue's edge
COARSE = 4  # pixels of the picture between those that are looked at to fill others in
LONG_PX = 320  # of a picture's long side, at most; with downsamples that are powers of 2 it is more than half of that

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Thumbnail:
    """A slide from afar: `view` uint8[h, w, 3], shrunk by `downsample`, and the `tissue` bool[h, w] on it.

    `read_share` is the part of the picture that was decoded; the rest is filled in.
    """

    width_px: int
    height_px: int
    pixels: Pixels
    downsample: int
    tissue: Mask
    read_share: float


class ThumbnailRecorder:
    """Watches what is read of one slide, by one tiler after the other, and makes its thumbnail of it."""

    def __init__(self) -> None:
        """Nothing is seen yet."""
        self._slide: Slide | None = None
        self._shrink = 1
        self._view: Pixels = np.zeros((0, 0, 3), np.uint8)
        self._known: Mask = np.zeros((0, 0), bool)

    def watch(self, slide: Slide) -> "RecordedSlide":
        """The slide, with every tile that is read of it noted here."""
        size = (slide.width_px, slide.height_px)
        if self._slide is None or size != (self._slide.width_px, self._slide.height_px):
            self._shrink = thumbnail_downsample(*size)
            shape = (-(-size[1] // self._shrink), -(-size[0] // self._shrink))
            self._view, self._known = np.zeros((*shape, 3), np.uint8), np.zeros(shape, bool)
        self._slide = slide
        return RecordedSlide(slide, self)

    def record(self, corner: tuple[int, int], tile: Pixels, downsample: int) -> None:
        """Draw a tile, uint8[n, n, 3] at `downsample` with its top left corner at full resolution, into the picture."""
        (columns, x), (rows, y) = (
            _places(start, tile.shape[0], downsample, self._shrink, length)
            for start, length in zip(corner, self._known.shape[::-1], strict=True)
        )
        seen = tile.take(y, axis=0).take(x, axis=1)  # nine times as fast as an index of both
        seen = seen.reshape(len(y) // 2, 2, len(x) // 2, 2, 3)
        pairs = seen[:, 0].astype(np.uint16) + seen[:, 1]
        self._view[rows, columns] = (pairs[:, :, 0] + pairs[:, :, 1] + 2) >> 2
        self._known[rows, columns] = True

    def thumbnail(self, background: Colour, rule: TissueRule | None) -> Thumbnail | None:
        """What was seen so far, its holes filled in; None where nothing was. Without a rule there is no tissue."""
        slide, view, known = self._slide, self._view, self._known
        if slide is None or not known.any():
            return None
        read_share = float(known.mean())
        shares = tissue_shares(slide, self._shrink, known.shape)
        whole = np.where(known[..., None], view, np.array(background, np.uint8))
        holes = ~known & (shares > 0)
        if holes.any():
            seen = known & _tissue(view, background, rule)
            near = _near(view, seen if seen.any() else known)[holes]
            behind = np.array(background, np.float32)
            whole[holes] = np.rint(behind + (near - behind) * shares[holes, None])
        tissue = _tissue(whole, background, rule) & (known | (shares >= MOSTLY))
        return Thumbnail(slide.width_px, slide.height_px, whole, self._shrink, tissue, read_share)


class RecordedSlide:
    """A slide that shows a recorder what is read of it; what that cannot draw costs the picture alone."""

    def __init__(self, slide: Slide, recorder: ThumbnailRecorder) -> None:
        """Pass everything through to `slide`."""
        self._slide, self._recorder, self._drawing = slide, recorder, True
        self.decoder, self.sequential, self.table = slide.decoder, slide.sequential, slide.table
        self.width_px, self.height_px = slide.width_px, slide.height_px

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """See reader.Slide.tiles."""
        for corner, tile in zip(xy, self._slide.tiles(xy, tile_px, downsample, background), strict=True):
            if self._drawing:
                try:
                    self._recorder.record(corner, tile, downsample)
                except Exception:  # noqa: BLE001 - a picture is not worth a slide
                    self._drawing = False
            yield tile


def thumbnail_downsample(width_px: int, height_px: int) -> int:
    """The least power of 2 that brings a slide's long side to LONG_PX or below."""
    return 1 << (-(-max(width_px, height_px) // LONG_PX) - 1).bit_length()


def _places(
    start_px: int, tile_px: int, downsample: int, thumbnail: int, length: int
) -> tuple[slice, npt.NDArray[np.int64]]:
    """The picture's rows (or columns) whose middles a tile covers, or else the one it lies in, and the tile's own
    rows that they are taken from, two each. The picture has `length` of them at the downsample `thumbnail`.
    """
    end_px = start_px + tile_px * downsample
    first, last = (-((thumbnail // 2 - edge) // thumbnail) for edge in (start_px, end_px))
    if first >= last:
        first = (start_px + end_px) // (2 * thumbnail)
        last = first + 1
    first, last = min(max(first, 0), length), min(last, length)
    samples = first * thumbnail + (2 * np.arange((last - first) * 2) + 1) * thumbnail // 4
    return slice(first, last), np.clip((samples - start_px) // downsample, 0, tile_px - 1)


def _tissue(view: Pixels, background: Colour, rule: TissueRule | None) -> Mask:
    return np.zeros(view.shape[:2], bool) if rule is None else rule.mask(view, background)


def tissue_shares(slide: Slide, downsample: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """How much tissue there seems to be, 0 to 1, by the byte counts of a tiled file: float32[shape] at `downsample`.

    0 is what the index takes for background, 1 the median of all that it does not. Without counts all is 1.
    """
    table = slide.table
    if table is None or not table.tiled or slide.sequential or table.codec not in CONTENT_SIZED_CODECS:
        return np.ones(shape, np.float32)
    limit = background_bytes(table.counts.ravel())[1]
    over = np.maximum(table.counts - limit, 0)
    typical = float(np.median(over[over > 0])) if over.any() else 1.0
    shares = np.minimum(over / typical, 1).astype(np.float32)
    rows, columns = (
        np.minimum((np.arange(length) * downsample + downsample // 2) // side, count - 1)
        for length, side, count in zip(shape, (table.height_px, table.width_px), shares.shape, strict=True)
    )
    return np.asarray(shares[rows[:, None], columns])


def _near(view: Pixels, known: Mask) -> npt.NDArray[np.float32]:
    """Of every pixel of uint8[h, w, 3] the colour of what is `known` near it, float32[h, w, 3], in blocks of COARSE."""
    step = COARSE if known[::COARSE, ::COARSE].any() else 1
    near = _pulled(view[::step, ::step].astype(np.float32), known[::step, ::step])
    return near.repeat(step, axis=0).repeat(step, axis=1)[: known.shape[0], : known.shape[1]]


def _pulled(view: npt.NDArray[np.float32], known: Mask) -> npt.NDArray[np.float32]:
    """float32[h, w, 3] with each unknown pixel as the mean of the known ones in the least block of 2, 4, 8 … px that
    has any (the pull-push of Gortler et al. 1996, "The lumigraph").
    """
    height, width = known.shape
    if known.all() or height * width == 1:
        return view
    even = ((0, height % 2), (0, width % 2))
    weights = np.pad(known, even).reshape(-(-height // 2), 2, -(-width // 2), 2)
    sums = np.pad(view * known[..., None], (*even, (0, 0))).reshape(*weights.shape, 3).sum(axis=(1, 3))
    counts = weights.sum(axis=(1, 3))
    coarse = _pulled(sums / np.maximum(counts, 1)[..., None].astype(np.float32), counts > 0)
    return np.where(known[..., None], view, coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width])
