"""Test the fast reader's parts: means of boxes, LZW through libtiff, tiles that repeat."""

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clotkit.errors import SlideUnreadable
from clotkit.slides.header.table import median
from clotkit.slides.pixels import Pixels, box_mean, evenly_spread
from clotkit.slides.reader import open_slide
from clotkit.slides.segments import Segments

SIDE = 64


@given(
    downsample=st.sampled_from([2, 3, 4, 5, 8, 12, 16, 24, 32]),
    rows=st.integers(1, 5),
    columns=st.integers(1, 300),
    high=st.sampled_from([1, 2, 256]),
    seed=st.integers(0, 9),
)
@example(downsample=256, rows=1, columns=2, high=1, seed=0)  # all 255: the sums are the largest that there are
@example(downsample=258, rows=1, columns=2, high=1, seed=0)
@example(downsample=512, rows=2, columns=1, high=256, seed=0)
@example(downsample=4112, rows=1, columns=1, high=1, seed=0)
@settings(deadline=None)
def test_box_means_are_rounded_half_up(downsample: int, rows: int, columns: int, high: int, seed: int) -> None:
    shape = (rows * downsample, columns * downsample, 3)
    pixels = (255 - np.random.default_rng(seed).integers(0, high, shape)).astype(np.uint8)
    sums = pixels.reshape(rows, downsample, columns, downsample, 3).sum(axis=(1, 3), dtype=np.int64)
    area = downsample * downsample
    assert np.array_equal(box_mean(pixels, downsample), (sums + area // 2) // area)
    assert np.array_equal(box_mean(pixels[:, ::-1], downsample)[:, ::-1], (sums + area // 2) // area)


@given(values=st.lists(st.lists(st.integers(0, 255), min_size=3, max_size=3), min_size=1), count=st.integers(1, 40))
def test_medians_and_places_are_those_of_numpy(values: list[list[int]], count: int) -> None:
    pixels = np.array(values, np.uint8)
    assert np.array_equal(median(pixels), np.median(pixels, axis=0))
    places = np.linspace(0, len(values) - 1, min(count, len(values)))
    assert np.array_equal(evenly_spread(len(values), count), np.unique(places.astype(np.int64)))


@pytest.fixture(scope="module")
def picture() -> Pixels:
    """Return textured tiles above, and below two rows of tiles of glass with one speck."""
    rng = np.random.default_rng(5)
    texture = rng.integers(90, 250, (2 * SIDE, 5 * SIDE, 3)).cumsum(axis=1) // np.arange(1, 5 * SIDE + 1)[:, None]
    glass = np.full((2 * SIDE, 5 * SIDE, 3), (240, 238, 241))
    glass[7, 9] = 20
    return np.concatenate([texture, glass]).astype(np.uint8)


@pytest.fixture
def slide(picture: Pixels, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Save the picture with the codec and predictor of the parameter."""
    codec, predictor = request.param
    path = tmp_path / "slide.tif"
    tifffile.imwrite(
        path, picture, tile=(SIDE, SIDE), compression=codec, predictor=predictor, photometric="rgb", metadata=None
    )
    return path


@pytest.mark.parametrize("slide", [("lzw", True), ("lzw", False)], indirect=True)
def test_damaged_lzw_is_refused_as_imagecodecs_refuses_it(slide: Path) -> None:
    """Libtiff decodes; imagecodecs's own decoder says which data have the right length, and their bytes."""
    with tifffile.TiffFile(slide) as file:
        page = file.pages.first
        offset, count, predictor = page.dataoffsets[0], page.databytecounts[0], page.predictor
    sound, rng, outcomes = slide.read_bytes(), np.random.default_rng(8), set()
    for _ in range(200):
        damaged = bytearray(sound)
        at, length = offset + int(rng.integers(count)), int(rng.integers(1, 9))
        damaged[at : at + length] = rng.integers(0, 256, length, np.uint8).tobytes()
        slide.write_bytes(damaged)
        expected = _by_imagecodecs(bytes(damaged[offset : offset + count]), int(predictor) == 2)
        outcomes.add(expected is None)
        if expected is None:
            with pytest.raises(SlideUnreadable):
                list(open_slide(slide).tiles([(0, 0)], SIDE, 1, (0, 0, 0)))
        else:
            (tile,) = open_slide(slide).tiles([(0, 0)], SIDE, 1, (0, 0, 0))
            assert np.array_equal(tile, expected)
    assert outcomes == {True, False}


def _by_imagecodecs(data: bytes, predictor: bool) -> Pixels | None:
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    try:
        if len(imagecodecs.lzw_decode(data, out=pixels.reshape(-1).data)) != pixels.size:
            return None
    except RuntimeError:
        return None
    return np.asarray(imagecodecs.delta_decode(pixels, axis=1)) if predictor else pixels


@pytest.mark.parametrize("slide", [("lzw", True), ("zlib", True), ("zlib", False)], indirect=True)
@pytest.mark.parametrize("downsample", [1, 2, 4])
def test_tiles_with_the_same_bytes_are_decoded_once(
    slide: Path, downsample: int, picture: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, decode = list[tuple[int, int]](), Segments.decode

    def counted(segments: Segments, row: int, column: int, background: tuple[int, int, int]) -> Pixels:
        decoded.append((row, column))
        return decode(segments, row, column, background)

    monkeypatch.setattr(Segments, "decode", counted)
    opened = open_slide(slide)
    (view,) = opened.tiles([(0, 0)], 5 * SIDE // downsample, downsample, (0, 0, 0))
    rows = picture.shape[0]
    assert np.array_equal(view[: rows // downsample], box_mean(picture, downsample))
    glass = [place for place in decoded if place[0] >= 2]
    assert glass == [(2, 0), (2, 1)]  # the one with the speck, and one of the nine others
    assert len(decoded) == 2 * 5 + 2


@pytest.mark.parametrize("slide", [("zlib", True)], indirect=True)
def test_a_damaged_tile_among_others_is_named(slide: Path) -> None:
    with tifffile.TiffFile(slide) as file:
        page = file.pages.first
        start = page.dataoffsets[3] + page.databytecounts[3] // 2
    data = bytearray(slide.read_bytes())
    data[start : start + 8] = b"\xff" * 8
    slide.write_bytes(data)
    with pytest.raises(SlideUnreadable, match=f"at {3 * SIDE}, 0 px"):
        list(open_slide(slide).tiles([(0, 0)], SIDE, 4, (0, 0, 0)))


@pytest.mark.parametrize(
    ("compression", "photometric"),
    [("jpeg", "rgb"), ("jpeg", "minisblack"), ("jpeg2000", "rgb"), ("jpeg2000", "minisblack"), ("webp", "rgb")],
)
@pytest.mark.parametrize("layout", [{"rowsperstrip": 16}, {"tile": (32, 32)}], ids=["strips", "tiles"])
def test_images_larger_than_their_tile_contradict_the_header(
    compression: str, photometric: str, layout: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "slide.tif"
    pixels = np.random.default_rng(3).integers(0, 256, (64, 128, 3), np.uint8)
    options = {"compression": compression, "photometric": photometric, **layout}
    tifffile.imwrite(path, pixels if photometric == "rgb" else pixels[..., 0], metadata=None, **options)
    with tifffile.TiffFile(path, mode="r+b") as file:
        tags = file.pages.first.tags
        tags["ImageWidth"].overwrite(64)
        if "tile" in layout:
            tags["TileWidth"].overwrite(16)
    with pytest.raises(SlideUnreadable):
        list(open_slide(path).tiles([(0, 0)], 16, 1, (255, 255, 255)))
