"""Reason codes: why a slide, a member or a task was not completed.

Logic and tests read codes; the sentence beside a code is for people and may change. Standard library only.
"""

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """One reason, as it is written in report.jsonl, run.json, shards.csv and a worker's response."""

    # The slide's process.
    TIMEOUT = "timeout"  # it passed the time limit of a slide
    STALLED = "stalled"  # no batch came for too long
    OUT_OF_MEMORY = "out_of_memory"  # it passed the memory limit of a slide
    CRASHED = "crashed"  # it died of a signal, or ended without a result
    FAILED = "failed"  # an error that has no code of its own
    # The slide's file.
    DAMAGED = "damaged"  # missing, damaged, or not an image
    UNSUPPORTED = "unsupported"  # sound, but no decoder here reads it
    NO_TISSUE = "no_tissue"  # sound, but nothing differs from the background
    STORE = "store"  # it could not be read from an object store
    # The run.
    DEADLINE = "deadline"  # the deadline passed before its turn
    NO_MEMBER = "no_member"  # no member could be loaded
    NO_TILES = "no_tiles"  # no tile was cut
    LOST = "lost"  # the worker processes that had it died
    NOT_STARTED = "not_started"  # a worker could not start it
    OUTPUT_FULL = "output_full"  # the output has reached its size limit
    NOT_WRITTEN = "not_written"  # the file system refused a write
    MISSING = "missing"  # a member's folder is not there
    # The application.
    ABOVE_LIMIT = "above_limit"  # an upload is larger than the application accepts
    # Scored from less than everything.
    FEWER_TILES = "fewer_tiles"  # time was short: fewer tiles
    ONE_MEMBER = "one_member"  # time was very short: fewer tiles, one member
    COARSER = "coarser"  # read again at a larger downsample after a first try was lost
    MEMBER_FAILED = "member_failed"  # a member failed on the slide's tiles


class Cause(NamedTuple):
    """A reason with the sentence that explains it to people."""

    code: Reason
    sentence: str
