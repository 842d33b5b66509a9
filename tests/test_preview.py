"""Test previews: squares and colours, bounded memory, and keys."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clotkit.config import TilingConfig
from clotkit.errors import SlideUnreadable
from clotkit.tiling.preview import (
    KEPT,
    LONG_PX,
    OUTLINE,
    REJECTED,
    draw_preview,
    kept_size_px,
    outline,
    preview_downsample,
    preview_key,
    preview_key_of,
    rejected_squares,
    write_preview,
)

TILING = TilingConfig("patches", tile_px=64, downsample=2, max_tiles=2, batch_tiles=2)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a white slide of 1000 x 600 px with dark tissue from (128, 128) to (512, 384)."""
    import tifffile

    pixels = np.full((600, 1000, 3), 245, np.uint8)
    pixels[128:384, 128:512] = (150, 60, 90)
    path = tmp_path_factory.mktemp("slide") / "a.tif"
    tifffile.imwrite(path, pixels, tile=(128, 128), compression="zlib", photometric="rgb")
    return path


def colours(picture: Image.Image) -> set[tuple[int, ...]]:
    return set(map(tuple, np.asarray(picture).reshape(-1, 3).tolist()))


def test_kept_rejected_and_outline_are_drawn(slide: Path) -> None:
    xy = np.array([[128, 128], [256, 128]], np.int32)
    picture = np.asarray(draw_preview(slide, TILING, xy))
    assert picture.shape == (600, 1000, 3)
    for corner_x, corner_y in xy:
        assert tuple(picture[corner_y, corner_x]) == KEPT
        assert tuple(picture[corner_y + 127, corner_x + 127]) == KEPT
    assert tuple(picture[130, 384]) == REJECTED  # has tissue, was not kept
    assert tuple(picture[383, 400]) == REJECTED
    assert tuple(picture[128, 100]) == (245, 245, 245)
    assert REJECTED not in colours(Image.fromarray(picture[:, 520:]))  # no tissue there
    plain = np.asarray(draw_preview(slide, TILING, np.zeros((0, 2), np.int32)))
    assert KEPT not in colours(Image.fromarray(plain))
    bare = draw_preview(slide, TilingConfig("chunks", 64, 1, 2, 2), np.zeros((0, 2), np.int32))
    edges = (np.asarray(bare) == OUTLINE).all(axis=2)
    assert edges[128, 128:512].all()
    assert edges.sum() == 2 * (384 + 256) - 4


def test_overlapping_squares_are_drawn_where_the_tiler_has_them(slide: Path) -> None:
    half = TilingConfig("patches", tile_px=64, downsample=2, max_tiles=2, batch_tiles=2, overlap=0.5)
    picture = np.asarray(draw_preview(slide, half, np.array([[128, 128]], np.int32)))
    assert tuple(picture[300, 320]) == REJECTED  # a square half a side off the plain grid
    assert tuple(picture[220, 192]) != REJECTED  # overlapped by the kept tile


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_rejected_squares_have_tissue_and_no_kept_tile(data: st.DataObject) -> None:
    downsample = data.draw(st.sampled_from([1, 2, 4]))
    side = data.draw(st.integers(2, 9)) * downsample
    step = data.draw(st.integers(1, side // downsample)) * downsample
    width, height = data.draw(st.integers(5, 60)), data.draw(st.integers(5, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    mask = rng.random((-(-height // downsample), -(-width // downsample))) < 0.1
    count = data.draw(st.integers(0, 4))
    xy = np.stack([rng.integers(0, width, count), rng.integers(0, height, count)], axis=1).astype(np.int32)
    expected = []
    for y in range(0, height, step):
        for x in range(0, width, step):
            tissue = mask[
                y // downsample : -(-(y + side) // downsample), x // downsample : -(-(x + side) // downsample)
            ].any()
            apart = all(abs(x - kept_x) >= side or abs(y - kept_y) >= side for kept_x, kept_y in xy.tolist())
            if tissue and apart:
                expected.append([x, y])
    assert rejected_squares(mask, downsample, (width, height), side, step, xy).tolist() == expected


def test_the_outline_is_the_mask_less_its_inside() -> None:
    mask = np.zeros((6, 7), bool)
    mask[1:5, 1:6] = True
    inside = np.zeros_like(mask)
    inside[2:4, 2:5] = True
    assert np.array_equal(outline(mask), mask & ~inside)
    assert not outline(np.zeros((3, 3), bool)).any()
    assert outline(np.ones((3, 3), bool)).sum() == 8  # the picture's edge counts


@given(width=st.integers(1, 200_000), height=st.integers(1, 200_000))
def test_a_preview_is_as_long_as_allowed(width: int, height: int) -> None:
    downsample = preview_downsample(width, height)
    assert -(-max(width, height) // downsample) <= LONG_PX
    assert downsample == 1 or -(-max(width, height) // (downsample // 2)) > LONG_PX
    assert downsample & (downsample - 1) == 0


@pytest.mark.parametrize(
    ("name", "size_px", "box_px"),
    [("patches", (1000, 400), (128, 128)), ("windows", (1000, 400), (128, 128)), ("chunks", (1000, 400), (400, 400)),
     ("strips", (1200, 400), (400, 400)), ("strips", (400, 1000), (400, 500))],
)  # fmt: skip
def test_a_box_is_what_the_tile_shows(name: str, size_px: tuple[int, int], box_px: tuple[int, int]) -> None:
    assert kept_size_px(TilingConfig(name, 64, 2, 2, 2), *size_px) == box_px


def key_in(path: Path) -> str | None:
    with path.open("rb") as file:
        return preview_key_of(file)


def test_a_preview_carries_its_key(slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.jpg"
    write_preview(out, slide, TILING, np.array([[128, 128]], np.int32), "key")
    assert key_in(out) == preview_key("key") != preview_key("other")
    with Image.open(out) as picture:
        assert picture.size == (1000, 600)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_other_files_have_no_key(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "b.jpg").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "c.jpg")
    assert key_in(tmp_path / "a.jpg") is None
    assert key_in(tmp_path / "b.jpg") is None
    assert key_in(tmp_path / "c.jpg") != preview_key("key")
    with pytest.raises(SlideUnreadable):
        write_preview(tmp_path / "d.jpg", tmp_path / "none.tif", TILING, np.zeros((0, 2), np.int32), "key")
    assert not (tmp_path / "d.jpg").exists()


def test_rejected_squares_too_small_to_see_are_not_drawn(tmp_path: Path) -> None:
    import tifffile

    pixels = np.full((64, 16_000, 3), 245, np.uint8)
    pixels[16:48, 100:15_000] = (150, 60, 90)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(64, 64), compression="zlib", photometric="rgb")
    tiling = TilingConfig("patches", tile_px=16, downsample=1, max_tiles=1, batch_tiles=1)
    picture = draw_preview(tmp_path / "a.tif", tiling, np.array([[0, 0]], np.int32))
    assert picture.size == (1000, 4)
    assert KEPT in colours(picture)
    assert REJECTED not in colours(picture)


def test_the_memory_is_bounded(tmp_path: Path) -> None:
    """A slide of 12,000 x 24,000 px, 864 MB raw, takes less than 300 MB."""
    import tifffile

    blank, dark = (np.full((256, 256, 3), value, np.uint8) for value in (245, 120))
    across, down = 47, 94
    tiles = (dark if 10 <= row < 40 and 10 <= column < 30 else blank for row in range(down) for column in range(across))
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        shape = (down * 256, across * 256, 3)
        file.write(tiles, shape=shape, dtype=np.uint8, tile=(256, 256), compression="zlib", photometric="rgb")
    code = (
        "import sys, numpy as np; from pathlib import Path; from clotkit.config import TilingConfig\n"
        "from clotkit.tiling.preview import write_preview; from clotkit.workers import peak_mb\n"
        "tiling = TilingConfig('patches', tile_px=256, downsample=1, max_tiles=1, batch_tiles=1)\n"
        "write_preview(Path(sys.argv[2]), Path(sys.argv[1]), tiling, np.array([[2560, 2560]], np.int32), 'key')\n"
        "print(peak_mb())"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "a.tif"), str(tmp_path / "a.jpg")]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    assert float(ended.stdout) < 300
