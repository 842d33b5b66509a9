"""Make the rehearsal's Python: it has the packages of Kaggle's image, and no others."""

import os
import re
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from clotkit.bundle.checkout import locks
from clotkit.bundle.install import NAME
from clotkit.errors import RehearsalError, UsageError
from clotkit.reasons import RehearsalKind

INSTALL_S = 1_800  # for the script that installs packages
GUARD_NAME, REFUSAL = "clotkit_network_guard", "the network is off in a rehearsal"
GUARD = f'''"""Refuse every connection: the network is off, on a system without namespaces."""
import socket


def _refuse(*_args, **_named):
    raise OSError("{REFUSAL}")


for _name in ("connect", "connect_ex", "sendto"):
    _plain = getattr(socket.socket, _name)

    def _guarded(self, *args, _plain=_plain, **named):
        return _plain(self, *args, **named) if self.family == socket.AF_UNIX else _refuse()

    setattr(socket.socket, _name, _guarded)
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = _refuse
'''


def make(folder: Path, wheels: Path, guard: bool, script: str = "") -> Path:
    """Make a virtual environment in `folder` and return its python.

    It links the packages of this environment except the kit, the packages of the wheels (which must come from them) and
    those that only developers install. With `guard`, sockets refuse to connect; a `script` that installs packages runs
    before. Raises RehearsalError if a hidden package can still be imported, or if the script fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    # Not resolved: Python recognises the environment by this path.
    python = folder.absolute() / "bin" / "python"
    site = next((folder / "lib").glob("python*/site-packages"))
    hide = set(_files_of(["clotkit", *hidden(wheels), *developers_only()]))
    for entry in sorted(Path(sysconfig.get_paths()["purelib"]).iterdir()):
        if entry.name not in hide and entry.suffix not in {".pth", ".egg-link"} and entry.name != "__pycache__":
            (site / entry.name).symlink_to(entry)
    _check(python, ["clotkit", *hidden(wheels)])
    if script:
        _install(python, script, folder.parent / NAME)
    if guard:
        # A .pth file, because the system's own sitecustomize, which Debian has, would hide ours.
        (site / f"{GUARD_NAME}.py").write_text(GUARD, encoding="utf-8")
        (site / f"{GUARD_NAME}.pth").write_text(f"import {GUARD_NAME}\n", encoding="utf-8")
        _check_guard(python)
    return python


def _install(python: Path, script: str, path: Path) -> None:
    """Run a script that installs packages into the environment of `python`, with the network on."""
    path.write_text(script, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = kept | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONNOUSERSITE": "1"}
    command = ["bash", str(path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    if ended.returncode:
        last = (ended.stdout + ended.stderr).strip().splitlines()[-1:]
        raise RehearsalError(
            f"{path}: it ended with {ended.returncode}: {' '.join(last)}; it needs the package index",
            RehearsalKind.WHEELS,
        )


def check_notebooks(python: Path) -> None:
    """Raise UsageError if this Python cannot execute notebooks."""
    ended = subprocess.run([str(python), "-I", "-c", "import ipykernel, nbclient"], capture_output=True, check=False)
    if ended.returncode:
        raise UsageError(
            "a notebook is rehearsed with nbclient and ipykernel, which are not installed: "
            "run make dry-run KERNEL_TYPE=notebook, or pip install clotkit[notebook]"
        )


def make_of(folder: Path, lock: Path) -> Path:
    """Make a virtual environment with the packages of a lock file alone, and return its python.

    They are linked from this environment, which has other versions of some if it was not made from the locks. Raises
    RehearsalError if the kit can be imported.
    """
    shutil.rmtree(folder, ignore_errors=True)
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    python = folder.absolute() / "bin" / "python"
    site = next((folder / "lib").glob("python*/site-packages"))
    for name in sorted(set(_files_of(_locked(lock)))):
        source = Path(sysconfig.get_paths()["purelib"]) / name
        if source.exists() and name != "__pycache__":
            (site / name).symlink_to(source)
    _check(python, ["clotkit"])
    return python


def hidden(wheels: Path) -> list[str]:
    """Return the distributions of the wheels, which the rehearsal's environment therefore lacks."""
    return sorted({wheel.name.split("-")[0] for wheel in wheels.glob("*.whl")})


def developers_only() -> list[str]:
    """Return the distributions that only developers install; none without a checkout's requirements/."""
    folder = locks()
    if folder is None:
        return []
    dev, *others = (set(_locked(folder / f"{name}.txt")) for name in ("dev", "runtime", "notebook"))
    return sorted(dev.difference(*others))


def _locked(lock: Path) -> list[str]:
    """Return the distributions of a lock file."""
    return re.findall(r"^([\w.-]+)==", lock.read_text(encoding="utf-8"), re.MULTILINE)


def _files_of(distributions: list[str]) -> Iterator[str]:
    """Yield the top-level names of the distributions in site-packages."""
    for name in distributions:
        try:
            files = metadata.files(name) or []
        except metadata.PackageNotFoundError:
            continue
        yield from {file.parts[0] for file in files if file.parts[0] != ".."}


def _check_guard(python: Path) -> None:
    """Raise RehearsalError unless the guard itself refuses a connection, before the port is tried."""
    code = "import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)"
    tried = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=False)
    if REFUSAL not in tried.stderr:
        raise RehearsalError(
            f"{python}: the socket guard does not work here; a rehearsal needs it or user namespaces",
            RehearsalKind.ENVIRONMENT,
        )


def _check(python: Path, distributions: list[str]) -> None:
    """Raise RehearsalError if one of these distributions can be imported."""
    code = "import importlib.util, sys; print(*[n for n in sys.argv[1:] if importlib.util.find_spec(n)])"
    ended = subprocess.run([str(python), "-I", "-c", code, *distributions], capture_output=True, text=True, check=False)
    if ended.returncode or ended.stdout.strip():
        raise RehearsalError(
            f"{python} still finds {ended.stdout.strip() or ended.stderr.strip()}, which it must not have",
            RehearsalKind.ENVIRONMENT,
        )
