"""What several pages need of Streamlit: members loaded once, pictures, bars."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from clotkit.app.roots import Roots
from clotkit.app.text import plain
from clotkit.app.training import Training, training_of
from clotkit.app.work import Upload, load
from clotkit.competitions import Competition
from clotkit.evaluation.evaluate import Asked
from clotkit.slides.pixels import Pixels

WIDEST_PX = 768  # of a picture on a page; a tall one is half as wide
LONGEST_CELL = 400  # characters of a table's cell: a slide's reason
LEAST_SHOWN_PX = 224  # a smaller picture is enlarged, each pixel to a square


@dataclass(frozen=True)
class Shared:
    """What every page is given: the members' folders by name, the roots, the competition."""

    members: dict[str, Path]
    roots: Roots
    competition: Competition


load_once: Callable[[Path], Asked] = st.cache_resource(show_spinner="Loading the member …")(load)


def _training(folder: Path) -> Training:
    return training_of(folder, load_once(folder))


training_once: Callable[[Path], Training] = st.cache_resource(show_spinner="Drawing …")(_training)


def choose_member(members: dict[str, Path], label: str, key: str) -> Path:
    """The member's folder that is chosen: by name, among those that there are."""
    names = list(members)
    start = names.index("double_contour") if "double_contour" in names else 0
    chosen: str = st.selectbox(label, names, index=start, key=key)
    return members[chosen]


def bars(probabilities: dict[str, float]) -> None:
    """A bar for each class, with its name and probability."""
    for name, value in probabilities.items():
        st.progress(min(max(value, 0.0), 1.0), text=f"{plain(name)}: {value:.1%}")


def listing(rows: list[dict[str, Any]], height_px: int | None = None) -> None:
    """Rows as a table of HTML, which is found, copied and read aloud as text (st.dataframe draws on a canvas).

    Cells and heads are escaped. `height_px`: what is higher scrolls, under its heads.
    """
    escaped = [{plain(name): _cell(value) for name, value in row.items()} for row in rows]
    if escaped:
        st.table(escaped, height=height_px or "content")


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else plain(str(value), LONGEST_CELL)


def picture(pixels: Pixels, caption: str) -> None:
    """A picture, WIDEST_PX wide at most, with a caption that is ours, or escaped."""
    with st.container(width=WIDEST_PX if pixels.shape[1] >= pixels.shape[0] else WIDEST_PX // 2):
        st.image(enlarged(pixels), caption=caption, width="stretch")


def enlarged(pixels: Pixels) -> Pixels:
    """A small picture with each pixel as a square of several; another one as it is."""
    times = max(1, -(-LEAST_SHOWN_PX // max(pixels.shape[:2])))
    return np.asarray(pixels.repeat(times, axis=0).repeat(times, axis=1))


def taken(file: Any) -> Upload:
    """An uploaded file as the rest of the application takes it."""
    return Upload(file.name, file.getbuffer())
