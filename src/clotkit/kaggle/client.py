"""Call Kaggle's API: the only module that does, through Kaggle's own client library.

Importing this module imports neither that library nor requests; the functions that need them do.

A read is repeated when it fails in a way that may pass. A change is repeated only when it certainly had no effect: if
its answer is lost, the client first looks up whether Kaggle has carried it out.
"""

import contextlib
import functools
import hashlib
import importlib
import ipaddress
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlsplit

from clotkit import __version__
from clotkit.errors import RemoteError, RemoteMissing, RemoteUnclear, UsageError
from clotkit.kaggle.failures import Subject, check_proxy, failure
from clotkit.kaggle.login.credentials import NEW_TOKEN, CredentialKind, Credentials, candidates
from clotkit.kaggle.login.oauth import LASTS_S, LOGIN_AGAIN, Login, save_login
from clotkit.kaggle.states import DatasetState
from clotkit.progress import Log
from clotkit.reasons import RemoteKind

T = TypeVar("T")
Answer: TypeAlias = dict[str, Any]  # the JSON object that came, with Kaggle's own field names
Lookup: TypeAlias = Callable[[], Answer | None]  # what came of a change whose answer was lost; None: nothing

ENDPOINT = "CLOTKIT_KAGGLE_ENDPOINT"  # the environment variable with the address of a test server on this machine
SERVICES = {  # package of the library: its service, and the module with its request classes
    "blobs": ("BlobApiService", "blob_api_service"),
    "competitions": ("CompetitionApiService", "competition_api_service"),
    "datasets": ("DatasetApiService", "dataset_api_service"),
    "kernels": ("KernelsApiService", "kernels_api_service"),
    "models": ("ModelApiService", "model_api_service"),
    "security": ("OAuthService", "oauth_service"),
    "users": ("AccountService", "account_service"),
}
BARE_NAMES = ("security", "users")  # packages whose request classes have no Api before their names
# Kinds of errors that mean that Kaggle does not accept a token.
NOT_ACCEPTED = (RemoteKind.CREDENTIALS, RemoteKind.FORBIDDEN, RemoteKind.MISSING, RemoteKind.REFUSED)
FRAMEWORK = "MODEL_FRAMEWORK_"  # before the names of frameworks
CHUNK_BYTES = 2**20  # of a file in memory at a time
PAGE_SIZE = 200  # entries per page of a listing: the most that Kaggle's client documents
TRIES = 5  # of a call, the first included
CHANGE_TRIES = 3  # of a change, each after a lookup found that the last one had no effect
LOOKUP_WAITS_S = (2.0, 5.0, 10.0, 20.0, 30.0, 30.0, 30.0)  # before each lookup of a lost change
TIMEOUT_S = (10.0, 60.0)  # to connect; between two pieces of an answer
SHOWN_CHARACTERS = 200  # of a text in a dry run; a longer one is shown as its size and sha256


class Variation(NamedTuple):
    """One variation of a model on Kaggle; in addresses and mounts it is owner/model/framework/variation."""

    owner: str
    model: str
    framework: str  # Kaggle's word in addresses, like keras or pyTorch
    variation: str

    def __str__(self) -> str:
        return "/".join(filter(None, self))

    @property
    def without_owner(self) -> str:
        """The variation as model/framework/variation, as rehearsal.json has it."""
        return "/".join(self[1:])

    @property
    def fields(self) -> Answer:
        """The fields of a request that name it. Raises UsageError for a framework that Kaggle does not have."""
        return {
            "owner_slug": self.owner, "model_slug": self.model, "framework": framework_name(self.framework),
            "instance_slug": self.variation,
        }  # fmt: skip


def framework_name(word: str) -> str:
    """Return the name of a framework in Kaggle's API, by its word in addresses. Raises UsageError."""
    from kagglesdk.models.types.model_enums import ModelFramework

    names = {name.removeprefix(FRAMEWORK).replace("_", "").lower(): name for name in ModelFramework.__members__}
    del names["unspecified"]
    if word.lower() not in names:
        raise UsageError(f"framework is {word!r}; one of {', '.join(sorted(names))} is needed")
    return str(names[word.lower()])


class DryRun(Exception):  # noqa: N818 - not an error: a dry run ends where something would be changed
    """A dry run has shown the request that it would send, and ends here."""


class Kaggle:
    """Kaggle's API for one user.

    Methods return the JSON objects of Kaggle's answers; a field that is missing there has its default. Every call
    raises RemoteError, with a one-line message that contains no secret, if Kaggle cannot be reached or refuses.

    Args:
        credentials: A token, a user name and a key, or a login, whose access token is renewed when it expires.
        endpoint: An address that replaces Kaggle's; it must be on this machine. CLOTKIT_KAGGLE_ENDPOINT is read when
            this is None, and must be on this machine too.
        wait: Sleeps between two tries, in seconds.
        timeout_s: Seconds to connect, and seconds between two pieces of an answer.
        chance: Draws the jitter of a wait, from 0 to 1.
        log: Takes a line about every wait and lookup.
        dry: Whether a call that would change something is only logged; it then raises DryRun.
    """

    def __init__(
        self,
        credentials: Credentials,
        endpoint: str | None = None,
        wait: Callable[[float], None] = time.sleep,
        timeout_s: tuple[float, float] = TIMEOUT_S,
        chance: Callable[[], float] = random.random,
        log: Log = lambda _: None,
        dry: bool = False,
    ) -> None:
        import requests
        from kagglesdk import KaggleClient, KaggleEnv

        endpoint = endpoint or os.environ.get(ENDPOINT)
        if endpoint is not None and not _is_local(endpoint):
            raise UsageError(f"{ENDPOINT}: {urlsplit(endpoint).hostname!r} is not on this machine: unset it")
        # Like Kaggle's own client: anything but exactly LOCALHOST is production.
        local = endpoint is not None or os.environ.get("KAGGLE_API_ENVIRONMENT") == "LOCALHOST"
        self._client = KaggleClient(
            env=KaggleEnv.LOCAL if local else KaggleEnv.PROD,
            # Whatever the kind: without a token the library searches for one.
            api_token=credentials.key or "none",
            user_agent=f"clotkit/{__version__}",
        )
        self._http = self._client.http_client()
        if endpoint is not None:
            self._http._endpoint = endpoint.rstrip("/")
        self._http._init_session()
        session = self._http._session
        if credentials.username:
            session.auth = (credentials.username, credentials.key)
        session.headers["Accept-Encoding"] = "identity"  # so that lengths are those of the files
        session.send = functools.partial(session.send, timeout=timeout_s)  # the library's calls have no timeout
        self._plain = requests.Session()  # for signed addresses: it has no authorization to leak
        self._plain.headers.update({"User-Agent": f"clotkit/{__version__}", "Accept-Encoding": "identity"})
        self.credentials, self.wait, self.log, self.dry = credentials, wait, log, dry
        self._login = credentials.login
        self._chance, self._timeout_s = chance, timeout_s

    @property
    def endpoint(self) -> str:
        """The address that calls go to."""
        return str(self._http._endpoint)

    @functools.cached_property
    def username(self) -> str:
        """The user whom the credentials belong to; for a token, Kaggle is asked.

        The access token of a login is renewed first if it is about to expire, or once if Kaggle has ended it early.
        """
        if self._known_user:
            return self._known_user
        renewed = self._login is None or (not self._login.fresh and self._renew(self._login))
        username = self._known_user or self._token_user()
        if not username and self._login and not renewed:
            self._renew(self._login)
            username = self._known_user or self._token_user()
        if not username:
            where = self.credentials.source or "the access token"
            raise RemoteError(f"{where}: expired or revoked, Kaggle does not know it: {NEW_TOKEN}", RemoteKind.INACTIVE)
        return username

    @property
    def _known_user(self) -> str:
        """The user name that the credentials hold, empty if they hold none."""
        return self.credentials.username or (self._login.username if self._login else "")

    def _token_user(self) -> str:
        """Ask Kaggle for the user of the access token; empty for one that is not active."""
        # Kaggle answers 400, 403 or 404 for a token that it does not know, or that it is not active.
        try:
            answer = self._call(Subject("the token"), "security", "IntrospectToken", _as_is, token=self._token)
        except RemoteError as error:
            if error.kind not in NOT_ACCEPTED:
                raise
            return ""
        return str(answer.get("username") or "") if answer.get("active") else ""

    @property
    def secrets(self) -> list[str]:
        """The texts that may be in no file that is published."""
        return [self.credentials.key, *([self._token, self._login.refresh_token] if self._login else [])]

    @property
    def _token(self) -> str:
        """The access token that calls send now."""
        return self._login.access_token if self._login else self.credentials.key

    # Datasets

    def dataset_status(self, owner: str, slug: str) -> DatasetState:
        """Return the state of a dataset's newest version; ABSENT if there is no such dataset.

        Kaggle answers 404 or 403 for a dataset of somebody else, and 403 for one of one's own that does not exist yet,
        so such an answer alone decides nothing: Kaggle's record and its list of files do.
        """
        with contextlib.suppress(RemoteMissing):
            return self._call(
                _dataset(owner, slug),
                "datasets",
                "GetDatasetStatus",
                lambda answer: DatasetState.read(str(answer.get("status") or "")),
                owner_slug=owner,
                dataset_slug=slug,
            )
        record = self.dataset(owner, slug)
        if record:
            newest = max(record.get("versions") or [{}], key=lambda one: int(one.get("versionNumber") or 0))
            shows = "READY" if record.get("currentVersionNumber") else ""
            return DatasetState.read(str(newest.get("status") or shows))
        try:
            listed = owner != self.username and self.dataset_files(owner, slug)
        except RemoteError as error:
            if error.kind not in (RemoteKind.MISSING, RemoteKind.FORBIDDEN):
                raise
            listed = []
        return DatasetState.READY if listed else DatasetState.ABSENT

    def dataset(self, owner: str, slug: str) -> Answer:
        """Return Kaggle's record of a dataset (currentVersionNumber, versions, …); empty if there is none."""
        try:
            fields = {"owner_slug": owner, "dataset_slug": slug}
            return self._call(_dataset(owner, slug), "datasets", "GetDataset", _as_is, **fields)
        except RemoteMissing:
            return {}

    def dataset_files(self, owner: str, slug: str) -> list[tuple[str, int]]:
        """Return the name and the size in bytes of every file of a dataset's newest version."""

        def read(answer: Answer) -> list[tuple[str, int]]:
            if answer.get("errorMessage"):
                raise ValueError("an error in place of the list")
            return [(str(file["name"]), int(file.get("totalBytes", 0))) for file in answer.get("datasetFiles", [])]

        fields = {"owner_slug": owner, "dataset_slug": slug}
        return self._list(Subject(f"dataset {owner}/{slug}"), "datasets", "ListDatasetFiles", read, **fields)

    def dataset_file(self, owner: str, slug: str, name: str, out: Path) -> None:
        """Fetch one file of a dataset's newest version to `out`. Raises RemoteMissing if there is none."""
        fields = {"owner_slug": owner, "dataset_slug": slug, "file_name": name}
        self._retry(
            Subject(f"dataset {owner}/{slug}, {name}", missing_is_403=True),
            functools.partial(self._download, "datasets", "DownloadDataset", fields, out),
        )

    def create_dataset(self, lookup: Lookup, files: list[Answer], **fields: Any) -> Answer:
        """Create a dataset of uploaded `files` [{"token": …}]; `lookup` finds it if the answer is lost."""
        subject = Subject("the new dataset")
        return self._change(subject, "datasets", "CreateDataset", lookup, {**fields, "files": files})

    def create_dataset_version(self, owner: str, slug: str, lookup: Lookup, body: Answer) -> Answer:
        """Create a new version of a dataset; `body` has versionNotes and all its files, in Kaggle's spelling."""
        fields = {"owner_slug": owner, "dataset_slug": slug, "body": body}
        return self._change(Subject(f"dataset {owner}/{slug}"), "datasets", "CreateDatasetVersion", lookup, fields)

    def start_upload(self, name: str, size_bytes: int, kind: str = "DATASET") -> tuple[str, str]:
        """Announce a file of a dataset or MODEL; return its token, and the address to send it to."""

        def read(answer: Answer) -> tuple[str, str]:
            return str(answer["token"]), self._check_signed(str(answer["createUrl"]))

        fields = {"type": kind, "name": name, "content_length": size_bytes}
        return self._call(Subject(f"upload of {name}"), "blobs", "StartBlobUpload", read, **fields)

    def put(self, url: str, body: IO[bytes] | bytes, headers: Mapping[str, str]) -> tuple[int, Mapping[str, str]]:
        """Send bytes to a signed address, once, and return the status and the headers of the answer.

        A file is sent from its current position to its end. Raises RemoteUnclear if no answer comes.
        """
        import requests

        try:
            answer = self._plain.put(
                url, data=body, headers=headers, timeout=self._timeout_s, auth=_no_auth, allow_redirects=False
            )
        except requests.RequestException as error:
            raise RemoteUnclear(f"the connection failed ({type(error).__name__})") from None
        return answer.status_code, answer.headers

    # Models

    def model(self, owner: str, slug: str) -> Answer:
        """Return Kaggle's record of a model; empty if there is none."""
        return self._found(Variation(owner, slug, "", ""), "GetModel", {"owner_slug": owner, "model_slug": slug})

    def variation(self, place: Variation) -> Answer:
        """Return Kaggle's record of a model's variation (versionNumber, …); empty if there is none."""
        return self._found(place, "GetModelInstance", place.fields)

    def _found(self, place: Variation, method: str, fields: Answer) -> Answer:
        try:
            return self._call(Subject(f"model {place}", missing_is_403=True), "models", method, _as_is, **fields)
        except RemoteMissing:
            return {}

    def model_files(self, place: Variation, version: int) -> list[tuple[str, int]]:
        """Return the name and the size in bytes of every file of a variation's version."""

        def read(answer: Answer) -> list[tuple[str, int]]:
            return [(str(file["name"]), int(file.get("size") or 0)) for file in answer.get("files", [])]

        fields = place.fields | {"version_number": version}
        return self._list(Subject(f"model {place}"), "models", "ListModelInstanceVersionFiles", read, **fields)

    def model_file(self, place: Variation, version: int, name: str, out: Path) -> None:
        """Fetch one file of a variation's version to `out`. Raises RemoteMissing if there is none."""
        fields = place.fields | {"version_number": version, "path": name}
        self._retry(
            Subject(f"model {place}, {name}", missing_is_403=True),
            functools.partial(self._download, "models", "DownloadModelInstanceVersion", fields, out),
        )

    def create_model(self, lookup: Lookup, **fields: Any) -> Answer:
        """Create a model without a variation; `lookup` finds it if the answer is lost."""
        return self._change(Subject("the new model"), "models", "CreateModel", lookup, fields)

    def create_variation(self, place: Variation, lookup: Lookup, body: Answer) -> Answer:
        """Create a model's variation with its first version; `body` is in Kaggle's spelling."""
        body = {**body, "instanceSlug": place.variation, "framework": place.fields["framework"]}
        fields = {"owner_slug": place.owner, "model_slug": place.model, "body": body}
        return self._change(Subject(f"model {place}"), "models", "CreateModelInstance", lookup, fields)

    def create_model_version(self, place: Variation, lookup: Lookup, body: Answer) -> Answer:
        """Create a new version of a variation; `body` has versionNotes and files, in Kaggle's spelling."""
        fields = place.fields | {"body": body}
        return self._change(Subject(f"model {place}"), "models", "CreateModelInstanceVersion", lookup, fields)

    # Kernels

    def get_kernel(self, owner: str, slug: str) -> Answer:
        """Return a kernel's newest version: {"metadata": {…}, "blob": {"source": …}}; empty if there is none."""
        try:
            fields = {"user_name": owner, "kernel_slug": slug}
            return self._call(_kernel(f"{owner}/{slug}"), "kernels", "GetKernel", _as_is, **fields)
        except RemoteMissing:
            return {}

    def save_kernel(self, lookup: Lookup, fields: Answer) -> Answer:
        """Push a kernel, which makes and runs a new version; `fields` have the library's names.

        The script travels in the request's JSON, as `text`; it is no upload.
        """
        return self._change(Subject(f"the push of {fields['slug']}"), "kernels", "SaveKernel", lookup, fields)

    def session_status(self, owner: str, slug: str, version: int) -> tuple[str, str]:
        """Return the status of a kernel's version, a word like RUNNING, and the message of its failure."""
        return self._call(
            _kernel(f"{owner}/{slug} version {version}"),
            "kernels",
            "GetKernelSessionStatus",
            lambda answer: (str(answer.get("status") or "QUEUED").upper(), str(answer.get("failureMessage") or "")),
            **_session_fields(owner, slug, version),
        )

    def session_output(self, owner: str, slug: str, version: int) -> list[tuple[str, str]]:
        """Return the name and the signed address of every output file of a kernel's version."""

        def read(answer: Answer) -> list[tuple[str, str]]:
            return [(str(file["fileName"]), self._check_signed(str(file["url"]))) for file in answer.get("files", [])]

        fields = _session_fields(owner, slug, version)
        return self._list(Subject(f"output of {owner}/{slug}"), "kernels", "ListKernelSessionOutput", read, **fields)

    def session_sizes(self, owner: str, slug: str, version: int) -> dict[str, int]:
        """Return the size in bytes of every output file of a kernel's version, by its name; 0 is unknown."""

        def read(answer: Answer) -> list[tuple[str, int]]:
            return [(str(file["name"]), int(file.get("size") or 0)) for file in answer.get("files", [])]

        fields = _session_fields(owner, slug, version)
        return dict(self._list(Subject(f"output of {owner}/{slug}"), "kernels", "ListKernelFiles", read, **fields))

    def session_log(self, owner: str, slug: str, version: int) -> Iterator[str | None]:
        """Yield the log of a kernel's version from its start, piece by piece as it comes, and None at its end.

        If the connection is cut before, the generator ends without a None.
        """
        import requests

        url = self._http._get_request_url("kernels/logs/stream", f"{owner}/{slug}")
        pieces, response = self._retry(
            Subject(f"log of {owner}/{slug} version {version}"), functools.partial(self._open_log, url, version)
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
                        yield _log_piece(json.loads(line.removeprefix(b"data:")))
        except (requests.RequestException, ValueError, TypeError, KeyError):
            return

    def quota(self) -> Answer:
        """Return the use of the weekly hours: gpuQuota {timeUsed, totalTimeAllowed}, and others."""
        return self._call(Subject("the quota"), "kernels", "GetAcceleratorQuotaStatistics", _as_is)

    def fetch(self, url: str, out: Path, name: str) -> int:
        """Write the file `name` at a signed address to `out`, and return its size in bytes.

        Raises RemoteError if a web page comes in place of a file that is none.
        """
        return self._retry(Subject(name), functools.partial(self._get, url, out, name))

    # Competitions

    def competition(self, slug: str) -> Answer:
        """Return Kaggle's record of a competition: userHasEntered, deadline, isKernelsSubmissionsOnly, etc."""
        return self._call(Subject(slug, slug), "competitions", "GetCompetition", _as_is, competition_name=slug)

    def limits(self, slug: str) -> Answer:
        """Return the numbers of submissions that are made and allowed: numToday, numAllowedNow, etc."""
        return self._call(Subject(slug, slug), "competitions", "GetSubmissionLimits", _as_is, competition_name=slug)

    def submit(self, lookup: Lookup, fields: Answer) -> Answer:
        """Submit a kernel's version to a code competition; `lookup` finds it if the answer is lost."""
        slug = str(fields["competition_name"])
        return self._change(Subject(slug, slug), "competitions", "CreateCodeSubmission", lookup, fields)

    def submission(self, ref: int) -> Answer:
        """Return the submission with Kaggle's number `ref`: status, publicScore (a text), etc."""
        return self._call(Subject(f"submission {ref}"), "competitions", "GetSubmission", _as_is, ref=ref)

    def submissions(self, slug: str) -> list[Answer]:
        """Return the user's submissions to a competition, the newest first."""

        def read(answer: Answer) -> list[Answer]:
            return [dict(one) for one in answer.get("submissions", [])]

        subject = Subject(f"{slug}, submissions", slug)
        return self._list(subject, "competitions", "ListSubmissions", read, competition_name=slug)

    def sizes(self, slug: str) -> dict[str, int]:
        """Return the size in bytes of every file of a competition, by its name; 0 is unknown."""

        def read(answer: Answer) -> list[tuple[str, int]]:
            return [(str(file["name"]), int(file.get("totalBytes", 0))) for file in answer.get("files", [])]

        subject = Subject(f"{slug}, the list of files", slug)
        sizes = dict(self._list(subject, "competitions", "ListDataFiles", read, competition_name=slug))
        if not sizes:
            raise RemoteError(
                f"{slug}: Kaggle lists no files: check the competition's slug, or run again later", RemoteKind.MISSING
            )
        return sizes

    def data_file(self, slug: str, name: str, out: Path) -> int:
        """Fetch one file of a competition to `out` as it comes, perhaps zipped, and return its size in bytes."""
        fields = {"competition_name": slug, "file_name": name}
        call = functools.partial(self._download, "competitions", "DownloadDataFile", fields, out)
        return self._retry(Subject(f"{slug}, {name}", slug), call)

    # How calls are made

    def _call(self, subject: Subject, service: str, method: str, read: Callable[[Answer], T], **fields: Any) -> T:
        """Make a call that only reads, with retries, and return what `read` makes of its answer."""
        request = _request(service, method, fields)
        return self._retry(subject, lambda: read(self._send(service, method, request, _Json)))

    def _list(
        self, subject: Subject, service: str, method: str, read: Callable[[Answer], list[T]], **fields: Any
    ) -> list[T]:
        """Make a call for every page of a listing, and return the entries of all pages."""

        def page(answer: Answer) -> tuple[list[T], str]:
            return read(answer), str(answer.get("nextPageToken") or "")

        entries: list[T] = []
        token, seen = "", {""}
        while True:
            more, token = self._call(subject, service, method, page, **fields, page_size=PAGE_SIZE, page_token=token)
            entries += more
            if not token:
                return entries
            if token in seen:
                raise RemoteError(
                    f"{subject.name}: Kaggle repeated a page token after {len(seen)} pages: run again later",
                    RemoteKind.MISMATCH,
                )
            seen.add(token)

    def _change(self, subject: Subject, service: str, method: str, lookup: Lookup, fields: Answer) -> Answer:
        """Make a call that must not take effect twice; if its answer is lost, `lookup` finds the result."""
        request = _request(service, method, fields)
        if self.dry:
            shown = json.dumps(_shortened(type(request).to_dict(request)), ensure_ascii=False)
            self.log(f"would send {service}.{SERVICES[service][0]}/{method} {shown}")
            raise DryRun
        for sent in range(1, CHANGE_TRIES + 1):
            try:
                return dict(self._retry(subject, lambda: self._send(service, method, request, _Json), changes=True))
            except RemoteUnclear as error:
                lost = error
            except RemoteError:
                result = lookup() if sent > 1 else None  # "exists already" may be about the try before
                if result is None:
                    raise
                return result
            self.log(f"{lost}; checking whether Kaggle carried it out")
            result = self._look_up(subject, lookup)
            if result is not None:
                self.log(f"{subject.name}: Kaggle carried it out")
                return result
        raise RemoteError(f"{lost} (sent {CHANGE_TRIES} times, without effect)", RemoteKind.UNCLEAR)

    def _look_up(self, subject: Subject, lookup: Lookup) -> Answer | None:
        """Look for the effect of a change until it shows; None if it does not show in time."""
        for pause_s in LOOKUP_WAITS_S:
            self.wait(pause_s)
            try:
                result = lookup()
            except RemoteError as error:
                raise RemoteUnclear(
                    f"{subject.name}: the answer is lost, and the check whether it was carried out failed ({error}); "
                    "run the same command again: it checks before it sends anything"
                ) from None
            if result is not None:
                return result
        return None

    def _send(self, service: str, method: str, request: Any, response_type: Any) -> Any:
        """Send the request: the library's KaggleHttpClient.call makes the HTTP request."""
        with self._client:
            return self._http.call(f"{service}.{SERVICES[service][0]}", method, request, response_type)

    def _retry(self, subject: Subject, call: Callable[[], T], changes: bool = False) -> T:
        """Make a call, up to TRIES times while that may help; one that `changes`, only if it had no effect."""
        import requests

        check_proxy(requests.utils.select_proxy(self.endpoint, requests.utils.get_environ_proxies(self.endpoint)) or "")
        login = self._login
        renewed = login is None or (not login.fresh and self._renew(login))
        attempt = 1
        while True:
            try:
                return call()
            # The other exceptions are what the library raises on an answer that is not of its API.
            except (requests.RequestException, ValueError, TypeError, KeyError, AttributeError) as error:
                failed = failure(error, subject, attempt, self._chance())
            if failed.error.kind is RemoteKind.CREDENTIALS and login and not renewed:
                renewed = self._renew(login)  # Kaggle may end a token before its time
                continue
            if failed.pause_s is None or attempt == TRIES or (changes and not failed.no_effect):
                raise failed.error  # without its cause, whose text may contain a signed address
            self.wait(failed.pause_s)
            attempt += 1

    def _renew(self, login: Login) -> bool:
        """Get a new access token for the login, save it, and return True."""
        session = self._http._session
        self._login, session.auth = None, _no_auth  # the call below needs no token, and renews none
        fields = {"refresh_token": login.refresh_token, "api_version": "API_VERSION_V1"}
        fields |= {"expiration_duration": f"{LASTS_S}s"}
        try:
            renewed = self._call(Subject("the login"), "users", "GenerateAccessToken", login.renewed, **fields)
        except RemoteError as error:
            if error.kind not in NOT_ACCEPTED:
                raise
            raise RemoteError(
                f"{login.path}: the login has expired or was revoked: {LOGIN_AGAIN}", RemoteKind.INACTIVE
            ) from None
        finally:
            self._login = login
        self._login = renewed
        session.auth = self._http.BearerAuth(renewed.access_token)
        save_login(renewed, self.log)
        return True

    def _download(self, service: str, method: str, fields: Answer, out: Path) -> int:
        from kagglesdk.common.types.http_redirect import HttpRedirect

        with self._send(service, method, _request(service, method, fields), HttpRedirect) as response:
            if "text/html" in response.headers.get("Content-Type", ""):
                raise ValueError("a web page")
            return _write_body(response, out)

    def _get(self, url: str, out: Path, name: str) -> int:
        with self._plain.get(url, stream=True, timeout=self._timeout_s, auth=_no_auth) as response:
            response.raise_for_status()
            content_type = response.headers.get("Content-Type", "")
            if "html" in content_type and not name.endswith((".html", ".htm")):
                raise ValueError("a web page")
            return _write_body(response, out)

    def _open_log(self, url: str, version: int) -> tuple[list[str], Any]:
        """Return all pieces of the log of an ended run; of one that goes on, no piece and the open stream."""
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
            return [_log_piece(event) for event in response.json()] if response.content.strip() else [], None

    def _check_signed(self, url: str) -> str:
        """Return a signed address. Raises RemoteError if a server on this machine gave one of another machine."""
        if _is_local(self.endpoint) and not _is_local(url):
            raise RemoteError(
                "the endpoint is on this machine, but the address of a file that it gave is not: refused",
                RemoteKind.UNSAFE,
            )
        return url


def sign_in(log: Log, dry: bool = False) -> Kaggle:
    """Return a client for the first of the user's credentials that Kaggle accepts, as its own client does.

    An access token that has expired or was revoked is passed over, with a line, if there are other credentials. A
    legacy key and a login are taken as they are. Raises RemoteError if there are none.
    """
    inactive: list[RemoteError] = []
    for credentials in candidates(log):
        client = Kaggle(credentials, log=log, dry=dry)
        try:
            if credentials.kind is CredentialKind.TOKEN:
                _ = client.username  # asks Kaggle
        except RemoteError as error:
            if error.kind is not RemoteKind.INACTIVE:
                raise
            inactive.append(error)
            continue
        for passed in inactive:
            log(f"{passed}; passed over")
        return client
    raise inactive[0]


class _Json:
    """The response type for the library that keeps the JSON object as it is."""

    @staticmethod
    def prepare_from(response: Any) -> Answer:
        if "application/json" not in response.headers.get("Content-Type", ""):
            raise ValueError("not JSON")
        answer = response.json()
        if not isinstance(answer, dict):
            raise TypeError("not an object")
        return answer


def _as_is(answer: Answer) -> Answer:
    return answer


def _dataset(owner: str, slug: str) -> Subject:
    return Subject(f"dataset {owner}/{slug}", missing_is_403=True)


def _kernel(name: str) -> Subject:
    return Subject(f"kernel {name}", missing_is_403=True)


def _session_fields(owner: str, slug: str, version: int) -> Answer:
    return {"user_name": owner, "kernel_slug": slug, "version_label": f"v{version}"}


def _log_piece(event: Answer) -> str:
    return str(event["data"])


def _no_auth(request: Any) -> Any:
    """Leave a request for a signed address without authorization, whatever the session or a .netrc has."""
    return request


def _is_local(address: str) -> bool:
    """Return whether an address is on this machine."""
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _request(service: str, method: str, fields: Answer) -> Any:
    """Return one of the library's requests with these fields; a nested object keeps Kaggle's spelling."""
    module = importlib.import_module(f"kagglesdk.{service}.types.{SERVICES[service][1]}")
    cls = getattr(module, f"{method}Request" if service in BARE_NAMES else f"Api{method}Request")
    names = {field.field_name: field.json_name for field in cls._fields}
    return cls.from_dict({names[name]: value for name, value in fields.items() if value is not None})


def _shortened(value: Any) -> Any:
    """Return a request's body for a dry run, with the size and sha256 of each long text in its place."""
    if isinstance(value, dict):
        return {name: _shortened(entry) for name, entry in value.items()}
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        return f"{len(value.encode()):,} bytes, sha256 {hashlib.sha256(value.encode()).hexdigest()}"
    return value


def _write_body(response: Any, out: Path) -> int:
    with out.open("wb") as file:
        for chunk in response.iter_content(CHUNK_BYTES):  # raises if the body is shorter than its Content-Length
            file.write(chunk)
        return file.tell()
