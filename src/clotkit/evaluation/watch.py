"""Find each new picture of a folder when it is complete, once."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clotkit.competitions import Competition
from clotkit.config import load_recipe
from clotkit.data.images import IMAGE_TILERS
from clotkit.data.pictures import SUFFIXES
from clotkit.evaluation.loaded_member import LoadedMember, load_for_evaluation
from clotkit.evaluation.predict import Prediction, Unpredicted, predict_each
from clotkit.locks import ignore_lease_breaks, is_written_to
from clotkit.members.folder import RECIPE
from clotkit.progress import Log
from clotkit.slides.pixels import Pixels
from clotkit.splits.identity import SLIDE_SUFFIXES as SLIDES
from clotkit.units import many

POLL_S = 0.2
SETTLE_S = 0.6  # without a change, where the file system does not tell who writes
GIVE_UP_S = 3.0  # without a change, until a file that cannot be read is answered as such
HASHED_BYTES = 64 * 2**20  # a larger file is known by its size and time alone


class FileState(NamedTuple):
    """The identity of a file's content: it changes when the file is written."""

    inode: int
    size_bytes: int
    mtime_ns: int


@dataclass
class Waiting:
    """A file that is not complete yet, or cannot be read yet."""

    state: FileState
    since: float  # the time.monotonic() value at which it was first seen so
    failed: bool = False  # it could not be read


@dataclass
class NewPictures:
    """The new pictures of a folder; files that are there when it is made are not new.

    A file is complete when it has not changed between two polls and no process has it open for writing. One that was
    returned is not returned again when it is renamed, or written in place with the same content, unless it could not be
    read. Another file that replaces it, as a rename over it does, has another inode and is returned.
    """

    folder: Path
    suffixes: frozenset[str] = SUFFIXES
    now: Callable[[], float] = time.monotonic
    answered: dict[int, FileState] = field(default_factory=dict)  # by inode
    digests: dict[int, str] = field(default_factory=dict)  # by inode: of the content that was answered
    waiting: dict[Path, Waiting] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.answered |= {state.inode: state for _, state in self._files()}

    def poll(self) -> list[Path]:
        """Return the files that have become complete. Raises OSError if the folder cannot be read."""
        files = dict(self._files())
        self.waiting = {path: one for path, one in self.waiting.items() if path in files}
        inodes = {state.inode for state in files.values()}  # that of a file which is gone may be another's soon
        self.answered = {inode: state for inode, state in self.answered.items() if inode in inodes}
        self.digests = {inode: digest for inode, digest in self.digests.items() if inode in inodes}
        return [path for path, state in sorted(files.items()) if self._is_complete(path, state)]

    def failed(self, path: Path) -> bool:
        """Take note that a complete file cannot be read; return False if its writer may not be done with it."""
        one = self.waiting.get(path)
        if one is None:
            return True
        self.digests.pop(one.state.inode, None)  # the same content, written once more, may be readable
        if self.now() - one.since >= GIVE_UP_S:
            return True
        one.failed = True
        self.answered.pop(one.state.inode, None)
        return False

    def _files(self) -> Iterator[tuple[Path, FileState]]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and Path(entry.name).suffix.lower() in self.suffixes:
                    with suppress(OSError):  # it went while we looked, or is a link that leads nowhere
                        if entry.is_file():
                            status = entry.stat()
                            yield Path(entry.path), FileState(status.st_ino, status.st_size, status.st_mtime_ns)

    def _is_complete(self, path: Path, state: FileState) -> bool:
        if self.answered.get(state.inode) == state:
            return False
        one = self.waiting.get(path)
        if one is None or one.state != state:
            self.waiting[path] = Waiting(state, self.now())
            return False
        writing, quiet_s = is_written_to(path), self.now() - one.since
        if writing or quiet_s < (GIVE_UP_S if one.failed else 0.0 if writing is False else SETTLE_S):
            return False
        digest = _digest(path, state)
        known = self.digests.get(state.inode) == digest != ""
        self.answered[state.inode], self.digests[state.inode] = state, digest
        return not known


def _digest(path: Path, state: FileState) -> str:
    """Return the sha256 of a file; empty for a large one, or one that cannot be read."""
    if state.size_bytes > HASHED_BYTES:
        return ""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def answers(
    folder: Path, member: Path, competition: Competition, log: Log, rest: Callable[[float], object] = time.sleep
) -> Iterator[Prediction | Unpredicted]:
    """Yield the prediction of each new picture of a folder as it becomes complete; never ends by itself.

    Args:
        folder: The folder to watch; its subfolders are not.
        member: The member's folder.
        competition: It sets the time and memory limits of a slide.
        log: Gets a line when the member is loaded.
        rest: Called with the seconds to the next look.

    Raises:
        ConfigError: The folder has no member, or a damaged one.
        OSError: The folder to watch cannot be read.
    """
    ignore_lease_breaks()
    source = load_recipe(member / RECIPE).data.source
    new = NewPictures(folder, SLIDES if source == "slides" else SUFFIXES)
    loaded = load_for_evaluation(member)
    warm_up(loaded, loaded.predict_new)
    log(f"{folder}: {many(len(new.answered), 'file')} already there, left out; waiting for new ones until Ctrl-C")
    while True:
        complete = new.poll()
        for one in predict_each(loaded, complete, competition, log) if complete else ():
            if isinstance(one, Prediction) or new.failed(one.image):
                yield one
        rest(POLL_S)


def warm_up(member: LoadedMember, predict: Callable[[Pixels], object]) -> None:
    """Call `predict` with the tiles of a blank picture: a network's first prediction takes seconds."""
    tiling = member.recipe.tiling
    if member.recipe.data.source != "slides":
        side_px = max(tiling.tile_px, 1)
        predict(IMAGE_TILERS[tiling.name](np.zeros((side_px, side_px, 3), np.uint8), tiling))
