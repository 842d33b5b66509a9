"""Find the user's Kaggle credentials where Kaggle's own client looks for them, without the network."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clotkit.errors import RemoteError
from clotkit.progress import Log
from clotkit.reasons import RemoteKind

NO_CREDENTIALS = (
    "no Kaggle credentials: put kaggle.json in ~/.kaggle (kaggle.com, Settings, API, Create New Token) or set "
    "KAGGLE_API_TOKEN, accept the competition's rules once on its page, then run again"
)
NEW_TOKEN = "make a token (kaggle.com, Settings, API) and save it as ~/.kaggle/access_token"
TOKEN, TOKEN_FILES, OAUTH = "KAGGLE_API_TOKEN", ("access_token", "access_token.txt"), "credentials.json"


@dataclass(frozen=True)
class Credentials:
    """An access token, or a user name and its key."""

    key: str = field(repr=False)
    username: str = ""  # empty: the key is an access token


def find_credentials(log: Log = lambda _: None) -> Credentials:
    """Return the user's credentials: an access token if there is one, else a user name with its key.

    A file that other users of this machine can read is logged. Raises RemoteError, whose message contains nothing of
    the secret, if there are no credentials or they cannot be used.
    """
    for where, text in _tokens(log):
        if text:
            return Credentials(_checked(where, text))
    return _legacy_key(log)


def _tokens(log: Log) -> Iterator[tuple[str, str]]:
    """Yield where an access token may be, and what is there, in the order of Kaggle's own client."""
    of_notebook = os.environ.get("KAGGLE_API_V1_TOKEN", "") if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") else ""
    if _is_there(of_notebook):
        yield of_notebook, _read(Path(of_notebook), lambda _: None)
    value = os.environ.get(TOKEN, "").strip()
    if _is_there(value):
        yield value, _read(Path(value), log)
    elif "/" in value or value.startswith("~"):
        raise _unusable(f"{TOKEN} looks like the path of a file, and there is no such file: correct it, or unset it")
    else:
        yield TOKEN, value
    for path in map(_home, TOKEN_FILES):
        if path.exists():
            yield str(path), _read(path, log)


def _is_there(text: str) -> bool:
    """Return whether a text is the path of something; a token may be too long to be one."""
    with contextlib.suppress(OSError, ValueError):
        return bool(text) and Path(text).exists()
    return False


def _home(name: str) -> Path:
    return Path("~/.kaggle", name).expanduser()


def _unusable(message: str) -> RemoteError:
    return RemoteError(message, RemoteKind.CREDENTIALS)


def _read(path: Path, log: Log) -> str:
    """Return the text of a file with a secret, without the space around it."""
    try:
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode & 0o777
    except UnicodeDecodeError:
        raise _unusable(f"{path}: not plain text (perhaps UTF-16): save it again as plain ASCII") from None
    except OSError as error:
        raise _unusable(f"{path}: {error.strerror}: make it a file that you can read (chmod 600)") from None
    if mode & 0o077:
        log(f"{path}: other users of this machine can read it (mode {mode:04o}): run chmod 600 {path}")
    return text.strip()


def _checked(where: str, text: str) -> str:
    """Return a token, a key or a user name. Raises RemoteError if it has characters that none has."""
    if text.startswith("\ufeff"):
        raise _unusable(f"{where}: it begins with a byte order mark: save it again as plain ASCII")
    if text[0] in "\"'" or text[-1] in "\"'":
        raise _unusable(f"{where}: there are quotation marks around the token: remove them")
    if text.startswith("{"):
        raise _unusable(f"{where}: it holds JSON, but a token is one word: save JSON with a key as kaggle.json")
    if len(text.split()) > 1:
        raise _unusable(
            f"{where}: it holds {len(text.split())} words or lines, but a token is one word: remove the rest"
        )
    if "=" in text:
        raise _unusable(f"{where}: it holds a = sign, but a token is one word: remove the name before it")
    if not (text.isascii() and text.isprintable()):
        raise _unusable(f"{where}: it has characters that no token has: save it again as plain ASCII")
    return text


def _legacy_key(log: Log) -> Credentials:
    """Return the user name and key of the environment, or of kaggle.json."""
    folder, config = os.environ.get("KAGGLE_CONFIG_DIR"), os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    saved: dict[str, Any] = {}
    where = ""
    for place in [folder] if folder else ["~/.kaggle", f"{config}/kaggle"]:
        path = Path(place, "kaggle.json").expanduser()
        if not saved and path.exists():
            saved, where = _saved(path, log), str(path)
    username = str(os.environ.get("KAGGLE_USERNAME") or saved.get("username") or "").strip()
    key = str(os.environ.get("KAGGLE_KEY") or saved.get("key") or "").strip()
    if username and key:
        where = where or "KAGGLE_USERNAME, KAGGLE_KEY"
        return Credentials(_checked(where, key), _checked(where, username))
    raise _unusable(_why_none(where, [name for name, text in (("username", username), ("key", key)) if not text]))


def _saved(path: Path, log: Log) -> dict[str, Any]:
    """Return the object in a kaggle.json."""
    text = _read(path, log).removeprefix("\ufeff").strip()
    try:
        saved = json.loads(text)
    except ValueError as error:
        if text and len(text.split()) == 1 and not text.startswith(("{", "[")):
            raise _unusable(f"{path}: it holds a bare token, not JSON: save it as ~/.kaggle/access_token") from None
        at = f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nowhere"
        raise _unusable(f"{path}: {len(text)} characters, and no JSON ({at}): download it again") from None
    if isinstance(saved, str):
        raise _unusable(f"{path}: it holds a token in quotation marks: save it without as ~/.kaggle/access_token")
    if not isinstance(saved, dict):
        raise _unusable(f'{path}: it holds no JSON object like {{"username": …, "key": …}}: download it again')
    return saved


def _why_none(where: str, lacking: list[str]) -> str:
    """Return why there are no credentials, and what to do; `where` is the kaggle.json if there is one."""
    if _home(OAUTH).exists():
        return f"clotkit cannot use the login of kaggle auth login ({_home(OAUTH)}): {NEW_TOKEN}"
    if where:
        return f"{where}: it holds settings, but no {' and no '.join(lacking)}: {NEW_TOKEN}"
    if len(lacking) == 1:
        return f"KAGGLE_{lacking[0].upper()} is not set, but its counterpart is: set both, or unset both"
    empty = [TOKEN, *(str(path) for path in map(_home, TOKEN_FILES) if path.exists())]
    if TOKEN in os.environ or len(empty) > 1:
        return f"{empty[-1]} is there, but empty: put your token into it (kaggle.com, Settings, API), or remove it"
    return NO_CREDENTIALS
