"""Read mutated files in a process with limits, one after the other, and compare with second decoders.

The process reads paths from its standard input and answers each with one line of JSON. `Reader` starts it, and starts
it anew when a file has killed it or it has read MAX_FILES.
"""

import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clotkit.errors import ClotkitError
from clotkit.reasons import Reason
from clotkit.slides.pixels import Pixels
from clotkit.slides.reader import Slide, open_slide

LIMIT_S, LIMIT_MB = 20, 2048
MAX_FILES = 1000  # read by one process
TILE_PX = 16
GREY_LEVELS = 6  # mean difference of a tile up to which two decoders agree: they upsample JPEG's colours differently
MAX_WHOLE_PX = 2**22  # pixels of a file up to which the second decoders read it
WHITE = (255, 255, 255)


class Reader:
    """A limited process that reads files."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._read = 0

    def read(self, path: Path) -> dict[str, Any]:
        """Return what became of a file.

        Returns:
            `outcome`: read, refused (with its `code`), raised (with the error), crashed or hung. If it was read,
            `seconds` are the second decoders that read it, with whether they agree on sampled pixels; `differs` is true
            if not most of them do, and `codes` are what the reader says about the file.
        """
        if self._process is None or self._read >= MAX_FILES:
            self.close()
            self._process, self._read = _start(), 0
        self._read += 1
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(os.fsencode(path) + b"\n")
            self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], LIMIT_S)[0]:
            self.close()
            return {"outcome": "hung"}
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            code = self._process.wait()
            self.close()
            return {"outcome": "crashed", "code": code}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _start() -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "VIPS_CONCURRENCY": "1", "VIPS_WARNING": "0"}
    return subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, env=environment)  # fmt: skip


def answer(path: Path) -> dict[str, Any]:
    """Return what becomes of a file; see `Reader.read`."""
    try:
        slide = open_slide(path)
        corners = sampled_corners(slide)
        tiles = list(slide.tiles(corners, TILE_PX, 1, WHITE))
    except ClotkitError as error:
        return {"outcome": "refused", "code": error.reason}
    except Exception as error:  # noqa: BLE001 - any error without a reason code is a finding
        return {"outcome": "raised", "code": type(error).__name__, "sentence": str(error)[:200]}
    seconds = {name: compared(slide, corners, tiles, whole) for name, whole in second_opinions(path, slide)}
    differs = bool(seconds) and 2 * sum(seconds.values()) <= len(seconds)
    notes = [*map(str, slide.facts.get("notes", ())), *(["page"] if "page" in slide.facts else [])]
    tried = [attempt["code"] for attempt in slide.facts.get("decoders_tried", ())]
    notes += [code for code in tried if code == Reason.DECODERS_DISAGREE]
    return {"outcome": "read", "decoder": slide.decoder, "seconds": seconds, "differs": differs, "codes": notes}


def sampled_corners(slide: Slide) -> list[tuple[int, int]]:
    """Return the corners of nine tiles spread over the slide, sorted by row."""
    last = (max(slide.width_px - TILE_PX, 0), max(slide.height_px - TILE_PX, 0))
    return sorted({(last[0] * i // 2, last[1] * j // 2) for i in range(3) for j in range(3)}, key=lambda xy: xy[::-1])


def compared(slide: Slide, corners: list[tuple[int, int]], tiles: list[Pixels], whole: Pixels) -> bool:
    """Return whether a second decoder's picture has the slide's size and the tiles' pixels."""
    if whole.shape[:2] != (slide.height_px, slide.width_px):
        return False
    for (x, y), tile in zip(corners, tiles, strict=True):
        part = whole[y : y + TILE_PX, x : x + TILE_PX].astype(np.int16)
        if np.abs(part - tile[: part.shape[0], : part.shape[1]]).mean() > GREY_LEVELS:
            return False
    return True


def second_opinions(path: Path, slide: Slide) -> Iterator[tuple[str, Pixels]]:
    """Yield the pictures of those of libvips, Pillow and tifffile that read the file, uint8[h, w, 3]."""
    if slide.width_px * slide.height_px > MAX_WHOLE_PX:
        return
    for decode in (by_libvips, by_pillow, by_tifffile):
        if decode.__name__ == f"by_{slide.decoder}":
            continue
        with contextlib.suppress(Exception):  # a decoder that cannot read the file has no opinion
            yield decode.__name__.removeprefix("by_"), decode(path)


def by_libvips(path: Path) -> Pixels:
    """Return the first page as libvips reads it."""
    import pyvips

    pyvips.cache_set_max(0)  # the mutations have one name, one after the other
    image = pyvips.Image.new_from_file(str(path), fail_on="warning").autorot()
    if image.format == "ushort":
        image = (image >> 8).cast("uchar")
    return rgb(image.numpy())


def by_pillow(path: Path) -> Pixels:
    """Return the first page as Pillow reads it."""
    from PIL import Image

    from tests.odd_work import pillow

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow skips a tag that it cannot read, and takes the next best one
        image = Image.open(path)
    with image:
        tags = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(262) == 0 and image.mode.startswith("I;16"):
            raise ValueError("Pillow does not invert 16-bit samples")
        if 324 in tags and (273 in tags or len(tags[324]) != tiles_of(image.size, (tags[322], tags[323]))):
            raise ValueError("Pillow takes the tiles of a table that has others too in the wrong order")
        if len(tags.get(273, ())) > tiles_of(image.size, (image.width, tags.get(278, image.height))):
            raise ValueError("Pillow shows the last strips instead of the first ones")
    return pillow(path)


def tiles_of(size: tuple[int, int], tile: tuple[int, int]) -> int:
    """Return how many tiles or strips cover an image."""
    return -(-size[0] // max(tile[0], 1)) * -(-size[1] // max(tile[1], 1))


def by_tifffile(path: Path) -> Pixels:
    """Return the first page as tifffile reads it, if its samples are grey or RGB."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        if not all(page.databytecounts) or len(page.databytecounts) != np.prod(page.chunked):
            raise ValueError("tifffile shows what is missing as black")
        if page.bitspersample not in (8, 16):
            raise ValueError("tifffile does not scale samples of few bits")
        if 324 in page.tags and 273 in page.tags:
            raise ValueError("tifffile takes the last of two tables")
        if page.photometric not in (1, 2, 6) or page.tags.valueof(274, 1) != 1:
            raise ValueError("not shown as it is stored")
        pixels = page.asarray()
        if page.planarconfig == 2 and pixels.ndim == 3:
            pixels = np.moveaxis(pixels, 0, 2)
        if pixels.shape[:2] != (page.imagelength, page.imagewidth):
            raise ValueError("read as something else than a picture")
    return rgb((pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels)


def rgb(pixels: Any) -> Pixels:
    """Return 8-bit grey or RGB pixels as uint8[h, w, 3]."""
    if pixels.dtype != np.uint8:
        raise ValueError(pixels.dtype)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels[..., :3]


def main() -> None:
    """Answer each path of standard input."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_MB * 2**20,) * 2)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not spoil the answers
    for line in sys.stdin.buffer:
        answers.write(json.dumps(answer(Path(os.fsdecode(line.rstrip(b"\n"))))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
