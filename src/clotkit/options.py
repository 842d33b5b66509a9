"""Command-line options and exit codes that several verbs share.

An option is declared once, in the `verbs.py` of the package that it sets up, or here where several verbs have it.
"""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from clotkit.competitions import DEFAULT
from clotkit.competitions.schema import WEIGHTS_AS, WHEELS_AS
from clotkit.errors import UsageError
from clotkit.stores import Place, is_url, place

# Exit codes: done; an error that nobody foresaw; wrong usage or input; done with fallbacks; Ctrl-C.
DONE, UNFORESEEN, WRONG, FALLBACKS, INTERRUPTED = 0, 1, 2, 3, 130
UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
UNITS_MB = {"MB": 1.0, "GB": 1024.0}


class Result(NamedTuple):
    """The end of a verb: its exit code, and the fields of the object that --json prints."""

    code: int
    facts: Mapping[str, Any] = MappingProxyType({})


Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_verb(verbs: Verbs, name: str, text: str) -> argparse.ArgumentParser:
    """Add a verb with the option --competition and return its parser.

    Args:
        verbs: the subparsers of `clotkit`.
        name: the verb.
        text: its help, one line.
    """
    verb = verbs.add_parser(name, help=text, description=text)
    add_competition(verb)
    return verb


def add_competition(verb: argparse.ArgumentParser) -> None:
    """Add the option --competition, a name or a path."""
    verb.add_argument(
        "--competition",
        default=DEFAULT,
        metavar="NAME",
        help=f"a competition that ships with the kit, or the path of its .toml (default: {DEFAULT})",
    )


def add_deadline(verb: argparse.ArgumentParser) -> None:
    """Add the option --deadline, in seconds; None: the competition's."""
    verb.add_argument(
        "--deadline",
        type=seconds,
        metavar="TIME",
        help="when to stop, counted from the start, like 8h, 90m or 600s (default: the competition's)",
    )


def add_slide_limits(verb: argparse.ArgumentParser) -> None:
    """Add the options --memory, in MB (2**20 bytes; None: the competition's), and --jobs."""
    verb.add_argument(
        "--memory",
        type=megabytes,
        metavar="SIZE",
        help="memory limit (address space) of each slide's process, like 4GB (default: the competition's)",
    )
    verb.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="slides to read at a time (default: one per core)"
    )


def add_backend(verb: argparse.ArgumentParser, names: Sequence[str], text: str) -> None:
    """Add the options --backend and --scheduler.

    Args:
        verb: the verb's parser.
        names: the back ends to choose from, the default first.
        text: help on those that run on this machine.
    """
    verb.add_argument(
        "--backend",
        choices=names,
        default=names[0],
        help=f"{text}; dask: the workers of a cluster (default: {names[0]})",
    )
    verb.add_argument(
        "--scheduler",
        metavar="ADDR",
        help="address of the cluster's scheduler, like tcp://host:8786, or the path of its scheduler file",
    )


def add_kernel_type(verb: argparse.ArgumentParser) -> None:
    """Add the option --kernel-type; None: as kernel-metadata.json has it."""
    verb.add_argument(
        "--kernel-type",
        choices=("script", "notebook"),
        help="the form of the bundle: a script, or a notebook of one cell (default: kernel_type of its metadata)",
    )


def add_inputs(verb: argparse.ArgumentParser) -> None:
    """Add the options --weights-as and --wheels-as; None: as the competition's TOML has them."""
    verb.add_argument(
        "--weights-as",
        choices=WEIGHTS_AS,
        help="how a kernel gets the members: as a dataset, or as a Kaggle Model (default: the competition's: dataset)",
    )
    verb.add_argument(
        "--wheels-as",
        choices=WHEELS_AS,
        help="how a kernel gets its packages: from the wheels dataset, or by the script of clotkit kaggle "
        "install-script (default: the competition's: dataset)",
    )


def add_backbones_dir(verb: argparse.ArgumentParser) -> None:
    """Add the option --backbones, a folder."""
    verb.add_argument(
        "--backbones",
        type=Path,
        default=Path("build/backbones"),
        metavar="DIR",
        help="folder of ImageNet weights, named as keras.applications names them (default: build/backbones)",
    )


def add_recipe(verb: argparse.ArgumentParser) -> None:
    """Add the argument RECIPE, a name or a path."""
    verb.add_argument("recipe", metavar="RECIPE", help="a recipe that ships with the kit, or the path of a .toml")


def add_training_data(verb: argparse.ArgumentParser) -> None:
    """Add the options --limit, and --cache, a folder."""
    verb.add_argument("--limit", type=int, help="use only the first N images of each class, for a quick try")
    verb.add_argument(
        "--cache",
        type=Path,
        default=Path("build/cache"),
        metavar="DIR",
        help="folder to keep the shards of a URL in, so that each is fetched once (default: build/cache)",
    )


def refuse(arguments: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raise UsageError if one of these options is set; `why` follows the option's name in the message."""
    for name in names:
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name} {why}")


def refuse_unused(verb: argparse.ArgumentParser, arguments: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raise UsageError if one of these options differs from its default; `why` follows its name."""
    options = options_of(verb)
    for name in names:
        if getattr(arguments, name) != verb.get_default(name):
            raise UsageError(f"{options[name].option_strings[0]} {why}")


def seconds(text: str) -> float:
    """Return the seconds of a time like 8h, 90m, 600s or 600. Raises ArgumentTypeError for anything else."""
    return _quantity(text, UNITS_S, "a time like 8h, 90m or 600s")


def out_folder(text: str) -> Path:
    """Return the path of a folder to write. Raises UsageError if it cannot be made or written to."""
    path = Path(text)
    _check_writable(path)
    return path


def out_place(text: str) -> Place:
    """Return a URL, or what out_folder returns for a local folder."""
    where = place(text)
    return where if is_url(where) else out_folder(str(where))


def out_file(text: str) -> Path:
    """Return the path of a file to write. Raises UsageError if it is a folder or cannot be made."""
    path = Path(text)
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file to write")
    _check_writable(path.parent)
    return path


def megabytes(text: str) -> int:
    """Return the MB (2**20 bytes) of a size like 4GB or 800MB. Raises ArgumentTypeError for anything else."""
    return round(_quantity(text, UNITS_MB, "a size like 4GB or 800MB"))


def verbs_of(parser: argparse.ArgumentParser, prefix: str = "") -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each verb below `parser` by its words, like "run" or "kaggle submit".

    argparse has no public list of a parser's actions; the reference and the tests read this and `options_of`.
    """
    nested = {
        f"{prefix}{name}": verb
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, verb in action.choices.items()
    }
    leaves = {name: verbs_of(verb, f"{name} ") or {name: verb} for name, verb in nested.items()}
    return {name: verb for found in leaves.values() for name, verb in found.items()}


def options_of(verb: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return the options and positional arguments of a verb by dest, without --help."""
    return {action.dest: action for action in verb._actions if action.dest != "help"}


def _check_writable(folder: Path) -> None:
    """Raise UsageError unless the folder, or the nearest one above that exists, can be written to."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise UsageError(f"{folder}: cannot be written, as {nearest} is not a folder; name another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(
            f"{folder}: cannot be written: permission denied, or a read-only disk, at {nearest}; name another folder"
        )


def _quantity(text: str, units: dict[str, float], wanted: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2] not in units or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return float(match[1]) * units[match[2]]
