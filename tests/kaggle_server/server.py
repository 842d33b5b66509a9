"""The server: a world, and two ports of loopback that speak for it."""

import os
from pathlib import Path
from typing import Self

from .ports import Api, Storage
from .state import World
from .wire import Listener

SHIM = Path(__file__).parent / "shim"
KEY = "0123456789abcdef0123456789abcdef"  # made up


class KaggleServer(World):
    """Kaggle on loopback while the `with` lasts: `endpoint` is the API's address, `storage` the files'."""

    def __init__(self, username: str = "alice", competition: str = "mayo-clinic-strip-ai") -> None:
        super().__init__(username, competition)
        self._api = Listener(Api(self), self.faults)
        self._storage = Listener(Storage(self), self.faults)
        self.endpoint, self.storage = self._api.address, self._storage.address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every connection and stop; what it remembers can still be looked at."""
        self._api.close()
        self._storage.close()

    def environment(self, home: Path) -> dict[str, str]:
        """An environment for a child process in which Kaggle's clients reach this server only.

        It has a home of its own and made-up credentials; nothing else of Kaggle, no proxy, and the guard on its path.
        """
        kept = {name: value for name, value in os.environ.items() if not _is_of_kaggle(name)}
        config, temporary = home / "config", home / "tmp"
        for folder in (home, config, temporary):
            folder.mkdir(parents=True, exist_ok=True)
        path = [str(SHIM), *filter(None, [os.environ.get("PYTHONPATH", "")])]
        return {
            **kept,
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "KAGGLE_CONFIG_DIR": str(config),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_USERNAME": self.username,
            "KAGGLE_KEY": KEY,
            "CLOTKIT_KAGGLE_ENDPOINT": self.endpoint,
            "PYTHONPATH": os.pathsep.join(path),
        }


def _is_of_kaggle(name: str) -> bool:
    upper = name.upper()
    return upper.startswith(("KAGGLE_", "CLOTKIT_KAGGLE_", "XDG_")) or upper.endswith("_PROXY") or upper == "NETRC"
