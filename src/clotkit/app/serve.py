"""Starting the application's server: its settings, and what Streamlit may do and may not."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clotkit.app.roots import Roots
from clotkit.app.work import MOST_UPLOAD_MB
from clotkit.competitions import load_competition
from clotkit.errors import UsageError, needs_extra
from clotkit.members.folder import find_members

LOOPBACK = "127.0.0.1"
PORTS = (1024, 65535)
ENTRY = Path(__file__).parent / "pages" / "entry.py"


@dataclass(frozen=True)
class AppSettings:
    """What `clotkit app` is asked for; only folders of members in `weights`, and what is in `roots`, are opened."""

    weights: Path
    roots: tuple[Path, ...]
    competition: str
    port: int = 8501
    address: str = LOOPBACK

    def to_argument(self) -> str:
        """As one word for the pages' process to read."""
        paths = [str(path.resolve()) for path in self.roots]
        return json.dumps([str(self.weights.resolve()), paths, self.competition])


def from_argument(words: Sequence[str]) -> AppSettings:
    """The settings that the pages were started with. Raises UsageError without them."""
    try:
        weights, roots, competition = json.loads(words[-1])
        return AppSettings(Path(weights), tuple(map(Path, roots)), competition)
    except (LookupError, ValueError, TypeError) as error:
        raise UsageError("the pages are started by clotkit app, not by themselves") from error


def serve(settings: AppSettings) -> None:
    """Serve the pages until it is interrupted. Raises UsageError or ConfigError where a setting is wrong."""
    check(settings)
    with needs_extra("app"):
        from streamlit.web import bootstrap

    options = options_of(settings)
    bootstrap.load_config_options(flag_options=options)
    try:
        bootstrap.run(str(ENTRY), False, [settings.to_argument()], options)
    except SystemExit as error:
        if error.code:
            raise UsageError(
                f"port {settings.port} of {settings.address} cannot be had; name another: clotkit app --port N"
            ) from error


def check(settings: AppSettings) -> None:
    """Raise UsageError or ConfigError for a port, folder, competition or installation that will not do."""
    if not PORTS[0] <= settings.port <= PORTS[1]:
        raise UsageError(f"--port is {settings.port}; allowed: {PORTS[0]} to {PORTS[1]}")
    find_members(settings.weights)
    Roots.of(settings.roots)
    load_competition(settings.competition)


def options_of(settings: AppSettings) -> dict[str, Any]:
    """Streamlit's options: on loopback, nothing told to anybody, no file watched, no error's insides shown."""
    hosts = [settings.address, "localhost"] if settings.address == LOOPBACK else []
    return {
        "server_address": settings.address,
        "server_port": settings.port,
        "server_headless": True,
        "server_allowedHosts": hosts,
        "server_maxUploadSize": MOST_UPLOAD_MB,
        "server_fileWatcherType": "none",
        "server_runOnSave": False,
        "server_enableStaticServing": False,
        "server_enableXsrfProtection": True,
        "server_enableCORS": True,
        "server_showEmailPrompt": False,
        "browser_gatherUsageStats": False,
        "browser_serverAddress": settings.address,
        "client_allowedOrigins": [f"http://{settings.address}"],
        "client_showErrorDetails": "none",
        "client_showErrorLinks": False,
        "client_toolbarMode": "minimal",
        "runner_magicEnabled": False,
        "logger_hideWelcomeMessage": False,
    }
