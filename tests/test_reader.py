"""Test decoded pixels against a second decoder on every layout, and the refusal of unreadable files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import pyvips
import tifffile

from clotkit.errors import CodecUnsupported, SlideUnreadable
from clotkit.reasons import Reason
from clotkit.slides.fallback import Decoded
from clotkit.slides.reader import OpenSlideSlide, open_slide
from clotkit.tiling.overview import read_overview

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WIDTH, HEIGHT = 700, 420
Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def picture() -> Pixels:
    """Return smooth colour with texture, uint8[HEIGHT, WIDTH, 3]."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = np.stack([np.sin(x / 23) * 60, np.cos(y / 17) * 60, np.sin((x + y) / 31) * 60], axis=2)
    noise = np.random.default_rng(3).normal(0, 4, waves.shape)
    return np.clip(150 + waves + noise, 0, 255).astype(np.uint8)


LAYOUTS: dict[str, dict[str, object]] = {
    "deflate tiles": {"compression": "deflate", "predictor": "horizontal", "tile": True, "tile_width": 128},
    "lzw tiles": {"compression": "lzw", "tile": True, "tile_width": 128},
    "plain strips": {"compression": "none"},
    "deflate strips": {"compression": "deflate"},
    "packbits tiles": {"compression": "packbits", "tile": True},
    "bigtiff pyramid": {"compression": "deflate", "tile": True, "pyramid": True, "bigtiff": True},
    "jpeg tiles": {"compression": "jpeg", "Q": 90, "tile": True, "tile_width": 256, "tile_height": 256},
}


@pytest.fixture
def save(picture: Pixels, tmp_path: Path) -> Callable[[str], Path]:
    def write(layout: str) -> Path:
        path = tmp_path / "slide.tif"
        pyvips.Image.new_from_array(picture).tiffsave(str(path), **LAYOUTS[layout])
        return path

    return write


def tiles_of(slide: Decoded, xy: list[tuple[int, int]], downsample: int = 2) -> list[Pixels]:
    return list(slide.tiles(xy, 64, downsample, (255, 0, 255)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiles_are_the_pixels(layout: str, save: Callable[[str], Path], picture: Pixels) -> None:
    slide = open_slide(save(layout))
    decoder = "libvips" if layout == "packbits tiles" else "direct"
    assert (slide.decoder, slide.width_px, slide.height_px) == (decoder, WIDTH, HEIGHT)
    xy = [(0, 0), (256, 0), (128, 128), (640, 128), (640, 384)]
    for (x, y), tile in zip(xy, tiles_of(slide, xy), strict=True):
        padded = np.empty((128, 128, 3), np.uint8)
        padded[:] = (255, 0, 255)
        part = picture[y : y + 128, x : x + 128]
        padded[: part.shape[0], : part.shape[1]] = part
        expected = padded.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        tolerance = 12 if layout == "jpeg tiles" else 1
        assert np.abs(tile.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_overview_is_the_box_mean(layout: str, save: Callable[[str], Path], picture: Pixels) -> None:
    view = read_overview(open_slide(save(layout)), 16, (255, 255, 255))
    assert view.shape == (-(-HEIGHT // 16), -(-WIDTH // 16), 3)
    whole = picture[: HEIGHT // 16 * 16, : WIDTH // 16 * 16].reshape(HEIGHT // 16, 16, WIDTH // 16, 16, 3)
    assert np.abs(view[: HEIGHT // 16, : WIDTH // 16] - whole.mean(axis=(1, 3))).max() <= 2


@pytest.mark.parametrize("rows", [1, 7, 9, 100, HEIGHT])
@pytest.mark.parametrize("side", [10, 40, 150])
def test_bands_that_begin_within_a_strip(rows: int, side: int, picture: Pixels, tmp_path: Path) -> None:
    """Bands need not begin at a strip; libvips once failed here with "out of order read"."""
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, picture, rowsperstrip=rows, compression="zlib", photometric="rgb")
    corners = [(300, y) for y in range(0, HEIGHT, side) if y % 90 != 40]
    for (x, y), tile in zip(corners, open_slide(path).tiles(corners, side, 1, (0, 0, 0)), strict=True):
        part = picture[y : y + side, x : x + side]
        np.testing.assert_array_equal(tile[: len(part)], part)


@pytest.mark.parametrize("layout", ["deflate tiles", "bigtiff pyramid", "jpeg tiles"])
def test_both_decoders_agree(layout: str, save: Callable[[str], Path]) -> None:
    path = save(layout)
    xy = [(0, 0), (256, 0), (640, 384)]
    tolerance = 3 if layout == "jpeg tiles" else 1
    for one, other in zip(tiles_of(open_slide(path), xy), tiles_of(OpenSlideSlide(path), xy), strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= tolerance
    one, other = (read_overview(slide, 20, (255, 255, 255)) for slide in (open_slide(path), OpenSlideSlide(path)))
    assert one.shape == other.shape
    assert np.abs(one[:-1, :-1].astype(int) - other[:-1, :-1].astype(int)).max() <= 4


@pytest.mark.parametrize(
    ("pixels", "corner"),
    [
        (np.full((80, 90), 77, np.uint8), (77, 77, 77)),
        (np.full((80, 90, 3), 77 * 257, np.uint16), (77, 77, 77)),
        (np.dstack([np.full((80, 90, 3), 10, np.uint8), np.zeros((80, 90), np.uint8)]), (255, 0, 255)),
    ],
    ids=["grey", "16 bit", "transparent"],
)
def test_other_pixel_forms_become_rgb(pixels: npt.NDArray[np.generic], corner: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    pyvips.Image.new_from_array(pixels).tiffsave(str(path), tile=True)
    tile = tiles_of(open_slide(path), [(0, 0)], downsample=1)[0]
    assert tile.dtype == np.uint8
    assert np.abs(tile[5, 5].astype(int) - corner).max() <= 1


def test_missing_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.tif").write_text("this is not a slide\n" * 50)
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "stub.tif").write_bytes(b"II*\0\x08\0\0\0")
    for name in ("none.tif", "empty.tif", "folder.tif", "text.tif", "stub.tif"):
        with pytest.raises(SlideUnreadable) as raised:
            open_slide(tmp_path / name)
        assert raised.value.reason is Reason.DAMAGED


@pytest.mark.parametrize("share", [0.25, 0.5, 0.99])
def test_a_truncated_slide_is_an_error_never_black(share: float, picture: Pixels, tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, picture, tile=(128, 128), compression="zlib", photometric="rgb")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(SlideUnreadable):
        tiles_of(open_slide(path), [(x, y) for y in (0, 128, 256, 384) for x in (0, 256, 512)])


@pytest.mark.parametrize("layout", ["deflate tiles", "lzw tiles", "deflate strips"])
def test_damaged_bytes_are_an_error_never_black(layout: str, save: Callable[[str], Path]) -> None:
    path = save(layout)
    data = bytearray(path.read_bytes())
    data[5000:9000] = b"\xff" * 4000
    path.write_bytes(data)
    with pytest.raises(SlideUnreadable):
        read_overview(open_slide(path), 8, (255, 255, 255))


def test_a_codec_that_no_decoder_reads_is_refused_by_name(picture: Pixels, tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, picture, tile=(128, 128), compression="zlib", photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages.first.tags["Compression"].overwrite(34661)
    with pytest.raises(CodecUnsupported, match="JBIG") as raised:
        open_slide(path)
    assert raised.value.reason is Reason.UNSUPPORTED


@pytest.mark.parametrize(
    ("name", "decoder"),
    [
        ("yb10kx5k.zstd.tiff", "openslide"),
        ("tcga-cr-7395-01a-01-ts1.svs", "openslide"),
        ("boxes.tiff", "direct"),
        ("CMU-1-Small-Region.svs", "direct"),
        ("kidney-48-5.tif", "direct"),
    ],
)
def test_real_slides_are_never_black(name: str, decoder: str) -> None:
    path = SHARED / "slides" / name
    if not path.exists():
        pytest.skip(f"no real slides at {path.parent}")
    slide = open_slide(path)
    assert slide.decoder == decoder
    view = read_overview(slide, 16, (255, 255, 255))
    assert view.mean() > 50
    centre = (slide.width_px // 2 // 32 * 32, slide.height_px // 2 // 32 * 32)
    (tile,) = slide.tiles([centre], 32, 1, (255, 255, 255))
    around = view[centre[1] // 16 : centre[1] // 16 + 2, centre[0] // 16 : centre[0] // 16 + 2]
    assert np.abs(tile.mean(axis=(0, 1)) - around.mean(axis=(0, 1))).max() < 12


@pytest.mark.parametrize(
    ("version", "old"),
    [("3.4.1", True), ("4.0.0", True), ("4.0.0.13", True), ("4.0.1", False), ("4.0.1.2", False), ("4.1", False)],
)
def test_a_slide_that_an_old_openslide_reads_has_a_note(
    version: str, old: bool, picture: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openslide.__library_version__", version)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, picture, tile=(128, 128), compression="zstd", photometric="rgb")
    slide = open_slide(path)
    list(slide.tiles([(0, 0)], 32, 1, (255, 255, 255)))
    assert slide.decoder == "openslide"
    assert (Reason.OLD_OPENSLIDE in slide.facts.get("notes", ())) is old
    tifffile.imwrite(path, picture, tile=(128, 128), compression="zlib", photometric="rgb")
    slide = open_slide(path)
    list(slide.tiles([(0, 0)], 32, 1, (255, 255, 255)))
    assert (slide.decoder, slide.facts.get("notes", ())) == ("direct", ())
