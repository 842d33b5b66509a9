"""Page Slides: a split or a run, its slides with their states; one of them seen near and far, and scored."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import streamlit as st

from clotkit.app.decode import Window
from clotkit.app.looking import (
    Live,
    Opened,
    folders,
    moved,
    open_folder,
    overview_of,
    score_live,
    slide_path,
    tissue_of,
    window_of,
    zoomed,
    zooms,
)
from clotkit.app.pages.common import Shared, bars, listing, load_once, picture
from clotkit.app.text import plain, shown
from clotkit.competitions import Competition
from clotkit.config import TilingConfig, load_recipe
from clotkit.errors import ClotkitError, ConfigError
from clotkit.members.folder import RECIPE
from clotkit.report.records import SlideReport

MOVES = {"Left": (-0.5, 0), "Right": (0.5, 0), "Up": (0, -0.5), "Down": (0, 0.5)}  # in sides of the window
TABLE_PX, WITHOUT_SCROLLING = 320, 6  # of the list of slides: its height, and how many rows need no limit
Stamp = tuple[int, int]  # of a file: when it was changed, bytes; another file is read anew


def _overview(path: Path, stamp: Stamp, _competition: Competition) -> Any:
    return overview_of(path, _competition)


def _window(path: Path, stamp: Stamp, at: Window, _competition: Competition) -> Any:
    return window_of(path, at, _competition)


def _tissue(path: Path, stamp: Stamp, _tiling: TilingConfig, member: str, _competition: Competition) -> Any:
    return tissue_of(path, _tiling, _competition)


_kept = st.cache_resource(show_spinner="Reading the slide …", max_entries=16)
overview_once: Callable[[Path, Stamp, Competition], Any] = _kept(_overview)
window_once: Callable[[Path, Stamp, Window, Competition], Any] = _kept(_window)
tissue_once: Callable[[Path, Stamp, TilingConfig, str, Competition], Any] = _kept(_tissue)


def show(shared: Shared) -> None:
    """Draw the page."""
    if not shared.roots.folders:
        st.info("No folder may be opened: start the application with clotkit app \\-\\-root DIR.")
        return
    found = folders(shared.roots, shared.competition)
    if not found:
        st.info("Neither a split nor a run lies in the folders that were given.")
        return
    chosen = st.selectbox("Split or run", found, format_func=lambda path: shown(_short(path, shared)))
    opened = open_folder(chosen, shared.roots, shared.competition)
    if opened.note:
        st.warning(plain(opened.note, 400))
    _table(opened)
    image_id = st.selectbox("Slide", opened.ids(), format_func=lambda one: f"{shown(one)} ({opened.state(one)})")
    if image_id is None:
        return
    if image_id in opened.lines:
        _report(opened.lines[image_id])
    path = slide_path(opened, image_id, shared.roots)
    look, tiles, live = st.tabs(["Look", "Tissue and tiles", "Score"])
    with look:
        _guarded(lambda: _look(path, shared.competition))
    with tiles:
        _guarded(lambda: _tiles(path, shared))
    with live:
        _guarded(lambda: _score(path, shared))


def _guarded(draw: Callable[[], None]) -> None:
    """Draw a part of the page; what it cannot read is said there, and the other parts are drawn all the same."""
    try:
        draw()
    except ClotkitError as error:
        st.error(plain(str(error), 400))


def _short(path: Path, shared: Shared) -> str:
    root = next(root for root in shared.roots.folders if path.is_relative_to(root))
    return str(Path(root.name) / path.relative_to(root))


def _table(opened: Opened) -> None:
    rows = [{"slide": one, "state": opened.state(one), "reason": opened.reason(one)} for one in opened.ids()]
    fell = [row for row in rows if row["state"] in {"partial", "fallback"}]
    st.markdown(f"{len(rows)} slides; {len(fell)} fell back or are partial")
    listing(rows, TABLE_PX if len(rows) > WITHOUT_SCROLLING else None)


def _report(line: SlideReport) -> None:
    st.markdown(
        f"{line.state}: {line.tiles} tiles, {line.seconds:.1f} s, {line.peak_mb:.0f} MB"
        + (f"; {plain(line.reason, 400)}" if line.reason else "")
    )
    for member, values in line.p.items():
        st.caption(f"{plain(member)}: {', '.join(f'{value:.3f}' for value in values)} (before calibration)")


def _look(path: Path, competition: Competition) -> None:
    """A window of fixed size on the slide, read on demand."""
    read = overview_once(path, _stamp(path), competition)
    size = (int(read.facts["width_px"]), int(read.facts["height_px"]))
    key, levels = f"window {path}", zooms(*size)
    at: Window = st.session_state.get(key, Window(0, 0, levels[0]))
    names = [f"1 : {level}" for level in levels]
    if len(levels) > 1:
        downsample = levels[names.index(st.select_slider("Zoom", names, key=f"zoom {path}"))]
        at = zoomed(at, downsample, *size) if downsample != at.downsample else at
    with st.container(horizontal=True):
        for name, step in MOVES.items():
            if st.button(name):
                at = moved(at, *step, *size)
    st.session_state[key] = at
    view = window_once(path, _stamp(path), at, competition)
    where = f"1 : {at.downsample}, from {at.x_px:,}, {at.y_px:,} of {size[0]:,} x {size[1]:,} px"
    picture(view, where)


def _tiles(path: Path, shared: Shared) -> None:
    folder = _slide_member(shared, "Tiles as this member chooses them", "tiles member")
    if not st.toggle("Find the tissue and the tiles", key=f"tissue {path}"):
        return
    tiling = load_recipe(folder / RECIPE).tiling
    read = tissue_once(path, _stamp(path), tiling, folder.name, shared.competition)
    picture(read.picture(), f"{read.facts['tiles']} tiles in blue, tissue outlined in green, tissue left out in red")


def _score(path: Path, shared: Shared) -> None:
    folder = _slide_member(shared, "Member", "score member")
    key = f"scored {path} {folder.name}"
    if st.button("Score this slide"):
        st.session_state[key] = _scored(path, folder, shared)
    if key in st.session_state:
        _show_live(st.session_state[key], load_once(folder).aim.positive)


def _scored(path: Path, folder: Path, shared: Shared) -> Live:
    bar, live = st.progress(0.0, text="0 tiles"), Live(0, 1)
    with closing(score_live(load_once(folder), path, shared.competition)) as steps:
        for live in steps:
            bar.progress(min(live.tiles / live.most, 1.0), text=f"{live.tiles} of at most {live.most} tiles")
    bar.empty()
    return live


def _show_live(live: Live, positive: str) -> None:
    if live.note:
        st.warning(plain(live.note, 400))
    st.markdown(f"Answer: **{plain(live.label)}**, from {live.tiles} tiles")
    bars(live.probabilities)
    if live.picture is not None:
        picture(live.picture, f"Probability of {plain(positive)} a tile: violet 0, green a half, yellow 1")


def _slide_member(shared: Shared, label: str, key: str) -> Path:
    """A member that looks at slides. Raises ConfigError where there is none."""
    fit = {
        name: folder for name, folder in shared.members.items() if load_recipe(folder / RECIPE).data.source == "slides"
    }
    if not fit:
        raise ConfigError("no member here looks at slides; start the application with --weights of one that does")
    chosen: str = st.selectbox(label, list(fit), key=key)
    return fit[chosen]


def _stamp(path: Path) -> Stamp:
    said = path.stat()
    return said.st_mtime_ns, said.st_size
