"""Read the size of a slide's pixels from its header."""

import re
import struct

from clotkit.slides.header.directories import (
    DESCRIPTION,
    RESOLUTION_UNIT,
    X_RESOLUTION,
    Y_RESOLUTION,
    Directories,
    Directory,
)

UNITS_UM = {2: 25_400.0, 3: 10_000.0}  # values of ResolutionUnit: inch, centimetre
# Micrometres per pixel that a scanner has; writers' defaults (72 dpi, 10 px/cm) are above.
MIN_MPP, MAX_MPP = 0.05, 20.0
UNLIKE = 0.05  # part by which width and height of a pixel may differ, and two statements of one
OME_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b[^>]*")
OME_SIDE = re.compile(r"""\bPhysicalSize([XY])(Unit)?=["']([^"']*)["']""")
OME_UM = ("", "µm", "\u03bcm", "um")  # the unit may be left out; the micro sign, and the Greek letter
APERIO_MPP = re.compile(r"Aperio.*\|\s*MPP\s*=\s*(\d+(?:\.\d+)?)", re.DOTALL)
MAX_DESCRIPTION_BYTES = 2**16


def stated_mpp(found: Directories, directory: Directory) -> float | None:
    """Return the micrometres per pixel that a directory states, None if it states no plausible ones.

    The description of Aperio or OME comes first, then the tags of resolution (TIFF 6.0, section 8).
    """
    described = _described_mpp(found.text(found.all[0], DESCRIPTION, MAX_DESCRIPTION_BYTES))
    if described is not None:
        return described
    try:
        unit = UNITS_UM.get(found.number(directory, RESOLUTION_UNIT, 2))
    except (ValueError, struct.error):
        return None
    across, down = (found.rational(directory, code) for code in (X_RESOLUTION, Y_RESOLUTION))
    return plausible_mpp(unit / across, unit / down) if unit and across > 0 and down > 0 else None


def _described_mpp(text: str) -> float | None:
    """Return the micrometres per pixel of a description; None without plausible ones.

    Those of OME are of its first image.
    """
    if (aperio := APERIO_MPP.search(text)) is not None:
        return plausible_mpp(float(aperio[1]), float(aperio[1]))
    if (pixels := OME_PIXELS.search(text)) is None:
        return None
    found = {axis + unit: value for axis, unit, value in OME_SIDE.findall(pixels[0])}
    try:
        sides = (float(found["X"]), float(found["Y"]))
    except (KeyError, ValueError):
        return None
    return plausible_mpp(*sides) if {found.get("XUnit", ""), found.get("YUnit", "")} <= set(OME_UM) else None


def plausible_mpp(across: float, down: float) -> float | None:
    """Return the mean of a pixel's width and height in micrometres; None if no scanner has such pixels."""
    if not (MIN_MPP <= across <= MAX_MPP and MIN_MPP <= down <= MAX_MPP) or unlike(across, down):
        return None
    return round((across + down) / 2, 6)


def unlike(some: float, other: float) -> bool:
    """Return whether two resolutions differ by more than UNLIKE."""
    return abs(some - other) > UNLIKE * min(some, other)
