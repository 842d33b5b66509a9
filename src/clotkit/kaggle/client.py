"""The only module that talks to Kaggle: every call the kit needs, over Kaggle's own client library.

Importing this module imports neither that library nor requests: the functions do, when they are called.

A call that only reads is made again when it fails in a way that may pass. A call that changes something is made again
only when it certainly had no effect: where its answer is lost, a look at what Kaggle has comes first.
"""

import functools
import hashlib
import importlib
import ipaddress
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from clotkit import __version__
from clotkit.errors import RemoteError, RemoteMissing, RemoteUnclear, UsageError
from clotkit.kaggle.credentials import Credentials

T = TypeVar("T")
Answer: TypeAlias = dict[str, Any]

ENDPOINT = "CLOTKIT_KAGGLE_ENDPOINT"  # the environment variable of a server on this machine, for tests
SERVICES = {  # by the library's room: the service, and the module with its requests
    "blobs": ("BlobApiService", "blob_api_service"),
    "competitions": ("CompetitionApiService", "competition_api_service"),
    "datasets": ("DatasetApiService", "dataset_api_service"),
    "kernels": ("KernelsApiService", "kernels_api_service"),
    "security": ("OAuthService", "oauth_service"),
}
CHUNK = 2**20  # bytes in memory at a time, whatever the size of a file
PAGE = 200  # files per page of a listing: the most that Kaggle's client documents
TRIES = 5  # per call, the first included
SENDS = 3  # of a call that changes something, where each time a look found that it had no effect
LOOKS_S = (2.0, 5.0, 10.0, 20.0, 30.0, 30.0, 30.0)  # before each look at what came of such a call
TIMEOUT_S = (10.0, 60.0)  # to connect; between two pieces of an answer
LONGEST_WAIT_S = 300.0  # between two tries, whatever Retry-After asks
SHOWN = 200  # characters of a text in a dry run; a longer one is shown as bytes and sha256


class DryRun(Exception):  # noqa: N818 - no error: a dry run has come to where something would be changed
    """A dry run has shown what would be sent, and goes no further."""


class Kaggle:
    """Kaggle's API for one user. Answers are the JSON objects that came; what is missing in them is at its default.

    `endpoint` takes the place of Kaggle's address and must be on this machine (so must CLOTKIT_KAGGLE_ENDPOINT, which
    is looked at when none is given); `wait` sleeps between two tries, `chance` gives the jitter, from 0 to 1; `log` is
    told what is waited for. With `dry`, a call that would change something is shown to `log` and raises DryRun.
    Every call raises RemoteError, one line without a secret, if Kaggle cannot be asked or says no.
    """

    def __init__(
        self,
        credentials: Credentials,
        endpoint: str | None = None,
        wait: Callable[[float], None] = time.sleep,
        timeout_s: tuple[float, float] = TIMEOUT_S,
        chance: Callable[[], float] = random.random,
        log: Callable[[str], None] = lambda _: None,
        dry: bool = False,
    ) -> None:
        import requests
        from kagglesdk import KaggleClient, KaggleEnv

        endpoint = endpoint or os.environ.get(ENDPOINT)
        if endpoint is not None and not _on_this_machine(endpoint):
            raise UsageError(f"{ENDPOINT}: {urlsplit(endpoint).hostname!r} is not on this machine: unset it")
        # Like Kaggle's own client: anything but exactly LOCALHOST is production.
        local = endpoint is not None or os.environ.get("KAGGLE_API_ENVIRONMENT") == "LOCALHOST"
        self._client = KaggleClient(
            env=KaggleEnv.LOCAL if local else KaggleEnv.PROD,
            api_token=credentials.key,  # also for a legacy key: without one the library goes looking for a token
            user_agent=f"clotkit/{__version__}",
        )
        self._http = self._client.http_client()
        if endpoint is not None:
            self._http._endpoint = endpoint.rstrip("/")
        self._http._init_session()
        session = self._http._session
        if credentials.username:
            session.auth = (credentials.username, credentials.key)
        session.headers["Accept-Encoding"] = "identity"  # lengths are those of the files
        session.send = functools.partial(session.send, timeout=timeout_s)  # the library's calls have no timeout
        self._plain = requests.Session()  # for signed addresses: it has no authorization to give away
        self._plain.headers.update({"User-Agent": f"clotkit/{__version__}", "Accept-Encoding": "identity"})
        self.credentials, self.wait, self.log, self.dry = credentials, wait, log, dry
        self._chance, self._timeout_s = chance, timeout_s

    @property
    def endpoint(self) -> str:
        """The address that calls go to."""
        return str(self._http._endpoint)

    @functools.cached_property
    def username(self) -> str:
        """Whose credentials these are; of a token, Kaggle is asked."""
        if self.credentials.username:
            return self.credentials.username
        said = self._call("the token", "security", "IntrospectToken", _whole, token=self.credentials.key)
        if not (said.get("active") and said.get("username")):
            raise RemoteError("Kaggle does not know this access token (it is not active): make a new one")
        return str(said["username"])

    # Datasets

    def dataset_status(self, owner: str, slug: str) -> str:
        """The state of a dataset's newest version, like READY; empty where there is no such dataset."""
        try:
            return self._call(
                f"dataset {owner}/{slug}",
                "datasets",
                "GetDatasetStatus",
                lambda said: str(said.get("status") or "NOT_YET_PERSISTED").upper(),
                owner_slug=owner,
                dataset_slug=slug,
            )
        except RemoteMissing:
            return ""

    def dataset(self, owner: str, slug: str) -> Answer:
        """What Kaggle says of a dataset: currentVersionNumber, versions with their notes …; empty if there is none."""
        try:
            where = {"owner_slug": owner, "dataset_slug": slug}
            return self._call(f"dataset {owner}/{slug}", "datasets", "GetDataset", _whole, **where)
        except RemoteMissing:
            return {}

    def dataset_files(self, owner: str, slug: str) -> list[tuple[str, int]]:
        """Name and size in bytes of every file of a dataset's newest version."""

        def read(said: Answer) -> list[tuple[str, int]]:
            if said.get("errorMessage"):
                raise ValueError("an error in place of the list")
            return [(str(file["name"]), int(file.get("totalBytes", 0))) for file in said.get("datasetFiles", [])]

        where = {"owner_slug": owner, "dataset_slug": slug}
        return self._listed(f"dataset {owner}/{slug}", "datasets", "ListDatasetFiles", read, **where)

    def dataset_file(self, owner: str, slug: str, name: str, out: Path) -> None:
        """Fetch one file of a dataset's newest version to `out`. Raises RemoteMissing if it has none of that name."""
        where = {"owner_slug": owner, "dataset_slug": slug, "file_name": name}
        self._ask(
            f"dataset {owner}/{slug}, {name}",
            functools.partial(self._download, "datasets", "DownloadDataset", where, out),
        )

    def create_dataset(self, look: Callable[[], Answer | None], files: list[Answer], **fields: Any) -> Answer:
        """Create a dataset of uploaded `files` [{"token": …}]; `look` says what came of it if the answer is lost."""
        return self._change("the new dataset", "datasets", "CreateDataset", look, {**fields, "files": files})

    def create_dataset_version(self, owner: str, slug: str, look: Callable[[], Answer | None], body: Answer) -> Answer:
        """Make a new version of a dataset; `body` has versionNotes and all its files, as Kaggle writes them."""
        fields = {"owner_slug": owner, "dataset_slug": slug, "body": body}
        return self._change(f"dataset {owner}/{slug}", "datasets", "CreateDatasetVersion", look, fields)

    def start_upload(self, name: str, size_bytes: int) -> tuple[str, str]:
        """Announce a file; the token that stands for it in a dataset, and the signed address to send it to."""

        def read(said: Answer) -> tuple[str, str]:
            return str(said["token"]), self._signed(str(said["createUrl"]))

        fields = {"type": "DATASET", "name": name, "content_length": size_bytes}
        return self._call(f"upload of {name}", "blobs", "StartBlobUpload", read, **fields)

    def put(self, url: str, body: IO[bytes] | bytes, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str]]:
        """Send bytes to a signed address, once: the status and headers that come back. Raises RemoteUnclear if none do.

        A file is sent from where it stands to its end.
        """
        import requests

        try:
            answer = self._plain.put(
                url, data=body, headers=headers, timeout=self._timeout_s, auth=_nobody, allow_redirects=False
            )
        except requests.RequestException as error:
            raise RemoteUnclear(f"the connection failed ({type(error).__name__})") from None
        return answer.status_code, answer.headers

    # Kernels

    def kernel(self, owner: str, slug: str) -> Answer:
        """A kernel's newest version: {"metadata": {…}, "blob": {"source": …}}; empty where there is none."""
        try:
            where = {"user_name": owner, "kernel_slug": slug}
            return self._call(f"kernel {owner}/{slug}", "kernels", "GetKernel", _whole, **where)
        except RemoteMissing:
            return {}

    def save_kernel(self, look: Callable[[], Answer | None], fields: Answer) -> Answer:
        """Push a kernel: a new version of it is made and run. `fields` by the library's names."""
        return self._change(f"the push of {fields['slug']}", "kernels", "SaveKernel", look, fields)

    def session_status(self, owner: str, slug: str, version: int) -> tuple[str, str]:
        """How a kernel's version is doing: a word like RUNNING, and the message of its failure."""
        return self._call(
            f"kernel {owner}/{slug} version {version}",
            "kernels",
            "GetKernelSessionStatus",
            lambda said: (str(said.get("status") or "QUEUED").upper(), str(said.get("failureMessage") or "")),
            **_session(owner, slug, version),
        )

    def session_output(self, owner: str, slug: str, version: int) -> list[tuple[str, str]]:
        """Name and signed address of every file that a kernel's version left."""

        def read(said: Answer) -> list[tuple[str, str]]:
            return [(str(file["fileName"]), self._signed(str(file["url"]))) for file in said.get("files", [])]

        where = _session(owner, slug, version)
        return self._listed(f"output of {owner}/{slug}", "kernels", "ListKernelSessionOutput", read, **where)

    def session_sizes(self, owner: str, slug: str, version: int) -> dict[str, int]:
        """Name and size in bytes of every file that a kernel's version left; 0 is unknown."""

        def read(said: Answer) -> list[tuple[str, int]]:
            return [(str(file["name"]), int(file.get("size") or 0)) for file in said.get("files", [])]

        where = _session(owner, slug, version)
        return dict(self._listed(f"output of {owner}/{slug}", "kernels", "ListKernelFiles", read, **where))

    def session_log(self, owner: str, slug: str, version: int) -> Iterator[str | None]:
        """The log of a kernel's version from its start, piece by piece as it comes; None when that was all of it.

        Where the connection is cut before, it just ends.
        """
        import requests

        url = self._http._get_request_url("kernels/logs/stream", f"{owner}/{slug}")
        pieces, response = self._ask(
            f"log of {owner}/{slug} version {version}", functools.partial(self._open_log, url, version)
        )
        yield from pieces
        if response is None:
            yield None
            return
        try:
            with response:
                for line in response.iter_lines():
                    if line.strip() == b"data: END_OF_LOG":
                        yield None
                        return
                    if line.startswith(b"data:"):
                        yield _piece(json.loads(line.removeprefix(b"data:")))
        except (requests.RequestException, ValueError, TypeError, KeyError):
            return

    def quota(self) -> Answer:
        """What is left of the weekly hours: gpuQuota {timeUsed, totalTimeAllowed} …"""
        return self._call("the quota", "kernels", "GetAcceleratorQuotaStatistics", _whole)

    def fetch(self, url: str, out: Path, what: str) -> int:
        """Write what a signed address gives to `out`, and return its size in bytes. A web page is refused."""
        return self._ask(what, functools.partial(self._get, url, out, what))

    # Competitions

    def competition(self, slug: str) -> Answer:
        """What Kaggle says of a competition: userHasEntered, deadline, isKernelsSubmissionsOnly …"""
        return self._call(slug, "competitions", "GetCompetition", _whole, competition_name=slug)

    def limits(self, slug: str) -> Answer:
        """How many submissions are allowed: numToday, numAllowedNow …"""
        return self._call(slug, "competitions", "GetSubmissionLimits", _whole, competition_name=slug)

    def submit(self, look: Callable[[], Answer | None], fields: Answer) -> Answer:
        """Submit a kernel's version to a code competition."""
        what = str(fields["competition_name"])
        return self._change(what, "competitions", "CreateCodeSubmission", look, fields)

    def submission(self, ref: int) -> Answer:
        """One submission, by the number that Kaggle gave it: status, publicScore (a text), errorDescription …"""
        return self._call(f"submission {ref}", "competitions", "GetSubmission", _whole, ref=ref)

    def submissions(self, slug: str) -> list[Answer]:
        """The user's submissions to a competition, the newest first."""

        def read(said: Answer) -> list[Answer]:
            return [dict(one) for one in said.get("submissions", [])]

        return self._listed(f"{slug}, submissions", "competitions", "ListSubmissions", read, competition_name=slug)

    def sizes(self, slug: str) -> dict[str, int]:
        """List a competition's files with their sizes in bytes; 0 is unknown."""

        def read(said: Answer) -> list[tuple[str, int]]:
            return [(str(file["name"]), int(file.get("totalBytes", 0))) for file in said.get("files", [])]

        what = f"{slug}, the list of files"
        sizes = dict(self._listed(what, "competitions", "ListDataFiles", read, competition_name=slug))
        if not sizes:
            raise RemoteError(f"{slug}: Kaggle lists no files: check the competition's slug, or run again later")
        return sizes

    def data_file(self, slug: str, name: str, out: Path) -> int:
        """Fetch one of a competition's files to `out` as it comes, perhaps zipped; its size in bytes."""
        where = {"competition_name": slug, "file_name": name}
        call = functools.partial(self._download, "competitions", "DownloadDataFile", where, out)
        return self._ask(f"{slug}, {name}", call)

    # How calls are made

    def _call(self, what: str, room: str, method: str, read: Callable[[Answer], T], **fields: Any) -> T:
        request = _request(room, method, fields)
        return self._ask(what, lambda: read(self._send(room, method, request, _Json)))

    def _listed(self, what: str, room: str, method: str, read: Callable[[Answer], list[T]], **fields: Any) -> list[T]:
        def page(said: Answer) -> tuple[list[T], str]:
            return read(said), str(said.get("nextPageToken") or "")

        found: list[T] = []
        token, seen = "", {""}
        while True:
            more, token = self._call(what, room, method, page, **fields, page_size=PAGE, page_token=token)
            found += more
            if not token:
                return found
            if token in seen:
                raise RemoteError(f"{what}: Kaggle's list goes in a circle of {len(seen)}: run again later")
            seen.add(token)

    def _change(self, what: str, room: str, method: str, look: Callable[[], Answer | None], fields: Answer) -> Answer:
        """A call that may not be made twice; where its answer is lost, `look` says what came of it (None: nothing)."""
        request = _request(room, method, fields)
        if self.dry:
            shown = json.dumps(_shown(type(request).to_dict(request)), ensure_ascii=False)
            self.log(f"would send {room}.{SERVICES[room][0]}/{method} {shown}")
            raise DryRun
        for sent in range(1, SENDS + 1):
            try:
                return dict(self._ask(what, lambda: self._send(room, method, request, _Json), reads=False))
            except RemoteUnclear as error:
                lost = error
            except RemoteError:
                found = look() if sent > 1 else None  # "exists already" may be of the time before
                if found is None:
                    raise
                return found
            self.log(f"{lost}; looking whether it was done")
            found = self._look(what, look)
            if found is not None:
                self.log(f"{what}: it was done")
                return found
        raise RemoteError(f"{lost} (sent {SENDS} times, and Kaggle shows nothing of it)")

    def _look(self, what: str, look: Callable[[], Answer | None]) -> Answer | None:
        for pause_s in LOOKS_S:
            self.wait(pause_s)
            try:
                found = look()
            except RemoteError as error:
                raise RemoteUnclear(
                    f"{what}: the answer is lost, and Kaggle does not say what came of it ({error}); "
                    "the same command looks again before it sends anything"
                ) from None
            if found is not None:
                return found
        return None

    def _send(self, room: str, method: str, request: Any, kind: Any) -> Any:
        with self._client:
            return self._http.call(f"{room}.{SERVICES[room][0]}", method, request, kind)

    def _ask(self, what: str, call: Callable[[], T], reads: bool = True) -> T:
        """Make a call, and again while that may help: one that does not only read, only if it had no effect."""
        import requests

        attempt = 1
        while True:
            try:
                return call()
            # The others: what the library raises on an answer that is not of its API.
            except (requests.RequestException, ValueError, TypeError, KeyError, AttributeError) as error:
                failed = _failure(error, what, attempt, self._chance())
            if failed.pause_s is None or attempt == TRIES or not (reads or failed.harmless):
                raise failed.error  # without its cause, whose text may have a signed address
            self.wait(failed.pause_s)
            attempt += 1

    def _download(self, room: str, method: str, fields: Answer, out: Path) -> int:
        from kagglesdk.common.types.http_redirect import HttpRedirect

        with self._send(room, method, _request(room, method, fields), HttpRedirect) as response:
            if "text/html" in response.headers.get("Content-Type", ""):
                raise ValueError("a web page")
            return _write(response, out)

    def _get(self, url: str, out: Path, what: str) -> int:
        with self._plain.get(url, stream=True, timeout=self._timeout_s, auth=_nobody) as response:
            response.raise_for_status()
            kind = response.headers.get("Content-Type", "")
            if "html" in kind and not what.endswith((".html", ".htm")):
                raise ValueError("a web page")
            return _write(response, out)

    def _open_log(self, url: str, version: int) -> tuple[list[str], Any]:
        """The log's pieces when the run is over; while it is on, none of them and the open stream."""
        session = self._http._session
        response = session.get(
            url,
            params={"versionLabel": f"v{version}"},
            headers={"Accept": "text/event-stream"},
            stream=True,
            timeout=self._timeout_s,
        )
        response.raise_for_status()
        if "event-stream" in response.headers.get("Content-Type", ""):
            return [], response
        with response:
            return [_piece(event) for event in response.json()] if response.content.strip() else [], None

    def _signed(self, url: str) -> str:
        """A signed address as it came. Raises RemoteError if it leads from a server on this machine to another."""
        if _on_this_machine(self.endpoint) and not _on_this_machine(url):
            raise RemoteError("Kaggle's address is on this machine, a file's address is not: refused")
        return url


class _Json:
    """What the library is told to make of an answer: the object itself."""

    @staticmethod
    def prepare_from(response: Any) -> Answer:
        if "application/json" not in response.headers.get("Content-Type", ""):
            raise ValueError("no JSON")
        said = response.json()
        if not isinstance(said, dict):
            raise TypeError("no object")
        return said


@dataclass(frozen=True)
class _Failed:
    """A call that failed: what to tell, how long to wait before another try, and whether it surely had no effect."""

    error: RemoteError
    pause_s: float | None = None  # None: another try cannot help
    harmless: bool = False


def _whole(said: Answer) -> Answer:
    return said


def _session(owner: str, slug: str, version: int) -> Answer:
    return {"user_name": owner, "kernel_slug": slug, "version_label": f"v{version}"}


def _piece(event: Answer) -> str:
    return str(event["data"])


def _nobody(request: Any) -> Any:
    """The authorization of a signed address: none, not of the session and not of a .netrc."""
    return request


def _on_this_machine(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _request(room: str, method: str, fields: Answer) -> Any:
    """One of the library's requests, with these fields; a nested object is written as Kaggle has it."""
    module = importlib.import_module(f"kagglesdk.{room}.types.{SERVICES[room][1]}")
    cls = getattr(module, f"{method}Request" if room == "security" else f"Api{method}Request")
    names = {field.field_name: field.json_name for field in cls._fields}
    return cls.from_dict({names[name]: value for name, value in fields.items() if value is not None})


def _shown(value: Any) -> Any:
    """A request's body as a dry run shows it: long texts as bytes and sha256."""
    if isinstance(value, dict):
        return {name: _shown(entry) for name, entry in value.items()}
    if isinstance(value, str) and len(value) > SHOWN:
        return f"{len(value.encode()):,} bytes, sha256 {hashlib.sha256(value.encode()).hexdigest()}"
    return value


def _write(response: Any, out: Path) -> int:
    with out.open("wb") as file:
        for chunk in response.iter_content(CHUNK):  # raises if the body is shorter than its Content-Length
            file.write(chunk)
        return file.tell()


def _failure(error: Exception, what: str, attempt: int, chance: float) -> _Failed:
    import requests
    from urllib3.exceptions import NewConnectionError

    backoff_s = 2.0**attempt * (0.5 + chance)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        error.response.close()
        return _refusal(error.response, str(error), what, backoff_s, chance)
    if isinstance(error, requests.ConnectionError | requests.Timeout | requests.exceptions.ChunkedEncodingError):
        said = f"the connection failed {attempt} times ({type(error).__name__}): check it, then run again"
        refused = isinstance(getattr(error.args[0] if error.args else None, "reason", None), NewConnectionError)
        never_sent = refused or isinstance(error, requests.ConnectTimeout)
        return _Failed(RemoteUnclear(f"{what}: {said}"), backoff_s, harmless=never_sent)
    said = f"not an answer of Kaggle's API ({type(error).__name__}), perhaps a web page: run again later"
    return _Failed(RemoteUnclear(f"{what}: {said}"), backoff_s)


def _refusal(response: Any, said: str, what: str, backoff_s: float, chance: float) -> _Failed:
    # A no may come as JSON under HTTP 200; the library has read it then.
    status = response.status_code if response.status_code >= 400 else int(response.json()["code"])
    said = " ".join(said.partition(" for url: ")[0].split())[:200]  # the address of a file is signed: a secret
    if status == 429:
        asked_s = _retry_after_s(response.headers.get("Retry-After", ""))
        pause_s = backoff_s if asked_s is None else min(asked_s, LONGEST_WAIT_S) + chance
        return _Failed(
            RemoteError(f"{what}: Kaggle asks to slow down (429): run again later"),
            pause_s,
            harmless=True,
        )
    if status in (408, 500, 502, 503, 504) or status > 504:
        return _Failed(RemoteUnclear(f"{what}: Kaggle answered {status} ({said}): run again later"), backoff_s)
    if response.history:  # after a redirect it is the storage that refuses: the next try gets a fresh address
        return _Failed(RemoteError(f"{what}: Kaggle answered {status} ({said}): run again later"), backoff_s)
    if status == 404 or (status == 403 and what.startswith("kernel ")):  # Kaggle says 403 of a kernel that is not there
        return _Failed(RemoteMissing(f"{what}: Kaggle has no such thing ({status}, {said}): check the name"))
    return _Failed(RemoteError(f"{what}: {_advice(status, said, what)}"))


def _advice(status: int, said: str, what: str) -> str:
    if status not in (401, 403):
        return f"Kaggle answered {status} ({said}): see its page"
    if what.startswith(("dataset", "kernel", "upload", "output", "log", "the ", "submission")):
        return f"Kaggle refused ({status}, {said}): the credentials are not valid, or this is not yours: check both"
    slug = what.partition(",")[0]
    return (
        f"Kaggle refused ({status}, {said}): the credentials are not valid, or the rules not accepted: "
        f"accept them once at kaggle.com/competitions/{slug}/rules, then run again"
    )


def _retry_after_s(said: str) -> float | None:
    """The seconds that a Retry-After header asks for: a number, or a date; None where it says neither."""
    if said.isdecimal():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
