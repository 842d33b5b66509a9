"""A Python that has what Kaggle's image has and lacks what it lacks: the rehearsal's interpreter."""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from clotkit.errors import RehearsalError

REQUIREMENTS = Path(__file__).parents[3] / "requirements"
GUARD_NAME, REFUSAL = "clotkit_network_guard", "the network is off in a rehearsal"
GUARD = f'''"""Network off, where the system has no namespaces: every connection is refused."""
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


def make(folder: Path, wheels: Path, guard: bool) -> Path:
    """Make a virtual environment in `folder` and return its python.

    It links this environment's packages, but neither the kit nor what the wheels carry (that must come from them) nor
    what only developers have. With `guard`, sockets refuse to connect. Raises RehearsalError when something hidden
    can be imported still.
    """
    shutil.rmtree(folder, ignore_errors=True)
    venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
    # Not resolved: the path in the environment is what makes it one.
    python = folder.absolute() / "bin" / "python"
    site = next((folder / "lib").glob("python*/site-packages"))
    hide = set(_files_of(["clotkit", *hidden(wheels), *developers_only()]))
    for entry in sorted(Path(sysconfig.get_paths()["purelib"]).iterdir()):
        if entry.name not in hide and entry.suffix not in {".pth", ".egg-link"} and entry.name != "__pycache__":
            (site / entry.name).symlink_to(entry)
    if guard:
        # By a .pth file: a sitecustomize of the system's own, which Debian has, would hide one of ours.
        (site / f"{GUARD_NAME}.py").write_text(GUARD, encoding="utf-8")
        (site / f"{GUARD_NAME}.pth").write_text(f"import {GUARD_NAME}\n", encoding="utf-8")
        _check_guard(python)
    _check(python, ["clotkit", *hidden(wheels)])
    return python


def hidden(wheels: Path) -> list[str]:
    """The distributions that the wheels carry, and that the rehearsal's environment therefore lacks."""
    return sorted({wheel.name.split("-")[0] for wheel in wheels.glob("*.whl")})


def developers_only() -> list[str]:
    """The distributions that only developers install, by the locks in requirements/; none where there are no locks."""
    locks = [REQUIREMENTS / f"{name}.txt" for name in ("dev", "runtime")]
    if not all(lock.is_file() for lock in locks):
        return []
    dev, runtime = (set(re.findall(r"^([\w.-]+)==", lock.read_text(), re.MULTILINE)) for lock in locks)
    return sorted(dev - runtime)


def _files_of(distributions: list[str]) -> Iterator[str]:
    """The top-level names, in site-packages, of what the distributions installed."""
    for name in distributions:
        try:
            files = metadata.files(name) or []
        except metadata.PackageNotFoundError:
            continue
        yield from {file.parts[0] for file in files if file.parts[0] != ".."}


def _check_guard(python: Path) -> None:
    """A connection must be refused by the guard itself, which speaks before the port is even looked for."""
    code = "import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)"
    tried = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=False)
    if REFUSAL not in tried.stderr:
        raise RehearsalError(f"{python}: the socket guard does not work here; a rehearsal needs it or user namespaces")


def _check(python: Path, distributions: list[str]) -> None:
    code = "import importlib.util, sys; print(*[n for n in sys.argv[1:] if importlib.util.find_spec(n)])"
    found = subprocess.run([str(python), "-I", "-c", code, *distributions], capture_output=True, text=True, check=False)
    if found.returncode or found.stdout.strip():
        raise RehearsalError(
            f"{python} still finds {found.stdout.strip() or found.stderr.strip()}; "
            f"Python {sys.version.split()[0]} was to lack it"
        )
