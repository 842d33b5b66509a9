"""The only module that talks to Kaggle: a competition's public files, through Kaggle's own client library.

Importing this module imports neither that library nor requests: the functions do, when they are called.
"""

import functools
import json
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from clotkit import __version__
from clotkit.competitions import Competition
from clotkit.errors import RemoteError
from clotkit.files import publishing
from clotkit.splits import read_table

T = TypeVar("T")

CHUNK = 2**20  # bytes in memory at a time, whatever the size of a slide
PAGE = 200  # files per page of a listing: the most that Kaggle's client documents
TRIES = 5  # per call, the first included
TIMEOUT_S = (10.0, 60.0)  # to connect; between two pieces of an answer
LONGEST_WAIT_S = 300.0  # between two tries, whatever Retry-After asks

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


class KaggleFiles:
    """The files of competitions, as Kaggle lists and gives them.

    `endpoint` takes the place of Kaggle's address (tests give a loopback one), `wait` sleeps between two tries.
    """

    def __init__(
        self,
        credentials: Credentials,
        endpoint: str | None = None,
        wait: Callable[[float], None] = time.sleep,
        timeout_s: tuple[float, float] = TIMEOUT_S,
    ) -> None:
        from kagglesdk import KaggleClient, KaggleEnv

        # Like Kaggle's own client: anything but exactly LOCALHOST is production.
        local = endpoint is not None or os.environ.get("KAGGLE_API_ENVIRONMENT") == "LOCALHOST"
        self._client = KaggleClient(
            env=KaggleEnv.LOCAL if local else KaggleEnv.PROD,
            api_token=credentials.key,  # also for a legacy key: without one the library goes looking for a token
            user_agent=f"clotkit/{__version__}",
        )
        http = self._client.http_client()
        if endpoint is not None:
            http._endpoint = endpoint
        http._init_session()
        session = http._session
        if credentials.username:
            session.auth = (credentials.username, credentials.key)
        session.headers["Accept-Encoding"] = "identity"  # lengths are those of the files
        session.send = functools.partial(session.send, timeout=timeout_s)  # the library's calls have no timeout
        self._wait = wait

    @property
    def endpoint(self) -> str:
        """The address that calls go to."""
        return str(self._client.http_client()._endpoint)

    def sizes(self, slug: str) -> dict[str, int]:
        """List a competition's files with their sizes in bytes; 0 is unknown.

        Raises RemoteError if Kaggle cannot be asked or says no.
        """
        sizes: dict[str, int] = {}
        token, seen = "", {""}
        while True:
            page, token = self._ask("the list of files", slug, functools.partial(self._page, slug, token))
            sizes.update(page)
            if not sizes:  # also what the library makes of JSON that is no list of files
                raise RemoteError(f"{slug}: Kaggle lists no files: check the competition's slug, or run again later")
            if not token:
                return sizes
            if token in seen:
                raise RemoteError(f"{slug}: Kaggle's list of files goes in a circle of {len(seen)}: run again later")
            seen.add(token)

    def download(self, slug: str, name: str, out: Path, size: int = 0) -> bool:
        """Fetch one file to `out / name` in one step, unzipped if Kaggle zipped it; `size` in bytes, 0 if unknown.

        Says whether it was fetched: a file of that size that is there already is left alone.
        Raises RemoteError if it cannot be had whole, or cannot be written; nothing of it stays then.
        """
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in name or not name.isprintable():
            raise RemoteError(f"{slug}: the file name {name!r} is empty or leads out of {out}: refused")
        target = out / name
        try:
            if size and target.is_file() and target.stat().st_size == size:
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            with publishing(target) as temporary:
                received = self._ask(name, slug, functools.partial(self._stream, slug, name, temporary))
                if target.suffix.lower() != ".zip" and _is_zip(temporary):
                    _unzip(temporary, name)
                # Of a zipped file the list may have either size; the zip's checksum has vouched for its content.
                if size and size not in (received, temporary.stat().st_size):
                    raise RemoteError(f"{name}: {received} bytes came, Kaggle's list says {size}: run again")
        except OSError as error:
            raise RemoteError(f"{target}: {error.strerror}; free some space or choose another folder") from error
        return True

    def _page(self, slug: str, token: str) -> tuple[dict[str, int], str]:
        from kagglesdk.competitions.types.competition_api_service import ApiListDataFilesRequest

        request = ApiListDataFilesRequest()
        request.competition_name, request.page_size, request.page_token = slug, PAGE, token
        with self._client:
            page = self._client.competitions.competition_api_client.list_data_files(request)
        return {file.name: int(file.total_bytes) for file in page.files}, page.next_page_token

    def _stream(self, slug: str, name: str, path: Path) -> int:
        from kagglesdk.competitions.types.competition_api_service import ApiDownloadDataFileRequest

        request = ApiDownloadDataFileRequest()
        request.competition_name, request.file_name = slug, name
        with self._client, self._client.competitions.competition_api_client.download_data_file(request) as response:
            if "text/html" in response.headers.get("Content-Type", ""):
                raise ValueError("a web page")
            with path.open("wb") as file:
                for chunk in response.iter_content(CHUNK):  # raises if the body is shorter than its Content-Length
                    file.write(chunk)
                return file.tell()

    def _ask(self, what: str, slug: str, call: Callable[[], T]) -> T:
        import requests

        attempt = 1
        while True:
            try:
                return call()
            # The others: what the library raises on an answer that is not of its API.
            except (requests.RequestException, ValueError, TypeError, KeyError, AttributeError) as error:
                message, pause_s = _failure(error, attempt, slug)
                if pause_s is None or attempt == TRIES:
                    raise RemoteError(f"{slug}, {what}: {message}") from error
            self._wait(min(pause_s, LONGEST_WAIT_S))
            attempt += 1


def fetch_public_split(
    competition: Competition,
    out: Path,
    client: KaggleFiles | None = None,
    log: Callable[[str], None] = print,
) -> Path:
    """Fetch the public test split: table, sample submission and the table's slides; what is there already stays.

    Returns `out`. Raises RemoteError without credentials, or if a file cannot be had whole; SplitError for a table
    without image ids.
    """
    client = client or KaggleFiles(find_credentials())
    slug, files = competition.slug, competition.files
    sizes = client.sizes(slug)

    def fetch(name: str) -> None:
        fetched = client.download(slug, name, out, sizes.get(name, 0))
        log(f"{name}: {'fetched' if fetched else 'here already'}, {(out / name).stat().st_size} bytes")

    fetch(files.table.format(split="test"))
    fetch(files.sample)
    rows = read_table(competition.table_path(out, "test"), [competition.columns.image])
    for row in rows:
        fetch(files.slide.format(split="test", image_id=row[competition.columns.image]))
    return out


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


def _failure(error: Exception, attempt: int, slug: str) -> tuple[str, float | None]:
    """What to tell the user of a failed call, and how long to wait before trying again: None where it cannot help."""
    import requests

    backoff_s = float(2**attempt)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        error.response.close()
        return _refusal(error.response, str(error), backoff_s, slug)
    if isinstance(error, requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError):
        return f"the connection failed {attempt} times ({type(error).__name__}): check it, then run again", backoff_s
    return f"not an answer of Kaggle's API ({type(error).__name__}), perhaps a web page: run again later", None


def _refusal(response: Any, said: str, backoff_s: float, slug: str) -> tuple[str, float | None]:
    # A no may come as JSON under HTTP 200; the library has read it then.
    status = response.status_code if response.status_code >= 400 else response.json()["code"]
    said = " ".join(said.partition(" for url: ")[0].split())[:200]  # the address of a file is signed: a secret
    if status == 429:
        asked = response.headers.get("Retry-After", "")
        return "Kaggle asks to slow down (429): run again later", float(asked) if asked.isdecimal() else backoff_s
    if status in (401, 403) and not response.history:  # after a redirect it is the storage that refuses
        return (
            f"Kaggle refused ({status}, {said}): the credentials are not valid, or the rules not accepted: "
            f"accept them once at kaggle.com/competitions/{slug}/rules, then run again"
        ), None
    if status == 404:
        return f"Kaggle has no such file or competition ({status}, {said}): check the competition's slug", None
    advice = "run again later" if status >= 500 or response.history else "see the competition's page"
    return f"Kaggle answered {status} ({said}): {advice}", None


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _unzip(path: Path, name: str) -> None:
    """Put the one file in a zip into the zip's place. Raises RemoteError if the zip is damaged or holds another."""
    wanted = PurePosixPath(name).name
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if [PurePosixPath(member).name for member in members] != [wanted]:
                raise RemoteError(f"{name}: came as a zip of {len(members)} files, not of {wanted} alone")
            with archive.open(members[0]) as member, publishing(path) as unpacked, unpacked.open("wb") as file:
                shutil.copyfileobj(member, file, CHUNK)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise RemoteError(f"{name}: came as a damaged zip ({error}): run again") from error
