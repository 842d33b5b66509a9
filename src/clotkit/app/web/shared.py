"""Share between pages: members with their titles, roots, the competition, what is loaded once."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, cast

from starlette.requests import Request

from clotkit.app.prediction import load
from clotkit.app.roots import Roots
from clotkit.app.samples import samples_for
from clotkit.app.training import Training, training_of
from clotkit.app.web.jobs import Job, Jobs, Kind
from clotkit.competitions import Competition
from clotkit.config import load_recipe
from clotkit.errors import ConfigError, UsageError
from clotkit.evaluation.loaded_member import LoadedMember
from clotkit.members.folder import METRICS, RECIPE

FIRST = ("bloodmnist", "breastmnist")  # members that lists begin with
TITLES = {
    "bloodmnist": "Blood cells, 8 types",
    "breastmnist": "Breast ultrasound, malignant or not",
    "brain": "Brain MRI, tumour or none",
    "double_contour": "Drawn contours, double or not",
    "demo": "Synthetic slides, 2 classes",
}
CACHED = 24  # results of reading slides that are kept
T = TypeVar("T")


@dataclass
class Cache:
    """Results by key, made once however many ask, and the least recently used forgotten."""

    most: int  # results that are kept; those that are being made are not counted
    _kept: OrderedDict[Hashable, Future[object]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what is kept of `key`, or make it; who asks meanwhile waits for it.

        An error is not kept: it is raised to all who have waited, and the next who asks makes it again.
        """
        with self._lock:
            future = self._kept.get(key)
            is_first = future is None
            if future is None:
                future = self._kept[key] = Future()
            self._kept.move_to_end(key)
        return self._made(key, future, make) if is_first else cast(T, future.result())

    def _made(self, key: Hashable, future: Future[object], make: Callable[[], T]) -> T:
        try:
            value = make()
        except BaseException as error:  # whatever it is, nobody may wait for ever
            with self._lock:
                del self._kept[key]
            future.set_exception(error)
            raise
        with self._lock:
            future.set_result(value)
            self._kept.move_to_end(key)
            made = [one for one, other in self._kept.items() if other.done()]
            for one in made[: -self.most]:
                del self._kept[one]
        return value


@dataclass
class Shared:
    """The state of a server."""

    members: dict[str, Path]  # folders of members by name, the seeds' own first
    roots: Roots  # folders whose splits and runs may be opened
    competition: Competition
    jobs: Jobs = field(default_factory=Jobs)
    loaded: Cache = field(default_factory=lambda: Cache(16))  # members, trainings and samples
    read: Cache = field(default_factory=lambda: Cache(CACHED))  # of slides

    def title(self, name: str) -> str:
        """Return a member's title for people: its own, or its name and the number of its classes."""
        return TITLES.get(name) or _title(self.members[name])

    def titles(self) -> dict[str, str]:
        """Return the titles of all members by name."""
        return {name: self.title(name) for name in self.members}

    def chosen(self, name: str | None) -> str:
        """Return the name of a member, the first one's for None. Raises ConfigError for an unknown one."""
        if name is None:
            return next(iter(self.members))
        if name not in self.members:
            raise ConfigError("there is no such member; choose one of the list")
        return name

    def member(self, name: str) -> LoadedMember:
        """Return a member, loaded once."""
        return self.loaded.get(("member", name), lambda: load(self.members[name]))

    def training(self, name: str) -> Training:
        """Return the summary of a member's training, made once."""
        return self.loaded.get(("training", name), lambda: training_of(self.members[name], self.member(name)))

    def source(self, name: str) -> str:
        """Return what a member predicts: "slides", or the form of its pictures."""
        return str(load_recipe(self.members[name] / RECIPE).data.source)

    def samples(self, name: str) -> dict[str, bytes]:
        """Return the drawn samples of a member, made once."""
        source = self.source(name)
        return self.loaded.get(("samples", name), lambda: samples_for(name, source, self.competition))

    def slide_members(self) -> dict[str, str]:
        """Return the titles of the members for slides by name. Raises ConfigError without one."""
        found = {name: title for name, title in self.titles().items() if self.source(name) == "slides"}
        if not found:
            raise ConfigError("no member here predicts slides; start the application with --weights of one that does")
        return found


def shared_of(request: Request) -> Shared:
    """Return the state of the server that a request came to."""
    shared: Shared = request.app.state.shared
    return shared


def job_of(request: Request, kind: Kind) -> Job:
    """Return a snapshot of the job, of a kind, that a request's path names.

    Raises UsageError if it is no longer kept.
    """
    return found_job(shared_of(request), request.path_params["job"], kind)


def found_job(shared: Shared, key: str, kind: Kind) -> Job:
    """Return a snapshot of the job of a kind with a key. Raises UsageError if it is no longer kept."""
    with suppress(LookupError):
        job = shared.jobs.find(key).snapshot()
        if job.kind is kind:
            return job
    raise UsageError("these results are no longer kept; start again")


def needed(request: Request, name: str) -> str:
    """Return a value of a request's address. Raises UsageError if it has none of that name."""
    value = request.query_params.get(name)
    if not value:
        raise UsageError(f"the address lacks {name}; follow a link of the application")
    return value


def ordered(members: dict[str, Path]) -> dict[str, Path]:
    """Return members with those of FIRST at the beginning."""
    names = sorted(members, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    return {name: members[name] for name in names}


def _title(folder: Path) -> str:
    try:
        classes = json.loads((folder / METRICS).read_text(encoding="utf-8"))["classes"]
    except (OSError, ValueError, LookupError, TypeError):
        return folder.name
    return f"{folder.name}, {len(classes)} classes"
