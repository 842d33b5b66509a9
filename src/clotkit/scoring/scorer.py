"""From batches to slides: predict them as they come, and judge each slide when its last tile has come."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from clotkit.config import TilingConfig
from clotkit.errors import one_line
from clotkit.members.ensemble import Probabilities
from clotkit.members.loading import Member
from clotkit.members.pooling import pooled_as, tile_probabilities
from clotkit.reasons import Cause, Reason
from clotkit.report.records import SlideReport, State
from clotkit.report.sidecar import Span, Tiled, Trace
from clotkit.scoring.budget import AGAIN, CAUSES, EVERYTHING, ONE_MEMBER
from clotkit.workers import Ended, Task, Tiles

Scored = tuple[SlideReport, dict[str, Probabilities], Trace]

DIGITS = 9  # of the probabilities in the report: a run that goes on from it writes the same submission


@dataclass
class Tally:
    """What has come of one slide: for each member a row a tile, or why it is out."""

    rows: dict[str, list[npt.NDArray[np.float32]]] = field(default_factory=dict)  # batches of [n, C], of [n, C + 1]
    members: dict[str, Member] = field(default_factory=dict)  # those that have rows
    out: dict[str, str] = field(default_factory=dict)
    corners: dict[int, list[npt.NDArray[np.int32]]] = field(default_factory=dict)  # of a tiling: batches of [n, 2]
    shown_to: dict[int, list[str]] = field(default_factory=dict)  # the members that are given its tiles
    busy: list[Span] = field(default_factory=list)  # when the model was at work on it

    def predict(self, member: Member, tiles: npt.NDArray[np.uint8]) -> None:
        """Add a batch, uint8[n, H, W, 3], as one member sees it; a member that fails on it is out for this slide."""
        if member.name in self.out:
            return
        try:
            rows = member.predict(tiles)  # -> [n, C], under attention [n, C + 1]
        except Exception as error:  # noqa: BLE001 - whatever it is, it costs this slide one member and is named
            self.out[member.name] = f"{type(error).__name__}: {one_line(error)}"
            return
        if not np.isfinite(rows).all():
            self.out[member.name] = "returned NaN"
            return
        self.rows.setdefault(member.name, []).append(rows)
        self.members[member.name] = member

    @property
    def tiles(self) -> dict[str, int]:
        """Tiles a member."""
        return {name: sum(map(len, batches)) for name, batches in self.rows.items()}

    def seen(self) -> dict[str, int]:
        """Tiles a member, of those that are not out."""
        return {name: count for name, count in self.tiles.items() if name not in self.out}

    def means(self) -> dict[str, Probabilities]:
        """The slide's probabilities a member, [C] each: its tiles pooled as its recipe says."""
        return {
            name: np.round(
                pooled_as(np.concatenate(self.rows[name]), member.recipe.inference.pooling, member.tile_pool), DIGITS
            )
            for name, member in self.members.items()
            if name not in self.out
        }

    def tiled(self, tilings: Sequence[TilingConfig]) -> Iterator[Tiled]:
        """Its tiles by each tiling with what they said, the mean of the members that are not out."""
        for index, batches in self.corners.items():
            said = [
                tile_probabilities(np.concatenate(self.rows[name]), self.members[name].recipe.inference.pooling)[:, -1]
                for name in self.shown_to[index]
                if name in self.rows and name not in self.out
            ]
            if said:
                yield Tiled(tilings[index], np.concatenate(batches), np.mean(said, axis=0))

    def failures(self) -> list[Cause]:
        """Return one cause for each member that failed on this slide."""
        return [Cause(Reason.MEMBER_FAILED, f"member {name} left out: {why}") for name, why in sorted(self.out.items())]


@dataclass(frozen=True)
class First:
    """A first try that was lost: what had come of it by then, and why it ended."""

    tally: Tally
    ended: Ended


class Scorer:
    """The slides of a run on their way from batches to report lines."""

    def __init__(self, members: Sequence[Member], patient_of: Mapping[str, str], min_tiles: int) -> None:
        """`members` in the order of the tilings of each task: tilings[i] is that of `tilings_of(members)[i]`."""
        self._members, self._patient_of, self._min_tiles = members, patient_of, min_tiles
        self._tilings = tilings_of(members)
        self._tallies: dict[str, Tally] = {}
        self._first: dict[str, First] = {}
        self._traces: dict[str, Trace] = {}

    def add(self, tiles: Tiles) -> None:
        """Predict a batch with every member that looks at such tiles."""
        tally, began = self._tallies.setdefault(tiles.image_id, Tally()), time.monotonic()
        members = self._members[:1] if tiles.task.effort == ONE_MEMBER else self._members
        looking = [member for member in members if self._tilings.index(member.recipe.tiling) == tiles.tiling]
        for member in looking:
            tally.predict(member, tiles.batch.tiles)
        tally.corners.setdefault(tiles.tiling, []).append(tiles.batch.xy)
        tally.shown_to[tiles.tiling] = [member.name for member in looking]
        tally.busy.append((began, time.monotonic()))

    def scored(self, ended: Ended) -> Scored:
        """A slide's line, its mean a member, and what it has left besides for the report's page."""
        return *self.end(ended), self.take_trace(ended.image_id)

    def take_trace(self, image_id: str) -> Trace:
        """What an ended slide has left for the report's page besides its line; it is given once."""
        return self._traces.pop(image_id, Trace())

    def postpone(self, ended: Ended) -> None:
        """Keep what came of a first try until the second one has ended."""
        self._first[ended.image_id] = First(self._tallies.pop(ended.image_id, Tally()), ended)

    def end(self, ended: Ended) -> tuple[SlideReport, dict[str, Probabilities]]:
        """A slide's line, and its mean a member (none for a fallback)."""
        tally = self._tallies.pop(ended.image_id, Tally())
        first = self._first.pop(ended.image_id, None)
        came_of = ended.task
        state, causes = self._judge(ended, tally)
        if first is not None:
            causes = [*_cause(first.ended), *causes]
            if state == "fallback" and self._enough(first.tally, EVERYTHING):
                state, tally, came_of = "partial", first.tally, first.ended.task
        means = {} if state == "fallback" else tally.means()
        self._traces[ended.image_id] = _trace(tally, came_of, ended, first)
        causes = list(dict.fromkeys(causes))
        line = SlideReport(
            image_id=ended.image_id,
            patient_id=self._patient_of[ended.image_id],
            state=state,
            reason="; ".join(cause.sentence for cause in causes),
            tiles=sum(tally.tiles.values()),
            seconds=round(ended.seconds + (first.ended.seconds if first else 0), 2),
            peak_mb=round(max(ended.peak_mb, first.ended.peak_mb if first else 0), 1),
            codes=list(dict.fromkeys(cause.code for cause in causes)),
            p={name: [float(value) for value in mean] for name, mean in means.items()},
            facts=ended.facts or (first.ended.facts if first else {}),
        )
        return line, means

    def _judge(self, ended: Ended, tally: Tally) -> tuple[State, list[Cause]]:
        """Return a slide's state and its causes; tiles that came before a crash count if there are enough."""
        whole, causes = ended.code is None, _cause(ended)
        if ended.task.effort in CAUSES and (whole or ended.task.effort != AGAIN):
            causes.append(CAUSES[ended.task.effort])
        causes += tally.failures()
        if whole and tally.seen():
            return ("partial" if causes else "done"), causes
        if not whole and self._enough(tally, ended.task.effort):
            return "partial", causes
        return "fallback", causes or [Cause(Reason.NO_TILES, "no tiles were cut")]

    def _enough(self, tally: Tally, effort: int) -> bool:
        """Whether every member that was asked, and is not out, has seen min_tiles tiles."""
        asked = 1 if effort == ONE_MEMBER else len(self._members)
        seen = tally.seen()
        return bool(seen) and len(seen) + len(tally.out) == asked and min(seen.values()) >= self._min_tiles


def _cause(ended: Ended) -> list[Cause]:
    """Return why a slide's process did not give every tile; nothing if it did."""
    return [] if ended.code is None else [Cause(ended.code, ended.reason)]


def _trace(tally: Tally, came_of: Task, ended: Ended, first: First | None) -> Trace:
    """What is left of a slide whose tiles are in `tally` and `came_of` this task: tiles, thumbnail and times."""
    last = ended if ended.started is not None or first is None else first.ended
    thumbnail = ended.thumbnail or (first.ended.thumbnail if first else None)
    lived = None if last.started is None else (last.started, last.started + last.seconds)
    try:
        tiled = tuple(tally.tiled(came_of.tilings))
    except Exception:  # noqa: BLE001 - boxes on a picture are not worth a slide
        tiled = ()
    return Trace(thumbnail, tiled, lived, tuple(tally.busy))


def tilings_of(members: Sequence[Member]) -> tuple[TilingConfig, ...]:
    """The distinct tilings of members, in their order."""
    return tuple(dict.fromkeys(member.recipe.tiling for member in members))
