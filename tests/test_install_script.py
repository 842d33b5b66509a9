"""Test the script that installs a kernel's packages, and the kernel's look for installed ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from clotkit import supervise
from clotkit.bundle.install import install_lines, install_script
from clotkit.cli import main
from clotkit.errors import UsageError
from clotkit.supervise import Wheels, install_wheels

from .conftest import ROOT

MODULES = ("imagecodecs", "pyvips", "simplejpeg")
# pip as the script calls it: notes what it was asked, and what is in the requirements.
PYTHON = """#!/bin/bash
if [ "$1" = -c ]; then exit {gpu}; fi
printf '%s\\n' "$*" >> {log}
cat "${{@: -1}}" >> {log}
"""


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    folder = tmp_path / "locks"
    folder.mkdir()
    for name, packages in (("wheels", ("cffi==2.1 ; x > 'y'", "onnxruntime==1.3")), ("wheels-source", ("pyvips==3.2",)),
                           ("build", ("setuptools==84.2",))):  # fmt: skip
        lines = [f"{package} \\\n    --hash=sha256:{name} \\\n    --hash=sha256:b\n    # via c" for package in packages]
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("gpu", [False, True])
def test_the_script_installs_every_package_by_its_hash_and_no_dependency(
    gpu: bool, locks: Path, tmp_path: Path
) -> None:
    log, folder = tmp_path / "log", tmp_path / "bin"
    folder.mkdir()
    (folder / "python3").write_text(PYTHON.format(gpu=0 if gpu else 1, log=log))
    (folder / "python3").chmod(0o755)
    script = tmp_path / "script.sh"
    script.write_text(install_script(locks))
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    subprocess.run(["bash", str(script)], env=environment, check=True, timeout=60)
    lines = log.read_text().splitlines()
    calls = [line for line in lines if line.startswith("-m pip install")]
    assert all("--require-hashes" in call and "--no-deps" in call for call in calls)
    packages = ["cffi==2.1", *["onnxruntime==1.3"] * (not gpu), "setuptools==84.2", "pyvips==3.2"]
    assert [line.split()[0] for line in lines if "==" in line] == packages
    assert sum(line.strip().startswith("--hash") for line in lines) == 2 * len(packages)
    assert not [path for path in tmp_path.glob("tmp.*") if path.is_dir()]  # its own folder is removed


def test_lines_are_pip_install_alone(locks: Path) -> None:
    assert install_lines(locks).splitlines() == [
        "pip install --no-deps cffi==2.1", "pip install --no-deps onnxruntime==1.3", "pip install --no-deps pyvips==3.2"
    ]  # fmt: skip


def test_the_shipped_script_has_every_hash_of_the_locks() -> None:
    script = install_script()
    for name in ("wheels", "wheels-source", "build"):
        hashes = [word for word in (ROOT / "requirements" / f"{name}.txt").read_text().split() if "--hash" in word]
        assert hashes
        assert [one for one in hashes if one not in script] == []


def test_without_locks_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"wheels\.txt"):
        install_script(tmp_path)
    monkeypatch.setattr("clotkit.bundle.install.locks", lambda: None)
    with pytest.raises(UsageError, match="checkout"):
        install_script()


@pytest.mark.parametrize("words", [[], ["--lines"]])
def test_the_verb_writes_the_file(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "script.sh"
    assert main(["kaggle", "install-script", "--out", str(out), "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(out)
    assert out.read_text() == (install_lines() if words else install_script())


# What the kernel finds


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel look with a Python that has no packages."""
    python = getattr(sys, "_base_executable", sys.executable)
    monkeypatch.setattr(supervise, "PROBING", [python, "-I", "-S", *supervise.PROBING[2:]])


def test_packages_that_are_installed_are_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install_wheels([], tmp_path / "wheels") is Wheels.INSTALLED
    assert "installed before the run: pyvips" in capsys.readouterr().out
    assert not (tmp_path / "wheels").exists()


def test_wheels_of_another_tool_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "other-wheels"
    names = ["numpy-9.9-py3-none-any.whl", "pyvips_binary-8-py3-none-any.whl"]
    assert install_wheels([(folder, names)], tmp_path / "wheels") is Wheels.INSTALLED
    assert not (tmp_path / "wheels").exists()
    ours = [*names, "pyvips-3-py3-none-any.whl"]  # that are not there: pip refuses them
    assert install_wheels([(folder, ours)], tmp_path / "wheels") is Wheels.UNUSABLE
    assert "could not be used" in capsys.readouterr().out


@pytest.mark.usefixtures("bare")
def test_without_packages_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("site.getusersitepackages", lambda: str(tmp_path / "none"))
    assert install_wheels([], tmp_path / "wheels") is Wheels.ABSENT


@pytest.mark.usefixtures("bare")
def test_packages_of_this_user_are_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An isolated Python, which the kernel's child is, does not look there."""
    own = tmp_path / "own"
    for name in MODULES:
        (own / name).mkdir(parents=True)
        (own / name / "__init__.py").write_text("__version__ = '1'\ndef version(_): return 8\n")
    monkeypatch.setattr("site.getusersitepackages", lambda: str(own))
    assert install_wheels([], tmp_path / "wheels") is Wheels.INSTALLED
    assert (tmp_path / "wheels").resolve() == own


@pytest.mark.usefixtures("bare")
def test_packages_of_this_user_that_do_not_suffice_hide_none_of_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own" / "numpy").mkdir(parents=True)
    monkeypatch.setattr("site.getusersitepackages", lambda: str(tmp_path / "own"))
    assert install_wheels([], tmp_path / "wheels") is Wheels.ABSENT
    assert not (tmp_path / "wheels").is_symlink()
    assert list((tmp_path / "own").iterdir()) == [tmp_path / "own" / "numpy"]
