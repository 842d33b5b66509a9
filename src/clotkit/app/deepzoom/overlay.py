"""Read what a run says of one slide, in a limited process: tissue, and tiles with their numbers."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import SplitError
from clotkit.members.heat import RAMP, RAMP_AT
from clotkit.reasons import Reason
from clotkit.report.drawing import outline_path, unpacked
from clotkit.report.records import SLIDES
from clotkit.report.run import read_run
from clotkit.report.shown import Shown
from clotkit.workers import Task

MOST_TILES = 100_000  # of a slide that are drawn
MOST_SIDECAR_BYTES = 2**29  # of slides.jsonl
OUTLINE_BYTES = 200_000
OVERLAY = "overlay"  # the fact that has the overlay


class NothingDrawn(SplitError):  # noqa: N818 - named for the state
    """A run that has no tiles of a slide, though it is sound."""

    reason = Reason.MISSING


def overlay(task: Task, image_id: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the overlay of a slide, from the run in the folder `task.path`.

    Raises NothingDrawn if the run has nothing to draw of it, SplitError or UsageError if its files are damaged.
    """
    sidecar = task.path / SLIDES
    if sidecar.is_file() and sidecar.stat().st_size > MOST_SIDECAR_BYTES:
        raise SplitError(f"{SLIDES} is too large to be drawn: at most {MOST_SIDECAR_BYTES:,} bytes are read")
    run = read_run(task.path)
    if image_id not in run.places:
        raise NothingDrawn(f"{SLIDES} has no line of this slide: the run has not reached it, or has lost that file")
    try:
        yield 0, {OVERLAY: _drawn(run.sidecar_line(image_id), run.shown)}
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        raise SplitError(f"{SLIDES}: the line of this slide is damaged; run again") from error


def _drawn(line: Mapping[str, Any], shown: Shown) -> dict[str, Any]:
    picture = line.get("picture")
    tissue: dict[str, Any] | None = None
    if picture:
        width, height = (int(px) for px in picture["size"])
        mask = unpacked(picture["tissue"], width, height)
        path = outline_path(mask, int(picture["downsample"]), OUTLINE_BYTES)
        tissue = {"share": round(float(mask.mean()), 5), "outline": path, "origin_px": [0, 0], "sharp": True}
    groups = [_group(group) for group in line.get("tiles", ())]
    return {
        "slide_px": [int(px) for px in picture["slide_px"]] if picture else None,
        "tissue": tissue,
        "tiles": groups,
        "legend": legend(shown),
    }


def legend(shown: Shown) -> dict[str, Any]:
    """Return what the colours of tiles mean; numbers of tiles are shares of `top`."""
    ramp = [[at, *colour] for at, colour in zip(RAMP_AT, RAMP, strict=True)]
    return {"name": shown.name, "text": shown.text, "top": shown.top, "ramp": ramp}


def _group(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tiles of one tiling, checked. Raises ValueError, KeyError or TypeError."""
    size = [int(px) for px in group["size_px"]]
    xy = np.asarray(group["xy"], np.int64).reshape(-1, 2)[:MOST_TILES]
    attention = group.get("attention")
    if len(size) != 2 or min(size) < 1:
        raise ValueError("size_px")
    return {
        "size_px": size,
        "xy": xy.tolist(),
        "p": _shares(group["p"], len(xy)),
        "attention": None if attention is None else _shares(attention, len(xy)),
    }


def _shares(values: Any, count: int) -> list[float]:
    shares: npt.NDArray[np.float64] = np.asarray(values, np.float64)[:MOST_TILES]
    if shares.shape != (count,) or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError("a share")
    return [float(value) for value in shares.round(5)]
