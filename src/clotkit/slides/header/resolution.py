"""Read the size of a slide's pixels from its header."""

import re
import struct

from clotkit.slides.header.directories import (
    DESCRIPTION,
    HEIGHT,
    RESOLUTION_UNIT,
    WIDTH,
    X_RESOLUTION,
    Y_RESOLUTION,
    Directories,
    Directory,
)
from clotkit.units import MIN_MPP

UNITS_UM = {2: 25_400.0, 3: 10_000.0}  # values of ResolutionUnit: inch, centimetre
MAX_MPP = 20.0  # micrometres per pixel; writers' defaults (72 dpi, 10 px/cm) are above
UNLIKE = 0.05  # part by which width and height of a pixel may differ, and two statements of one
OME_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b[^>]*")
OME_SIDE = re.compile(r"""\bPhysicalSize([XY])(Unit)?=["']([^"']*)["']""")
OME_UM = ("", "µm", "\u03bcm", "um")  # the unit may be left out; the micro sign, and the Greek letter
OME_SIZE = re.compile(r"""\bSize([XY])=["'](\d{1,9})["']""")
APERIO_MPP = re.compile(r"Aperio.*\|\s*MPP\s*=\s*(\d+(?:\.\d+)?)\s*(?:\||$)", re.DOTALL)
MAX_DESCRIPTION_BYTES = 2**16


def stated_mpp(found: Directories, directory: Directory) -> tuple[float, ...]:
    """Return the plausible micrometres per pixel that a file states of a directory, at most two.

    A description comes first: that of Aperio, of the directory itself, or that of OME, which is in the first directory.
    Then come the tags of resolution (TIFF 6.0, section 8).
    """
    own = found.text(directory, DESCRIPTION, MAX_DESCRIPTION_BYTES)
    first = found.text(found.all[0], DESCRIPTION, MAX_DESCRIPTION_BYTES)
    try:
        size = (found.number(directory, WIDTH, 0), found.number(directory, HEIGHT, 0))
        unit = UNITS_UM.get(found.number(directory, RESOLUTION_UNIT, 2))
    except (ValueError, struct.error):
        return ()
    across, down = (found.rational(directory, code) for code in (X_RESOLUTION, Y_RESOLUTION))
    tags = plausible_mpp(unit / across, unit / down) if unit and across > 0 and down > 0 else None
    return tuple(mpp for mpp in (_aperio_mpp(own) or _ome_mpp(first, size), tags) if mpp is not None)


def _aperio_mpp(text: str) -> float | None:
    """Return the micrometres per pixel of an Aperio description; None without plausible ones."""
    aperio = APERIO_MPP.search(text)
    return plausible_mpp(float(aperio[1]), float(aperio[1])) if aperio else None


def _ome_mpp(text: str, size_px: tuple[int, int]) -> float | None:
    """Return the plausible micrometres per pixel of the first image of a size in OME's XML, or None."""
    for pixels in OME_PIXELS.findall(text):
        if tuple(int(length) for _, length in sorted(OME_SIZE.findall(pixels))) != size_px:
            continue
        found = {axis + unit: value for axis, unit, value in OME_SIDE.findall(pixels)}
        try:
            sides = (float(found["X"]), float(found["Y"]))
        except (KeyError, ValueError):
            return None
        return plausible_mpp(*sides) if {found.get("XUnit", ""), found.get("YUnit", "")} <= set(OME_UM) else None
    return None


def plausible_mpp(across: float, down: float) -> float | None:
    """Return the mean of a pixel's width and height in micrometres; None if no scanner has such pixels."""
    if not (MIN_MPP <= across <= MAX_MPP and MIN_MPP <= down <= MAX_MPP) or unlike(across, down):
        return None
    return round((across + down) / 2, 6)


def unlike(some: float, other: float) -> bool:
    """Return whether two resolutions differ by more than UNLIKE."""
    return abs(some - other) > UNLIKE * min(some, other)
