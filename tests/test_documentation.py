"""The README against the verbs and targets that exist, and what no file of the repository may have."""

import argparse
import re
import subprocess

import pytest

from clotkit.cli import parser

from .conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def verbs() -> dict[str, argparse.ArgumentParser]:
    action = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_every_verb_is_in_the_readme_and_no_other() -> None:
    assert set(re.findall(r"clotkit ([a-z]+) ", README)) - {"kernel"} == set(verbs())


def test_every_target_is_in_the_readme_and_no_other() -> None:
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, flags=re.MULTILINE))
    assert named == targets() - {"help"}


@pytest.mark.parametrize("verb", verbs())
def test_options_in_the_readme_exist(verb: str) -> None:
    known = {option for action in verbs()[verb]._actions for option in action.option_strings}
    for line in re.findall(rf"clotkit {verb} [^`\n]*", README):
        assert set(re.findall(r"--[a-z]+", line)) <= known


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://www.kaggle.com/") or (ROOT / target).exists(), target


def test_exit_codes_stand_in_the_readme() -> None:
    from clotkit import options as cli

    assert f"{cli.DONE} done; {cli.WRONG} wrong usage" in README
    assert f"{cli.FALLBACKS} done, but" in README


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return listed.stdout.splitlines()


def test_no_file_is_large_and_none_names_a_registry() -> None:
    hosts = re.compile(rb"pypi\.org|pythonhosted|registry\.npmjs|deb\.debian\.org|--index-url|/work/")
    for name in tracked():
        path = ROOT / name
        if path.is_file() and name != "tests/test_documentation.py":
            assert path.stat().st_size < 5 * 2**20, name
            assert not hosts.search(path.read_bytes()), name


def test_the_lock_has_a_hash_for_every_package() -> None:
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        pinned = re.findall(r"^[a-z0-9_.-]+==[^\n]*(?:\n {4}--hash=[^\n]*)+", path.read_text(), flags=re.MULTILINE)
        assert len(pinned) == len(re.findall(r"^[a-zA-Z0-9_.-]+==", path.read_text(), flags=re.MULTILINE)) > 0
