"""The server's memory, and the settings that tests change; nothing here knows HTTP.

Time is virtual: what has a status moves on by one step each time somebody asks for it.
"""

import re
import threading
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import Any

from .faults import Faults

DATASET_STEPS = (
    "NOT_YET_PERSISTED",
    "BLOBS_RECEIVED",
    "BLOBS_DECOMPRESSED",
    "BLOBS_COPIED_TO_SDS",
    "INDIVIDUAL_BLOBS_COMPRESSED",
)
KERNEL_STEPS = ("QUEUED", "RUNNING")
OVER = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")
DATE = "2026-01-03T00:00:00Z"
PATIENTS = ("006388", "008e5c", "00c058", "01adc5")  # of the public test split
IMAGES = tuple(f"{patient}_0" for patient in PATIENTS)
SUBMISSION = ("patient_id,CE,LAA\n" + "".join(f"{patient},0.5,0.5\n" for patient in PATIENTS)).encode()

Log = str | list[str | dict[str, Any]]


@dataclass
class Call:
    """One request: the method's name (PUT and GET at the storage), what it said, its headers."""

    method: str
    body: dict[str, Any]
    headers: Message  # looked up without regard to case


@dataclass
class Blob:
    """An upload: `length` is what was announced, `data` what has come."""

    token: str
    name: str
    length: int
    data: bytes = b""
    complete: bool = False
    expired: bool = False


@dataclass
class Version:
    """One version of a dataset; `polls` counts the requests of its status, `since_ready` calls after it."""

    number: int
    notes: str
    files: dict[str, bytes]
    status: str = DATASET_STEPS[0]
    polls: int = 0
    since_ready: int = 0


@dataclass
class Dataset:
    """A dataset; `current` is the version that Kaggle shows, 0 before there is one."""

    title: str
    license: str
    private: bool
    versions: list[Version] = field(default_factory=list)
    id: int = 0
    subtitle: str = ""
    description: str = ""
    current: int = 0
    unseen_polls: int = 0  # calls that are still answered 404, as in the first seconds after a creation

    def version(self, number: int) -> Version | None:
        """The version of that number."""
        return next((version for version in self.versions if version.number == number), None)


@dataclass
class Variation:
    """A variation of a model; `unseen_polls` counts the calls that do not know its last version yet."""

    license: str
    overview: str
    unseen_polls: int = 0
    versions: list[Version] = field(default_factory=list)


@dataclass
class Model:
    """A model with its variations, by framework/variation."""

    id: int
    title: str
    subtitle: str
    description: str
    private: bool
    variations: dict[str, Variation] = field(default_factory=dict)


@dataclass
class KernelVersion:
    """One version of a kernel and its run; `log` is a text, or lines, or events as they go over the wire."""

    number: int
    body: dict[str, Any]
    source: str
    status: str = KERNEL_STEPS[0]
    failure: str = ""
    log: Log = field(default_factory=list)
    outputs: dict[str, bytes] = field(default_factory=dict)
    ref: str = ""
    mounted: dict[str, int] = field(default_factory=dict)  # dataset -> the version that the run sees
    polls: int = 0
    log_polls: int = 0  # listings of the output since the run is over
    ends: str = ""  # the status at the end, once the run has been played

    @property
    def over(self) -> bool:
        """True if the run has ended."""
        return self.status in OVER

    @property
    def on_gpu(self) -> bool:
        """True if the run takes one of the account's GPU sessions."""
        return bool(self.body.get("enableGpu")) or str(self.body.get("machineShape", "")).startswith("Nvidia")

    def events(self) -> list[dict[str, Any]]:
        """The log as it goes over the wire."""
        lines = self.log.splitlines() if isinstance(self.log, str) else self.log
        return [
            line
            if isinstance(line, dict)
            else {"stream_name": "stdout", "time": float(second), "data": line.removesuffix("\n") + "\n"}
            for second, line in enumerate(lines, start=1)
        ]


@dataclass
class Kernel:
    """A kernel with all its versions."""

    title: str = ""
    id: int = 0
    versions: list[KernelVersion] = field(default_factory=list)
    unseen_polls: int = 0  # calls that do not know the last version yet, as in the first seconds after a push

    def version(self, number: int) -> KernelVersion | None:
        """The version of that number."""
        return next((version for version in self.versions if version.number == number), None)


@dataclass
class Submission:
    """One submission of a kernel's version."""

    ref: int
    kernel: str
    version: int
    file_name: str
    description: str
    status: str = "PENDING"
    public_score: str = ""
    error: str = ""
    polls: int = 0


@dataclass
class Competition:
    """The competition, as Kaggle describes it, and its files."""

    slug: str
    title: str = "A competition"
    entered: bool = True
    disabled: bool = False
    kernels_only: bool = True
    max_daily: int = 5
    deadline: str = "2027-01-01T00:00:00Z"
    metric: str = "Log Loss"
    used_today: int = 0  # submissions of today that were not made here
    files: dict[str, bytes] = field(default_factory=dict)


class World:
    """An account, a competition and all that was sent; the attributes are knobs to turn at any time."""

    def __init__(self, username: str = "alice", competition: str = "mayo-clinic-strip-ai") -> None:
        self.lock = threading.RLock()
        self.username = username
        self.competition = Competition(competition, files=_public_files())
        self.storage = ""  # the address of the second port
        self.calls: list[Call] = []
        self.leaks: list[Call] = []  # requests that brought a credential to the storage
        self.faults = Faults()
        self.blobs: dict[str, Blob] = {}
        self.signed: dict[str, tuple[str, bytes]] = {}  # key in a signed address -> file name, content
        self.expired: set[str] = set()
        self.datasets: dict[str, Dataset] = {}
        self.kernels: dict[str, Kernel] = {}
        self.made_models: dict[str, Model] = {}
        self.submissions: list[Submission] = []
        self._set_knobs()

    def _set_knobs(self) -> None:
        self.dataset_polls = 2
        self.version_lag_polls = 1
        self.unseen_polls = 0  # calls answered 404 after a dataset's creation
        self.kernel_polls = 2
        self.submission_polls = 2
        self.log_lag_polls = 0  # listings of the output whose log is still empty after the end
        self.version_jump = 1
        self.gpu_sessions = 2  # that may run at once
        self.gpu_used_s, self.gpu_allowed_s = 3600, 108_000
        self.tpu_used_s, self.tpu_allowed_s = 0, 72_000
        self.page_limit = 200  # the longest page, whatever is asked for
        self.name_taken_status = 200  # 200: an `error` in the answer; 409: as a status
        self.missing_kernel_status = 403
        self.leave_out_defaults = False  # drop 0, "", false, [] and first enum values from the answers
        self.public_score = "0.65432"
        self.submission_error = ""
        self.stuck_datasets: set[str] = set()
        self.failed_datasets: set[str] = set()
        self.public_datasets: set[str] = set()  # of other people, known as sources
        self.public_views = {"GetDataset", "ListDatasetFiles"}  # methods that answer for such a dataset; no status
        self.absent_status = 404  # of a dataset of one's own that does not exist
        self.list_changes: dict[str, int | None] = {}  # of every list of files: name -> size, None leaves it out
        self.list_lag_polls = 0  # lists that are still without their last file
        self.models: set[str] = set()  # of other people, known as sources
        self.model_lag_polls = 0  # calls after a version was made that do not know it yet
        self.expired_tokens: set[str] = set()  # access tokens that are no longer active
        self.logins: set[str] = {"a-login"}  # lasting tokens of kaggle auth login
        self.login_refusal = 401  # the answer to any other
        self.granted: list[str] = []  # access tokens that logins were given
        self.tags: set[str] = {"gpu", "tpu"}
        self.dropped_sources: set[str] = set()  # left out of a pushed kernel without a word
        self.spell_source: Callable[[str, str], str] = lambda _, source: source  # field, source -> as it is read back
        self.unseen_kernel_polls = 0  # calls after a push that do not know the new version yet
        self.unseen_kernel = "403"  # their answer: 403, 404, or that of the version before (earlier)
        self.total_allowed: int | None = None  # submissions that the competition ever allows
        # ERROR, CANCEL, QUEUED (never starts), RUNNING (never ends), LOGGED (never ends, but its log does)
        self.kernel_fate: dict[str, str] = {}
        self.on_run: Callable[[KernelVersion], None] | None = None

    def count(self, method: str) -> int:
        """Return the number of requests of a method, failed ones included."""
        return len(self.asked(method))

    def asked(self, method: str) -> list[dict[str, Any]]:
        """Return the bodies of the requests of a method."""
        return [call.body for call in self.calls if call.method == method]

    def sign(self, name: str, content: bytes) -> str:
        """An address at the storage that gives a file to whoever has it."""
        key = f"f{len(self.signed):06d}"
        self.signed[key] = (name, content)
        return f"{self.storage}/files/{key}/{_quoted(name)}?X-Goog-Expires=900&X-Goog-Signature=5ec7e7{key}"

    def expire_urls(self) -> None:
        """Expire every signed address and every unfinished upload that exists now."""
        with self.lock:
            self.expired |= set(self.signed)
            for blob in self.blobs.values():
                blob.expired = not blob.complete

    def poll_dataset(self, ref: str, dataset: Dataset) -> str:
        """Return the status of a dataset's last version, then advance it."""
        version = dataset.versions[-1]
        if version.status in ("READY", "FAILED"):
            self._show(dataset)
            return version.status
        wait = 2**62 if ref in self.stuck_datasets else self.dataset_polls
        end = "FAILED" if ref in self.failed_datasets else "READY"
        version.status = _phase(version.polls, wait, DATASET_STEPS, end)
        version.polls += 1
        return version.status

    def look_at(self, dataset: Dataset) -> int:
        """The number of the version that Kaggle shows now; a version shows some calls after it is READY."""
        self._show(dataset)
        return dataset.current

    def _show(self, dataset: Dataset) -> None:
        for version in dataset.versions:
            if version.status != "READY" or version.number <= dataset.current:
                continue
            if version.since_ready >= self.version_lag_polls:
                dataset.current = version.number
            version.since_ready += 1

    def poll_kernel(self, version: KernelVersion) -> str:
        """Return the status of a run, then advance it."""
        if version.over:
            return version.status
        fate = self.kernel_fate.get(version.ref, "")
        if fate == "QUEUED":
            return version.status
        status = _phase(version.polls, self.kernel_polls, KERNEL_STEPS, "")
        version.polls += 1
        if status or fate in ("RUNNING", "LOGGED"):
            version.status = status or "RUNNING"
        else:
            self.end(version)
        return version.status

    def play(self, version: KernelVersion) -> None:
        """Decide what a run yields, once: the fate, then what `on_run` says."""
        if version.ends:
            return
        fate, before = self.kernel_fate.get(version.ref, ""), version.status
        version.log = ["the run starts\n", "4 patients scored\n", "the run ends\n"]
        version.status = {"ERROR": "ERROR", "CANCEL": "CANCEL_ACKNOWLEDGED"}.get(fate, "COMPLETE")
        version.failure = "Your notebook threw an exception" if fate == "ERROR" else ""
        version.outputs = {"submission.csv": SUBMISSION} if version.status == "COMPLETE" else {}
        if self.on_run is not None:
            self.on_run(version)
        version.ends, version.status = version.status, before

    def end(self, version: KernelVersion) -> None:
        """Bring a run to its end."""
        self.play(version)
        version.status = version.ends

    def running_on_gpu(self) -> list[KernelVersion]:
        """The runs that take a GPU session."""
        every = [version for kernel in self.kernels.values() for version in kernel.versions]
        return [version for version in every if version.on_gpu and not version.over]

    def push_elsewhere(self, ref: str, source: str = "# pushed by someone else\n") -> int:
        """Add a version that did not come over the wire, and return its number."""
        with self.lock:
            versions = self.kernels[ref].versions
            number = versions[-1].number + 1 if versions else 1
            versions.append(KernelVersion(number, {}, source, "COMPLETE", ref=ref, ends="COMPLETE"))
            return number

    def poll_submission(self, submission: Submission) -> None:
        """Move a submission on."""
        if submission.polls >= self.submission_polls and submission.status == "PENDING":
            submission.status = "ERROR" if self.submission_error else "COMPLETE"
            submission.error = self.submission_error
            submission.public_score = "" if self.submission_error else self.public_score
        submission.polls += 1

    def save(self, folder: Path) -> None:
        """Write the source of every kernel's version and the files of every dataset's version."""
        with self.lock:
            for ref, kernel in self.kernels.items():
                for run in kernel.versions:
                    _write(folder / "kernels" / ref.partition("/")[2] / f"v{run.number}.py", run.source.encode())
            for ref, dataset in self.datasets.items():
                for version in dataset.versions:
                    place = folder / "datasets" / ref.partition("/")[2] / f"v{version.number}"
                    for name, content in version.files.items():
                        _write(place / name, content)


def slugify(title: str) -> str:
    """The name in the address that Kaggle makes of a title."""
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def is_safe(name: str) -> bool:
    """Return whether a file's name stays in the folder it is put in."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _phase(polls: int, wait: int, steps: tuple[str, ...], end: str) -> str:
    return steps[min(polls, len(steps) - 1)] if polls < wait else end


def _quoted(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name.rpartition("/")[2])


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _public_files() -> dict[str, bytes]:
    rows = "".join(f"{image},{patient},4,0\n" for image, patient in zip(IMAGES, PATIENTS, strict=True))
    return {
        "sample_submission.csv": SUBMISSION,
        "test.csv": f"image_id,patient_id,center_id,image_num\n{rows}".encode(),
        **{f"test/{image}.tif": b"II*\0 a slide named " + image.encode() for image in IMAGES},
    }
