"""Hold README.md and docs/ to the code, and every file to what it may not contain."""

import argparse
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from clotkit import options
from clotkit.config import load_recipe
from clotkit.reasons import NotRehearsed
from clotkit.report.records import FILES, SlideReport
from clotkit.shards.table import FILE_COLUMNS
from tools import reference

from .conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
WRITTEN = sorted(path for path in DOCS.rglob("*.md") if "verbs" not in path.parts)  # all but the --help of the verbs
TEXT = "\n".join([README, *(path.read_text(encoding="utf-8") for path in WRITTEN)])
GUIDES = "\n".join([README, *(path.read_text(encoding="utf-8") for path in DOCS.glob("*.md"))])
GUIDES += "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "guides").glob("*.md"))
VERBS = reference.verb_parsers()
PAGES = reference.pages()


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def unwrapped(text: str) -> str:
    """Return a text without white space: versions of Python wrap --help at other places."""
    return "".join(text.split())


@pytest.mark.parametrize("name", sorted(PAGES))
def test_generated_pages_are_current(name: str) -> None:
    path = reference.REFERENCE / name
    assert path.is_file(), f"{name} is missing: run make reference"
    assert unwrapped(path.read_text(encoding="utf-8")) == unwrapped(PAGES[name]), f"{name}: run make reference"


def test_every_verb_has_a_page_and_no_other() -> None:
    assert {path.stem for path in (reference.REFERENCE / "verbs").glob("*.md")} == set(VERBS) | {"index"}


def test_every_module_is_on_the_page_of_modules() -> None:
    package = ROOT / "src" / "clotkit"
    modules = {path.relative_to(package).with_suffix("") for path in package.rglob("*.py")}
    listed, folder = set(), Path()
    for line in (reference.REFERENCE / "modules.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            folder = Path() if line == "## Top level" else Path(line.removeprefix("## "))
            listed.add(folder / "__init__")
        elif name := re.match(r"\| `([a-z0-9_]+)` \|", line):
            listed.add(folder / name[1])
    assert listed == modules


def test_every_code_of_what_was_not_rehearsed_is_in_the_guide() -> None:
    table = (DOCS / "guides" / "rehearse.md").read_text(encoding="utf-8").partition("\n## What is not rehearsed\n")[2]
    codes = re.findall(r"^\| `([a-z_]+)` \|", table.partition("\n## ")[0], flags=re.MULTILINE)
    assert codes == list(NotRehearsed)


def code(text: str) -> str:
    """Return the code of a Markdown text, a line each: its fenced blocks, and what stands in backticks."""
    fence = re.compile(r"^```.*?\n(.*?)^```", re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`([^`]+)`", fence.sub("", text))
    return "\n".join([*fence.findall(text), *(" ".join(span.split()) for span in inline)])


def test_guides_use_every_verb_and_no_other() -> None:
    assert set(re.findall(r"(?:^|&& )clotkit ([a-z]+) ", code(GUIDES), flags=re.MULTILINE)) - {"kernel"} == set(VERBS)


def test_targets_in_the_documents_exist() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    calls = re.findall(r"(?:^|&& )make ([^#&\n]*)", code(TEXT + contributing), flags=re.MULTILINE)
    named = {word for call in calls for word in call.split() if re.fullmatch(r"[a-z-]+", word)}
    assert named <= targets()
    assert {"dry-run", "test", "datasets-push", "kernel-push", "submit"} <= named


@pytest.mark.parametrize("verb", VERBS)
def test_options_in_the_documents_exist(verb: str) -> None:
    for line in re.findall(rf"clotkit {verb} [^`\n]*", TEXT):
        assert set(re.findall(r"(?<=\s)--[a-z][a-z-]*", line)) <= options_of(VERBS[verb]), line


def options_of(verb: argparse.ArgumentParser) -> set[str]:
    """Return the options of a verb and of the verbs below it."""
    below = reference.verb_parsers(verb).values()
    own = {option for action in verb._actions for option in action.option_strings}
    return own.union(*(options_of(inner) for inner in below))


def test_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", README):
        assert target.startswith("https://www.kaggle.com/") or (ROOT / target).exists(), target


def test_links_of_the_site_lead_somewhere() -> None:
    for path in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
            assert "://" in target or (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"


def test_the_recipe_in_the_readme_is_valid(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "mine.toml").write_text(recipe, encoding="utf-8")
    assert load_recipe(tmp_path / "mine.toml").name == "mine"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 160


def test_exit_codes_are_documented() -> None:
    page = (reference.REFERENCE / "exit_codes.md").read_text(encoding="utf-8")
    codes = dict(re.findall(r"^\| (\d+) \| (\w+)", page, flags=re.MULTILINE))
    assert codes == {
        str(options.DONE): "done",
        str(options.UNFORESEEN): "an",
        str(options.WRONG): "wrong",
        str(options.FALLBACKS): "done",
        str(options.INTERRUPTED): "interrupted",
    }


def test_fields_of_a_run_are_documented() -> None:
    page = (reference.REFERENCE / "report.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.]+)`", page))
    assert named >= {field.name for field in fields(SlideReport)} | set(FILE_COLUMNS) | set(FILES)


def test_registries_named_in_the_documents_exist() -> None:
    places = re.findall(r"`([A-Z_]+)` in\s+`([\w/]+\.py)`", TEXT + (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert places
    for name, file in places:
        assert re.search(rf"^{name}\b.*=", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE), (
            f"{file}: {name}"
        )


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines()]


def test_no_file_is_large_and_none_names_a_registry() -> None:
    hosts = re.compile(rb"pypi\.org|pythonhosted|registry\.npmjs|deb\.debian\.org|--index-url|/work/")
    for path in tracked():
        if path.is_file() and path.name != "test_documentation.py":
            assert path.stat().st_size < 5 * 2**20, path
            assert not hosts.search(path.read_bytes()), path


def test_the_lock_has_a_hash_for_every_package() -> None:
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        pinned = re.findall(r"^[a-z0-9_.-]+==[^\n]*(?:\n {4}--hash=[^\n]*)+", text, flags=re.MULTILINE)
        assert len(pinned) == len(re.findall(r"^[a-zA-Z0-9_.-]+==", text, flags=re.MULTILINE)) > 0
