"""Faults that tests inject: which request fails, how, how often."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

KINDS = ("status", "html", "reset", "slow", "silent", "expired", "midway", "truncated")


@dataclass
class Fault:
    """One thing that goes wrong with the requests of a method; PUT and GET are those of the storage.

    `status`, `html`: that answer in place of the true one, with `headers` and `message`; with `http` the status line
    says that, and only the JSON says `status`.
    `reset`: the connection is reset before the answer. `silent`: no answer at all, the connection stays open.
    `slow`: the answer stops after `n` bytes of its body (default: half) and the connection stays open.
    `truncated`: it stops there, and the connection is closed.
    `expired`: a GET is answered 403 with an XML page; a PUT 404, and so is everything later on that upload.
    `midway`: of a PUT that sends something the first `n` bytes (default: half) are kept, then `status` (default 503);
    status 0 resets the connection instead.

    With `after_effect` the request does its work all the same; slow and truncated answers always come after it.
    `times` None is for ever, `skip` lets the first requests pass, `where` is a text that the request must have in it.
    """

    method: str
    kind: str
    times: int | None = 1
    after_effect: bool = False
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "said so on purpose"
    n: int | None = None
    http: int | None = None
    where: str = ""
    skip: int = 0
    used: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault of the kind {self.kind!r}: there are {', '.join(KINDS)}")
        if self.kind == "midway" and self.method != "PUT":
            raise ValueError("only a PUT can stop midway")

    @property
    def spent(self) -> bool:
        """True once it has happened as often as it should."""
        return self.times is not None and self.used >= self.times

    def part(self, body: bytes) -> bytes:
        """The bytes that get through."""
        return body[: len(body) // 2 if self.n is None else self.n]


class Faults:
    """The faults of a server, in the order in which they were added."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        """Add a fault, which applies from now on."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            self._faults.clear()

    @property
    def pending(self) -> list[Fault]:
        """The faults that have not happened as often as they should."""
        return [fault for fault in self._faults if not fault.spent]

    def take(self, method: str, text: str, size: int) -> Fault | None:
        """The fault of a request, if it has one."""
        with self._lock:
            for fault in self._faults:
                if fault.spent or fault.method != method or fault.where not in text:
                    continue
                if fault.kind == "midway" and not size:  # asks how far it is, and sends nothing
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.used += 1
                return fault
        return None
