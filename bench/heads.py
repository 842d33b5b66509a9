"""Compare heads over the features of one encoder: `python -m bench.heads NAME SPLIT`.

The features of a train split are made once (`clotkit features`), and every head of HEADS is trained on them (`clotkit
train`), out of fold by patient. If it is killed, the same command goes on. build/heads/rows.json keeps the rows of all
splits and encoders; `--markdown` writes them into docs/explanation/benchmarks.md, between its marks.

NAME is what the table calls the split. Its competition is --competition; tiles are those of --recipe.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.markdown import markdown_table, with_table
from bench.processes import run
from clotkit.config import recipe_path
from clotkit.errors import ClotkitError
from clotkit.files import atomic_write_json, atomic_write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE, WORK = ROOT / "docs" / "explanation" / "benchmarks.md", ROOT / "build" / "heads"
MARKS = ("<!-- heads: begin; python -m bench.heads writes it -->", "<!-- heads: end -->")
LIMIT_S = 4 * 3600.0  # of one verb
CLOTKIT = [sys.executable, "-m", "clotkit.cli"]

HEAD = """
[encoder]
name = "{encoder}"

[model]
{model}

[mil]
bags = "patient"
{mil}

[training]
balance = "patients"
seed = 20220706
epochs = 20
batch_tiles = 16
learning_rate = 1e-3
weight_decay = 1e-2
folds = {folds}
"""
ATTENTION = "standardise = true\nhead = [64]\nattention_units = 32\ndropout = 0.3\ncopies = 3"
LINEAR = 'name = "mean_pool"\nstandardise = true\nl2 = {l2}'
# {head: its table [model], and what its table [mil] has besides}
HEADS: Mapping[str, tuple[str, str]] = {
    "abmil": (f'name = "abmil"\n{ATTENTION}', "drop_tiles = 0.2"),
    "clam": (f'name = "clam"\n{ATTENTION}', "drop_tiles = 0.2"),
    "transformer": (
        'name = "transformer"\nstandardise = true\nhead = [64]\ndropout = 0.3',
        "drop_tiles = 0.2",
    ),
    "mean_pool, logistic": (LINEAR.format(l2=0.1), 'fit = "logistic"'),
    "mean_pool, ridge": (LINEAR.format(l2=1.0), 'fit = "ridge"'),
}


@dataclass(frozen=True)
class Settings:
    """The settings of one comparison."""

    name: str  # of the split, in the table
    split: Path
    competition: str
    recipe: str  # whose table [tiling] says how slides are cut
    encoder: str
    encoders: Path
    folds: int
    work: Path = WORK
    heads: tuple[str, ...] = field(default_factory=lambda: tuple(HEADS))

    @property
    def folder(self) -> Path:
        """The folder of the features and members."""
        return self.work / self.name / self.encoder


def main() -> int:
    """Make the features, train the heads, print or write the table, and return the exit code."""
    options = _options()
    if not options.markdown:
        settings = {name: value for name, value in vars(options).items() if name != "markdown"}
        measure(Settings(**settings))
    lines = table(_rows(options.work))
    print(*lines, sep="\n")
    if options.markdown:
        try:
            atomic_write_text(PAGE, with_table(PAGE.read_text(encoding="utf-8"), "\n".join(lines), MARKS))
        except (ClotkitError, OSError) as error:
            print(f"bench.heads: {error}", file=sys.stderr)
            return 2
    return 0


def _options() -> argparse.Namespace:
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("name", nargs="?", default="", metavar="NAME")
    line.add_argument("split", nargs="?", type=Path, default=Path(), metavar="SPLIT")
    line.add_argument("--competition", default="strip_ai")
    line.add_argument("--recipe", default="breakhis")
    line.add_argument("--encoder", default="dinov2_s14")
    line.add_argument("--encoders", type=Path, default=ROOT / "build" / "encoders")
    line.add_argument("--folds", type=int, default=9)
    line.add_argument("--work", type=Path, default=WORK)
    line.add_argument("--markdown", action="store_true", help="only write the table of what was measured")
    return line.parse_args()


def measure(settings: Settings) -> None:
    """Make the features and train every head, and keep a row of figures of each."""
    recipes = settings.folder / "recipes"
    recipes.mkdir(parents=True, exist_ok=True)
    paths = {head: recipes / f"{_slug(head)}.toml" for head in settings.heads}
    for head, path in paths.items():
        atomic_write_text(path, recipe_text(settings, head))
    competition = ["--competition", settings.competition]
    features = settings.folder / "features"
    words = ["features", settings.split, features, "--encoder", settings.encoder, "--encoders", settings.encoders]
    _clotkit([*words, "--recipe", next(iter(paths.values())), "--jobs", 1, "--undated", *competition])
    for head, path in paths.items():
        member = settings.folder / _slug(head)
        if not (member / "metrics.json").is_file() or (member / "recipe.toml").read_text() != path.read_text():
            _clotkit(["train", path, "--data", features, "--out", member, *competition])
        row = row_of(settings, head, json.loads((member / "metrics.json").read_text(encoding="utf-8")))
        kept = [one for one in _rows(settings.work) if _key(one) != _key(row)]
        atomic_write_json(settings.work / "rows.json", [*kept, row])


def recipe_text(settings: Settings, head: str) -> str:
    """Return the recipe of a head: the tiling of one that ships, and the tables of HEADS."""
    source = recipe_path(settings.recipe).read_text(encoding="utf-8")
    tiling = "[tiling]" + source.split("[tiling]")[1].split("\n[")[0]
    model, mil = HEADS[head]
    return f'name = "{_slug(head)}"\n\n{tiling}' + HEAD.format(
        encoder=settings.encoder, model=model, mil=mil, folds=settings.folds
    )


def row_of(settings: Settings, head: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the table, from the metrics of a member."""
    names = [f"{name}{end}" for name in ("weighted_log_loss", "auc", "accuracy") for end in ("", "_low", "_high")]
    facts = {"split": settings.name, "encoder": settings.encoder, "head": head, "unit": metrics["unit"]}
    return facts | {"n": metrics["n"], "constant": metrics["constant"]} | {name: metrics[name] for name in names}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of the table in Markdown."""
    head = ["split, encoder", "head", "weighted log loss", "AUC", "accuracy"]
    cells = [
        [
            f"{row['split']}, {row['n']} {row['unit']}s (constant: {row['constant']:.4f}), `{row['encoder']}`",
            row["head"],
            *(_figure(row, name) for name in ("weighted_log_loss", "auc", "accuracy")),
        ]
        for row in sorted(rows, key=_key)
    ]
    return list(markdown_table([head, *cells]))


def _figure(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "-"
    return f"{row[name]:.4f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"


def _rows(work: Path) -> list[dict[str, Any]]:
    path = work / "rows.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _key(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["split"], row["encoder"], list(HEADS).index(row["head"])


def _slug(head: str) -> str:
    return head.replace(", ", "_")


def _clotkit(words: Sequence[object]) -> None:
    """Run a verb. Raises SystemExit if it fails."""
    code, cost = run([*CLOTKIT, *words], sys.stdout, limit_s=LIMIT_S)
    print(f"clotkit {words[0]}: {cost.seconds:.0f} s, {cost.cpu_s:.0f} s of CPU", flush=True)
    if code not in (0, 3):
        sys.exit(code)


if __name__ == "__main__":
    sys.exit(main())
