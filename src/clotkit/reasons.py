"""Reason codes: why a slide, a member or a task did not come out whole.

Logic and tests read codes; the sentence beside a code is for people and may change. Standard library only.
"""

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """One reason, as report.jsonl, run.json, shards.csv and the cluster's answers spell it."""

    # The slide's process.
    TIMEOUT = "timeout"  # it passed the time limit of a slide
    STALLED = "stalled"  # no batch came for too long
    OUT_OF_MEMORY = "out_of_memory"  # it passed the memory limit of a slide
    CRASHED = "crashed"  # it died by a signal, or left without a result
    FAILED = "failed"  # an error that has no code of its own
    # The slide's file.
    DAMAGED = "damaged"  # missing, damaged, or not an image
    UNSUPPORTED = "unsupported"  # sound, but no decoder here reads it
    NO_TISSUE = "no_tissue"  # sound, but nothing differs from the background
    STORE = "store"  # an object store did not give it
    # The run.
    DEADLINE = "deadline"  # the deadline came before its turn
    NO_MEMBER = "no_member"  # no member could be loaded
    NO_TILES = "no_tiles"  # no tile came
    LOST = "lost"  # the workers of a cluster died under it, or never took it
    NOT_STARTED = "not_started"  # a worker could not begin it
    OUTPUT_FULL = "output_full"  # the output has reached its size limit
    NOT_WRITTEN = "not_written"  # the file system refused a write
    MISSING = "missing"  # a member's folder is not there
    # The application.
    ABOVE_LIMIT = "above_limit"  # an upload is larger than the application accepts
    # Done with less.
    FEWER_TILES = "fewer_tiles"  # time was short
    ONE_MEMBER = "one_member"  # time was very short
    COARSER = "coarser"  # read again at a larger downsample after a first try was lost
    MEMBER_FAILED = "member_failed"  # a member failed on the slide's tiles


class Cause(NamedTuple):
    """A reason with the sentence that explains it to people."""

    code: Reason
    sentence: str
