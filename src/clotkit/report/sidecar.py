"""slides.jsonl: what the report shows of each slide besides its line, one flushed line a slide.

A line has the slide's picture (JPEG, base64), the tissue on it, the tiles with what they said, and when it was worked
on. Nothing of the run depends on it: what cannot be drawn is left out.
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
from clotkit.tiling.preview import kept_size_px
from clotkit.tiling.thumbnail import Thumbnail

PICTURES_BYTES, PICTURE_BYTES = 4_500_000, 24_000  # of all JPEGs of a run, and of one, at most: base64 adds a third
QUALITIES = (72, 55, 40)  # tried in this order, then once more at half the size
GAP_S = 0.02  # between batches: shorter ones do not part what the model was busy with

Span = tuple[float, float]  # time.monotonic() values
Shares = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tiled:
    """A slide's tiles by one tiling: corners int32[n, 2], full resolution, and the last class's probability [n] of
    each, the mean of the members that saw them.
    """

    tiling: TilingConfig
    xy: npt.NDArray[np.int32]
    p: Shares


@dataclass(frozen=True)
class Trace:
    """What a slide left besides its line: its thumbnail, its tiles, when its process lived and the model was busy."""

    thumbnail: Thumbnail | None = None
    tiled: tuple[Tiled, ...] = ()
    lived: Span | None = None
    busy: tuple[Span, ...] = field(default=())

    def shifted(self, seconds: float) -> "Trace":
        """The same by a clock that is so many seconds behind."""
        lived = None if self.lived is None else (self.lived[0] + seconds, self.lived[1] + seconds)
        return replace(self, lived=lived, busy=tuple((start + seconds, end + seconds) for start, end in self.busy))


def sidecar_line(line: SlideReport, trace: Trace, slides: int, started: float, part: int) -> str:
    """The line of slides.jsonl for a slide of a run of `slides`.

    `started` is the time.monotonic() value that its times count from, `part` which of the runs that went on
    from each other this one is, the first being 1.
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
        "tiles": [_tiles(tiled, line.facts) for tiled in trace.tiled],
        "members": {name: round(p[-1], 6) for name, p in sorted(line.p.items())},
    }
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def kept_lines(path: Path, images: Collection[str]) -> tuple[list[str], int]:
    """The last line of a slides.jsonl for each of these slides, and which part of the run comes after all of them."""
    kept, last = dict[str, str](), 0
    for text, value in _lines(path):
        if value[IMAGE_ID] in images:
            kept[value[IMAGE_ID]] = text
            last = max(last, value["part"] if isinstance(value.get("part"), int) else 0)
    return list(kept.values()), last + 1


def sidecar_places(path: Path) -> dict[str, int]:
    """Where in a slides.jsonl each slide's last line begins, in bytes; empty where there is no such file."""
    places, at = dict[str, int](), 0
    for text, value in _lines(path, every=True):
        if value is not None:
            places[str(value[IMAGE_ID])] = at
        at += len(text.encode())
    return places


def jpeg(view: npt.NDArray[np.uint8], most_bytes: int) -> bytes:
    """uint8[h, w, 3] as a JPEG of at most `most_bytes`: coarser, then smaller, until it fits."""
    from PIL import Image

    picture = Image.fromarray(view)
    while True:
        for quality in QUALITIES:
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality)
            if file.tell() <= most_bytes or max(picture.size) <= 16:
                return file.getvalue()
        picture = picture.resize((max(picture.width // 2, 1), max(picture.height // 2, 1)), Image.Resampling.BOX)


def _lines(path: Path, every: bool = False) -> Iterator[tuple[str, Any]]:
    """Each line with what it says; None for one that says nothing, where `every` one is asked for."""
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


def _picture(thumbnail: Thumbnail, most_bytes: int) -> dict[str, Any]:
    """A thumbnail as it is stored: `width`, `height` and `tissue` are in its pixels of `downsample` px of the slide."""
    height, width = thumbnail.tissue.shape
    return {
        "slide_px": [thumbnail.width_px, thumbnail.height_px],
        "size": [width, height],
        "downsample": thumbnail.downsample,
        "read_share": round(thumbnail.read_share, 3),
        "jpeg": base64.b64encode(jpeg(thumbnail.pixels, most_bytes)).decode(),
        "tissue": base64.b64encode(np.packbits(thumbnail.tissue).tobytes()).decode(),
    }


def _tiles(tiled: Tiled, facts: Mapping[str, Any]) -> dict[str, Any]:
    side = tiled.tiling.tile_px * tiled.tiling.downsample
    known = "width_px" in facts and "height_px" in facts
    size = kept_size_px(tiled.tiling, facts["width_px"], facts["height_px"]) if known else (side, side)
    return {"size_px": list(size), "xy": tiled.xy.tolist(), "p": [round(float(p), 3) for p in tiled.p]}


def _joined(spans: Sequence[Span]) -> Iterator[Span]:
    """The spans, those that follow each other within GAP_S as one."""
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
