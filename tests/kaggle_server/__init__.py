"""A loopback server with Kaggle's wire format and a memory, for tests without a network."""

from .faults import Fault
from .guard import only_loopback
from .server import KaggleServer
from .state import Call, Competition, Dataset, Kernel, KernelVersion, Submission, Version

__all__ = [
    "Call",
    "Competition",
    "Dataset",
    "Fault",
    "KaggleServer",
    "Kernel",
    "KernelVersion",
    "Submission",
    "Version",
    "only_loopback",
]
