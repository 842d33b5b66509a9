"""Read and write slides.jsonl, which has what the report page shows of each slide besides its line.

A line has the slide's picture (JPEG, base64), its tissue mask, its tiles with their probabilities, and the times of its
process and the model. No score depends on it: a slide that cannot be drawn has no picture.
"""

import base64
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.config import TilingConfig
from clotkit.report.records import IMAGE_ID, SlideReport
from clotkit.report.shown import Shown
from clotkit.tiling.microns import side_px
from clotkit.tiling.preview import kept_size_px, scanned_size_px
from clotkit.tiling.thumbnail import Thumbnail

PICTURES_BYTES, PICTURE_BYTES = 4_500_000, 24_000  # limits of all JPEGs of a run and of one; base64 adds a third
QUALITIES = (72, 55, 40)  # tried in this order, then once more at half the size
GAP_S = 0.02  # spans of the model with a shorter gap are joined

Span = tuple[float, float]  # time.monotonic() values
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tiled:
    """The tiles of a slide from one tiling."""

    tiling: TilingConfig
    xy: npt.NDArray[np.int32]  # [n, 2]: top left corners, full-resolution pixels
    p: Shares  # [n, C]: probabilities, averaged over the members that predicted the tile
    attention: Shares | None = None  # [n], sum 1: the mean weight that members give each tile; None: all weigh alike


@dataclass(frozen=True)
class Trace:
    """The data of a slide for the report page."""

    thumbnail: Thumbnail | None = None
    tiled: tuple[Tiled, ...] = ()
    lived: Span | None = None  # of its process
    busy: tuple[Span, ...] = field(default=())  # when the model worked on it

    def shifted(self, seconds: float) -> "Trace":
        """Return the trace with `seconds` added to all times."""
        lived = None if self.lived is None else (self.lived[0] + seconds, self.lived[1] + seconds)
        return replace(self, lived=lived, busy=tuple((start + seconds, end + seconds) for start, end in self.busy))


def sidecar_line(line: SlideReport, trace: Trace, slides: int, started: float, part: int, shown: Shown) -> str:
    """Return the line of slides.jsonl for a slide.

    Args:
        line: the slide's report line.
        trace: its picture, tiles and times.
        slides: slides in the whole run, among which the bytes for pictures are divided.
        started: the time.monotonic() value that times count from.
        part: 1 in a new run, one more each time that it is resumed.
        shown: what is drawn of a tile's probabilities.
    """
    thumbnail = trace.thumbnail
    value = {
        IMAGE_ID: line.image_id,
        "part": part,
        "from_s": None if trace.lived is None else round(trace.lived[0] - started, 3),
        "to_s": None if trace.lived is None else round(trace.lived[1] - started, 3),
        "model_s": [[round(at - started, 3) for at in span] for span in _joined(trace.busy)],
        "picture": None
        if thumbnail is None
        else _picture(thumbnail, min(PICTURE_BYTES, PICTURES_BYTES // max(slides, 1))),
        "tiles": [_tiles(tiled, line.facts, shown) for tiled in trace.tiled],
        "members": {name: round(shown.level(p), 6) for name, p in sorted(line.p.items())},
    }
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def kept_lines(path: Path, images: Collection[str]) -> tuple[list[str], int]:
    """Return the last line of a slides.jsonl for each of `images`, and the number of the run's next part."""
    kept, last = dict[str, str](), 0
    for text, value in _lines(path):
        if value[IMAGE_ID] in images:
            kept[value[IMAGE_ID]] = text
            last = max(last, value["part"] if isinstance(value.get("part"), int) else 0)
    return list(kept.values()), last + 1


def sidecar_places(path: Path) -> dict[str, int]:
    """Return the offset in bytes of each slide's last line in a slides.jsonl; empty if there is no file."""
    places, at = dict[str, int](), 0
    for text, value in _lines(path, every=True):
        if value is not None:
            places[str(value[IMAGE_ID])] = at
        at += len(text.encode())
    return places


def jpeg(view: npt.NDArray[np.uint8], max_bytes: int) -> bytes:
    """Return pixels uint8[h, w, 3] as a JPEG of at most `max_bytes`.

    Its quality is lowered, then its size halved, until it fits.
    """
    from PIL import Image

    picture = Image.fromarray(view)
    while True:
        for quality in QUALITIES:
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality)
            if file.tell() <= max_bytes or max(picture.size) <= 16:
                return file.getvalue()
        picture = picture.resize((max(picture.width // 2, 1), max(picture.height // 2, 1)), Image.Resampling.BOX)


def _lines(path: Path, every: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield each line with its parsed value; lines that are not valid only with `every`, with None."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for text in file:
                value = _parsed(text)
                if every or value is not None:
                    yield text, value
    except OSError:
        return


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text) if text.endswith("\n") else None
    except ValueError:
        return None
    return value if isinstance(value, dict) and IMAGE_ID in value else None


def _picture(thumbnail: Thumbnail, max_bytes: int) -> dict[str, Any]:
    """Return a thumbnail as it is stored; `size` and `tissue` are in its own pixels, not the slide's."""
    height, width = thumbnail.tissue.shape
    return {
        "slide_px": [thumbnail.width_px, thumbnail.height_px],
        "size": [width, height],
        "downsample": thumbnail.downsample,
        "read_share": round(thumbnail.read_share, 3),
        "jpeg": base64.b64encode(jpeg(thumbnail.pixels, max_bytes)).decode(),
        "tissue": base64.b64encode(np.packbits(thumbnail.tissue).tobytes()).decode(),
    }


def _tiles(tiled: Tiled, facts: Mapping[str, Any], shown: Shown) -> dict[str, Any]:
    side = side_px(tiled.tiling, facts)
    known = "width_px" in facts and "height_px" in facts
    size = kept_size_px(tiled.tiling, *scanned_size_px(facts), facts) if known else (side, side)
    attention = {} if tiled.attention is None else {"attention": tiled.attention.round(5).tolist()}
    return {"size_px": list(size), "xy": tiled.xy.tolist(), "p": shown.levels(tiled.p).round(3).tolist(), **attention}


def _joined(spans: Sequence[Span]) -> Iterator[Span]:
    """Yield the spans, joined where the gap is at most GAP_S."""
    now: Span | None = None
    for begin, end in spans:
        if now is not None and begin - now[1] <= GAP_S:
            now = (now[0], end)
            continue
        if now is not None:
            yield now
        now = (begin, end)
    if now is not None:
        yield now
