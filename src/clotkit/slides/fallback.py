"""Try decoders one after the other, and check what each one reads against another.

A decoder whose codec verifies its data has the last word on damage: after it, no lenient decoder is asked, which would
show altered pixels. Where two decoders read other pixels, the majority is believed, and the report says so.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from clotkit.errors import CodecUnsupported, SlideError, SlideUnreadable
from clotkit.reasons import Reason
from clotkit.slides.header.table import SegmentTable
from clotkit.slides.pixels import Colour, Pixels

SAMPLE_PX, SAMPLES = 64, 4  # side and number of the tiles that two decoders are compared on, besides doubtful ones
MAX_ROWS_PX = 2**25  # pixels above the last sampled row of a slide that is decoded from top to bottom
LOSSLESS_LEVELS, LOSSY_LEVELS = 2.0, 6.0  # mean difference of a tile, grey levels: decoders upsample chroma differently
WHITE = (255, 255, 255)
MAX_CHARACTERS = 280  # of the message that names what every decoder said


class Decoded(Protocol):
    """An open page: RGB pixels, uint8, at full resolution unless a downsample is given."""

    decoder: str
    width_px: int
    height_px: int
    sequential: bool  # decoded from top to bottom: a tile costs all rows that it overlaps
    table: SegmentTable | None  # the file's segments, unless the pixels are rotated
    facts: dict[str, Any]  # what the report says of the file besides the decoder and the size

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """Yield the tiles at `xy`, uint8[tile_px, tile_px, 3] each, box-averaged by `downsample`.

        Args:
            xy: Top left corners in full-resolution pixels, multiples of `downsample`. A sequential page needs them
                sorted by y.
            tile_px: Side of a tile, in its own pixels.
            downsample: Slide pixels per tile pixel.
            background: Colour of what lies beyond the slide's edge or behind transparent pixels.

        Raises:
            SlideUnreadable: The data are damaged.
        """
        ...


@dataclass(frozen=True)
class Candidate:
    """A decoder that may read a slide."""

    decoder: str
    open: Callable[[], Decoded]  # raises SlideError
    proven: bool = False  # its pixels need no second opinion
    lenient: bool = False  # it shows damaged data as pixels
    final: bool = False  # it verifies its data, so that what it calls damaged is
    witness: bool = True  # it may give a second opinion


@dataclass(frozen=True)
class Expected:
    """The facts about a slide that are known before it is decoded."""

    table: SegmentTable | None = None
    lossy: bool = True  # two decoders may differ a little
    facts: dict[str, Any] | None = None  # from the header


class FallbackSlide:
    """A slide that the first of several decoders reads, and the next one from where that fails."""

    def __init__(self, candidates: Sequence[Candidate], expected: Expected) -> None:
        """Open the slide.

        Raises:
            SlideUnreadable: Every decoder that has the codec calls the file damaged.
            CodecUnsupported: No decoder here has the codec.
        """
        self._waiting, self._all, self._expected = deque(candidates), candidates, expected
        self._errors: list[tuple[str, SlideError]] = []
        self.facts: dict[str, Any] = dict(expected.facts or {})
        self._slide = self._next()
        self.decoder, self.sequential, self.table = self._slide.decoder, self._slide.sequential, self._slide.table
        self.width_px, self.height_px = self._slide.width_px, self._slide.height_px

    def tiles(
        self, xy: Sequence[tuple[int, int]], tile_px: int, downsample: int, background: Colour
    ) -> Iterator[Pixels]:
        """Yield tiles; see `Decoded.tiles`. The next decoder goes on where one fails."""
        done = 0
        while True:
            try:
                for tile in self._slide.tiles(xy[done:], tile_px, downsample, background):
                    yield tile
                    done += 1
                return
            except SlideError as error:
                self._failed(self._slide.decoder, error)
            self._slide = self._next(self._slide)
            self.facts["decoder"] = self.decoder = self._slide.decoder

    def _failed(self, decoder: str, error: SlideError) -> None:
        self._errors.append((decoder, error))
        if any(one.final for one in self._all if one.decoder == decoder) and error.reason is Reason.DAMAGED:
            self._waiting.clear()

    def _next(self, before: Decoded | None = None) -> Decoded:
        """Return the slide as the next decoder opens it that passes its check.

        Raises:
            SlideError: There is none.
        """
        while self._waiting:
            candidate = self._waiting.popleft()
            if candidate.lenient and any(error.reason is Reason.DAMAGED for _, error in self._errors):
                continue
            try:
                slide = candidate.open()
                if before is not None and (slide.sequential, slide.width_px, slide.height_px) != (
                    before.sequential,
                    before.width_px,
                    before.height_px,
                ):
                    raise CodecUnsupported(f"{candidate.decoder} reads the slide in another shape or order")
                table = self._expected.table
                codes = self._checked(slide, candidate)
                self._note(*(table.codes if table is not None else ()), *slide.facts.get("notes", ()), *codes)
            except SlideError as error:
                self._failed(candidate.decoder, error)
                continue
            if self._errors:
                self.facts["decoders_tried"] = [
                    {"decoder": decoder, "code": str(error.reason), "why": str(error)}
                    for decoder, error in self._errors
                ]
            return slide
        raise _summary(self._errors)

    def _note(self, *codes: Reason) -> None:
        if codes:
            self.facts["notes"] = list(dict.fromkeys([*self.facts.get("notes", ()), *codes]))

    def _checked(self, slide: Decoded, candidate: Candidate) -> list[Reason]:
        """Return codes of what a decoder and the others disagree about.

        Raises:
            SlideError: The decoder fails on a sample, or the others agree on other pixels.
        """
        if candidate.proven:
            return []
        corners = sample_corners(slide, self._expected.table)
        tiles = list(slide.tiles(corners, SAMPLE_PX, 1, WHITE))
        others: list[list[Pixels]] = []
        for witness in self._witnesses(candidate.decoder):
            with suppress(SlideError):  # a decoder that cannot read the sample has no opinion
                other = witness.open()
                if (other.width_px, other.height_px) != (slide.width_px, slide.height_px):
                    continue
                seen = list(other.tiles(corners, SAMPLE_PX, 1, WHITE))
                if self._alike(tiles, seen):
                    return [Reason.DECODERS_DISAGREE] if others else []
                others.append(seen)
        if not others:
            return []
        if any(self._alike(*pair) for pair in combinations(others, 2)) or (_blank(tiles) and not _blank(others[0])):
            raise DecodersDisagree(f"{candidate.decoder} reads other pixels than the other decoders here")
        return [Reason.DECODERS_DISAGREE]

    def _witnesses(self, decoder: str) -> list[Candidate]:
        """Return the other decoders, the last ones first: they share the least code with the first ones."""
        failed = {name for name, _ in self._errors}
        return [one for one in reversed(self._all) if one.witness and one.decoder not in {decoder, *failed}]

    def _alike(self, one: Sequence[Pixels], other: Sequence[Pixels]) -> bool:
        most = LOSSY_LEVELS if self._expected.lossy else LOSSLESS_LEVELS
        pairs = zip(one, other, strict=True)
        return all(np.abs(a.astype(np.int16) - b).mean() <= most for a, b in pairs)


class DecodersDisagree(SlideUnreadable):
    """A decoder that reads other pixels than two others that agree."""

    reason = Reason.DECODERS_DISAGREE


def _blank(tiles: Sequence[Pixels]) -> bool:
    return len({value for tile in tiles for value in (int(tile.min()), int(tile.max()))}) == 1


def sample_corners(slide: Decoded, table: SegmentTable | None) -> list[tuple[int, int]]:
    """Return the corners of a few tiles to compare, sorted by row.

    They are those with the most bytes, an even spread, and all doubtful ones.
    """
    side = table.height_px if table is not None and not table.tiled else 0
    bottom = max(min(slide.height_px, MAX_ROWS_PX // slide.width_px), 1) if slide.sequential else slide.height_px
    last = (max(slide.width_px - SAMPLE_PX, 0), max(bottom - SAMPLE_PX, 0))
    corners = {(last[0] * i // (SAMPLES - 1), last[1] * i // (SAMPLES - 1)) for i in range(SAMPLES)}
    if table is None or (slide.sequential and side > bottom):
        return sorted(corners, key=lambda xy: xy[::-1])
    rows, columns = table.grid
    counts = table.counts.ravel()[: rows * columns]
    largest = np.argsort(-counts, kind="stable")[:SAMPLES]
    cells = [(int(cell) // columns, int(cell) % columns) for cell in largest]
    for row, column in [*cells, *((row % rows, column) for row, column in table.doubtful)]:
        corner = (column * table.width_px, row * table.height_px)
        if corner[1] <= last[1] or (row, column) in table.doubtful:
            corners.add(corner)
    return sorted(corners, key=lambda xy: xy[::-1])


def _summary(errors: Sequence[tuple[str, SlideError]]) -> SlideError:
    """Return one error for those of all decoders: damaged if one that has the codec says so."""
    sentences = list(dict.fromkeys(str(error) for _, error in errors))
    text = "; ".join(sentences)
    if len(text) > MAX_CHARACTERS:
        share = MAX_CHARACTERS // len(sentences) - 2
        text = "; ".join(sentence[:share] for sentence in sentences)
    if any(error.reason is not Reason.UNSUPPORTED for _, error in errors):
        return SlideUnreadable(text)
    return CodecUnsupported(text)
