"""A loopback server that speaks Kaggle's wire format and remembers what it was told, for tests without a network."""

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
