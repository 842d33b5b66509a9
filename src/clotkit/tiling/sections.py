"""Consecutive sections of one clot on a slide: found by shape, so that tiles need be taken from one of them only.

A slide often carries two or three sections of the same clot in a row, each a little askew. Whatever fragments a section
consists of, their whole arrangement repeats along the row; the row is therefore cut where hardly any tissue lies and
the pieces are laid over each other.

Two round clots overlap well too and are no copies. So a piece must fit the other clearly better as it lies than
mirrored or turned by 180 degrees: those keep its size, its length and its roundness and lose what is its own. A shape
that is its own mirror image, such as a disc or an ellipse, gives no such proof, and its copies stay. Whenever in doubt
a slide is one section: a copy left in costs a few tiles that look alike, a clot left out is lost.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

SIDE_PX = 256  # of the shrunk mask in which shapes are compared, at most
COVERED = 0.25  # least tissue in a pixel of it: threads narrower than a pixel stay
COPIES = (3, 2)  # sections in a row; three would never pass as two, for the areas differ
GAP = 0.1  # most tissue on the line between two sections, of the mean over the row: a thread may cross it
AREA_RATIO = 0.75  # least area of a section over the largest one's
MIN_PX = 100  # of a section in the shrunk mask: fewer have no shape
TURNS = tuple(range(-12, 13, 3))  # degrees; a step of 3 moves the end of a section by 3 % of its length
OVERLAP = 0.8  # least intersection over union; sections of one clot reach 0.9, different clots of one size 0.65
PROOF = 0.05  # by which it exceeds that of the mirrored piece; both together let 1 pair of different clots in 150 pass


def sections(mask: Mask) -> npt.NDArray[np.int32]:
    """Which section each pixel of a tissue mask bool[h, w] belongs to: int32[h, w], 0 without tissue, then 1, 2, 3.

    They count from the top, or from the left where they lie side by side. A slide without repetition is one section.
    """
    labels = mask.astype(np.int32)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return labels
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    downsample = -(-max(part.shape) // SIDE_PX)
    small = _shrunk(part, downsample)
    for axis, cuts in _splits(small):
        if _repeats(np.split(small, cuts, axis=axis)):
            places = np.arange(mask.shape[axis]) - (top, left)[axis]
            number = 1 + np.searchsorted(np.array(cuts) * downsample, places, side="right")
            labels *= np.expand_dims(number, 1 - axis).astype(np.int32)
            break
    return labels


def duplicates(mask: Mask) -> Mask:
    """The tissue of a mask bool[h, w] that repeats other tissue of it and can be left out: bool[h, w].

    The section with most tissue is kept, of equal ones the first.
    """
    labels = sections(mask)
    areas = np.bincount(labels.ravel(), minlength=2)
    kept = 1 + int(areas[1:].argmax())
    return np.asarray(mask & (labels != kept))


def repeated_area(mask: Mask) -> Mask:
    """The part of a slide, bool[h, w] as its tissue mask, that repeats another part: all that lies nearest to it.

    So fragments too faint for the mask go with the section they belong to.
    """
    from scipy import ndimage

    labels = sections(mask)
    excluded = np.unique(labels[duplicates(mask)])
    if not len(excluded):
        return np.zeros_like(mask)
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return np.isin(labels[tuple(nearest)], excluded)


def _shrunk(mask: Mask, downsample: int) -> Mask:
    """Boxes of `downsample` pixels that hold enough tissue; beyond the edge there is none."""
    height, width = (-(-side // downsample) for side in mask.shape)
    padded = np.pad(mask, ((0, height * downsample - mask.shape[0]), (0, width * downsample - mask.shape[1])))
    share = padded.reshape(height, downsample, width, downsample).mean(axis=(1, 3))
    return np.asarray(share >= COVERED)


def _splits(mask: Mask) -> Iterator[tuple[int, list[int]]]:
    """Ways to cut a mask into sections of about equal area, along its longer axis first: axis and the cuts' places."""
    longer = int(mask.shape[1] > mask.shape[0])
    for axis in (longer, 1 - longer):
        profile = mask.sum(axis=1 - axis)
        for copies in COPIES:
            cuts = [_valley(profile, number / copies, (1 - AREA_RATIO) / copies) for number in range(1, copies)]
            if all(cuts):
                yield axis, cuts


def _valley(profile: npt.NDArray[np.int64], share: float, tolerance: float) -> int:
    """Where `profile` is lowest among the places that have about `share` of its sum before them; 0: nowhere low."""
    before = np.cumsum(profile) / max(profile.sum(), 1)
    places = np.flatnonzero(np.abs(before - share) <= tolerance)
    if not len(places):
        return 0
    lowest = places[profile[places] == profile[places].min()]
    cut = int(lowest[len(lowest) // 2])
    return cut if profile[cut] <= GAP * profile[profile > 0].mean() else 0


def _repeats(parts: list[Mask]) -> bool:
    """Whether all parts show the shape of the largest one."""
    areas = [int(part.sum()) for part in parts]
    if min(areas) < max(MIN_PX, AREA_RATIO * max(areas)):
        return False
    first = areas.index(max(areas))
    model = _cropped(parts[first])
    return all(_same_shape(model, _cropped(part)) for number, part in enumerate(parts) if number != first)


def _same_shape(model: Mask, part: Mask) -> bool:
    overlap = _overlap(model, part)
    if overlap < OVERLAP:
        return False
    mirrored = (part[::-1], part[:, ::-1], part[::-1, ::-1])
    return all(overlap - _overlap(model, other) >= PROOF for other in mirrored)


def _overlap(model: Mask, part: Mask) -> float:
    """The greatest intersection over union of two masks, over TURNS of the second one and all translations."""
    from scipy import fft, ndimage

    reach = max(part.shape) // 4 + 2  # a turned part is larger, by up to sin 12 degrees of its other side
    shape = [fft.next_fast_len(a + b + reach, real=True) for a, b in zip(model.shape, part.shape, strict=True)]
    spectrum = fft.rfft2(model.astype(np.float32), shape)
    area, best = float(model.sum()), 0.0
    for turn in TURNS:
        turned = ndimage.rotate(part.astype(np.float32), turn, order=1) >= 0.5
        # All intersections at once: a correlation with wrap-around, for which `shape` leaves room.
        intersections = fft.irfft2(spectrum * fft.rfft2(turned.astype(np.float32), shape).conj(), shape)
        intersection = float(intersections.max())
        best = max(best, intersection / (area + float(turned.sum()) - intersection))
    return best


def _cropped(mask: Mask) -> Mask:
    """The bounding box of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
