"""Pictures are read exactly or refused, and their tiles cover them with their own pixels."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clotkit.config import TilingConfig
from clotkit.data.images import EDGE_LEVEL, IMAGE_TILERS, MAX_PIXELS, edges, parts, read_image, whole
from clotkit.errors import CodecUnsupported, PictureTooLarge, SlideUnreadable
from clotkit.reasons import Reason


def tiling(name: str = "parts", tile_px: int = 16, downsample: int = 1, max_tiles: int = 1000) -> TilingConfig:
    return TilingConfig(name, tile_px, downsample, max_tiles, batch_tiles=8)


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def saved(path: Path, pixels: npt.NDArray[np.generic], **more: Any) -> Path:
    Image.fromarray(pixels).save(path, **more)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_a_lossless_file_gives_its_pixels(suffix: str, tmp_path: Path) -> None:
    pixels = noise(5, 7)
    path = saved(tmp_path / f"a{suffix}", pixels, **({"lossless": True} if suffix == ".webp" else {}))
    assert np.array_equal(read_image(path), pixels)


def test_grey_palette_and_bilevel_become_rgb(tmp_path: Path) -> None:
    grey = noise(5, 7)[..., 0]
    assert np.array_equal(read_image(saved(tmp_path / "grey.png", grey)), np.repeat(grey[..., None], 3, 2))
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.gif")
    assert np.array_equal(read_image(tmp_path / "palette.gif"), np.repeat(grey[..., None], 3, 2))
    assert set(np.unique(read_image(saved(tmp_path / "two.png", grey > 99)))) == {0, 255}


@pytest.mark.parametrize(("name", "kind"), [("a.png", np.uint16), ("a.tif", np.int32), ("b.tif", np.float32)])
def test_deep_grey_is_scaled_by_its_own_range(name: str, kind: type, tmp_path: Path) -> None:
    found = read_image(saved(tmp_path / name, np.array([[1000, 2000], [3000, 6100]], kind)))
    assert found[..., 0].tolist() == [[0, 50], [100, 255]]
    assert found.shape == (2, 2, 3)


@pytest.mark.parametrize(("suffix", "channels"), [("png", 2), ("png", 3), ("png", 4), ("tif", 3), ("tif", 4)])
def test_colours_of_16_bits_are_refused(suffix: str, channels: int, tmp_path: Path) -> None:
    import pyvips

    pixels = np.random.default_rng(0).integers(0, 4096, (8, 9, channels), np.uint16)
    kind = "grey16" if channels == 2 else "rgb16"
    path = tmp_path / f"a.{suffix}"
    pyvips.Image.new_from_array(pixels).copy(interpretation=kind).write_to_file(str(path))
    with pytest.raises(CodecUnsupported) as refused:
        read_image(path)
    assert refused.value.reason is Reason.UNSUPPORTED


def test_deep_grey_whose_zero_is_white_is_no_negative(tmp_path: Path) -> None:
    levels = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300
    path = saved(tmp_path / "a.tif", levels, tiffinfo={262: 0})
    with Image.open(path) as file:
        assert getattr(file, "tag_v2")[262] == 0  # noqa: B009 - of a TIFF
        assert file.mode.startswith("I")
    np.testing.assert_array_equal(read_image(path), 255 - read_image(saved(tmp_path / "b.tif", levels)))


def test_a_constant_deep_picture_is_black(tmp_path: Path) -> None:
    assert not read_image(saved(tmp_path / "a.png", np.full((3, 3), 700, np.uint16))).any()


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = 0, 255, 128
    found = read_image(saved(tmp_path / "a.png", pixels))[0, :, 0]
    assert found.tolist() == pytest.approx([255, 0, 127], abs=1)
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    assert read_image(tmp_path / "palette.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_the_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = noise(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    path = saved(tmp_path / "a.png", pixels, exif=exif)
    assert np.array_equal(read_image(path), np.rot90(pixels, -1))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp", ".webp", ".gif"])
def test_a_picture_cut_short_is_refused(suffix: str, tmp_path: Path) -> None:
    path = saved(tmp_path / f"a{suffix}", noise(64, 64))
    data = path.read_bytes()
    for share in (0.0, 0.01, 0.3, 0.6, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(SlideUnreadable) as raised:
            read_image(path)
        assert str(path) in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    for path in (tmp_path / "text.png", tmp_path / "none.png", tmp_path):
        with pytest.raises(SlideUnreadable, match=re.escape(str(path))):
            read_image(path)
    with pytest.raises(SlideUnreadable):
        read_image(saved(tmp_path / "a.tif", np.array([[0, np.nan]], np.float32)))


def test_a_picture_too_large_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    with pytest.raises(PictureTooLarge, match=rf"{side} x {side} px.*64,000,000") as refused:
        read_image(tmp_path / "a.png")
    assert refused.value.reason is Reason.UNSUPPORTED
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")  # Pillow itself refuses it
    with pytest.raises(PictureTooLarge):
        read_image(tmp_path / "bomb.png")


def test_whole_is_one_tile() -> None:
    picture = noise(16, 16)
    assert np.array_equal(whole(picture, tiling("whole")), picture[None])
    grid = np.indices((64, 128)).sum(0) % 2 * 255
    squeezed = whole(np.repeat(grid[..., None], 3, 2).astype(np.uint8), tiling("whole"))
    assert squeezed.shape == (1, 16, 16, 3)
    assert abs(squeezed.astype(int) - 127).max() <= 8  # averaged; without antialiasing it would be black or white


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), most=st.integers(1, 40))
def test_parts_cover_the_picture_with_its_own_pixels(height: int, width: int, most: int) -> None:
    # every pixel has its own number, which tells where a tile comes from
    number = np.arange(height * width)
    picture = np.stack([number // 256, number % 256, np.zeros_like(number)], 1).astype(np.uint8)
    picture = picture.reshape(height, width, 3)
    every = parts(picture, tiling(max_tiles=10_000))
    assert every.shape == (-(-height // 16) * -(-width // 16), 16, 16, 3)
    covered = np.unique(every[..., 0].astype(int) * 256 + every[..., 1])
    assert np.array_equal(covered, number)
    some = parts(picture, tiling(max_tiles=most))
    assert 1 <= len(some) <= most
    assert {tile.tobytes() for tile in some} <= {tile.tobytes() for tile in every}


def test_fewer_parts_are_spread_over_the_picture() -> None:
    picture = np.repeat(np.indices((160, 160)).astype(np.uint8)[0][..., None], 3, 2)
    tops = {int(tile[0, 0, 0]) for tile in parts(picture, tiling(max_tiles=4))}
    assert tops == {32, 112}
    assert len(parts(picture, tiling(max_tiles=7))) == 6
    assert len(parts(picture[:16], tiling(max_tiles=7))) == 7
    assert len(parts(picture[:, :16], tiling(max_tiles=7))) == 7


def test_parts_are_of_the_downsampled_picture() -> None:
    assert parts(noise(64, 96), tiling(downsample=2)).shape == (6, 16, 16, 3)
    assert parts(noise(3, 3), tiling(downsample=256)).shape == (1, 16, 16, 3)


def test_edges_keep_only_the_brightest_pixels() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = np.repeat(grey[..., None], 3, 2)
    (found,) = edges(picture, tiling("edges"))
    assert EDGE_LEVEL == 150
    assert np.array_equal(found, np.where(picture > 150, picture, 0))
    colour = np.zeros((16, 16, 3), np.uint8)
    colour[0, 0], colour[0, 1] = (255, 0, 0), (250, 240, 10)  # luma 76 and 217
    (found,) = edges(colour, tiling("edges"))
    assert found[0, 0].tolist() == [0, 0, 0]
    assert found[0, 1].tolist() == [250, 240, 10]


@pytest.mark.parametrize("name", IMAGE_TILERS)
def test_every_tiler_gives_tiles_of_its_recipe(name: str) -> None:
    for shape in ((1, 1), (200, 3), (40, 50)):
        tiles = IMAGE_TILERS[name](noise(*shape), tiling(name, max_tiles=3))
        assert tiles.dtype == np.uint8
        assert tiles.shape[1:] == (16, 16, 3)
        assert 1 <= len(tiles) <= 3
