"""The bundle: a kernel's main.py and the kit's modules in one script, a pure function of the files it contains.

The modules are carried as text, line by line: no compressor, whose bytes would differ from one build of Python to the
next, and whoever opens the kernel on Kaggle can read what runs.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from clotkit import __version__
from clotkit.competitions import FOLDER as COMPETITIONS
from clotkit.errors import RehearsalError
from clotkit.files import publish_text

PACKAGE = Path(__file__).parents[1]
MODULES = (
    "__init__.py",
    "errors.py",
    "files.py",
    "config.py",
    "metric.py",
    "splits.py",
    "cli.py",
    "competitions/__init__.py",
    "slides/__init__.py",
    "slides/pixels.py",
    "slides/tiff.py",
    "slides/segments.py",
    "slides/bands.py",
    "slides/direct.py",
    "slides/reader.py",
    "slides/index.py",
    "slides/marks.py",
    "slides/tissue.py",
    "slides/views.py",
    "slides/sections.py",
    "slides/stain.py",
    "slides/squares.py",
    "slides/pieces.py",
    "slides/tiling.py",
    "learn/__init__.py",
    "learn/backbones.py",
    "learn/models.py",
    "learn/networks.py",
    "learn/predict.py",
    "infer/__init__.py",
    "infer/ahead.py",
    "infer/blending.py",
    "infer/effort.py",
    "infer/ensemble.py",
    "infer/pipeline.py",
    "infer/pooling.py",
    "infer/report.py",
    "infer/scoring.py",
    "infer/submission.py",
    "infer/workers.py",
)
LIMIT_BYTES = 1_000_000  # Kaggle refuses a longer source, on the server only
FILES_LINE, SETTINGS_LINE = "FILES: dict[str, str] = {}\n", "SETTINGS: dict[str, Any] = {}\n"


def build_bundle(kernel_dir: Path, competition: str) -> str:
    """The text of the script for `kernel_dir` (with a main.py) and a competition (a name or the path of a TOML).

    The same files give the same text. Raises RehearsalError when main.py is missing or has no place for the modules,
    when the script is no Python, or when it passes Kaggle's limit.
    """
    main = kernel_dir / "main.py"
    try:
        body = main.read_text(encoding="utf-8")
    except OSError as error:
        raise RehearsalError(f"{main}: {error.strerror}; a kernel folder has main.py") from error
    for line in (FILES_LINE, SETTINGS_LINE):
        if body.count(line) != 1:
            raise RehearsalError(f"{main}: the line {line.strip()!r} stands {body.count(line)} times, once is needed")
    toml = Path(competition) if competition.endswith(".toml") else COMPETITIONS / f"{competition}.toml"
    files = {f"clotkit/{name}": PACKAGE / name for name in MODULES} | {f"clotkit/competitions/{toml.name}": toml}
    body = body.replace(FILES_LINE, "".join(_literal(files)))
    body = body.replace(SETTINGS_LINE, f"SETTINGS: dict[str, Any] = {{'competition': {toml.stem!r}}}\n")
    digest = hashlib.sha256(body.encode()).hexdigest()
    script = (
        f"# clotkit {__version__}, kernel {kernel_dir.name}, {toml.stem}: {len(files)} files\n# sha256 {digest}\n{body}"
    )
    _check(script)
    return script


def write_bundle(kernel_dir: Path, competition: str, out: Path) -> str:
    """Build the bundle into `out` and return one line about it. Raises RehearsalError."""
    script = build_bundle(kernel_dir, competition)
    out.parent.mkdir(parents=True, exist_ok=True)
    publish_text(out, script)
    return f"{out}: {len(script.encode()):,} bytes of {LIMIT_BYTES:,}, sha256 {bundle_sha256(script)}"


def bundle_sha256(script: str) -> str:
    """The sha256 in a bundle's header: of all that follows the header's two lines."""
    return script.split("\n", 2)[1].removeprefix("# sha256 ")


def _literal(files: dict[str, Path]) -> Iterator[str]:
    yield "FILES: dict[str, str] = {\n"
    for name in sorted(files):
        yield f"    {name!r}: (\n"
        for line in files[name].read_text(encoding="utf-8").splitlines(keepends=True) or [""]:
            yield f"        {line!r}\n"
        yield "    ),\n"
    yield "}\n"


def _check(script: str) -> None:
    size = len(script.encode())
    if size > LIMIT_BYTES:
        raise RehearsalError(f"the bundle has {size:,} bytes, Kaggle takes {LIMIT_BYTES:,}; move data to a dataset")
    try:
        compile(script, "script.py", "exec")
    except SyntaxError as error:
        raise RehearsalError(f"the bundle is no Python: line {error.lineno}: {error.msg}") from error
