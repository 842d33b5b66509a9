"""Sound slides that one decoder does not read.

Readers refused them, or showed them black or pink (openslide pull request 547, TwelveMonkeys issue 514, Pillow issue
5514): tiles that are absent, byte counts that are missing, planes, junk in JPEG streams, contradicting colours.
"""

import io
import lzma
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest

from clotkit.errors import SlideUnreadable
from clotkit.reasons import Reason
from clotkit.slides.reader import open_slide

from . import Reported

HEIGHT, WIDTH, SIDE, ROWS = 300, 400, 128, 64  # of the slide, a tile and a strip
GLASS = (211, 222, 233)  # what absent tiles must show
TILES, STRIPS = (324, 325), (273, 279)
KINDS = {1: "B", 2: "B", 3: "H", 4: "I", 7: "B"}
EXACT, LOSSY = 0.0, 4.0  # mean difference from the pixels, grey levels
Pixels = npt.NDArray[np.uint8]
Encode = Callable[[Any], Any]  # pixels -> bytes


def picture() -> Pixels:
    """Return pale glass with a dark rectangle, uint8[HEIGHT, WIDTH, 3]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = np.stack([200 + 30 * np.sin(x / 23), 180 + 40 * np.cos(y / 17), 205 + 20 * np.sin((x + y) / 31)], axis=2)
    waves[60:200, 80:250] = (180, 90, 140) + 15 * np.sin(x[60:200, 80:250, None] / 9)
    return np.clip(np.rint(waves), 0, 255).astype(np.uint8)


def write(path: Path, tags: Mapping[int, tuple[int, Any]], segments: Sequence[bytes], where: tuple[int, int],
          counts: Sequence[int] | None = None) -> None:  # fmt: skip
    """Write a TIFF of one page.

    An empty segment is absent; `counts` replace the true ones, none if it is empty."""
    data, offsets = io.BytesIO(), []
    for segment in segments:
        offsets.append(8 + data.tell() if segment else 0)
        data.write(segment + bytes(len(segment) % 2))
    tags = {**tags, where[0]: (4, offsets)}
    if counts is None or counts:
        tags[where[1]] = (4, counts or [len(segment) for segment in segments])
    at, values, entries = 8 + data.tell(), io.BytesIO(), b""
    for code, (kind, value) in sorted(tags.items()):
        numbers = [value] if isinstance(value, int) else list(value)
        raw = struct.pack(f"<{len(numbers)}{KINDS[kind]}", *numbers)
        place = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack("<I", at + values.tell())
        values.write(raw + bytes(len(raw) % 2) if len(raw) > 4 else b"")
        entries += struct.pack("<HHI", code, kind, len(numbers)) + place
    head = struct.pack("<2sHI", b"II", 42, at + values.tell())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(head + data.getvalue() + values.getvalue() + directory)


def page(codec: int, photometric: int = 2, planar: int = 1, **layout: int) -> dict[int, tuple[int, Any]]:
    """Return the tags of a page of 8-bit RGB."""
    tags: dict[int, tuple[int, Any]] = {256: (4, WIDTH), 257: (4, HEIGHT), 258: (3, (8, 8, 8)), 259: (3, codec)}
    tags |= {262: (3, photometric), 277: (3, 3), 284: (3, planar)}
    return tags | ({278: (4, layout["rows"])} if "rows" in layout else {322: (3, SIDE), 323: (3, SIDE)})


def tiled(pixels: Pixels) -> list[Pixels]:
    """Return tiles, padded at the edges."""
    more = ((0, -HEIGHT % SIDE), (0, -WIDTH % SIDE), (0, 0))[: pixels.ndim]
    full = np.pad(pixels, more, mode="edge")
    corners = [(y, x) for y in range(0, HEIGHT, SIDE) for x in range(0, WIDTH, SIDE)]
    return [np.ascontiguousarray(full[y : y + SIDE, x : x + SIDE]) for y, x in corners]


def raw(pixels: Pixels) -> bytes:
    """Return the bytes of pixels."""
    return pixels.tobytes()


CODECS: dict[str, tuple[int, Encode]] = {
    "no compression": (1, raw),
    "deflate": (8, lambda tile: zlib.compress(tile.tobytes())),
    "LZW": (5, lambda tile: imagecodecs.lzw_encode(tile.tobytes())),
    "PackBits": (32773, lambda tile: imagecodecs.packbits_encode(tile.tobytes())),
    "LZMA": (34925, lambda tile: lzma.compress(tile.tobytes())),
    "ZSTD": (50000, lambda tile: imagecodecs.zstd_encode(tile.tobytes())),
    "WebP": (50001, lambda tile: imagecodecs.webp_encode(tile, lossless=True)),
    "JPEG XL": (50002, lambda tile: imagecodecs.jpegxl_encode(tile, lossless=True)),
    "LERC": (34887, imagecodecs.lerc_encode),
    "JPEG 2000": (34712, lambda tile: imagecodecs.jpeg2k_encode(tile, codecformat="J2K", level=0)),
}
BYTES = ("no compression", "deflate", "LZW", "PackBits", "LZMA", "ZSTD")


def jpeg(tile: Pixels, sampling: str = "420") -> bytes:
    """Return a JPEG stream."""
    return bytes(imagecodecs.jpeg_encode(tile, level=95, subsampling=sampling))


def rgb_jpeg(tile: Pixels) -> bytes:
    """Return a JPEG stream of RGB without a colour transform."""
    return bytes(imagecodecs.jpeg_encode(tile, level=95, colorspace="RGB", outcolorspace="RGB"))


def seen(path: Path, right: Pixels, most: float, *notes: Reason) -> str:
    """Check every pixel of a slide and its notes; return the decoder that read it."""
    slide = open_slide(path)
    assert (slide.width_px, slide.height_px) == (WIDTH, HEIGHT)
    corners = [(x, y) for y in range(0, HEIGHT, 100) for x in range(0, WIDTH, 100)]
    whole = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for (x, y), tile in zip(corners, slide.tiles(corners, 100, 1, GLASS), strict=True):
        whole[y : y + 100, x : x + 100] = tile
    assert np.abs(whole.astype(int) - right).mean() <= most
    assert slide.facts.get("notes", []) == list(notes)
    return f"read by {slide.decoder}; notes: {', '.join(notes) or 'none'}"


def absent_tile(codec: str, folder: Path) -> str:
    """Check a slide whose last tile is absent."""
    number, encode = CODECS[codec]
    segments = [encode(tile) for tile in tiled(picture())]
    write(folder / "a.tif", page(number), [*segments[:-1], b""], TILES)
    right = picture()
    right[2 * SIDE :, 3 * SIDE :] = GLASS
    return seen(folder / "a.tif", right, EXACT, Reason.SPARSE)


def tiled_planes(codec: str, folder: Path) -> str:
    """Check a tiled slide whose samples have tiles of their own."""
    number, encode = CODECS[codec]
    segments = [encode(tile) for channel in range(3) for tile in tiled(picture()[..., channel])]
    write(folder / "a.tif", page(number, planar=2), segments, TILES)
    return seen(folder / "a.tif", picture(), EXACT)


def high_last_strip(codec: str, folder: Path) -> str:
    """Check a slide whose last strip is stored at full height."""
    number, encode = CODECS[codec]
    full = np.pad(picture(), ((0, -HEIGHT % ROWS), (0, 0), (0, 0)), mode="edge")
    write(folder / "a.tif", page(number, rows=ROWS), [encode(full[y : y + ROWS]) for y in range(0, HEIGHT, ROWS)],
          STRIPS)  # fmt: skip
    return seen(folder / "a.tif", picture(), EXACT)


def counts(codec: str, zero: bool, folder: Path) -> str:
    """Check a slide whose byte counts are 0 or missing."""
    number, encode = CODECS[codec]
    segments = [encode(tile) for tile in tiled(picture())]
    write(folder / "a.tif", page(number), segments, TILES, [0] * len(segments) if zero else [])
    return seen(folder / "a.tif", picture(), EXACT, Reason.TABLE_COMPLETED)


def count_past_the_end(folder: Path) -> str:
    """Check a raw slide in front of whose pixels the directory stands, with a last count of a full strip."""
    path, pixels = folder / "a.tif", picture()
    strips = [pixels[y : y + ROWS].tobytes() for y in range(0, HEIGHT, ROWS)]
    write(path, page(1, rows=ROWS), strips, STRIPS, [ROWS * WIDTH * 3 * 9] * len(strips))
    with pytest.raises(SlideUnreadable):  # one strip may claim too much, not all of them
        open_slide(path)
    write(path, page(1, rows=ROWS), strips, STRIPS, [*map(len, strips[:-1]), ROWS * WIDTH * 3 + 9999])
    return seen(path, pixels, EXACT, Reason.TABLE_COMPLETED)


def streams(encode: Encode, notes: Sequence[Reason], photometric: int, folder: Path) -> str:
    """Check a slide of JPEG tiles."""
    write(folder / "a.tif", page(7, photometric) | {530: (3, (2, 2))}, [encode(t) for t in tiled(picture())], TILES)
    return seen(folder / "a.tif", picture(), LOSSY, *notes)


def junk(marker: bytes, between: bytes) -> Encode:
    """Return an encoder that puts bytes in front of a marker."""

    def encode(tile: Pixels) -> bytes:
        before, found, after = jpeg(tile).partition(marker)
        return before + between + found + after

    return encode


def tables(kind: int, padding: bytes, folder: Path) -> str:
    """Check a slide whose JPEG tables are stored as numbers of a kind, with padding."""
    parts = [_split(jpeg(tile)) for tile in tiled(picture())]
    stored = parts[0][0] + padding
    values = np.frombuffer(stored + bytes(len(stored) % 2), "<u2").tolist() if kind == 3 else list(stored)
    write(folder / "a.tif", page(7, 6) | {530: (3, (2, 2)), 347: (kind, values)}, [part for _, part in parts], TILES)
    return seen(folder / "a.tif", picture(), LOSSY)


def _split(stream: bytes) -> tuple[bytes, bytes]:
    """Return the tables of a JPEG stream, and the stream without them."""
    held, rest, at = b"\xff\xd8", b"\xff\xd8", 2
    while stream[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] in (0xDB, 0xC4):
            held += stream[at:end]
        elif stream[at + 1] != 0xE0:
            rest += stream[at:end]
        at = end
    return held + b"\xff\xd9", rest + stream[at:]


def shared_tiles(folder: Path) -> str:
    """Check a slide whose tiles lie in one place."""
    pixels = np.full((HEIGHT, WIDTH, 3), (180, 90, 140), np.uint8)
    one = zlib.compress(tiled(pixels)[0].tobytes())
    tags = page(8) | {325: (4, [len(one)] * 12)}
    write(folder / "a.tif", tags, [one], TILES, [])
    data = (folder / "a.tif").read_bytes()
    assert data
    write(folder / "a.tif", page(8) | {TILES[0]: (4, [8] * 12), 325: (4, [len(one)] * 12)}, [one], (60000, 60001))
    return seen(folder / "a.tif", pixels, EXACT)


def old_jpeg(folder: Path) -> str:
    """Check a slide in old-style JPEG compression, one stream for the whole page."""
    stream = jpeg(picture())
    write(folder / "a.tif", page(6, 6, rows=HEIGHT) | {513: (4, 8), 514: (4, len(stream))}, [stream], STRIPS)
    return seen(folder / "a.tif", picture(), LOSSY)


def reversed_bits(folder: Path) -> str:
    """Check a slide with the bits of each byte in the other order."""
    turned = [int(f"{value:08b}"[::-1], 2) for value in range(256)]
    segments = [CODECS["LZW"][1](tile).translate(bytes(turned)) for tile in tiled(picture())]
    write(folder / "a.tif", page(5) | {266: (3, 2)}, segments, TILES)
    return seen(folder / "a.tif", picture(), EXACT)


def one_strip(folder: Path) -> str:
    """Check a slide of 59 MB in one deflate strip."""
    height, width = 3000, 6600
    stripe = np.repeat(np.arange(height, dtype=np.uint32)[:, None] // 8 % 200 + 20, width * 3, 1).astype(np.uint8)
    tags = page(8, rows=height) | {256: (4, width), 257: (4, height)}
    write(folder / "a.tif", tags, [zlib.compress(stripe.tobytes(), 1)], STRIPS)
    slide = open_slide(folder / "a.tif")
    corners = [(0, 0), (64, 1504), (6400, 2936)]
    for (_, y), tile in zip(corners, slide.tiles(corners, 64, 1, GLASS), strict=True):
        np.testing.assert_array_equal(tile[:, 0, 0], stripe[y : y + 64, 0])
    return f"read by {slide.decoder}"


def all_absent(folder: Path) -> str:
    """Check that a slide without any tile is damaged."""
    write(folder / "a.tif", page(8), [b""] * 12, TILES)
    with pytest.raises(SlideUnreadable) as raised:
        open_slide(folder / "a.tif")
    return str(raised.value.reason)


def damaged_zeros(folder: Path) -> str:
    """Check that a hole of zeros in JPEG data stays damage for every decoder."""
    streams = [bytearray(jpeg(tile)) for tile in tiled(picture())]
    streams[5][-400:-200] = bytes(200)
    write(folder / "a.tif", page(7, 6) | {530: (3, (2, 2))}, [bytes(one) for one in streams], TILES)
    with pytest.raises(SlideUnreadable) as raised:
        list(open_slide(folder / "a.tif").tiles([(SIDE, SIDE)], SIDE, 1, GLASS))
    return str(raised.value.reason)


WITHOUT = """
import sys
for name in ("pyvips", "imagecodecs", "simplejpeg"):
    sys.modules[name] = None
from pathlib import Path
from clotkit.errors import ClotkitError
from clotkit.slides.reader import open_slide
try:
    slide = open_slide(Path(sys.argv[1]))
    print(slide.decoder, *next(iter(slide.tiles([(0, 0)], 1, 1, (0, 0, 0)))).ravel())
except ClotkitError as error:
    print(error.reason, str(error))
"""


def without_wheels(codec: str, folder: Path) -> str:
    """Check a planar slide, which OpenSlide does not read, without the packages that Kaggle's image lacks."""
    number, encode = CODECS[codec]
    segments = [encode(tile) for channel in range(3) for tile in tiled(picture()[..., channel])]
    write(folder / "a.tif", page(number, planar=2), segments, TILES)
    command = [sys.executable, "-c", WITHOUT, str(folder / "a.tif")]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    if codec == "LERC":
        assert words[0] == Reason.UNSUPPORTED
        assert "libvips is not installed" in " ".join(words)
        return "unsupported; what is not installed is named"
    assert words[1:] == [str(value) for value in picture()[0, 0]]
    return f"read by {words[0]}"


DISAGREE = (Reason.DECODERS_DISAGREE,)
JUNK = {"the start": b"\xff\xd8", "a table": b"\xff\xdb", "the scan": b"\xff\xda", "the end": b"\xff\xd9"}
READ = "read exactly"
CASES = [
    *(Reported(f"a tile is absent, {codec}", "background there, the others' pixels; note sparse",
               partial(absent_tile, codec)) for codec in CODECS),
    *(Reported(f"tiles of single planes, {codec}", READ, partial(tiled_planes, codec)) for codec in BYTES),
    *(Reported(f"a last strip at full height, {codec}", READ, partial(high_last_strip, codec)) for codec in BYTES),
    *(Reported(f"byte counts of 0, {codec}", f"{READ}; note table_completed", partial(counts, codec, True))
      for codec in ("no compression", "deflate", "LZW", "WebP")),
    *(Reported(f"no byte counts, {codec}", f"{READ}; note table_completed", partial(counts, codec, False))
      for codec in ("no compression", "deflate", "LZW")),
    Reported("the last byte count reaches past the end of the file", READ, count_past_the_end),
    *(Reported(f"JPEG sampling {sampling}", READ, partial(streams, partial(jpeg, sampling=sampling), (), 6))
      for sampling in ("444", "422", "420", "440", "411")),
    *(Reported(f"zeros before {name} of a JPEG stream", READ, partial(streams, junk(marker, bytes(3)), (), 6))
      for name, marker in JUNK.items()),
    *(Reported(f"JPEG tables of kind {kind} with {len(padding)} bytes of padding", READ, partial(tables, kind, padding))
      for kind, padding in ((1, b""), (2, b""), (7, bytes(3)), (7, b"\xff\xff"), (3, b""))),
    Reported("RGB in JPEG tiles that are tagged YCbCr", "true colours; note decoders_disagree",
             partial(streams, rgb_jpeg, DISAGREE, 6)),
    Reported("YCbCr in JPEG tiles that are tagged RGB", "true colours; note decoders_disagree",
             partial(streams, jpeg, DISAGREE, 2)),
    Reported("tiles that share bytes", READ, shared_tiles),
    Reported("old-style JPEG", READ, old_jpeg),
    Reported("bits of bytes in the other order", READ, reversed_bits),
    Reported("one deflate strip of 59 MB", READ, one_strip),
    Reported("all tiles are absent", "damaged", all_absent),
    Reported("a hole of zeros in a JPEG tile", "damaged", damaged_zeros),
    *(Reported(f"planes without the wheels, {codec}", "read, or what is missing is named",
               partial(without_wheels, codec)) for codec in ("deflate", "LZW", "LERC")),
]  # fmt: skip
