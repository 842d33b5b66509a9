"""Print the functions of src/ above 50 lines, and the median length; exit with 1 past the limits."""

import ast
import statistics
import sys
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"
MOST_LINES, MOST_MEDIAN = 50, 9


def lengths() -> list[tuple[int, str]]:
    """Return (lines, place) of every function, its decorators left out and its docstring included."""
    found = []
    for path in sorted(SRC.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                found.append((lines, f"{path.relative_to(SRC)}:{node.lineno} {node.name}"))
    return found


def faults() -> list[str]:
    """Return a line for each function that is too long, longest first, and one for a high median."""
    found = lengths()
    long = sorted((one for one in found if one[0] > MOST_LINES), reverse=True)
    median = statistics.median(lines for lines, _ in found)
    return [
        *(f"{place}: {lines} lines, {MOST_LINES} allowed" for lines, place in long),
        *([f"median of {median:g} lines, {MOST_MEDIAN} allowed"] if median > MOST_MEDIAN else []),
    ]


def main() -> int:
    """Print the faults, then how many functions there are and their median length."""
    found = faults()
    print(*found, sep="\n", end="\n" * bool(found))
    print(f"{len(lengths())} functions, median {statistics.median(lines for lines, _ in lengths()):g} lines")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
