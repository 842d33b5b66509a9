"""Tests of the levels of a pyramid: which ones are used, and that a wrong one never is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from clotkit.config import TilingConfig
from clotkit.planning.forecast import forecast
from clotkit.reasons import LevelFault, Reason
from clotkit.slides.header.pages import level_downsample
from clotkit.slides.levels import AUTO, CLOSE, FULL
from clotkit.slides.pixels import Pixels, box_mean
from clotkit.slides.reader import open_slide
from clotkit.tiling.tilers import Batch, cut_slide
from tests.pyramids import GLASS, TILE_PX, sound_levels, tissue_picture, write_pyramid

SIZE = (3001, 2203)  # no multiple of any downsample
DOWNSAMPLES = (2, 4, 8, 16)
WHITE = (255, 255, 255)


@pytest.fixture(scope="module")
def picture() -> Pixels:
    return tissue_picture(*SIZE)


@pytest.fixture(scope="module")
def levels(picture: Pixels) -> dict[int, Pixels]:
    return sound_levels(picture, DOWNSAMPLES)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory, picture: Pixels, levels: dict[int, Pixels]) -> Path:
    return write_pyramid(tmp_path_factory.mktemp("pyramid") / "slide.tif", picture, levels)


def tiled(path: Path, config: TilingConfig) -> tuple[dict[tuple[int, int], Pixels], dict[str, Any]]:
    """Return the tiles of a slide by corner, and its facts."""
    tiles, facts = dict[tuple[int, int], Pixels](), dict[str, Any]()
    for piece in cut_slide(open_slide(path, config.levels), config):
        if isinstance(piece, Batch):
            tiles |= {(int(x), int(y)): tile for (x, y), tile in zip(piece.xy, piece.tiles, strict=True)}
        else:
            facts |= piece
    return tiles, facts


def config(name: str = "patches", downsample: int = 4, levels: str = AUTO) -> TilingConfig:
    return TilingConfig(
        name, tile_px=64, downsample=downsample, max_tiles=40, batch_tiles=8, min_tissue_share=0.3, levels=levels
    )


def beside_level_0(path: Path, asked: TilingConfig) -> tuple[float, dict[str, Any]]:
    """Return how far the tiles of a slide are from those of level 0, at the same corners; and its facts."""
    full, _ = tiled(path, replace(asked, levels=FULL))
    seen, facts = tiled(path, asked)
    return mean_difference(seen, full), facts


def mean_difference(some: dict[tuple[int, int], Pixels], others: dict[tuple[int, int], Pixels]) -> float:
    assert some.keys() == others.keys()
    return float(np.mean([np.abs(some[xy].astype(np.int16) - others[xy]).mean() for xy in some]))


@pytest.mark.parametrize("downsample", [2, 4, 8, 16])
@pytest.mark.parametrize("name", ["patches", "darkest"])
def test_tiles_of_a_level_are_those_of_level_0(pyramid: Path, name: str, downsample: int) -> None:
    full, facts = tiled(pyramid, config(name, downsample, FULL))
    assert "level" not in facts
    seen, facts = tiled(pyramid, config(name, downsample))
    assert facts["level"] == downsample
    assert "levels_refused" not in facts
    assert 0 < mean_difference(seen, full) < 3


def test_windows_come_from_a_level(pyramid: Path) -> None:
    seen, facts = tiled(pyramid, config("windows", 4))  # overlapping squares: noise may move one by a stride
    corners = sorted(seen, key=lambda xy: xy[::-1])
    full = dict(zip(corners, open_slide(pyramid, FULL).tiles(corners, 64, 4, WHITE), strict=True))
    assert facts["level"] == 4
    assert mean_difference(seen, full) < 3


@pytest.mark.parametrize("name", ["chunks", "strips"])
def test_pieces_come_from_a_level(pyramid: Path, name: str) -> None:
    difference, facts = beside_level_0(pyramid, config(name, 4))
    assert facts["level"] in DOWNSAMPLES
    assert difference < 3


@pytest.mark.parametrize(("asked", "used"), [(1, 1), (3, 1), (6, 2), (12, 4), (24, 8), (64, 16)])
def test_the_coarsest_level_that_divides_the_downsample_is_used(pyramid: Path, asked: int, used: int) -> None:
    slide = open_slide(pyramid)
    level = slide.level(asked)
    assert level.downsample == used
    assert level.table is not None
    assert level.table.width_px == TILE_PX * used


def test_levels_in_subifds_are_found(tmp_path: Path, picture: Pixels, levels: dict[int, Pixels]) -> None:
    slide = open_slide(write_pyramid(tmp_path / "slide.tif", picture, levels, subifds=True))
    assert slide.level(16).downsample == 16


def test_an_aperio_file_has_its_levels_and_no_thumbnail_among_them(
    tmp_path: Path, picture: Pixels, levels: dict[int, Pixels]
) -> None:
    first = (
        f"Aperio Image Library v11.2.1\n{SIZE[0]}x{SIZE[1]} [0,0 {SIZE[0]}x{SIZE[1]}] (128x128) JPEG/RGB Q=92|MPP = 0.5"
    )
    path = write_pyramid(tmp_path / "slide.svs", picture, {4: levels[4], 16: levels[16]}, description=first)
    with tifffile.TiffWriter(path, append=True) as file:
        file.write(
            levels[8],
            rowsperstrip=16,
            photometric="rgb",
            description="Aperio Image Library\nmacro 375x275",
            metadata=None,
        )
    slide = open_slide(path)
    assert [slide.level(downsample).downsample for downsample in (2, 4, 8, 16)] == [1, 4, 4, 16]
    assert "levels_refused" not in slide.facts


def test_a_level_that_is_wrong_in_one_ninth_of_the_slide_is_refused(tmp_path: Path, picture: Pixels) -> None:
    """A shift by 40 px of pale tissue differs little on average over the whole slide."""
    glass = np.array(GLASS, float)
    pale = np.rint(glass * (picture / glass) ** 0.55).astype(np.uint8)
    level = sound_levels(pale, (4,))[4]
    height, width = level.shape[0] // 3, level.shape[1] // 3
    part = level[height : 2 * height, :width]
    part[:] = np.roll(part, 10, axis=1)
    path = write_pyramid(tmp_path / "slide.tif", pale, {4: level})
    difference, facts = beside_level_0(path, config())
    assert difference == 0
    assert [(row["downsample"], row["code"]) for row in facts["levels_refused"]] == [(4, LevelFault.DIFFERS)]
    assert facts["levels_refused"][0]["averaged"] < 3 < facts["levels_refused"][0]["worst"]
    sound = write_pyramid(tmp_path / "sound.tif", pale, sound_levels(pale, (4,)))
    assert open_slide(sound).level(4).downsample == 4


def test_a_level_in_rows_that_cannot_be_compared_to_its_end_is_not_used(tmp_path: Path) -> None:
    picture = np.tile(tissue_picture(1024, 768), (12, 4, 1))
    level = sound_levels(picture, (4,))[4]
    level[len(level) * 3 // 4 :] = 0
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        for pixels in (picture, level):
            file.write(pixels, rowsperstrip=64, photometric="rgb", compression="zlib", subfiletype=int(pixels is level))
    difference, facts = beside_level_0(tmp_path / "slide.tif", config())
    assert difference == 0
    assert [row["code"] for row in facts["levels_refused"]] == [LevelFault.UNPROVEN]


def test_each_tiling_is_forecast_with_its_own_levels(pyramid: Path) -> None:
    tilings = [replace(config(downsample=8, levels=levels), max_tiles=10_000) for levels in (AUTO, FULL)]

    def squares(*some: TilingConfig) -> list[int]:
        (found,) = [facts["forecasts"] for facts in forecast(pyramid, some) if "forecasts" in facts]
        return [one["squares"] for one in found]

    alone = [squares(one)[0] for one in tilings]
    assert alone[0] != alone[1]
    assert squares(*tilings) == alone
    assert squares(*tilings[::-1]) == alone[::-1]


def black(level: Pixels) -> Pixels:
    return np.zeros_like(level)


def white(level: Pixels) -> Pixels:
    return np.full_like(level, 243)


def shifted(level: Pixels) -> Pixels:
    return np.roll(level, 10, axis=1)  # 40 px of level 0


def shifted_down(level: Pixels) -> Pixels:
    return np.roll(level, 40, axis=0)


def of_another_slide(level: Pixels) -> Pixels:
    return box_mean(tissue_picture(level.shape[1] * 2, level.shape[0] * 2, seed=5), 2)


def mirrored(level: Pixels) -> Pixels:
    return level[:, ::-1]


def other_channels(level: Pixels) -> Pixels:
    return level[..., ::-1]


@pytest.mark.parametrize(
    "spoil",
    [black, white, shifted, shifted_down, of_another_slide, mirrored, other_channels],
    ids=lambda spoil: spoil.__name__,
)
def test_a_wrong_level_is_not_used_and_named(
    tmp_path: Path, picture: Pixels, levels: dict[int, Pixels], spoil: Callable[[Pixels], Pixels]
) -> None:
    path = write_pyramid(tmp_path / "slide.tif", picture, {4: np.ascontiguousarray(spoil(levels[4]))})
    difference, facts = beside_level_0(path, config())
    assert Reason.LEVEL_REFUSED in facts["notes"]
    assert [(row["downsample"], row["code"]) for row in facts["levels_refused"]] == [(4, LevelFault.DIFFERS)]
    assert "level" not in facts
    assert difference == 0


@pytest.mark.parametrize("step", [3, 5, 10, 12])
def test_any_whole_downsample_may_be_a_level(tmp_path: Path, picture: Pixels, step: int) -> None:
    slide = open_slide(write_pyramid(tmp_path / "slide.tif", picture, sound_levels(picture, [step])))
    assert slide.level(step).downsample == step
    assert slide.level(2 * step).downsample == step


def test_a_level_in_rows_does_not_serve_a_slide_in_tiles(tmp_path: Path, picture: Pixels) -> None:
    path = write_pyramid(tmp_path / "slide.tif", picture, {})
    with tifffile.TiffWriter(path, append=True) as file:
        level = sound_levels(picture, [4])[4]
        file.write(level, rowsperstrip=16, photometric="rgb", compression="zlib", subfiletype=1, metadata=None)
    difference, facts = beside_level_0(path, replace(config(), max_tiles=9))
    assert "level" not in facts
    assert difference == 0


def test_a_small_tiled_page_is_no_level(tmp_path: Path, picture: Pixels) -> None:
    options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        file.write(picture, **options)
        file.write(np.ascontiguousarray(picture[:300, :141]), **options)
    assert "levels_refused" not in open_slide(tmp_path / "slide.tif").facts


def test_levels_that_a_search_for_duplicates_refuses_are_named(
    tmp_path: Path, picture: Pixels, levels: dict[int, Pixels]
) -> None:
    wrong = {step: np.ascontiguousarray(levels[step][:, ::-1]) for step in (2, 4)}
    _, facts = tiled(write_pyramid(tmp_path / "slide.tif", picture, wrong), replace(config(), duplicates="drop"))
    assert {row["downsample"] for row in facts["levels_refused"]} == {2, 4}
    assert Reason.LEVEL_REFUSED in facts["notes"]


def test_a_level_of_another_size_is_named(tmp_path: Path, picture: Pixels, levels: dict[int, Pixels]) -> None:
    path = write_pyramid(tmp_path / "slide.tif", picture, {2: levels[2], 4: levels[4][:300]})
    difference, facts = beside_level_0(path, config())
    assert [(row["downsample"], row["code"]) for row in facts["levels_refused"]] == [(4, LevelFault.SIZE)]
    assert facts["level"] == 2
    assert difference < 3


def test_a_level_with_damaged_tiles_is_left_where_it_breaks(
    tmp_path: Path, picture: Pixels, levels: dict[int, Pixels]
) -> None:
    path = write_pyramid(tmp_path / "slide.tif", picture, {4: levels[4]})
    with tifffile.TiffFile(path) as file:
        page = file.pages[1]
        largest = sorted(zip(page.databytecounts, page.dataoffsets, strict=True))[-12:]
    with path.open("r+b") as raw:
        for count, offset in largest[::2]:
            raw.seek(offset + count // 2)
            raw.write(b"\0" * (count - count // 2))
    difference, facts = beside_level_0(path, config())
    assert facts["levels_refused"][0]["code"] in (LevelFault.DAMAGED, LevelFault.DIFFERS)
    assert difference < 3


def test_a_file_that_ends_within_a_level_is_read_from_level_0(
    tmp_path: Path, picture: Pixels, levels: dict[int, Pixels]
) -> None:
    path = write_pyramid(tmp_path / "slide.tif", picture, {4: levels[4]})
    with tifffile.TiffFile(path) as file:
        page = file.pages[1]
        offsets, start = page.dataoffsets, page.dataoffsets[len(page.dataoffsets) // 3]
        assert max(file.pages[0].dataoffsets) < min(offsets)
    whole, _ = tiled(path, config(levels=FULL))
    with path.open("r+b") as raw:
        raw.truncate(start)
    seen, facts = tiled(path, config())
    assert [(row["downsample"], row["code"]) for row in facts["levels_refused"]] == [(4, LevelFault.DAMAGED)]
    assert mean_difference(seen, whole) == 0


def test_a_level_without_some_tiles_is_not_used(tmp_path: Path, picture: Pixels, levels: dict[int, Pixels]) -> None:
    path = write_pyramid(tmp_path / "slide.tif", picture, {4: levels[4]})
    with tifffile.TiffFile(path) as file:
        tag = file.pages[1].tags["TileByteCounts"]
        counts = np.array(file.pages[1].databytecounts, {3: "<u2", 4: "<u4"}[int(tag.dtype)])
        offsets, where = np.array(file.pages[1].dataoffsets, "<u4"), file.pages[1].tags["TileOffsets"].valueoffset
    absent = int(counts.argmin())
    counts[absent] = offsets[absent] = 0
    with path.open("r+b") as raw:
        for place, values in ((tag.valueoffset, counts), (where, offsets)):
            raw.seek(place)
            raw.write(values.tobytes())
    slide = open_slide(path)
    assert slide.level(4).downsample == 1
    assert slide.facts["levels_refused"][0]["code"] == LevelFault.DAMAGED


def test_close_levels_have_little_noise(tmp_path: Path, picture: Pixels, levels: dict[int, Pixels]) -> None:
    noise = np.random.default_rng(1).integers(-12, 13, levels[4].shape)
    noisy = np.clip(levels[4] + noise, 0, 255).astype(np.uint8)
    path = write_pyramid(tmp_path / "slide.tif", picture, {4: noisy})
    assert open_slide(path, AUTO).level(4).downsample == 4
    assert open_slide(path, CLOSE).level(4).downsample == 1


def test_a_slide_without_contrast_tells_nothing_of_its_levels(tmp_path: Path) -> None:
    glass = np.full((1024, 1024, 3), 243, np.uint8)
    slide = open_slide(write_pyramid(tmp_path / "slide.tif", glass, sound_levels(glass, [4])))
    assert slide.level(4).downsample == 1
    assert slide.facts["levels_refused"][0]["code"] == LevelFault.UNPROVEN


@given(st.integers(64, 200_000), st.integers(64, 200_000), st.integers(1, 8), st.booleans(), st.booleans())
def test_a_level_has_the_power_of_2_that_its_writer_took(
    width: int, height: int, power: int, up: bool, down: bool
) -> None:
    step = 1 << power
    level = (width // step + (up and width % step > 0), height // step + (down and height % step > 0))
    if max(level) >= 64 and min(level) > 0:
        assert level_downsample(level, (width, height)) == step


@given(st.integers(1000, 100_000), st.integers(1000, 100_000), st.integers(1, 100_000), st.integers(1, 100_000))
def test_a_level_covers_the_slide(width: int, height: int, level_width: int, level_height: int) -> None:
    step = level_downsample((level_width, level_height), (width, height))
    if step:
        assert abs(level_width * step - width) < step
        assert abs(level_height * step - height) < step


def test_levels_serve_a_slide_in_a_black_surround(
    tmp_path: Path, picture: Pixels, levels: dict[int, Pixels], pyramid: Path
) -> None:
    around = np.pad(picture, ((64, 32), (128, 80), (0, 0)))
    path = write_pyramid(tmp_path / "slide.tif", around, sound_levels(around, DOWNSAMPLES))
    plain, _ = tiled(pyramid, config())
    seen, facts = tiled(path, config())
    assert facts["level"] == 4
    assert mean_difference({(x - 128, y - 64): tile for (x, y), tile in seen.items()}, plain) < 3
    full, _ = tiled(path, config(levels=FULL))
    assert mean_difference(seen, full) > 0  # the level was read
