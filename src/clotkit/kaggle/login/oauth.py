"""Read and write the file of `kaggle auth login`, without the network; Kaggle's own client shares it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from clotkit.errors import RemoteError
from clotkit.files import atomic_write
from clotkit.progress import Log
from clotkit.reasons import RemoteKind

LOGIN_AGAIN = "run kaggle auth login, then run again"
LASTS_S = 43_200  # that a new access token is asked to be valid: the 12 hours of Kaggle's client
MARGIN = timedelta(minutes=5)  # a token that expires sooner is renewed


@dataclass(frozen=True)
class Login:
    """A login of `kaggle auth login`: a lasting token that gives access tokens, and the last one of those."""

    path: Path
    refresh_token: str = field(repr=False)
    access_token: str = field(default="", repr=False)
    expires: datetime | None = None  # of the access token
    username: str = ""

    @property
    def fresh(self) -> bool:
        """True if the access token can be used now."""
        sound = self.access_token.isascii() and self.access_token.isprintable() and bool(self.access_token)
        return sound and self.expires is not None and self.expires > datetime.now(UTC) + MARGIN

    def renewed(self, answer: Mapping[str, Any]) -> "Login":
        """Return the login with the access token of Kaggle's answer {"token", "expiresIn", "userName"}."""
        lasts_s = int(answer.get("expiresIn") or LASTS_S)
        return replace(
            self,
            access_token=str(answer["token"]),
            expires=datetime.now(UTC) + timedelta(seconds=lasts_s),
            username=str(answer.get("userName") or self.username),
        )


def parse_login(path: Path, text: str) -> Login:
    """Return the login in the text of credentials.json. Raises RemoteError if it holds none."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raw = None
    entries = {name: value for name, value in raw.items() if isinstance(value, str)} if isinstance(raw, dict) else {}
    login = Login(
        path,
        entries.get("refresh_token", ""),
        entries.get("access_token", ""),
        _time(entries.get("access_token_expiration", "")),
        entries.get("username", ""),
    )
    if not (login.refresh_token.isascii() and login.refresh_token.strip()):
        raise RemoteError(f"{path}: it holds no login ({len(text)} characters): {LOGIN_AGAIN}", RemoteKind.CREDENTIALS)
    return login


def save_login(login: Login, log: Log) -> None:
    """Write a renewed login to its file in one step, readable by its owner alone.

    Other entries of the file stay as they are. A file that cannot be written is logged: the new token is used
    nevertheless.
    """
    path = login.path.resolve()  # a link stays a link
    try:
        raw = dict(json.loads(path.read_text(encoding="utf-8")))
        expires = login.expires.isoformat() if login.expires else ""
        raw |= {"access_token": login.access_token, "access_token_expiration": expires, "username": login.username}
        with atomic_write(path, mode=0o600) as temporary:
            temporary.write_text(json.dumps(raw, indent=2), encoding="utf-8")
    except (OSError, ValueError, TypeError) as error:
        log(f"{login.path}: the new access token could not be saved ({type(error).__name__}); it is used nevertheless")


def _time(text: str) -> datetime | None:
    """Return the time in an ISO text, UTC if it names no zone; None if there is none."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
