"""Register `clotkit competition` and its verbs: new, check, list."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clotkit.errors import UsageError
from clotkit.options import DONE, WRONG, Result, Verbs, out_file
from clotkit.reasons import Misfit
from clotkit.units import many

if TYPE_CHECKING:
    from clotkit.drafting.toml_text import Line, Mark


def register(verbs: Verbs) -> None:
    """Add `competition` and its verbs to the command line."""
    text = "draft a competition's TOML from its data folder, check one, list those that ship"
    top = verbs.add_parser("competition", help=text, description=text)
    inner = top.add_subparsers(title="verbs", dest="verb_name", metavar="VERB", required=True)
    _add_new(inner)
    _add_check(inner)
    text = "list the competitions that ship with the kit"
    inner.add_parser("list", help=text, description=text).set_defaults(verb=_list)


def _add_new(verbs: Verbs) -> None:
    text = "draft a TOML from a downloaded data folder, and say what it guessed and what you must fill in"
    verb = verbs.add_parser("new", help=text, description=text)
    verb.add_argument("folder", type=Path, metavar="FOLDER", help="folder with the tables, the sample and the slides")
    verb.add_argument("--out", type=out_file, required=True, metavar="FILE", help="the .toml to write")
    verb.add_argument("--force", action="store_true", help="overwrite FILE if it exists")
    verb.set_defaults(verb=_new)


def _add_check(verbs: Verbs) -> None:
    text = "say what of a TOML does not fit: itself, and with --data the tables, the sample and the slides"
    verb = verbs.add_parser("check", help=text, description=text)
    verb.add_argument("file", metavar="FILE", help="the .toml, or the name of a competition that ships")
    verb.add_argument("--data", type=Path, metavar="FOLDER", help="folder with the tables, the sample and the slides")
    verb.set_defaults(verb=_check)


def _new(arguments: argparse.Namespace) -> Result:
    from clotkit.drafting.draft import draft_competition, write_draft
    from clotkit.drafting.toml_text import Mark, described

    out = arguments.out
    if out.suffix != ".toml":
        raise UsageError(f"--out {out}: the name must end with .toml, by which other verbs know a path from a name")
    if out.exists() and not arguments.force:
        raise UsageError(f"--out {out}: exists; give another name, or --force to overwrite it")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: the folder {out.parent} is missing; make it first")
    lines = draft_competition(arguments.folder)
    write_draft(lines, arguments.folder, out)
    guessed, to_fill = described(lines, Mark.GUESSED), described(lines, Mark.FILL_IN)
    print("\n".join([f"{len(guessed)} keys are guessed, check them:", *guessed]))
    print("\n".join([f"{len(to_fill)} keys are yours to fill in:", *to_fill]))
    print(f"{out}: written; then: clotkit competition check {out} --data {arguments.folder}")
    return Result(DONE, {"file": out, "guessed": _keys(lines, Mark.GUESSED), "fill_in": _keys(lines, Mark.FILL_IN)})


def _keys(lines: Sequence["Line"], mark: "Mark") -> list[str]:
    """Return the keys of a draft that have a mark."""
    return [line.key for line in lines if line.mark is mark]


def _check(arguments: argparse.Namespace) -> Result:
    from clotkit.competitions import load_competition
    from clotkit.drafting.check import check_competition

    competition = load_competition(arguments.file)
    checked = check_competition(competition, arguments.data)
    print("\n".join([*(one.line for one in checked.findings), *checked.summary]))
    count = sum(not one.note for one in checked.findings)
    to_fill = sum(one.code is Misfit.FILL_IN for one in checked.findings)
    still = f"; {many(to_fill, 'line')} still to fill in" if to_fill else ""
    print(f"{competition.source}: {'fits' if checked.fits else 'does not fit in ' + many(count, 'place')}{still}")
    return Result(DONE if checked.fits else WRONG, checked.to_json())


def _list(arguments: argparse.Namespace) -> Result:
    from clotkit.competitions import FOLDER, load_competition

    found = {path.stem: load_competition(path.stem) for path in sorted(FOLDER.glob("*.toml"))}
    rows = [
        {"name": name, "title": one.title, "form": one.submission.form.value, "metric": one.metric.name}
        for name, one in found.items()
    ]
    for row in rows:
        print("{name}: {title}; {form}, {metric}".format(**row))
    return Result(DONE, {"competitions": rows})
