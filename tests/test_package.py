"""Compare the package's metadata with the lock files and the code; install it (slow)."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .conftest import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
SRC = ROOT / "src" / "clotkit"
USED = ("cluster", "tune", "onnx", "app", "notebook", "gateway")  # extras whose packages src/ imports
# {lock file: the lists of pyproject.toml that it locks}
LOCKS = {
    "runtime": [*PROJECT["dependencies"], *EXTRAS["cluster"], *EXTRAS["tune"]],
    "app": EXTRAS["app"],
    "notebook": EXTRAS["notebook"],
    "dev": [*EXTRAS["dev"], *EXTRAS["gateway"]],
    "docs": EXTRAS["docs"],
}
DATA_SUFFIXES = {".toml", ".j2", ".css", ".js"}


def names(requirements: list[str]) -> set[str]:
    """Return the normalised package names of requirement lines."""
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def lines_of(path: Path) -> list[str]:
    """Return the requirement lines of a .in file, without comments and constraints."""
    lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("-")]


def locked(path: Path) -> dict[str, list[str]]:
    """Return {package: its locked versions, one per range of Pythons}."""
    found: dict[str, list[str]] = {}
    for name, pinned in re.findall(r"(?m)^([\w.-]+)(?:\[[\w,]+\])?==([^\s;\\]+)", path.read_text(encoding="utf-8")):
        found.setdefault(canonicalize_name(name), []).append(pinned)
    return found


def third_party_imports() -> set[str]:
    """Return the top-level names of third-party packages that src/ imports."""
    found: set[str] = set()
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"clotkit"}


def test_there_is_one_version() -> None:
    assert "version" not in PROJECT
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "clotkit.__version__"}


@pytest.mark.parametrize("lock", LOCKS)
def test_the_locked_versions_lie_in_the_declared_ranges(lock: str) -> None:
    pinned = locked(ROOT / "requirements" / f"{lock}.txt")
    for requirement in map(Requirement, LOCKS[lock]):
        versions = pinned[canonicalize_name(requirement.name)]
        outside = [one for one in versions if one not in requirement.specifier]
        assert not outside, f"{requirement} excludes the locked {outside}"


@pytest.mark.parametrize("lock", LOCKS)
def test_what_is_locked_by_name_is_declared(lock: str) -> None:
    assert names(lines_of(ROOT / "requirements" / f"{lock}.in")) <= names(LOCKS[lock])


def test_every_import_is_declared() -> None:
    declared = names([*PROJECT["dependencies"], *(line for name in USED for line in EXTRAS[name])])
    owners = packages_distributions()
    for name in third_party_imports():
        assert {canonicalize_name(one) for one in owners[name]} & declared, name


def test_data_files_travel_with_the_package() -> None:
    covered = {path for pattern in SETUPTOOLS["package-data"]["clotkit"] for path in SRC.glob(pattern)}
    assert {path for path in SRC.rglob("*") if path.suffix in DATA_SUFFIXES} <= covered


@pytest.mark.install
def test_an_installed_package_works_in_an_empty_folder(tmp_path: Path) -> None:
    venv.EnvBuilder(with_pip=True).create(tmp_path / "venv")
    programs, work = tmp_path / "venv" / "bin", tmp_path / "work"
    work.mkdir()
    source = tmp_path / "source"  # a copy: setuptools would take stale modules from build/lib
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copyfile(ROOT / name, source / name)
    subprocess.run([programs / "python", "-m", "pip", "install", "-q", source], check=True, cwd=work)
    for words in (
        ["phantom", "p", "--split", "test", "--slides", "2", "--seed", "1"],
        ["run", "p", "--weights", str(ROOT / "weights" / "demo"), "--out", "r"],
        ["check", "r/submission.csv", "--sample", "p/sample_submission.csv"],
        ["kaggle", "--help"],
    ):
        subprocess.run([programs / "clotkit", *words], check=True, cwd=work, capture_output=True, timeout=600)
    weights = ["--weights", str(ROOT / "weights")]
    for words in (["app", *weights], ["run", "s3://bucket/split", *weights, "--out", "r2"]):  # extras that are missing
        ended = subprocess.run([programs / "clotkit", *words], cwd=work, capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert "pip install" in ended.stderr
