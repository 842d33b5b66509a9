"""Print the benchmark's rows: machine and versions, a table, a caption."""

import datetime
import importlib.metadata
import os
import platform

from bench.contenders import LIMIT
from bench.measuring import Row

PACKAGES = ("clotkit", "pyvips", "openslide-python", "tiffslide", "tifffile", "imagecodecs", "numpy", "pillow")

CAPTION = """\
The job: a tissue map and the 16 best tiles of 1024 px as uint8 of 256 px. "every tissue tile": all tiles of 224 px at
1/4, or at 1/16, with at least 1 % tissue; on pyramids that is the job. clotkit's best tiles have at least 50 % tissue
if a slide has such tiles. The three recipes choose in their own ways, so their tiles differ; the column has the number
of tiles.
CPU and wall seconds start after the imports; peak is VmHWM of the process, imports included; medians of {rounds}.
"x decode" is CPU over that of libvips decoding the whole slide once. One libvips thread; files in the page cache."""


def header() -> str:
    """Return the date, the machine and the versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    import openslide
    import pyvips

    versions = [f"{name} {_version(name)}" for name in PACKAGES]
    return "\n".join(
        [
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {len(os.sched_getaffinity(0))} cores "
            f"({platform.machine()}), {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}",
            f"libvips {'.'.join(str(pyvips.version(part)) for part in range(3))}, "
            f"OpenSlide {openslide.__library_version__}",
            ", ".join(versions),
        ]
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def table(rows: list[Row]) -> list[str]:
    """Return the rows as lines of text, with a blank line between layouts."""
    names, figures = ("layout", "px", "contender"), ("CPU s", "wall s", "peak MB", "tiles", "x decode")
    lines = ["{:8} {:>6} {:42} {:>8} {:>8} {:>8} {:>6} {:>9}".format(*names, *figures)]
    for row in rows:
        if row["name"] == LIMIT:
            lines.append("")
        start = f"{row['layout']:8} {row['side_px'] or '':>6} {row['name']:42}"
        if row["reason"]:
            lines.append(f"{start} {'-':>8} {row['reason']}")
            continue
        ratio = row["ratio_to_libvips_decode"]
        lines.append(
            f"{start} {row['cpu_s']:8.2f} {row['wall_s']:8.2f} {row['peak_mb']:8.0f} {row['tiles']:6.0f} "
            + (f"{'-':>9}" if ratio is None else f"{ratio:9.2f}")
        )
    return lines
