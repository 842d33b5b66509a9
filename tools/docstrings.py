"""Print every docstring that does not open with one short sentence; exit with 1 if there is one.

A first line is a sentence when it starts with a capital letter or a code span, ends with a full stop, and is followed
by a blank line or nothing. Lines that open with "What", "Whether" or "How" are reported too: say what the code does.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src", "kernels", "tests", "bench", "tools")
MOST_CHARACTERS = 100
RIDDLE = re.compile(r"(What|Whether|How|Who|Whose|Which|Where|When)\b")


def fault_of(docstring: str) -> str:
    """Return what is wrong with the first line of a docstring, empty where nothing is."""
    first, *rest = docstring.splitlines() or [""]
    if len(first) > MOST_CHARACTERS:
        return f"{len(first)} characters, {MOST_CHARACTERS} allowed"
    if not re.match(r"[A-Z`]", first) or not first.endswith("."):
        return "no sentence"
    if rest and rest[0].strip():
        return "no blank line after the summary"
    return "a riddle" if RIDDLE.match(first) else ""


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield getattr(node, "lineno", 1), text


def faults() -> list[str]:
    """Return a line for each faulty docstring of the repository's Python files."""
    paths = [ROOT / "submit.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]
    return [
        f"{path.relative_to(ROOT)}:{line}: {fault}: {text.partition(chr(10))[0]}"
        for path in paths
        for line, text in docstrings(path)
        if (fault := fault_of(text))
    ]


def main() -> int:
    """Print the faults."""
    found = faults()
    print(*found, sep="\n", end="\n" * bool(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
