"""Write the script that installs the kernels' packages by hash, with the internet on.

Kaggle's Dependency Manager runs such a script with the internet on, and keeps what it installed for the run.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from clotkit import __version__
from clotkit.bundle.checkout import locks
from clotkit.errors import UsageError

NAME = "install_requirements.sh"  # as Kaggle names it
LOCKS = ("wheels", "wheels-source", "build")  # wheels; sources; what builds these
REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)==(\S+)")
ON_GPUS = "onnxruntime"  # Kaggle's image for GPUs has another package with the same modules
PIP = "python3 -m pip install --quiet --no-deps --require-hashes"
HEAD = f"""#!/bin/bash
# The packages of clotkit {__version__}'s kernels, each pinned by its hash. Run it with the internet on, before the run:
# the kernel then needs no wheels dataset.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"""
# The sources build without the image's packages, and without the headers of a libvips: pure Python.
TAIL = f"""{PIP} --only-binary :all: -r "$folder/wheels.txt"
if ! python3 -c 'import importlib.metadata as m; m.version("{ON_GPUS}-gpu")' 2>/dev/null; then
    {PIP} --only-binary :all: -r "$folder/{ON_GPUS}.txt"
fi
{PIP} --only-binary :all: --target "$folder/build" -r "$folder/build.txt"
PKG_CONFIG=false PYTHONPATH="$folder/build" {PIP} --no-build-isolation -r "$folder/wheels-source.txt"
"""


def install_script(folder: Path | None = None) -> str:
    """Return the script, from the locks of the checkout or in `folder`. Raises UsageError without them."""
    read = _read_locks(folder)
    onnx = read["wheels"].pop(ON_GPUS, "")
    files = {name: "\n".join(requirements.values()) for name, requirements in read.items()} | {ON_GPUS: onnx}
    return "".join(
        [HEAD, *(f"cat > \"$folder/{name}.txt\" <<'END'\n{text}\nEND\n" for name, text in files.items()), TAIL]
    )


def install_lines(folder: Path | None = None) -> str:
    """Return the same packages as lines of `pip install` with versions, without hashes. Raises UsageError."""
    read = _read_locks(folder)
    pinned = [REQUIREMENT.match(text) for name in LOCKS[:2] for text in read[name].values()]
    return "".join(f"pip install --no-deps {match[1]}=={match[2]}\n" for match in pinned if match)


def _read_locks(folder: Path | None) -> Mapping[str, dict[str, str]]:
    """Return the requirements of every lock, {name: its lines}."""
    folder = folder or locks()
    if folder is None:
        raise UsageError("the locks are in requirements/ of a checkout: run this in one (git clone, then cd clotkit)")
    return {name: dict(_requirements(folder / f"{name}.txt")) for name in LOCKS}


def _requirements(lock: Path) -> Iterator[tuple[str, str]]:
    try:
        text = lock.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{lock}: {error.strerror}; make lock writes it") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for requirement in re.split(r"\n(?=\S)", "\n".join(lines)):
        if match := REQUIREMENT.match(requirement):
            yield match[1], requirement
