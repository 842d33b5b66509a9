"""Parts that several pages share: members loaded once, pictures, bars and tables."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from clotkit.app.escaping import LONGEST_REASON, escaped
from clotkit.app.prediction import load
from clotkit.app.roots import Roots
from clotkit.app.training import Training, training_of
from clotkit.app.uploads import Upload
from clotkit.competitions import Competition
from clotkit.evaluation.evaluate import LoadedMember
from clotkit.slides.pixels import Pixels

WIDEST_PX = 768  # width of a picture on a page; a tall one is half as wide
LEAST_SHOWN_PX = 224  # a smaller picture is enlarged, each pixel to a square


@dataclass(frozen=True)
class Shared:
    """The arguments of every page."""

    members: dict[str, Path]  # folders of members, by name
    roots: Roots  # folders whose splits and runs may be opened
    competition: Competition


load_once: Callable[[Path], LoadedMember] = st.cache_resource(show_spinner="Loading the member …")(load)


def _training(folder: Path) -> Training:
    return training_of(folder, load_once(folder))


training_once: Callable[[Path], Training] = st.cache_resource(show_spinner="Drawing …")(_training)


def choose_member(members: dict[str, Path], label: str, key: str) -> Path:
    """Draw a list of members and return the folder of the chosen one."""
    names = list(members)
    start = names.index("double_contour") if "double_contour" in names else 0
    chosen: str = st.selectbox(label, names, index=start, key=key)
    return members[chosen]


def show_bars(probabilities: dict[str, float]) -> None:
    """Draw a bar for each class, with its name and probability."""
    for name, value in probabilities.items():
        st.progress(min(max(value, 0.0), 1.0), text=f"{escaped(name)}: {value:.1%}")


def show_table(rows: list[dict[str, Any]], height_px: int | None = None) -> None:
    """Draw rows as an HTML table.

    Unlike the canvas of st.dataframe, its text can be searched, copied and read aloud. Cells and headings are escaped.
    A table higher than `height_px` scrolls below its headings.
    """
    cells = [{escaped(name): _cell(value) for name, value in row.items()} for row in rows]
    if cells:
        st.table(cells, height=height_px or "content")


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else escaped(str(value), LONGEST_REASON)


def show_picture(pixels: Pixels | None, caption: str) -> None:
    """Draw a picture, at most WIDEST_PX wide, with a caption that needs no escaping; nothing for None."""
    if pixels is None:
        return
    with st.container(width=WIDEST_PX if pixels.shape[1] >= pixels.shape[0] else WIDEST_PX // 2):
        st.image(enlarged(pixels), caption=caption, width="stretch")


def enlarged(pixels: Pixels) -> Pixels:
    """Return a picture of at least LEAST_SHOWN_PX, each pixel of a smaller one repeated to a square."""
    times = max(1, -(-LEAST_SHOWN_PX // max(pixels.shape[:2])))
    return np.asarray(pixels.repeat(times, axis=0).repeat(times, axis=1))


def upload_of(file: Any) -> Upload:
    """Return a file of st.file_uploader as an Upload."""
    return Upload(file.name, file.getbuffer())
