"""Enums for the states of datasets, runs and submissions on Kaggle, and for failures of submissions.

Kaggle's words are read here and nowhere else, so a new spelling of theirs is one change.
"""

from enum import StrEnum
from typing import Self


class DatasetState(StrEnum):
    """State of a dataset's newest version; the values are Kaggle's words."""

    ABSENT = ""  # no such dataset
    NOT_YET_PERSISTED = "NOT_YET_PERSISTED"
    BLOBS_RECEIVED = "BLOBS_RECEIVED"
    BLOBS_DECOMPRESSED = "BLOBS_DECOMPRESSED"
    BLOBS_COPIED_TO_SDS = "BLOBS_COPIED_TO_SDS"
    INDIVIDUAL_BLOBS_COMPRESSED = "INDIVIDUAL_BLOBS_COMPRESSED"
    REPROCESSING = "REPROCESSING"
    READY = "READY"
    FAILED = "FAILED"
    DELETED = "DELETED"
    UNKNOWN = "UNKNOWN"  # a word that is none of these: taken for work under way

    @classmethod
    def read(cls, text: str) -> Self:
        """Return the state of Kaggle's word; no word is the state of a version that has just begun."""
        word = text.upper() or cls.NOT_YET_PERSISTED.value
        return cls(word) if word in cls._value2member_map_ else cls("UNKNOWN")

    @property
    def settled(self) -> bool:
        """True if no work is under way: ABSENT, READY or FAILED."""
        return self in (self.ABSENT, self.READY, self.FAILED)


class RunState(StrEnum):
    """State of the run of a kernel's version; the values are Kaggle's words."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    ERROR = "ERROR"
    CANCEL_REQUESTED = "CANCEL_REQUESTED"
    CANCEL_ACKNOWLEDGED = "CANCEL_ACKNOWLEDGED"
    NEW_SCRIPT = "NEW_SCRIPT"

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Return the state of Kaggle's word, with or without prefix and underscores; None if unknown."""
        plain = text.upper().replace("_", "")
        return next((state for state in cls if plain.endswith(state.replace("_", ""))), None)

    @property
    def over(self) -> bool:
        """True if the run has ended."""
        return self in (self.COMPLETE, self.ERROR, self.CANCEL_ACKNOWLEDGED)


class SubmissionState(StrEnum):
    """State of a submission; the values are Kaggle's words."""

    PENDING = "PENDING"
    COMPLETE = "COMPLETE"
    ERROR = "ERROR"

    @classmethod
    def read(cls, text: str) -> Self:
        """Return the state of Kaggle's word, with or without a prefix; PENDING for any other word."""
        found = next((state for state in cls if text.upper().endswith(state)), None)
        return found or cls("PENDING")


class SubmissionFailure(StrEnum):
    """Kaggle's reason for a submission that failed."""

    EXCEPTION = "exception"
    TIMEOUT = "timeout"
    COMPUTE = "compute"
    NO_FILE = "no_file"
    SCORING = "scoring"
    KAGGLE = "kaggle"  # an error of Kaggle's own: the same version may be submitted again
    UNKNOWN = "unknown"

    @classmethod
    def read(cls, text: str) -> Self:
        """Return the reason in Kaggle's errorDescription: Kaggle gives no code, only these sentences."""
        plain = text.lower()
        return cls(next((value for sentence, value in _FAILURES.items() if sentence in plain), "unknown"))


_FAILURES = {
    "notebook threw exception": SubmissionFailure.EXCEPTION.value,
    "notebook timeout": SubmissionFailure.TIMEOUT.value,
    "notebook exceeded allowed compute": SubmissionFailure.COMPUTE.value,
    "submission csv not found": SubmissionFailure.NO_FILE.value,
    "submission scoring error": SubmissionFailure.SCORING.value,
    "kaggle error": SubmissionFailure.KAGGLE.value,
}
