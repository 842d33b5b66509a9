"""The benchmark of the viewer's server: windows lie on the slide, and a short measurement works."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.app_tiles import WINDOW_PX, Session, first_views, pan, whole, window
from clotkit.app.deepzoom.grid import TILE_PX, Grid
from clotkit.app.deepzoom.ids import id_of
from clotkit.competitions import Competition

from .app_server import AppServer, app_server

SIDES = st.integers(1, 200_000)


@given(SIDES, SIDES, st.data())
def test_windows_are_tiles_of_the_slide(width: int, height: int, data: st.DataObject) -> None:
    grid = Grid(width, height)
    level = data.draw(st.integers(grid.first, grid.last))
    across, down = grid.size_px(level)
    box = window(grid, level, data.draw(st.floats(0, across)), data.draw(st.floats(0, down)))
    for _, left, top, right, bottom in (box, whole(grid)):
        assert 0 <= left <= right
        assert 0 <= top <= bottom
    assert grid.has(*box[:3])
    assert grid.has(box[0], *box[3:])
    assert box[3] - box[1] <= WINDOW_PX[0] // TILE_PX + 1
    assert grid.has(*whole(grid)[:3])


@pytest.fixture(scope="module")
def server(test_split: Path, strip_ai: Competition) -> Iterator[AppServer]:
    """Serve the test split."""
    with app_server([test_split], strip_ai) as server:
        yield server


def test_a_short_measurement_has_all_figures(server: AppServer, test_split: Path) -> None:
    sessions = [Session(server.door.port, server.own_headers()["Cookie"]) for _ in range(2)]
    paths = sorted((test_split / "test").glob("*.tif"))
    slides = [id_of(path, server.deepzoom.roots) for path in paths[:2]]
    views = first_views(sessions[0], slides[0])
    assert 0 < views["first_s"] <= views["window_s"] <= views["sharp_s"]
    found = pan(sessions, slides, 0.02, psutil.Process())
    for session in sessions:
        session.close()
    assert found["failures"] == 0
    assert found["tiles"] >= 4
    assert 0 < found["p50_ms"] <= found["p95_ms"]
