"""Files and folders that the application may not read: each costs only itself."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clotkit.app.deepzoom.ids import id_of
from clotkit.app.roots import Roots
from clotkit.app.standing import RunState, standing_folders, standing_run
from clotkit.competitions import Competition
from clotkit.report.records import REPORT, RUN

from .app_pages import make_root
from .conftest import ROOT
from .permissions import obey_permissions

ASK = """
import os, sys
from pathlib import Path
from tests.app_pages import serving

root = Path(sys.argv[1])
if os.access(root / "closed", os.R_OK):
    sys.exit("this process reads everything")
with serving(Path(sys.argv[2]), (root,)) as client:
    for path in sys.argv[3:]:
        print(client.get(path).status_code)
"""


@pytest.fixture
def closed(strip_ai: Competition, tmp_path: Path) -> Iterator[Path]:
    """Make a root with a split and a run, and beside them folders and files that may not be read."""
    root = make_root(tmp_path / "root", strip_ai)
    for name in ("closed", "listed", "entered"):
        shutil.copytree(root / "run", root / name)
    for name in ("secret-report", "secret-run"):
        shutil.copytree(root / "run", root / name)
    shutil.copytree(root / "split", root / "secret-table")
    paths = {"closed": 0, "listed": 0o444, "entered": 0o111, f"secret-report/{REPORT}": 0, f"secret-run/{RUN}": 0}
    paths |= {"secret-table/test.csv": 0}
    for name, mode in paths.items():
        (root / name).chmod(mode)
    yield root
    for name in paths:
        (root / name).chmod(0o700)


def statuses(root: Path, paths: list[str]) -> dict[str, int]:
    """Return the status of each page from an application that obeys permissions."""
    words = [sys.executable, "-c", ASK, str(root), str(ROOT / "weights"), *paths]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=ROOT, preexec_fn=obey_permissions, timeout=600
    )
    if "reads everything" in done.stderr:
        pytest.skip("permissions cannot be tried here")
    assert done.returncode == 0, done.stderr
    return dict(zip(paths, map(int, done.stdout.split()), strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="it needs capabilities of Linux")
def test_pages_are_drawn_beside_folders_and_files_without_permission(closed: Path) -> None:
    roots, pages = Roots.of([closed]), ["/", "/slides", "/runs", "/competition"]
    names = ("closed", "listed", "entered", "secret-report", "secret-run", "secret-table")
    keys = {name: id_of(closed / name, roots) for name in names}
    pages += [f"/slides?folder={key}" for key in keys.values()]
    found = statuses(
        closed, [*pages, *(f"/runs/{page}?run={key}" for page in ("one", "report") for key in keys.values())]
    )
    assert {path: found[path] for path in pages} == dict.fromkeys(pages, 200)
    assert not [path for path, status in found.items() if status >= 500]


def test_a_disk_that_fails_costs_only_its_folder(
    closed: Path, strip_ai: Competition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of a network disk is not one of permissions, and comes to the superuser too."""
    real = os.stat

    def stat(path: Any, *args: Any, **more: Any) -> os.stat_result:
        if str(path).startswith(str(closed / "listed")):
            raise OSError(107, "Transport endpoint is not connected")
        return real(path, *args, **more)

    monkeypatch.setattr(os, "stat", stat)
    splits, runs = standing_folders(Roots.of([closed]), strip_ai)
    assert "split" in {one.folder.name for one in splits}
    assert "run" in {one.folder.name for one in runs}
    assert "listed" not in {one.folder.name for one in runs}
    assert standing_run(closed / "run", Roots.of([closed])).state is RunState.ENDED
