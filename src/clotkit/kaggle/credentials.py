"""Find the user's Kaggle credentials where Kaggle's own client looks for them, without the network."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clotkit.errors import RemoteError
from clotkit.reasons import RemoteKind

NO_CREDENTIALS = (
    "no Kaggle credentials: put kaggle.json in ~/.kaggle (kaggle.com, Settings, API, Create New Token) or set "
    "KAGGLE_API_TOKEN, accept the competition's rules once on its page, then run again"
)


@dataclass(frozen=True)
class Credentials:
    """An access token, or a user name and its key."""

    key: str = field(repr=False)
    username: str = ""  # empty: the key is an access token


def find_credentials() -> Credentials:
    """Return the user's credentials: an access token if there is one, else a user name with its key.

    Raises RemoteError, whose message contains nothing of the secret, if there are none or they cannot be used.
    """
    from kagglesdk import get_access_token_from_env

    try:
        token = get_access_token_from_env()[0]
        credentials = Credentials(token.strip()) if token else _legacy_key()
    except (OSError, ValueError, TypeError) as error:  # from None: the text of an OSError contains the token, as a path
        raise RemoteError(
            f"the Kaggle credentials cannot be read ({type(error).__name__}): make a new token", RemoteKind.CREDENTIALS
        ) from None
    texts = (credentials.key, credentials.username)
    if not all(text.isascii() and text.isprintable() and " " not in text for text in texts):
        raise RemoteError(
            "the Kaggle credentials have characters that no token has: save the file as plain ASCII",
            RemoteKind.CREDENTIALS,
        )
    return credentials


def _legacy_key() -> Credentials:
    """Return the user name and key of the environment, or of kaggle.json."""
    folder, config = os.environ.get("KAGGLE_CONFIG_DIR"), os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    saved: dict[str, Any] = {}
    for place in [folder] if folder else ["~/.kaggle", f"{config}/kaggle"]:
        path = Path(place, "kaggle.json").expanduser()
        if not saved and path.is_file():
            saved = dict(json.loads(path.read_text(encoding="utf-8-sig")))
    username = os.environ.get("KAGGLE_USERNAME") or saved.get("username")
    key = os.environ.get("KAGGLE_KEY") or saved.get("key")
    if not (username and key):
        raise RemoteError(NO_CREDENTIALS, RemoteKind.CREDENTIALS)
    return Credentials(str(key).strip(), str(username).strip())
