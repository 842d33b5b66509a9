"""Write docs/reference from the code: verbs, make targets, keys of recipes and competitions, reasons.

`make reference` runs it; tests/test_documentation.py fails while a page is older than the code it comes from.
"""

import argparse
import ast
import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from clotkit import aliases, competitions, config, reasons
from clotkit.cli import parser
from clotkit.competitions import schema

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
COLUMNS = 100  # width of --help in the pages
NOTE = "<!-- Written by tools/reference.py from the code; run `make reference` after a change. -->\n\n"
COMPETITION_KEYS = Path(schema.__file__)
SHIPPED_COMPETITION = competitions.FOLDER / f"{competitions.DEFAULT}.toml"


def pages() -> dict[str, str]:
    """Return the text of every generated page by its path below docs/reference."""
    verbs = verb_parsers()
    written = {f"verbs/{name}.md": verb_page(name, verb) for name, verb in verbs.items()}
    return written | {
        "verbs/index.md": verbs_index(verbs),
        "make.md": make_page(),
        "recipe.md": recipe_page(),
        "competition.md": competition_page(),
        "reasons.md": reasons_page(),
        "modules.md": modules_page(),
    }


def verb_parsers(of: argparse.ArgumentParser | None = None) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the verbs of clotkit, or of one of its verbs, in the order of --help."""
    for action in (of or parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def verb_page(name: str, verb: argparse.ArgumentParser) -> str:
    """Return the page of one verb: its --help, then that of each verb below it."""
    parts = [f"# clotkit {name}\n", help_block(verb)]
    for below, inner in verb_parsers(verb).items():
        parts += [f"## clotkit {name} {below}\n", help_block(inner)]
    return NOTE + "\n".join(parts)


def help_block(verb: argparse.ArgumentParser) -> str:
    """Return the --help of a verb as a code block, at a fixed width."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(COLUMNS)
    try:
        text = verb.format_help()
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return f"```text\n{text.rstrip()}\n```\n"


def verbs_index(verbs: Mapping[str, argparse.ArgumentParser]) -> str:
    """Return the table of all verbs, with the table of contents of their pages."""
    rows = ((f"[`clotkit {name}`]({name}.md)", verb.description or "") for name, verb in verbs.items())
    toctree = "\n".join(verbs)
    return (
        f"{NOTE}# Verbs\n\n`clotkit VERB --help` prints the same text. Every verb ends with one of the\n"
        "[exit codes](../exit_codes.md).\n\n"
        f"{table(('verb', 'what it does'), rows)}\n```{{toctree}}\n:hidden:\n\n{toctree}\n```\n"
    )


def make_page() -> str:
    """Return the table of the make targets, from the comments beside them in the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    rows = re.findall(r"^([a-z-]+):.*?## (.*)$", text, flags=re.MULTILINE)
    return (
        f"{NOTE}# Make targets\n\n`make` alone prints this list. Each target sets up what it needs in `.venv`;\n"
        "set-up is skipped while the lock files have not changed.\n\n"
        + table(("target", "what it does"), ((f"`make {name}`", text) for name, text in rows))
    )


def recipe_page() -> str:
    """Return the page of recipe.toml: each table with its keys, from the dataclasses in config.py."""
    comments, summaries = field_comments(Path(config.__file__))
    parts = [
        f"{NOTE}# Recipe keys\n",
        "A recipe is one TOML file; see [Train](../guides/train.md) for how to write one. Unknown keys are refused.\n"
        "Keys without a default are required.\n",
    ]
    for table_name, cls in dataclass_tables(config.Recipe).items():
        old = {new: old for old, new in aliases.RECIPE_KEYS.get(table_name, {}).items()}
        parts += [f"## {table_name}\n", f"{summaries[cls.__name__]}\n"]
        rows = recipe_rows(table_name, cls, comments, old)
        parts.append(table(("key", "type", "default", "allowed", "meaning"), rows))
    top = (field for field in dataclasses.fields(config.Recipe) if not _dataclass_of(field))
    parts.append("## Top level\n\n" + table(("key", "type"), ((f"`{field.name}`", _type(field)) for field in top)))
    return "\n".join(parts)


def recipe_rows(
    table_name: str, cls: type, comments: Mapping[str, str], old: Mapping[str, str]
) -> Iterator[tuple[str, ...]]:
    """Yield key, type, default, allowed values and meaning of each field of a recipe's table."""
    for field in dataclasses.fields(cls):
        meaning = comments.get(f"{cls.__name__}.{field.name}", "")
        if field.name in old:
            meaning += f" (old name: `{old[field.name]}`)"
        yield f"`{field.name}`", _type(field), _default(field), _allowed(table_name, field.name), meaning.strip()


def competition_page() -> str:
    """Return the page of a competition's TOML: its tables from the dataclasses, and the file that ships."""
    comments, summaries = field_comments(COMPETITION_KEYS)
    shipped = toml_comments(SHIPPED_COMPETITION)
    parts = [
        f"{NOTE}# Competition keys\n",
        "Everything that is particular to one competition is in one TOML file;\n"
        "see [Extend](../guides/extend.md#add-a-competition). Unknown keys are refused.\n",
    ]
    for table_name, cls in dataclass_tables(competitions.Competition).items():
        rows = (
            (
                f"`{field.name}`",
                _type(field),
                _default(field),
                comments.get(f"{cls.__name__}.{field.name}") or shipped.get(f"{table_name}.{field.name}", ""),
            )
            for field in dataclasses.fields(cls)
        )
        parts += [f"## {table_name}\n", f"{summaries[cls.__name__]}\n"]
        parts.append(table(("key", "type", "default", "meaning"), rows))
    path = os.path.relpath(SHIPPED_COMPETITION, REFERENCE)
    parts.append(f"## The file that ships\n\n```{{literalinclude}} {path}\n:language: toml\n```\n")
    return "\n".join(parts)


def reasons_page() -> str:
    """Return the table of reason codes, in the groups that reasons.py has them in."""
    parts = [
        f"{NOTE}# Reason codes\n",
        "A slide, a member or a task that did not come out whole carries a code beside its sentence. Codes do not\n"
        "change: branch on the code, read the sentence.\n",
    ]
    rows: list[tuple[str, str]] = []
    for line in Path(reasons.__file__).read_text(encoding="utf-8").splitlines():
        group = re.fullmatch(r"    # (.*?)\.?", line)
        code = re.fullmatch(r'    [A-Z_]+ = "([a-z_]+)"(?:  # (.*))?', line)
        if group:
            if rows:
                parts.append(table(("code", "meaning"), rows))
            parts, rows = [*parts, f"## {group[1]}\n"], []
        elif code:
            rows.append((f"`{code[1]}`", code[2] or ""))
    return "\n".join([*parts, table(("code", "meaning"), rows)])


def modules_page() -> str:
    """Return the table of every module, package by package, with the first sentence of its docstring."""
    package = Path(config.__file__).parent
    parts = [
        f"{NOTE}# Modules\n",
        "[Architecture](../explanation/architecture.md) says how the packages depend on each other.\n",
    ]
    folders = sorted(path.parent for path in package.rglob("__init__.py"))
    for folder in folders:
        files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        if folder == package:
            parts.append("## Top level\n")
        else:
            parts += [f"## {folder.relative_to(package).as_posix()}\n", f"{first_sentence(folder / '__init__.py')}\n"]
        rows = ((f"`{path.stem}`", first_sentence(path)) for path in files)
        parts.append(table(("module", "what it is"), rows) if files else "")
    return "\n".join(filter(None, parts))


def first_sentence(path: Path) -> str:
    """Return the first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def dataclass_tables(cls: type) -> dict[str, type]:
    """Return the dataclass of each table of a TOML whose whole is `cls`, by the table's name."""
    found = {field.name: _dataclass_of(field) for field in dataclasses.fields(cls)}
    return {name: of for name, of in found.items() if of is not None}


def field_comments(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the comment of each field ("Class.field") and the docstring of each class of a source file."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    comments, summaries = {}, {}
    for node in ast.parse(text).body:
        if not isinstance(node, ast.ClassDef):
            continue
        summaries[node.name] = ast.get_docstring(node) or ""
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                comments[f"{node.name}.{field.target.id}"] = _comment(lines, field)
    return comments, summaries


def toml_comments(path: Path) -> dict[str, str]:
    """Return the comment beside each key ("table.key") of a TOML file."""
    comments, table_name = {}, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        heading = re.match(r"\[([a-z_]+)\]", line)
        if heading:
            table_name = heading[1]
        entry = re.match(r"([a-z_]+) = .*?[\]\"0-9]\s+# (.*)", line)
        if entry:
            comments[f"{table_name}.{entry[1]}"] = entry[2]
    return comments


def table(head: tuple[str, ...], rows: Any) -> str:
    """Return a Markdown table; bars and angle brackets in cells are escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    escaped = re.sub(r"\s+", " ", text).replace("|", "\\|")
    parts = re.split(r"(`[^`]*`)", escaped)
    return "".join(part if part.startswith("`") else re.sub(r"([<{*_])", r"\\\1", part) for part in parts)


def _comment(lines: list[str], field: ast.AnnAssign) -> str:
    """Return the comment beside a field, or that on the lines above it."""
    for number in range(field.lineno, (field.end_lineno or field.lineno) + 1):
        beside = re.search(r"\s# (.*)$", lines[number - 1])
        if beside:
            return beside[1]
    above: list[str] = []
    number = field.lineno - 2
    while lines[number].lstrip().startswith("# "):
        above.insert(0, lines[number].lstrip()[2:])
        number -= 1
    return " ".join(above)


def _dataclass_of(field: "dataclasses.Field[Any]") -> type | None:
    """Return the dataclass that a field, or each entry of its tuple, is an instance of."""
    for hint in (field.type, *getattr(field.type, "__args__", ())):
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return hint
    return None


def _type(field: "dataclasses.Field[Any]") -> str:
    if isinstance(field.type, type) and not getattr(field.type, "__args__", ()):
        if issubclass(field.type, StrEnum):
            return "string"
        return {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}.get(
            field.type.__name__, field.type.__name__
        )
    (entry, *_) = getattr(field.type, "__args__", (str,))
    return "string" if issubclass(entry, StrEnum) else f"list of {entry.__name__}"


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    value = field.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _allowed(table_name: str, key: str) -> str:
    words, bounds = config.limits_of(config.WORDS, table_name), config.limits_of(config.BOUNDS, table_name)
    if key in words:
        return ", ".join(f"`{word}`" for word in words[key])
    if key in bounds:
        low, high = bounds[key]
        return f"{low:g} to {high:g}" if high < 1e5 else f"{low:g} to {high:,.0f}"
    return ""


def main() -> int:
    """Write every generated page, and remove those of verbs that are gone."""
    written = pages()
    for name, text in written.items():
        path = REFERENCE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in (REFERENCE / "verbs").glob("*.md"):
        if f"verbs/{path.name}" not in written:
            path.unlink()
    print(f"{REFERENCE.relative_to(ROOT)}: {len(written)} pages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
