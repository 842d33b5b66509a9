"""The kit's exceptions, one tree:

ClotkitError                exit code 2, one line on stderr, no traceback
├── UsageError              the command line or a setting is wrong
├── ConfigError             a recipe, a competition or a member folder is wrong
├── SplitError              a split folder or one of its tables is wrong
├── SubmissionError         a submission file is wrong
├── RehearsalError          the bundle could not be built, or did not survive its rehearsal
├── StoreError              a folder's files, or an object store's, cannot be read or written
├── ClusterError            the workers or the scheduler of a cluster are gone
├── RemoteError             Kaggle could not be asked, or said no
│   ├── RemoteMissing       it has no such thing (404)
│   ├── RemoteUnclear       it gave no answer that can be read: what was asked may have been done
│   └── RemoteFull          all the sessions that an account may have are in use
└── SlideError              one slide cannot be scored; costs that slide alone
    ├── SlideUnreadable     missing, damaged, or not an image
    ├── CodecUnsupported    sound, but no decoder here reads it
    └── NoTissue            sound, but nothing on it differs from the background

A message says what, where, the number seen, the number allowed and the next step, in one line.
"""

from pathlib import Path

from clotkit.reasons import Reason


class ClotkitError(Exception):
    """The root: `str()` of it is the one line that the user reads; `reason` is the code that reports carry."""

    reason = Reason.FAILED


class UsageError(ClotkitError):
    """The command line or a setting is wrong."""


class ConfigError(ClotkitError):
    """A recipe, a competition or a member folder is wrong."""


class SplitError(ClotkitError):
    """A split folder or one of its tables is wrong."""


class SubmissionError(ClotkitError):
    """A submission file is wrong."""


class RehearsalError(ClotkitError):
    """The bundle could not be built, or did not survive its rehearsal."""


class StoreError(ClotkitError):
    """A folder's files, or an object store's, cannot be read or written."""

    reason = Reason.STORE


class ClusterError(ClotkitError):
    """The workers or the scheduler of a cluster are gone."""


class RemoteError(ClotkitError):
    """Kaggle could not be asked, or said no."""


class RemoteMissing(RemoteError):  # noqa: N818 - named for what is so
    """Kaggle has no such thing (404)."""


class RemoteUnclear(RemoteError):  # noqa: N818
    """Kaggle gave no answer that can be read: what was asked may have been done."""


class RemoteFull(RemoteError):  # noqa: N818
    """All the sessions that an account may have at once are in use."""


class SlideError(ClotkitError):
    """One slide cannot be scored; costs that slide alone."""


class SlideUnreadable(SlideError):  # noqa: N818 - named for what is so, like FileNotFoundError's kin in the report
    """Missing, damaged, or not an image."""

    reason = Reason.DAMAGED


class CodecUnsupported(SlideError):  # noqa: N818
    """Sound, but no decoder here reads it."""

    reason = Reason.UNSUPPORTED


class NoTissue(SlideError):  # noqa: N818
    """Sound, but nothing on it differs from the background."""

    reason = Reason.NO_TISSUE


def one_line(error: BaseException, path: Path | None = None) -> str:
    """What a library's error says, on one line of at most 200 characters, without `path` (the report has it)."""
    text = str(error) if path is None else str(error).replace(str(path), "slide")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ("; ".join(dict.fromkeys(lines)) or type(error).__name__)[:200]
