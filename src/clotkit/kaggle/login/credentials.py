"""Find the user's Kaggle credentials where Kaggle's own client looks for them, without the network."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from clotkit.errors import MOST_CHARACTERS, RemoteError
from clotkit.kaggle.login.oauth import LOGIN_AGAIN, Login, parse_login
from clotkit.progress import Log
from clotkit.reasons import RemoteKind

NEW_KEY = "create a new one (kaggle.com/settings/api, Create Legacy API Key)"
NO_CREDENTIALS = (
    "no Kaggle credentials: run kaggle auth login; or save a token as ~/.kaggle/access_token (kaggle.com/settings/api, "
    "Generate New Token) or kaggle.json in ~/.kaggle (there, Create Legacy API Key); accept the competition's rules "
    "once on its page, then run again"
)
NEW_TOKEN = (
    "run kaggle auth login, or save a new token (kaggle.com/settings/api, Generate New Token) as ~/.kaggle/access_token"
)
TOKEN, TOKEN_FILES, OAUTH = "KAGGLE_API_TOKEN", ("access_token", "access_token.txt"), "credentials.json"
VARIABLES, NAMES = ("KAGGLE_USERNAME", "KAGGLE_KEY"), ("username", "key")  # of a legacy key; in kaggle.json
TOKEN_PREFIX = "KGAT_"  # of access tokens; Kaggle does not take one as a legacy key


class CredentialKind(StrEnum):
    """Kind of credentials."""

    TOKEN = "access_token"  # of Generate New Token
    KEY = "legacy_key"  # of Create Legacy API Key, with a user name
    LOGIN = "login"  # of kaggle auth login


@dataclass(frozen=True)
class Credentials:
    """An access token, a user name and its key, or a login that gives access tokens."""

    key: str = field(repr=False)
    username: str = ""  # empty: the key is an access token
    login: Login | None = None
    source: str = field(default="", compare=False)  # the variable or the file

    @property
    def kind(self) -> CredentialKind:
        """The kind of credentials."""
        if self.login is not None:
            return CredentialKind.LOGIN
        return CredentialKind.KEY if self.username else CredentialKind.TOKEN

    @property
    def next_step(self) -> str:
        """The next step if Kaggle does not accept them."""
        if self.login is not None:
            return LOGIN_AGAIN
        return NEW_KEY if self.username else NEW_TOKEN


def candidates(log: Log = lambda _: None) -> Iterator[Credentials]:
    """Yield the user's credentials in the order in which Kaggle's own client tries them.

    Those that cannot be used are passed over, with a line in the log if there are others; a file that other users of
    this machine can read has a line too. Raises RemoteError, whose message contains nothing of the secret, if there are
    none that can be used.
    """
    unusable, found = list[RemoteError](), False
    for entry in _entries(log):
        if isinstance(entry, RemoteError):
            unusable.append(entry)
            continue
        _log_passed_over(unusable, log)
        unusable, found = [], True
        yield entry
    if not found:
        raise next(iter(unusable), None) or _unusable(_why_none())
    _log_passed_over(unusable, log)


def list_credentials() -> list[Credentials | RemoteError]:
    """Return all credentials in the same order, with the error of those that cannot be used."""
    return list(_entries(lambda _: None))


def _entries(log: Log) -> Iterator[Credentials | RemoteError]:
    """Yield the credentials of every place that has some, or the error of those that cannot be used."""
    for place in _places(log):
        try:
            credentials = place()
        except RemoteError as error:
            yield error
            continue
        if credentials is not None:
            yield credentials


def _log_passed_over(unusable: list[RemoteError], log: Log) -> None:
    for error in unusable:
        log(f"{error}; passed over")


def _places(log: Log) -> Iterator[Callable[[], Credentials | None]]:
    """Yield a function for every place where credentials may be."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        yield partial(_token_file, os.environ.get("KAGGLE_API_V1_TOKEN", ""), lambda _: None)
    yield partial(_token_variable, log)
    for name in TOKEN_FILES:
        yield partial(_home_token, name, log)
    yield partial(_legacy_key, log)
    yield partial(_login, log)


def _token_variable(log: Log) -> Credentials | None:
    """Return the token in KAGGLE_API_TOKEN, or in the file that it names."""
    value = os.environ.get(TOKEN, "").strip()
    if _is_there(value):
        return _token_file(value, log)
    if "/" in value or value.startswith("~"):
        raise _unusable(f"{TOKEN} looks like the path of a file, and there is no such file: correct it, or unset it")
    return Credentials(_checked(TOKEN, value), source=TOKEN) if value else None


def _token_file(name: str, log: Log) -> Credentials | None:
    text = _read(Path(name), log) if _is_there(name) else ""
    return Credentials(_checked(name, text), source=name) if text else None


def _home_token(name: str, log: Log) -> Credentials | None:
    path = _home(name)
    return _token_file(str(path), log) if _exists(path) else None


def _is_there(text: str) -> bool:
    """Return whether a text is the path of something; a token may be too long to be one."""
    with contextlib.suppress(OSError, ValueError):
        return bool(text) and Path(text).exists()
    return False


def _home(name: str) -> Path:
    return _expanded(f"~/.kaggle/{name}", "HOME")


def _expanded(text: str, variable: str) -> Path:
    """Return the path of a variable's text. Raises RemoteError if it begins with an unknown home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        unknown = text.partition("/")[0][:MOST_CHARACTERS]
        raise _unusable(f"{variable}: no home folder is known for {unknown}: correct {variable}") from None


def _exists(path: Path, variable: str = "HOME") -> bool:
    """Return whether there is a file below a variable's folder.

    Raises RemoteError if the system does not say.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        shown = str(path)[:MOST_CHARACTERS]
        raise _unusable(f"{shown}: {error.strerror}: make it a file that you can read, or correct {variable}") from None
    return True


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


def _legacy_key(log: Log) -> Credentials | None:
    """Return the user name and key of the environment, or of kaggle.json; None if one is missing.

    An access token in place of the key is sent as the token that it is. kaggle.json is read only for what the
    environment lacks: a broken one does not matter otherwise.
    """
    username, key = _user_and_key({}, "")
    needed = not (key and (username or key.startswith(TOKEN_PREFIX)))
    saved, where = _kaggle_json(log) if needed else ({}, "")
    username, key = _user_and_key(saved, where)
    if not (key and (username or key.startswith(TOKEN_PREFIX))):
        return None
    in_environment = [name for name in VARIABLES if os.environ.get(name)]
    where = ", ".join([*in_environment, *[where] * bool(where)])
    if key.startswith(TOKEN_PREFIX):
        return Credentials(_checked(where, key), source=where)
    return Credentials(_checked(where, key), _checked(where, username), source=where)


def _user_and_key(saved: dict[str, Any], where: str) -> tuple[str, str]:
    """Return the user name and the key, each from the environment or else from what is in kaggle.json."""
    username, key = (
        os.environ.get(variable) or saved.get(name) or "" for variable, name in zip(VARIABLES, NAMES, strict=True)
    )
    if not (isinstance(username, str) and isinstance(key, str)):
        raise _unusable(f"{where}: its user name and its key are not both strings: {NEW_KEY}")
    return username.strip(), key.strip()


def _kaggle_json(log: Log) -> tuple[dict[str, Any], str]:
    """Return the object in kaggle.json, and its path; both empty if there is none."""
    saved, where, unusable = dict[str, Any](), "", list[RemoteError]()
    for variable, folder in _config_folders():
        try:
            path = _expanded(f"{folder}/kaggle.json", variable)
            if not saved and _exists(path, variable):
                saved, where = _saved(path, log), str(path)
        except RemoteError as error:
            unusable.append(error)
    if unusable and not saved:
        raise unusable[0]
    _log_passed_over(unusable, log)
    return saved, where


def _config_folders() -> list[tuple[str, str]]:
    """Return the folders that may have a kaggle.json, each after the variable that moves it."""
    folder, config = os.environ.get("KAGGLE_CONFIG_DIR"), os.environ.get("XDG_CONFIG_HOME")
    if folder:
        return [("KAGGLE_CONFIG_DIR", folder)]
    own = ("XDG_CONFIG_HOME", f"{config}/kaggle") if config else ("HOME", "~/.config/kaggle")
    return [("HOME", "~/.kaggle"), own]


def _saved(path: Path, log: Log) -> dict[str, Any]:
    """Return the object in a kaggle.json."""
    text = _read(path, log).removeprefix("\ufeff").strip()
    try:
        saved = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text and len(text.split()) == 1 and not text.startswith(("{", "[")):
            raise _unusable(f"{path}: it holds a bare token, not JSON: save it as ~/.kaggle/access_token") from None
        at = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise _unusable(f"{path}: {len(text)} characters that are not valid JSON{at}: {NEW_KEY}") from None
    if isinstance(saved, str):
        raise _unusable(f"{path}: it holds a token in quotation marks: save it without as ~/.kaggle/access_token")
    if not isinstance(saved, dict):
        raise _unusable(f'{path}: it is not a JSON object like {{"username": …, "key": …}}: {NEW_KEY}')
    return saved


def _login(log: Log) -> Credentials | None:
    """Return the login of `kaggle auth login`; None without its file."""
    path = _home(OAUTH)
    if not _exists(path):
        return None
    login = parse_login(path, _read(path, log))
    return Credentials(login.access_token, login=login, source=str(path))


def _why_none() -> str:
    """Return why there are no credentials, and what to do."""
    saved, where = _kaggle_json(lambda _: None)
    lacking = [name for name, text in zip(NAMES, _user_and_key(saved, where), strict=True) if not text]
    if where:
        return f"{where}: it holds settings, but no {' and no '.join(lacking)}: {NEW_TOKEN}"
    if len(lacking) == 1:
        return f"KAGGLE_{lacking[0].upper()} is not set, but its counterpart is: set both, or unset both"
    empty = [TOKEN, *(str(path) for path in map(_home, TOKEN_FILES) if _exists(path))]
    if TOKEN in os.environ or len(empty) > 1:
        return f"{empty[-1]} is there, but empty: put your token into it (kaggle.com/settings/api), or remove it"
    return NO_CREDENTIALS
