"""Lay out the stand-in as a competition's `kaggle_evaluation`."""

from pathlib import Path

from clotkit.competitions import Competition
from clotkit.competitions.schema import BatchRows
from clotkit.serving.discovery import PACKAGE

OURS, THEIRS = "clotkit.rehearsal.standin", f"{PACKAGE}.core"
CORE = ("relay", "gateway", "templates")
SERVER = """from pathlib import Path

import kaggle_evaluation.core.templates
from kaggle_evaluation.core.gateway import Gateway


class {name}(kaggle_evaluation.core.templates.InferenceServer):
    def _get_gateway_for_test(self, data_paths=None):
        data = Path(__file__).resolve().parent.parent
        for path in data_paths or ():
            open(path).close()
        return Gateway(str(data / {table!r}), {image!r}, {id!r}, {by_id!r})
"""


def write_package(folder: Path, table: str, competition: Competition) -> None:
    """Write the package below a data folder; its local gateway sends the rows of `table`, a name there."""
    package = folder / PACKAGE
    (package / "core").mkdir(parents=True)
    for path in (package / "__init__.py", package / "core" / "__init__.py"):
        path.touch()
    for name in CORE:
        text = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        (package / "core" / f"{name}.py").write_text(text.replace(OURS, THEIRS), encoding="utf-8")
    module = competition.serving.module.rpartition(".")[2] or "competition_inference_server"
    text = SERVER.format(
        name=competition.serving.server or "CompetitionInferenceServer",
        table=table,
        image=competition.columns.image,
        id=competition.submission.id,
        by_id=competition.serving.rows is BatchRows.ID,
    )
    (package / f"{module}.py").write_text(text, encoding="utf-8")
