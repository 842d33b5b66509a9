"""Command-line options and exit codes that several verbs share."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from clotkit.competitions import DEFAULT
from clotkit.errors import UsageError

DONE, WRONG, FALLBACKS = 0, 2, 3  # exit codes
UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
UNITS_MB = {"MB": 1.0, "GB": 1024.0}
Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_verb(verbs: Verbs, name: str, text: str) -> argparse.ArgumentParser:
    """Add a verb that takes --competition."""
    verb = verbs.add_parser(name, help=text, description=text)
    verb.add_argument(
        "--competition",
        default=DEFAULT,
        metavar="NAME",
        help=f"a competition that ships with the kit, or the path of its .toml (default: {DEFAULT})",
    )
    return verb


def add_deadline(verb: argparse.ArgumentParser) -> None:
    """Add --deadline."""
    verb.add_argument(
        "--deadline", type=seconds, metavar="TIME", help="like 8h, 90m or 600s (default: the competition's)"
    )


def add_slide_limits(verb: argparse.ArgumentParser) -> None:
    """Add --memory and --jobs."""
    verb.add_argument(
        "--memory",
        type=megabytes,
        metavar="SIZE",
        help="address space of a slide's process, like 4GB (default: the competition's)",
    )
    verb.add_argument("--jobs", type=int, default=os.cpu_count(), help="slides at a time (default: one a core)")


def add_backend(verb: argparse.ArgumentParser, names: Sequence[str], said: str) -> None:
    """Add --backend and --scheduler."""
    verb.add_argument(
        "--backend",
        choices=names,
        default=names[0],
        help=f"{said}; dask: the workers of a cluster (default: {names[0]})",
    )
    verb.add_argument("--scheduler", metavar="ADDR", help="of the cluster: like tcp://host:8786, or its scheduler file")


def add_backbones_dir(verb: argparse.ArgumentParser) -> None:
    """Add --backbones."""
    verb.add_argument(
        "--backbones",
        type=Path,
        default=Path("build/backbones"),
        metavar="DIR",
        help="ImageNet weights, by keras.applications' file names (default: build/backbones)",
    )


def refuse(arguments: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raise UsageError where one of these options is given."""
    for name in names:
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name} {why}")


def log_of(arguments: argparse.Namespace) -> Callable[[str], None]:
    """Where progress is told: on stdout, or on stderr where stdout is for JSON alone."""
    return partial(print, file=sys.stderr if arguments.json else sys.stdout, flush=True)


def seconds(text: str) -> float:
    """Seconds of a time like 8h, 90m, 600s or 600. Raises ArgumentTypeError for anything else."""
    return _quantity(text, UNITS_S, "a time like 8h, 90m or 600s")


def megabytes(text: str) -> int:
    """Megabytes (2**20 bytes) of a size like 4GB or 800MB."""
    return round(_quantity(text, UNITS_MB, "a size like 4GB or 800MB"))


def _quantity(text: str, units: dict[str, float], wanted: str) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2] not in units or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return float(found[1]) * units[found[2]]
