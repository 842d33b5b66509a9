"""Tests of tiles by micrometres: what a slide states, how it is cut, and what the report says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from clotkit.config import BOUNDS, Recipe, TilingConfig, read_recipe, recipe_of
from clotkit.errors import ConfigError, ResolutionUnfit, ResolutionUnknown
from clotkit.planning.forecast import forecast
from clotkit.reasons import Reason
from clotkit.slides.header.tiff import read_layout
from clotkit.slides.pixels import Pixels, box_mean
from clotkit.tiling.microns import MOST_ENLARGED, TOLERANCE, Mpp, scale_of
from clotkit.tiling.preview import draw_preview
from clotkit.tiling.tilers import Batch, tile_slide
from tests.pyramids import tissue_picture, write_pyramid

SIDE = 64


@pytest.fixture(scope="module")
def picture() -> Pixels:
    return tissue_picture(1500, 1100)


def saved(path: Path, picture: Pixels, mpp: Sequence[float] | None, **options: Any) -> Path:
    """Save a slide with its resolution in pixels per centimetre."""
    if mpp is not None:
        options |= {"resolution": tuple(10_000 / one for one in mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, picture, tile=(128, 128), photometric="rgb", compression="zlib", metadata=None, **options)
    return path


def config(mpp: float, default: float = 0.0) -> TilingConfig:
    return TilingConfig("patches", SIDE, downsample=1, max_tiles=9, batch_tiles=4, mpp=mpp, mpp_default=default)


def tiled(path: Path, tiling: TilingConfig) -> tuple[dict[tuple[int, int], Pixels], dict[str, Any]]:
    tiles, facts = dict[tuple[int, int], Pixels](), dict[str, Any]()
    for piece in tile_slide(path, tiling):
        if isinstance(piece, Batch):
            tiles |= {(int(x), int(y)): tile for (x, y), tile in zip(piece.xy, piece.tiles, strict=True)}
        else:
            facts |= piece
    return tiles, facts


def test_a_ratio_that_divides_is_a_downsample(tmp_path: Path, picture: Pixels) -> None:
    tiles, facts = tiled(saved(tmp_path / "slide.tif", picture, (0.2485, 0.2485)), config(0.5))
    assert (facts["mpp"], facts["tile_mpp"], facts["side_px"]) == (0.2485, 0.497, 2 * SIDE)
    for (x, y), tile in tiles.items():
        expected = box_mean(np.ascontiguousarray(picture[y : y + 2 * SIDE, x : x + 2 * SIDE]), 2)
        np.testing.assert_array_equal(tile, expected)
    assert len(tiles) == 9


def test_another_ratio_is_read_finer_and_resized(tmp_path: Path, picture: Pixels) -> None:
    tiles, facts = tiled(saved(tmp_path / "slide.tif", picture, (0.25, 0.25)), config(0.375))
    assert (facts["tile_mpp"], facts["side_px"]) == (0.375, 96)
    for (x, y), tile in tiles.items():
        assert tile.shape == (SIDE, SIDE, 3)
        part = picture[y : y + 96, x : x + 96]
        assert np.abs(tile.mean(axis=(0, 1)) - part.mean(axis=(0, 1))).max() < 1
        whole = part.reshape(32, 3, 32, 3, 3).mean(axis=(1, 3))
        assert np.abs(tile.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)) - whole).mean() < 2


def test_the_same_field_from_two_scanners_looks_alike(tmp_path: Path, picture: Pixels) -> None:
    coarse = box_mean(np.ascontiguousarray(picture), 2)
    fine, _ = tiled(saved(tmp_path / "fine.tif", picture, (0.25, 0.25)), config(1.0))
    other, facts = tiled(saved(tmp_path / "coarse.tif", coarse, (0.5, 0.5)), config(1.0))
    assert facts["side_px"] == 2 * SIDE
    assert {(x // 2, y // 2) for x, y in fine} == other.keys()
    for (x, y), tile in fine.items():
        assert np.abs(tile.astype(np.int16) - other[x // 2, y // 2]).max() <= 1


@pytest.mark.parametrize("mpp", [None, (1000.0, 1000.0), (352.8, 352.8), (0.25, 0.4), (0.001, 0.001)])
def test_a_missing_or_absurd_resolution(tmp_path: Path, picture: Pixels, mpp: Sequence[float] | None) -> None:
    path = saved(tmp_path / "slide.tif", picture, mpp)
    with pytest.raises(ResolutionUnknown) as refused:
        tiled(path, config(0.5))
    assert refused.value.reason == Reason.NO_RESOLUTION
    _, facts = tiled(path, config(0.5, default=0.25))
    assert facts["notes"] == [Reason.MPP_DEFAULT]
    assert (facts["mpp"], facts["side_px"]) == (0.25, 2 * SIDE)


def test_a_coarser_slide_is_enlarged_and_noted(tmp_path: Path, picture: Pixels) -> None:
    tiles, facts = tiled(saved(tmp_path / "slide.tif", picture, (0.5, 0.5)), config(0.25))
    assert facts["notes"] == [Reason.ENLARGED]
    assert facts["side_px"] == SIDE // 2
    assert {tile.shape for tile in tiles.values()} == {(SIDE, SIDE, 3)}


def test_aperio_states_microns_in_its_description(tmp_path: Path, picture: Pixels) -> None:
    text = "Aperio Image Library v11.2.1\n1500x1100 (128x128) RGB|AppMag = 20|MPP = 0.4990|Left = 25"
    layout = read_layout(saved(tmp_path / "slide.svs", picture, None, description=text))
    assert layout is not None
    assert layout.mpp == (0.499,)


def test_ome_states_microns_in_its_xml(tmp_path: Path, picture: Pixels) -> None:
    options = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(tmp_path / "slide.ome.tif", ome=True) as file:
        file.write(picture, tile=(128, 128), photometric="rgb", metadata=options)
    layout = read_layout(tmp_path / "slide.ome.tif")
    assert layout is not None
    assert layout.mpp[0] == 0.25


def test_the_microns_are_those_of_the_slide_and_not_of_its_macro(tmp_path: Path, picture: Pixels) -> None:
    """The file's first image is a photograph of the glass, in OME's XML and by the tags."""
    macro = picture[:200, :300]
    with tifffile.TiffWriter(tmp_path / "slide.ome.tif", ome=True) as file:
        for pixels, mpp in ((macro, 10.0), (picture, 0.5)):
            options = {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
            file.write(pixels, tile=(128, 128), photometric="rgb", metadata=options)
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        for pixels, per_cm in ((macro, 1000), (picture, 20_000)):
            file.write(
                pixels, tile=(128, 128), photometric="rgb", resolution=(per_cm, per_cm), resolutionunit="CENTIMETER"
            )
    for name in ("slide.ome.tif", "slide.tif"):
        _, facts = tiled(tmp_path / name, config(0.5))
        assert (facts["mpp"], facts["side_px"], facts["notes"]) == (0.5, SIDE, [Reason.OTHER_PAGE]), name


def test_a_description_and_tags_that_differ_are_noted(tmp_path: Path, picture: Pixels) -> None:
    text = "Aperio Image Library v11.2.1\n1500x1100|AppMag = 40|MPP = 0.2500|Left = 25"
    _, facts = tiled(saved(tmp_path / "slide.svs", picture, (0.5, 0.5), description=text), config(0.5))
    assert (facts["mpp"], facts["notes"]) == (0.25, [Reason.MPP_DISAGREES])


@pytest.mark.parametrize("stated", ["2.5e-1", "0.25x", "0.2.5", "1,5"])
def test_a_number_that_is_not_understood_is_none(tmp_path: Path, picture: Pixels, stated: str) -> None:
    text = f"Aperio Image Library v11.2.1\n1500x1100|AppMag = 40|MPP = {stated}|Left = 25"
    layout = read_layout(saved(tmp_path / "slide.svs", picture, (0.5, 0.5), description=text))
    assert layout is not None
    assert layout.mpp == (0.5,)


def test_a_slide_that_contradicts_itself_is_noted(tmp_path: Path, picture: Pixels) -> None:
    """OpenSlide reads the tags of a plain TIFF; the description is that of another program."""
    text = "Export of an Aperio slide |MPP = 0.5"
    _, facts = tiled(saved(tmp_path / "slide.tif", picture, (0.25, 0.25), description=text), config(0.5))
    assert Reason.MPP_DISAGREES in facts["notes"]
    assert facts["mpp"] in (0.25, 0.5)


def test_notes_of_levels_and_of_scale_are_both_kept(tmp_path: Path, picture: Pixels) -> None:
    wrong = np.zeros((275, 375, 3), np.uint8)
    path = write_pyramid(tmp_path / "slide.tif", picture, {4: wrong})
    _, facts = tiled(path, config(1.0, default=0.25))
    assert set(facts["notes"]) == {Reason.MPP_DEFAULT, Reason.LEVEL_REFUSED}
    assert [row["downsample"] for row in facts["levels_refused"]] == [4]


def test_preview_and_forecast_know_the_scale(tmp_path: Path, picture: Pixels) -> None:
    path, tiling = saved(tmp_path / "slide.tif", picture, (0.25, 0.25)), config(0.5)
    tiles, _ = tiled(path, tiling)
    plain = TilingConfig("patches", SIDE, downsample=2, max_tiles=9, batch_tiles=4)
    xy = np.array(list(tiles), np.int32)
    assert draw_preview(path, tiling, xy).tobytes() == draw_preview(path, plain, xy).tobytes()
    found = [facts["forecasts"] for facts in forecast(path, [tiling, plain]) if "forecasts" in facts]
    assert found[0][0]["most_tiles"] == found[0][1]["most_tiles"]


@given(st.floats(0.05, 20), st.floats(0.05, 20), st.sampled_from([16, 96, 224, 1024]))
def test_tiles_have_the_wanted_resolution(wanted: float, stated: float, tile_px: int) -> None:
    tiling = TilingConfig("patches", tile_px, downsample=1, max_tiles=9, batch_tiles=4, mpp=wanted)
    if not 1 / MOST_ENLARGED <= wanted / stated <= BOUNDS["downsample"][1]:
        with pytest.raises(ResolutionUnfit):
            scale_of(tiling, Mpp(stated))
        return
    scale = scale_of(tiling, Mpp(stated))
    assert scale.tile_px == tile_px
    read_px = tile_px * wanted / stated / scale.tiling.downsample  # before it is rounded
    assert scale.tile_mpp == pytest.approx(wanted, rel=max(TOLERANCE, max(0.5, 1 - read_px) / read_px) + 1e-9)
    assert (Reason.ENLARGED in scale.codes) == (wanted < stated * (1 - TOLERANCE))


def tables(**tiling: Any) -> dict[str, Any]:
    found, _ = read_recipe("strip_ai")
    kept = {key: value for key, value in found["tiling"].items() if key != "downsample"}
    return {**found, "tiling": {**kept, **tiling}}


def test_a_recipe_gives_microns_or_a_downsample() -> None:
    recipe: Recipe = recipe_of(tables(mpp=0.5), "recipe")
    assert recipe.tiling.mpp == 0.5
    for wrong in ({}, {"mpp": 0.5, "downsample": 4}, {"mpp": -1.0}, {"mpp": 0.5, "name": "chunks"}, {"mpp": "0.5"},
                  {"mpp": 1e-4}, {"mpp": 0.5, "mpp_default": 1e-300}):  # fmt: skip
        with pytest.raises(ConfigError):
            recipe_of(tables(**wrong), "recipe")
