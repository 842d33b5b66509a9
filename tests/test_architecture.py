"""The house's rules, read off the imports: who may import what, and what a light import must not bring."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

SRC = ROOT / "src"
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path for path in SRC.rglob("*.py")
}

# what is kept in one place: the import's top name, and the modules that may have it
KEPT = {
    "pyvips": {"clotkit.slides.reader"},
    "openslide": {"clotkit.slides.reader"},
    "tensorflow": {
        "clotkit.training.devices",
        "clotkit.training.feed",
        "clotkit.members.heat",
        "clotkit.training.loop",
    },
    "keras": {
        "clotkit.training.augment",
        "clotkit.members.backbones",
        "clotkit.training.devices",
        "clotkit.evaluation.evaluate",
        "clotkit.training.fit",
        "clotkit.members.heat",
        "clotkit.training.loop",
        "clotkit.members.loading",
        "clotkit.members.networks",
        "clotkit.training.train",
    },
    "fsspec": {"clotkit.stores"},
    "distributed": {"clotkit.engines"},
    "dask": {"clotkit.engines"},
    "joblib": {"clotkit.engines"},
    "fcntl": {"clotkit.scratch", "clotkit.shards.folder"},
    "matplotlib": {"clotkit.evaluation.plots"},
    "imblearn": {"clotkit.training.fit"},
    "imagehash": {"clotkit.data.near_duplicates"},
    "jinja2": {"clotkit.evaluation.errors_page"},
    "streamlit": {
        "clotkit.app.pages.common",
        "clotkit.app.pages.navigation",
        "clotkit.app.pages.classify",
        "clotkit.app.pages.slides",
        "clotkit.app.pages.submission",
        "clotkit.app.pages.training",
        "clotkit.app.serve",
    },
    "multiprocessing": {"clotkit.workers"},
    "signal": {"clotkit.workers", "clotkit.training.rendezvous", "clotkit.supervise"},
    "resource": {"clotkit.workers"},
    "subprocess": {"clotkit.rehearsal.scoring", "clotkit.rehearsal.environment", "clotkit.supervise"},
    "psutil": {"clotkit.rehearsal.scoring"},
    "kagglesdk": {"clotkit.kaggle.client", "clotkit.kaggle.credentials"},  # credentials: where they are looked for
    "kaggle": set(),
    "requests": {"clotkit.kaggle.client"},
    "urllib": {"clotkit.kaggle.client"},
    "urllib3": {"clotkit.kaggle.client"},
    "http": set(),
    "socket": {"clotkit.training.rendezvous"},  # workers that train together
}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
    return found


def top_level_imports_of(path: Path) -> set[str]:
    """The kit's own modules that a file imports when it is imported."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found & set(MODULES)


@pytest.mark.parametrize("kept", KEPT)
def test_each_heavy_or_risky_thing_has_one_home(kept: str) -> None:
    users = {name for name, path in MODULES.items() if kept in {found.split(".")[0] for found in imports_of(path)}}
    assert users <= KEPT[kept]


def test_no_cycle() -> None:
    graph = {name: top_level_imports_of(path) for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def room_of(module: str) -> str:
    """The package that a module is in; a module of the ground floor is a room of its own."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    return module if package == "clotkit" else package


def test_imports_run_one_way_between_rooms() -> None:
    """For every pair of packages, imports inside functions included: no way leads back, direct or not."""
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        others = {room_of(other) for other in imports_of(path) & set(MODULES)}
        graph.setdefault(room_of(name), set()).update(others - {room_of(name), "clotkit"})
    done: set[str] = set()

    def visit(room: str, above: tuple[str, ...]) -> None:
        assert room not in above, " -> ".join([*above, room])
        if room not in done:
            for other in sorted(graph[room]):
                visit(other, (*above, room))
            done.add(room)

    for room in graph:
        visit(room, ())


def test_no_room_is_crowded() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    packages = {room_of(name) for name, path in MODULES.items() if path.name == "__init__.py"}
    for package in packages - {"clotkit"}:
        inside = [name for name in MODULES if room_of(name) == package]
        assert len(inside) <= 15, package
        assert sum(lines[name] for name in inside) <= 0.15 * sum(lines.values()), package


@pytest.mark.parametrize(
    "module",
    ["clotkit.cli", "clotkit.workers", "clotkit.tiling.tilers", "clotkit.slides.reader",
     "clotkit.scoring.pipeline", "clotkit.members.loading", "clotkit.kaggle.client", "clotkit.rehearsal.scoring",
     "clotkit.kaggle.datasets", "clotkit.kaggle.kernels", "clotkit.kaggle.submissions", "clotkit.kaggle.verbs"],
)  # fmt: skip
def test_light_imports_bring_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print([name for name in ('tensorflow', 'keras', 'pyvips', 'kaggle', 'sklearn') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module",
    [
        "clotkit.scoring.submission",
        "clotkit.competitions",
        "clotkit.report.records",
        "clotkit.splits",
        "clotkit.supervise",
    ],
)
def test_what_the_supervisor_needs_is_standard_library(module: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(SRC)!r}); import {module}"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


@pytest.mark.parametrize(
    "word", ["strip_ai", "strip-ai", "mayo", '"CE"', "LAA", '"image_id"', '"patient_id"', "006388"]
)
def test_nothing_but_its_toml_knows_the_competition(word: str) -> None:
    report_keys = {"clotkit/report/records.py"}  # image_id and patient_id are the report's own names
    knowing = [
        str(path.relative_to(SRC))
        for path in [*SRC.rglob("*.py"), *(ROOT / "kernels").glob("*/main.py")]
        if word in code_of(path)
        and str(path.relative_to(ROOT / "src" if SRC in path.parents else ROOT)) not in report_keys
    ]
    allowed = {"strip_ai": {"clotkit/competitions/__init__.py"}}
    assert set(knowing) <= allowed.get(word, set()), f"{word} stands in {knowing}"


def code_of(path: Path) -> str:
    """A module's code without comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body[0] = ast.Pass()
    return ast.unparse(tree).replace("'", '"')
