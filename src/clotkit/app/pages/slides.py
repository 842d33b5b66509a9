"""Page Slides: the slides of a split or a run with their states; view one, see its tiles, score it."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import streamlit as st

from clotkit.app.escaping import escaped, escaped_reason, printable
from clotkit.app.pages.common import Shared, load_once, show_bars, show_picture, show_table
from clotkit.app.prediction import for_slide
from clotkit.app.untrusted import Window
from clotkit.app.viewer import (
    LiveScore,
    SlideFolder,
    list_folders,
    moved,
    open_folder,
    read_overview,
    read_tissue,
    read_window,
    score_live,
    shown_by,
    slide_path,
    zoom_levels,
    zoomed,
)
from clotkit.competitions import Competition
from clotkit.config import TilingConfig, load_recipe, tiling_for
from clotkit.errors import ClotkitError, ConfigError
from clotkit.members.folder import RECIPE
from clotkit.report.records import SlideReport
from clotkit.report.shown import Shown

MOVES = {"Left": (-0.5, 0), "Right": (0.5, 0), "Up": (0, -0.5), "Down": (0, 0.5)}  # in sides of the window
TABLE_PX, WITHOUT_SCROLLING = 320, 6  # height of a long table of slides, and rows of a table that is not long
COLOURS = {"violet": 0.0, "green": 0.5, "yellow": 1.0}  # of a tile, by its number as a share of the largest
Stamp = tuple[int, int]  # time of change and size of a file, so that a changed file is read again


# Streamlit leaves arguments with a leading underscore out of a cache's key.
def _overview(path: Path, stamp: Stamp, _competition: Competition) -> Any:
    return read_overview(path, _competition)


def _window(path: Path, stamp: Stamp, at: Window, _competition: Competition) -> Any:
    return read_window(path, at, _competition)


def _tissue(path: Path, stamp: Stamp, _tiling: TilingConfig, member: str, _competition: Competition) -> Any:
    return read_tissue(path, _tiling, _competition)


_cached = st.cache_resource(show_spinner="Reading the slide …", max_entries=16)
overview_once: Callable[[Path, Stamp, Competition], Any] = _cached(_overview)
window_once: Callable[[Path, Stamp, Window, Competition], Any] = _cached(_window)
tissue_once: Callable[[Path, Stamp, TilingConfig, str, Competition], Any] = _cached(_tissue)


def show(shared: Shared) -> None:
    """Draw the page."""
    if not shared.roots.folders:
        st.info("No folder may be opened. Start the application with clotkit app \\-\\-root DIR.")
        return
    folders = list_folders(shared.roots, shared.competition)
    if not folders:
        st.info("There is no split and no run below \\-\\-root.")
        return
    chosen = st.selectbox("Split or run", folders, format_func=lambda path: printable(_short(path, shared)))
    opened = open_folder(chosen, shared.roots, shared.competition)
    if opened.unreadable is not None:
        st.warning(f"The run's slides cannot be shown: {escaped_reason(opened.unreadable)}")
    _show_states(opened)
    image_id = st.selectbox("Slide", opened.ids(), format_func=lambda one: f"{printable(one)} ({opened.state(one)})")
    if image_id is None:
        return
    if image_id in opened.lines:
        _show_report(opened.lines[image_id])
    path = slide_path(opened, image_id, shared.roots)
    shared = replace(shared, competition=opened.competition)
    view, tiles, score = st.tabs(["View", "Tissue and tiles", "Score"])
    with view:
        _guarded(lambda: _show_view(path, opened.competition))
    with tiles:
        _guarded(lambda: _show_tiles(path, opened.rows[image_id].facts, shared))
    with score:
        _guarded(lambda: _show_score(path, opened.rows[image_id].facts, shared))


def _guarded(draw: Callable[[], None]) -> None:
    """Draw a part of the page; an error is shown in its place, and the other parts are drawn all the same."""
    try:
        draw()
    except ClotkitError as error:
        st.error(escaped_reason(error))


def _short(path: Path, shared: Shared) -> str:
    root = next(root for root in shared.roots.folders if path.is_relative_to(root))
    return str(Path(root.name) / path.relative_to(root))


def _show_states(opened: SlideFolder) -> None:
    rows = [{"slide": one, "state": opened.state(one), "reason": opened.reason(one)} for one in opened.ids()]
    incomplete = [row for row in rows if row["state"] in {"partial", "fallback"}]
    st.markdown(f"{len(rows)} slides, {len(incomplete)} of them partial or fallback")
    show_table(rows, TABLE_PX if len(rows) > WITHOUT_SCROLLING else None)


def _show_report(line: SlideReport) -> None:
    st.markdown(
        f"{line.state}: {line.tiles} tiles, {line.seconds:.1f} s, {line.peak_mb:.0f} MB"
        + (f"; {escaped_reason(line.reason)}" if line.reason else "")
    )
    for member, values in line.p.items():
        st.caption(f"{escaped(member)}: {', '.join(f'{value:.3f}' for value in values)} (before calibration)")


def _show_view(path: Path, competition: Competition) -> None:
    """Draw a window on the slide with its controls; only the window is read."""
    overview = overview_once(path, _stamp(path), competition)
    size = (int(overview.facts["width_px"]), int(overview.facts["height_px"]))
    key, levels = f"window {path}", zoom_levels(*size)
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
    show_picture(view, f"1 : {at.downsample}, from {at.x_px:,}, {at.y_px:,} of {size[0]:,} x {size[1]:,} px")


def _show_tiles(path: Path, facts: Mapping[str, str], shared: Shared) -> None:
    folder = _choose_slide_member(shared, "Member whose tiling is used", "tiles member")
    if not st.toggle("Find tissue and tiles", key=f"tissue {path}"):
        return
    tiling = tiling_for(load_recipe(folder / RECIPE).tiling, facts)
    result = tissue_once(path, _stamp(path), tiling, folder.name, shared.competition)
    count = result.facts["tiles"]
    show_picture(result.picture(), f"{count} tiles in blue, tissue outlined in green, tissue without a tile in red")


def _show_score(path: Path, facts: Mapping[str, str], shared: Shared) -> None:
    folder = _choose_slide_member(shared, "Member", "score member")
    key = f"scored {path} {folder.name}"
    if st.button("Score this slide"):
        st.session_state[key] = _score(path, facts, folder, shared)
    if key in st.session_state:
        _show_scored(st.session_state[key], shown_by(load_once(folder), shared.competition))


def _score(path: Path, facts: Mapping[str, str], folder: Path, shared: Shared) -> LiveScore:
    member = for_slide(load_once(folder), facts)
    bar, score = st.progress(0.0, text="0 tiles"), LiveScore(0, 1)
    with closing(score_live(member, path, shared.competition)) as steps:
        for score in steps:
            bar.progress(min(score.tiles / score.most, 1.0), text=f"{score.tiles} of at most {score.most} tiles")
    bar.empty()
    return score


def _show_scored(score: LiveScore, shown: Shown) -> None:
    if score.cut_short is not None:
        st.warning(f"Not all tiles were read: {escaped_reason(score.cut_short.sentence)}")
    st.markdown(f"Answer: **{escaped(score.label)}**, from {score.tiles} tiles")
    show_bars(score.probabilities)
    ends = ", ".join(f"{name} {escaped(f'{share * shown.top:g}')}" for name, share in COLOURS.items())
    show_picture(score.picture, f"{escaped(shown.text[0].upper() + shown.text[1:])} for each tile: {ends}")


def _choose_slide_member(shared: Shared, label: str, key: str) -> Path:
    """Draw a list of the members for slides and return the chosen folder. Raises ConfigError without one."""
    folders = {
        name: folder for name, folder in shared.members.items() if load_recipe(folder / RECIPE).data.source == "slides"
    }
    if not folders:
        raise ConfigError("no member here predicts slides; start the application with --weights of one that does")
    chosen: str = st.selectbox(label, list(folders), key=key)
    return folders[chosen]


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
