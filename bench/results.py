"""Print the benchmark's rows: machine and versions, a table, a caption."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterator

from bench.comparing import Row, State
from bench.contenders import LIMIT
from bench.jobs import LARGEST, PYRAMIDS
from bench.markdown import markdown_table

PACKAGES = ("clotkit", "pyvips", "openslide-python", "tiffslide", "tifffile", "imagecodecs", "numpy", "pillow")

CAPTION = """\
The job: a tissue map and the 16 best tiles of 1024 px as uint8 of 256 px. "every tissue tile": all tiles of 224 px at
1/4, or at 1/16, with at least 1 % tissue; on pyramids that is the job. clotkit's best tiles have at least 50 % tissue
if a slide has such tiles. The three recipes choose in their own ways, so their tiles differ; the column has the number
of tiles.
CPU and wall seconds start after the imports; peak is VmHWM of the process, imports included; medians of {rounds}.
"x decode" is CPU over that of libvips decoding the whole slide once; "x limit" is CPU over that of decoding, with
clotkit's codecs, each tile or strip of the file with any tissue once, on the best level for the job. One libvips
thread; files in the page cache.
The largest slide is measured once, with {memory_mb:,} MB (PSS of the processes) and {seconds} s for each contender."""


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
    names, figures = ("layout", "px", "contender"), ("CPU s", "wall s", "peak MB", "tiles", "x decode", "x limit")
    wide = max(len(_title(row)) for row in rows)
    lines = [f"{{:8}} {{:>6}} {{:{wide}}} {{:>8}} {{:>8}} {{:>8}} {{:>6}} {{:>9}} {{:>8}}".format(*names, *figures)]
    for row in rows:
        if row["name"] == LIMIT:
            lines.append("")
        start = f"{row['layout']:8} {row['side_px'] or '':>6} {_title(row):{wide}}"
        if row["state"] != State.DONE:
            lines.append(f"{start} {'-':>8} {row['state']}: {row['reason']}")
            continue
        ratios = row["ratio_to_libvips_decode"], row["ratio_to_tissue_decode"]
        lines.append(
            f"{start} {row['cpu_s']:8.2f} {row['wall_s']:8.2f} {row['peak_mb']:8.0f} {row['tiles']:6.0f} "
            + "{:>9} {:>8}".format(*("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios))
        )
    return lines


def _title(row: Row) -> str:
    """Return a row's contender, with the version of a peer that has an environment of its own."""
    return f"{row['name']} ({row['version']})" if row["version"] else str(row["name"])


def markdown(rows: list[Row]) -> Iterator[str]:
    """Yield the rows as Markdown: for each size, contenders by layouts."""
    for side in dict.fromkeys(row["side_px"] for row in rows):
        for pyramids in (False, True):
            here = [row for row in rows if row["side_px"] == side and (row["layout"] in PYRAMIDS) == pyramids]
            cells = {(_title(row), row["layout"]): _cell(row) for row in here}
            layouts = list(dict.fromkeys(row["layout"] for row in here))
            titles = dict.fromkeys(_title(row) for row in here)
            if here:
                yield f"\n{f'{side:,} px' if side else LARGEST}:\n"
                lines = [[title, *(cells.get((title, layout), "-") for layout in layouts)] for title in titles]
                yield from markdown_table([["contender", *layouts], *lines])


def _cell(row: Row) -> str:
    if row["state"] != State.DONE:
        return str(row["state"])
    ratios = {"x": row["ratio_to_libvips_decode"], "x limit": row["ratio_to_tissue_decode"]}
    texts = [f"{ratio:.2f} {unit}" for unit, ratio in ratios.items() if ratio is not None]
    digits = 2 if row["cpu_s"] >= 0.1 else 4
    return ", ".join([f"{row['cpu_s']:.{digits}f} s", *texts, f"{row['peak_mb']:.0f} MB"])
