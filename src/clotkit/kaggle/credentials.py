"""The user's Kaggle credentials, found where Kaggle's own client looks for them. No network."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clotkit.errors import RemoteError

NO_CREDENTIALS = (
    "no Kaggle credentials: put kaggle.json in ~/.kaggle (kaggle.com, Settings, API, Create New Token) or set "
    "KAGGLE_API_TOKEN, accept the competition's rules once on its page, then run again"
)


@dataclass(frozen=True)
class Credentials:
    """An access token, or the key that goes with a user name."""

    key: str = field(repr=False)
    username: str = ""  # empty: the key is an access token


def find_credentials() -> Credentials:
    """Find the user's credentials where Kaggle's own client looks: an access token first, then a legacy key.

    Raises RemoteError, without a word of the secret in it, if there are none or they cannot be used.
    """
    from kagglesdk import get_access_token_from_env

    try:
        token = get_access_token_from_env()[0]
        found = Credentials(token.strip()) if token else _legacy_key()
    except (OSError, ValueError, TypeError) as error:  # from None: an OSError's text has the token in it, as a path
        raise RemoteError(f"the Kaggle credentials cannot be read ({type(error).__name__}): make a new token") from None
    if not all(text.isascii() and text.isprintable() and " " not in text for text in (found.key, found.username)):
        raise RemoteError("the Kaggle credentials have characters that no token has: save the file as plain ASCII")
    return found


def _legacy_key() -> Credentials:
    folder, config = os.environ.get("KAGGLE_CONFIG_DIR"), os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    saved: dict[str, Any] = {}
    for place in [folder] if folder else ["~/.kaggle", f"{config}/kaggle"]:
        path = Path(place, "kaggle.json").expanduser()
        if not saved and path.is_file():
            saved = dict(json.loads(path.read_text(encoding="utf-8-sig")))
    username = os.environ.get("KAGGLE_USERNAME") or saved.get("username")
    key = os.environ.get("KAGGLE_KEY") or saved.get("key")
    if not (username and key):
        raise RemoteError(NO_CREDENTIALS)
    return Credentials(str(key).strip(), str(username).strip())
