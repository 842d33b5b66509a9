"""The kit's exceptions, one tree.

ClotkitError                exit code 2, one line on stderr, no traceback
├── UsageError              the command line, a setting or the installation is wrong
├── ConfigError             a recipe, a competition or a member folder is wrong
│   └── WeightsError        a member's weights or calibration cannot be used
├── SplitError              a split folder or one of its tables is wrong
├── SubmissionError         a submission file is wrong
├── RehearsalError          the bundle could not be built, or failed its rehearsal
├── StoreError              files of a folder or an object store cannot be read or written
├── ClusterError            the workers or the scheduler of a cluster are gone
├── RemoteError             a request to Kaggle failed or was refused
│   ├── RemoteMissing       Kaggle has no such object (404)
│   ├── RemoteUnclear       no readable response: the request may have succeeded
│   └── RemoteFull          the account already runs as many sessions as it may
└── SlideError              one slide cannot be scored; the run goes on with the others
    ├── SlideUnreadable     missing, damaged, or not an image
    ├── CodecUnsupported    sound, but no decoder here reads it
    └── NoTissue            sound, but nothing on it differs from the background

A message is one line: what failed, where, the number seen, the number allowed, the next step.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clotkit.reasons import Reason, RehearsalKind, RemoteKind

MOST_CHARACTERS = 200  # of a library's error message
USER_OF_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)
SECRET_OF_QUERY = re.compile(r"([?&][\w-]*(?:sig|token|key|credential|secret|password)[\w-]*=)[^&\s]+", re.IGNORECASE)
# Of Kaggle and GitHub, and in a header.
TOKEN = re.compile(r"\b(KGAT_|gh[pousr]_)[\w-]{8,}|((?i:authorization)\W+(?:Bearer|Basic)\s+)[\w.~+/=-]+")


class ClotkitError(Exception):
    """An error that the user can act on: `str()` of it is one line, `reason` the code that reports carry."""

    reason = Reason.FAILED


class UsageError(ClotkitError):
    """A wrong command line, setting or installation."""


class ConfigError(ClotkitError):
    """A wrong recipe, competition or member folder."""


class WeightsError(ConfigError):
    """Weights or a calibration that cannot be used: damaged, not finite, or of another network."""

    reason = Reason.BAD_WEIGHTS


class SplitError(ClotkitError):
    """A wrong split folder, or a wrong table in one."""


class SubmissionError(ClotkitError):
    """A wrong submission file."""


class RehearsalError(ClotkitError):
    """A bundle that could not be built, or that failed its rehearsal; `kind` is the code of the cause."""

    def __init__(self, message: str, kind: RehearsalKind) -> None:
        super().__init__(message)
        self.kind = kind


class StoreError(ClotkitError):
    """Files of a folder or an object store that cannot be read or written."""

    reason = Reason.STORE


class ClusterError(ClotkitError):
    """A cluster whose workers or scheduler are gone."""


class RemoteError(ClotkitError):
    """A request to Kaggle that failed or was refused; `kind` is the code of the cause."""

    kind = RemoteKind.REFUSED

    def __init__(self, message: str, kind: RemoteKind | None = None) -> None:
        super().__init__(message)
        if kind is not None:
            self.kind = kind


class RemoteMissing(RemoteError):  # noqa: N818 - named for the state, as the module's other leaves are
    """A request for an object that Kaggle does not have (404)."""

    kind = RemoteKind.MISSING


class RemoteUnclear(RemoteError):  # noqa: N818
    """A request without a readable response: it may have succeeded."""

    kind = RemoteKind.UNCLEAR


class RemoteFull(RemoteError):  # noqa: N818
    """A refusal because the account already runs as many sessions as it may."""

    kind = RemoteKind.NO_SESSION


class SlideError(ClotkitError):
    """A slide that cannot be scored; the run goes on with the others."""


class SlideUnreadable(SlideError):  # noqa: N818
    """A file that is missing, damaged, or not an image."""

    reason = Reason.DAMAGED


class PictureTooLarge(SlideError):  # noqa: N818
    """A sound picture of more pixels than are read at once."""

    reason = Reason.UNSUPPORTED


class CodecUnsupported(SlideError):  # noqa: N818
    """A sound slide that no decoder here reads."""

    reason = Reason.UNSUPPORTED


class ResolutionUnknown(SlideError):  # noqa: N818
    """A sound slide without a plausible size of its pixels, under a recipe that asks for micrometres."""

    reason = Reason.NO_RESOLUTION


class ResolutionUnfit(SlideError):  # noqa: N818
    """A sound slide whose pixels are far too small or too large for the micrometres of a recipe."""

    reason = Reason.UNFIT_RESOLUTION


class NoTissue(SlideError):  # noqa: N818
    """A sound slide on which nothing differs from the background."""

    reason = Reason.NO_TISSUE


def on_one_line(text: str) -> str:
    """Return `text` on one line, safe to show.

    Line breaks, control characters, and marks that turn the reading direction, become dots.
    """
    return "".join(character if character.isprintable() else "·" for character in text)


def one_line(error: BaseException, path: Path | None = None) -> str:
    """Return a library's error message on one line without secrets, at most MOST_CHARACTERS long.

    `path` is replaced by "slide": reports name the file elsewhere.
    """
    text = str(error) if path is None else str(error).replace(str(path), "slide")
    text = without_secrets(text)  # before it is cut: half a secret is no longer known as one
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return ("; ".join(dict.fromkeys(lines)) or type(error).__name__)[:MOST_CHARACTERS]


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn the missing package of an optional extra into a UsageError with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error.name} is not installed; in clotkit's checkout type: pip install '.[{extra}]'"
        ) from error


def without_secrets(text: str) -> str:
    """Return a text without tokens, and without the passwords and signatures in its URLs."""
    return TOKEN.sub(r"\1\2…", SECRET_OF_QUERY.sub(r"\1…", USER_OF_URL.sub(r"\1…@", text)))


def described(error: BaseException) -> str:
    """Return an error on one line, with its type unless it is the kit's own or of the file system."""
    known = isinstance(error, ClotkitError | OSError)
    return one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"
