"""Test odd and broken slides: they are read as a second decoder reads them, or refused in one line.

No file may crash or hang a process, or be read as black pixels.
"""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import pyvips
import tifffile
from PIL import Image

from clotkit.errors import CodecUnsupported, SlideError, SlideUnreadable
from clotkit.reasons import Reason
from clotkit.slides.reader import open_slide
from clotkit.tiling.overview import read_overview
from clotkit.tissue.rules import find_tissue, sample_background
from clotkit.workers import Ended, Task, stream

from .odd_work import FOLDERS, HARM, LIMITS, SHARED, TILING, outcomes, pillow, work

WIDTH, HEIGHT = 150, 90
Pixels = npt.NDArray[np.uint8]
ORIENTATION = 274  # the TIFF and EXIF tag


def scene(bands: int, seed: int = 1) -> Pixels:
    """Return smooth waves with another phase per band, uint8[HEIGHT, WIDTH, bands], without symmetry."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = [np.sin(x / (19 + 5 * band) + seed) * 60 + np.cos(y / (13 + band)) * 50 + x / 4 for band in range(bands)]
    return np.clip(np.stack(waves, axis=2) + 110, 0, 255).astype(np.uint8)


def pil(mode: str, **options: Any) -> Callable[[Path], None]:
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = scene(bands) if bands > 1 else scene(1)[..., 0]

    def write(path: Path) -> None:
        image = Image.fromarray(scene(3)).convert(mode) if mode in ("1", "P") else Image.fromarray(pixels, mode=None)
        if image.mode != mode:
            image = Image.frombytes(mode, image.size, image.tobytes())
        image.save(path, **options)

    return write


def tiff(pixels: npt.NDArray[Any], **options: Any) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, pixels, **options)


def pages(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        file.write(scene(3), photometric="rgb", tile=(64, 64), compression="zlib")
        file.write(np.zeros((500, 400, 3), np.uint8), photometric="rgb")


DEEP = scene(3).astype(np.uint16) * 257 - 20
GREY, RGBA, BILEVEL = scene(1)[..., 0], scene(4), scene(1)[..., 0] > 128
TILES: dict[str, Any] = {"tile": (32, 32), "compression": "zlib"}

# name: (writer of the file, maximum difference from Pillow's pixels in grey levels)
SAME_AS_PILLOW: dict[str, tuple[Callable[[Path], None], int]] = {
    "grey.tif": (pil("L"), 0),
    "grey.png": (pil("L"), 0),
    "grey.jpg": (pil("L"), 3),
    "grey alpha.tif": (pil("LA"), 1),
    "grey alpha.png": (pil("LA"), 1),
    "rgb.png": (pil("RGB"), 0),
    "rgb.jpg": (pil("RGB"), 3),
    "progressive.jpg": (pil("RGB", progressive=True), 3),
    "a png that is called.tif": (pil("RGB", format="PNG"), 0),
    "rgba.png": (pil("RGBA"), 1),
    "rgba strips.tif": (pil("RGBA"), 1),
    "rgba tiles.tif": (tiff(RGBA, photometric="rgb", extrasamples=["unassalpha"], **TILES), 1),
    "rgb and a sample that is no alpha.tif": (tiff(RGBA, photometric="rgb", extrasamples=["unspecified"]), 0),
    "16-bit grey.tif": (tiff(DEEP[..., 0], photometric="minisblack"), 0),
    "16-bit grey big endian.tif": (tiff(DEEP[..., 0], photometric="minisblack", byteorder=">"), 0),
    "16-bit grey.png": (lambda path: Image.fromarray(DEEP[..., 0]).save(path), 0),
    "cmyk.tif": (pil("CMYK"), 1),
    "cmyk.jpg": (pil("CMYK"), 4),
    "palette.tif": (pil("P"), 0),
    "palette.png": (pil("P"), 0),
    "bilevel.tif": (pil("1"), 0),
    "bilevel.png": (pil("1"), 0),
    "bilevel g4.tif": (pil("1", compression="group4"), 0),
    "bilevel min-is-white.tif": (tiff(BILEVEL, photometric="miniswhite"), 0),
    "bilevel min-is-black.tif": (tiff(BILEVEL, photometric="minisblack"), 0),
    "grey min-is-white.tif": (tiff(GREY, photometric="miniswhite"), 0),
    "planar.tif": (tiff(np.moveaxis(scene(3), 2, 0), photometric="rgb", planarconfig="separate"), 0),
    "pages.tif": (pages, 0),
    **{f"strips turned {n}.tif": (pil("RGB", tiffinfo={ORIENTATION: n}), 0) for n in range(1, 9)},
    **{
        f"tiles turned {n}.tif": (
            tiff(scene(3), photometric="rgb", extratags=[(ORIENTATION, "H", 1, n, True)], **TILES),
            0,
        )
        for n in range(2, 9)
    },
}


def read(path: Path) -> Pixels:
    """Return the whole slide from tiles of 40 px, checked against its overview at downsample 1."""
    slide = open_slide(path)
    corners = [(x, y) for y in range(0, slide.height_px, 40) for x in range(0, slide.width_px, 40)]
    whole = np.zeros((slide.height_px + 40, slide.width_px + 40, 3), np.uint8)
    for (x, y), tile in zip(corners, slide.tiles(corners, 40, 1, (255, 255, 255)), strict=True):
        whole[y : y + 40, x : x + 40] = tile
    pixels = whole[: slide.height_px, : slide.width_px]
    np.testing.assert_array_equal(pixels, read_overview(slide, 1, (255, 255, 255)))
    return pixels


@pytest.mark.parametrize("name", SAME_AS_PILLOW)
def test_read_as_pillow_reads_it(name: str, tmp_path: Path) -> None:
    write, tolerance = SAME_AS_PILLOW[name]
    write(tmp_path / name)
    pixels, expected = read(tmp_path / name), pillow(tmp_path / name)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance
    assert pixels.std() > 20


def test_exif_turns_a_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(scene(3)).save(path, exif=exif)
    assert read(path).shape == (WIDTH, HEIGHT, 3)
    assert np.abs(read(path).astype(int) - pillow(path)).max() <= 3


@pytest.mark.parametrize("tiled", [True, False])
def test_16_bit_rgb_is_scaled_by_257(tiled: bool, tmp_path: Path) -> None:
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, DEEP, photometric="rgb", **(TILES if tiled else {}))
    np.testing.assert_array_equal(read(path), (tifffile.imread(path) >> 8).astype(np.uint8))


def test_premultiplied_colours_are_restored(tmp_path: Path) -> None:
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    pixels[:] = (60, 30, 10, 128)  # 120, 60, 20 at half opacity
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["assocalpha"])
    assert np.abs(read(tmp_path / "a.tif")[5, 5].astype(int) - (187, 157, 137)).max() <= 1


@pytest.mark.parametrize("tiled", [True, False])
def test_transparent_pixels_are_not_tissue_on_a_tinted_background(tiled: bool, tmp_path: Path) -> None:
    """Transparent pixels show the slide's own background: a hole in a lilac slide is not a white spot."""
    pixels = np.zeros((600, 800, 4), np.uint8)
    pixels[:] = (234, 216, 254, 255)
    pixels[100:200, 100:300] = (0, 0, 0, 0)
    pixels[300:450, 400:600] = (180, 80, 130, 255)
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"], **(TILES if tiled else {})
    )
    slide = open_slide(tmp_path / "a.tif")
    background = sample_background(slide)
    assert background == (234, 216, 254)
    mask = find_tissue(read_overview(slide, 10, background), background).mask
    assert not mask[9:21, 9:31].any()
    assert mask[31:44, 41:59].all()


def test_a_transparent_picture_is_white(tmp_path: Path) -> None:
    pixels = scene(4)
    pixels[..., 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").min() == 255


def white(path: Path) -> None:
    """Write 201 MB of white in deflate tiles of 4096 px, the highest expansion that deflate reaches."""
    image = pyvips.Image.black(8192, 8192, bands=3).invert().copy(interpretation="srgb")
    image.tiffsave(str(path), compression="deflate", tile=True, tile_width=4096, tile_height=4096)


def test_a_white_slide_is_not_a_decompression_bomb(tmp_path: Path) -> None:
    white(tmp_path / "white.tif")
    assert 8192**2 * 3 / (tmp_path / "white.tif").stat().st_size > 800
    slide = open_slide(tmp_path / "white.tif")
    (tile,) = slide.tiles([(4000, 4000)], 64, 4, (0, 0, 0))
    assert tile.min() == 255


def with_tags(**tags: int) -> Callable[[Path], None]:
    """Return a writer of a valid tiled slide whose directory is then changed."""

    def write(path: Path) -> None:
        tifffile.imwrite(path, scene(3), photometric="rgb", **TILES)
        with tifffile.TiffFile(path, mode="r+b") as file:
            for tag, value in tags.items():
                file.pages.first.tags[tag].overwrite(value, dtype="I")

    return write


def png(width: int, height: int, bits: int = 8, interlaced: int = 0) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def large_jpeg(path: Path) -> None:
    Image.fromarray(scene(3)).save(path, format="JPEG")
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65000, 65000)
    path.write_bytes(data)


def turned_strips(path: Path) -> None:
    image = pyvips.Image.black(8000, 5000, bands=3).invert().copy(interpretation="srgb")
    image.set_type(pyvips.GValue.gint_type, "orientation", 6)
    image.tiffsave(str(path), compression="deflate")


def numbers(dtype: str) -> Callable[[Path], None]:
    return tiff(np.ones((50, 60), dtype), photometric="minisblack")


# Sound pictures with samples that no decoder here reads. name: (writer of the file, the kind in the message)
UNSUPPORTED_SAMPLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "float16": (numbers("float16"), "16-bit float"),
    "float32": (numbers("float32"), "32-bit float"),
    "float64": (numbers("float64"), "64-bit float"),
    "int8": (numbers("int8"), "8-bit signed"),
    "int16": (numbers("int16"), "16-bit signed"),
    "uint32": (numbers("uint32"), "32-bit unsigned"),
    "uint64": (numbers("uint64"), "64-bit unsigned"),
    "complex": (numbers("complex64"), "64-bit complex"),
    "six channels": (
        tiff(scene(6), photometric="minisblack", planarconfig="contig"),
        "6 samples per pixel",
    ),
}

# name: (writer of the file, the figure or name in the message)
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no width": (with_tags(ImageWidth=0), "0 x 90 px"),
    "no height": (with_tags(ImageLength=0), "150 x 0 px"),
    "too wide": (with_tags(ImageWidth=2_000_000), "2,000,000 x 90 px; 1,000,000 px"),
    "too many": (with_tags(ImageWidth=900_000, ImageLength=900_000), "810 Gpx; 500 Gpx"),
    "a bomb": (with_tags(ImageWidth=200_000, ImageLength=200_000), "2,000-fold"),
    "a bomb of webp": (
        with_tags(ImageWidth=700_000, ImageLength=700_000, Compression=50001),
        "200,000-fold",
    ),
    "a large tile": (with_tags(TileWidth=2**20, TileLength=2**20), "1,099,511,627,776 px"),
    "a png bomb": (lambda path: _bytes(path, png(60000, 60000)), "2,000-fold"),
    "a jpeg bomb": (large_jpeg, "2,000-fold"),
    "a png of nothing": (lambda path: _bytes(path, png(0, 10)), "libvips|0 x 10 px"),
    "a png cut short": (lambda path: _bytes(path, png(60, 60)), "libvips"),
    "text": (lambda path: _bytes(path, b"this is not a slide\n" * 50), "TIFF"),
    "svg": (
        lambda path: _bytes(path, b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"),
        "TIFF",
    ),
    "pdf": (lambda path: _bytes(path, b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n"), "TIFF"),
    "zeros": (lambda path: _bytes(path, bytes(5000)), "TIFF"),
    "a bare magic": (lambda path: _bytes(path, b"II*\0"), "TIFF"),
    "large strips, turned": (turned_strips, "orientation 6 .*8,000 x 5,000 px"),
}


def _bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def assert_refused(path: Path, words: str) -> SlideError:
    """Check that opening or reading a slide is refused, in one line with `words` and without its path."""
    with pytest.raises(SlideUnreadable, match=words) as raised:
        read_overview(open_slide(path), 8, (255, 255, 255))
    assert raised.value.reason is Reason.DAMAGED
    text = str(raised.value)
    assert "\n" not in text
    assert str(path) not in text
    assert len(text) < 300
    return raised.value


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    write, words = REFUSED[name]
    write(tmp_path / "slide.tif")
    assert_refused(tmp_path / "slide.tif", words)


@pytest.mark.parametrize("readable", [0, 20])
def test_a_strict_decoder_goes_on_where_libvips_fails(
    readable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PackBits is left to libvips, which fails after `readable` regions; OpenSlide is too lenient."""
    pixels = np.ascontiguousarray(scene(3).repeat(4, 0).repeat(4, 1)[:512, :512])
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(64, 64), compression="packbits")
    fetch, left = pyvips.Region.fetch, iter(range(readable))

    def failing(region: Any, *at: int) -> Any:
        if next(left, None) is None:
            raise pyvips.Error("a codec that is not built in")
        return fetch(region, *at)

    monkeypatch.setattr(pyvips.Region, "fetch", failing)
    slide = open_slide(tmp_path / "a.tif")
    corners = [(x, y) for y in range(0, pixels.shape[0] - 63, 64) for x in range(0, pixels.shape[1] - 63, 64)]
    for (x, y), tile in zip(corners, slide.tiles(corners, 64, 1, (0, 0, 0)), strict=True):
        np.testing.assert_array_equal(tile, pixels[y : y + 64, x : x + 64])
    assert slide.decoder == "tifffile"
    assert [tried["decoder"] for tried in slide.facts["decoders_tried"]] == ["libvips"]


@pytest.mark.parametrize(("bits", "side", "need_mb"), [(8, 40_000, "4,578"), (16, 32_768, "6,144")])
def test_a_large_interlaced_png_is_refused_before_it_is_decoded(
    bits: int, side: int, need_mb: str, tmp_path: Path
) -> None:
    data = png(side, side, bits, interlaced=1) + bytes(side * side * 6 // 1000)
    _bytes(tmp_path / "a.png", data)
    with pytest.raises(CodecUnsupported, match=f"{need_mb} MB .* 3,072 MB") as raised:
        open_slide(tmp_path / "a.png")
    assert raised.value.reason is Reason.UNSUPPORTED
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("saved", [{}, {"palette": True}, {"bitdepth": 16}])
def test_an_interlaced_png_gives_the_pixels_of_a_plain_one(saved: dict[str, Any], tmp_path: Path) -> None:
    image = pyvips.Image.new_from_array(scene(3))
    if saved.pop("bitdepth", 8) == 16:
        image = (image.cast("ushort") * 257).copy(interpretation="rgb16")
    tiles = []
    for interlace in (False, True):
        image.pngsave(str(tmp_path / "a.png"), interlace=interlace, **saved)
        (tile,) = open_slide(tmp_path / "a.png").tiles([(0, 0)], 64, 1, (0, 0, 0))
        tiles.append(tile)
    np.testing.assert_array_equal(tiles[0], tiles[1])


@pytest.mark.parametrize("name", UNSUPPORTED_SAMPLES)
def test_unsupported_samples_are_named(name: str, tmp_path: Path) -> None:
    write, words = UNSUPPORTED_SAMPLES[name]
    write(tmp_path / "slide.tif")
    with pytest.raises(CodecUnsupported, match=words) as raised:
        open_slide(tmp_path / "slide.tif")
    assert raised.value.reason is Reason.UNSUPPORTED
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("number", "name"), [(34661, "JBIG"), (6, "old JPEG"), (4711, "number 4711")])
def test_an_unsupported_codec_is_named(number: int, name: str, tmp_path: Path) -> None:
    with_tags(Compression=number)(tmp_path / "slide.tif")
    with pytest.raises(CodecUnsupported, match=name) as raised:
        open_slide(tmp_path / "slide.tif")
    assert raised.value.reason is Reason.UNSUPPORTED
    assert "\n" not in str(raised.value)


def test_bombs_cost_no_memory(tmp_path: Path) -> None:
    names = ["too many", "a bomb", "a large tile", "a png bomb", "a jpeg bomb"]
    for name in names:
        REFUSED[name][0](tmp_path / name)
    tasks = [Task(name, tmp_path / name, (TILING,)) for name in names]
    for end in stream(tasks, LIMITS, 2, work):
        assert isinstance(end, Ended)
        assert end.code is Reason.DAMAGED
        assert end.peak_mb < 200


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_odd_file_is_read_correctly_or_refused_in_one_line(folder: str) -> None:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"no odd files at {SHARED / folder}")
    paths = sorted((SHARED / folder).iterdir())
    ends = outcomes(paths)
    assert [end.image_id for end in ends] == sorted(path.name for path in paths)
    for end in ends:
        if end.code:
            assert end.code not in HARM
            assert "\n" not in end.reason
            assert str(SHARED) not in end.reason
            continue
        mean, by_pillow = np.array(end.facts["mean"]), end.facts["pillow"]
        if by_pillow is not None:
            assert np.abs(mean - by_pillow).max() <= 2, f"{end.image_id}: {mean}, by Pillow {by_pillow}"
