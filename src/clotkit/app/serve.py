"""Start the application's server with Streamlit confined to this machine."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clotkit.app.roots import Roots
from clotkit.app.uploads import MOST_UPLOAD_MB
from clotkit.competitions import load_competition
from clotkit.errors import UsageError, needs_extra
from clotkit.members.folder import find_members

LOOPBACK = "127.0.0.1"
PORTS = (1024, 65535)
ENTRY = Path(__file__).parent / "pages" / "entry.py"


@dataclass(frozen=True)
class AppSettings:
    """The settings of `clotkit app`. No folder but `weights` and `roots` is opened."""

    weights: Path  # a member, or a folder of members
    roots: tuple[Path, ...]  # folders whose splits and runs may be opened
    competition: str  # name, or path of a .toml
    port: int = 8501
    address: str = LOOPBACK  # address to listen on

    def to_argument(self) -> str:
        """Return the settings that the pages need as one command-line word; `from_argument` reads it."""
        paths = [str(path.resolve()) for path in self.roots]
        return json.dumps([str(self.weights.resolve()), paths, self.competition])


def from_argument(words: Sequence[str]) -> AppSettings:
    """Return the settings in the last of a command line's words. Raises UsageError if they are not there."""
    try:
        weights, roots, competition = json.loads(words[-1])
        return AppSettings(Path(weights), tuple(map(Path, roots)), competition)
    except (LookupError, ValueError, TypeError) as error:
        raise UsageError("the pages cannot run on their own; start them with clotkit app") from error


def serve(settings: AppSettings) -> None:
    """Serve the pages until interrupted. Raises UsageError or ConfigError for a wrong setting."""
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
                f"cannot listen on {settings.address}, port {settings.port}; try another: clotkit app --port N"
            ) from error


def check(settings: AppSettings) -> None:
    """Raise UsageError or ConfigError for a wrong port, folder or competition."""
    if not PORTS[0] <= settings.port <= PORTS[1]:
        raise UsageError(f"--port is {settings.port}; allowed: {PORTS[0]} to {PORTS[1]}")
    find_members(settings.weights)
    Roots.of(settings.roots)
    load_competition(settings.competition)


def options_of(settings: AppSettings) -> dict[str, Any]:
    """Return Streamlit's options: no usage statistics, file watcher, static files or tracebacks in pages."""
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
