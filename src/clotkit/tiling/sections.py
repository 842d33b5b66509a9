"""Find consecutive sections of one clot on a slide by shape, so that only one of them is tiled.

A slide often carries two or three sections of the same clot in a row, each slightly rotated. However many fragments a
section has, their arrangement repeats along the row. So the row is split where hardly any tissue lies, and the parts
are overlaid.

Two different round clots overlap well too. So a part must fit the other one clearly better as it lies than mirrored or
rotated by 180 degrees: these keep its size, length and roundness, but lose its individual shape. A shape that is its
own mirror image, such as a disc or an ellipse, cannot pass this test, and its copies stay. In doubt a slide counts as
one section: a copy that stays costs a few similar tiles, a clot that is dropped is lost.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

SIDE_PX = 256  # maximum side of the downsampled mask in which shapes are compared
COVERED = 0.25  # minimum tissue share of a pixel of that mask; threads narrower than a pixel stay
COPIES = (3, 2)  # sections in a row; three never pass as two, because the areas differ
GAP = 0.1  # maximum tissue on the line between two sections, over the row's mean: a thread may cross it
AREA_RATIO = 0.75  # minimum area of a section over the largest one's
MIN_PX = 100  # of a section in the downsampled mask; fewer have no shape
TURNS = tuple(range(-12, 13, 3))  # degrees; 3 degrees move the end of a section by 3 % of its length
OVERLAP = 0.8  # minimum intersection over union; sections of one clot reach 0.9, equal-sized clots 0.65
# Minimum overlap as it lies minus overlap mirrored or turned by 180 degrees; with OVERLAP, it lets pass 1 in 150 pairs
# of different clots.
MIRROR_LEAD = 0.05


def sections(mask: Mask) -> npt.NDArray[np.int32]:
    """Label the sections of a tissue mask, bool[h, w]: int32[h, w], 0 without tissue, then 1, 2, 3.

    Sections are numbered from the top, or from the left if they lie side by side. A slide without repetition is one
    section.
    """
    labels = mask.astype(np.int32)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return labels
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    downsample = -(-max(part.shape) // SIDE_PX)
    small = _downsampled(part, downsample)
    for axis, cuts in _splits(small):
        if _repeats(np.split(small, cuts, axis=axis)):
            places = np.arange(mask.shape[axis]) - (top, left)[axis]
            number = 1 + np.searchsorted(np.array(cuts) * downsample, places, side="right")
            labels *= np.expand_dims(number, 1 - axis).astype(np.int32)
            break
    return labels


def duplicates(mask: Mask) -> Mask:
    """Return the tissue of a mask bool[h, w] that repeats other tissue of it: bool[h, w].

    The section with most tissue is kept; of equal ones, the first.
    """
    labels = sections(mask)
    areas = np.bincount(labels.ravel(), minlength=2)
    kept = 1 + int(areas[1:].argmax())
    return np.asarray(mask & (labels != kept))


def repeated_area(mask: Mask) -> Mask:
    """Return the part of a slide that repeats another part, bool[h, w] like its tissue mask.

    It is everything that lies nearest to a repeated section, so that fragments too faint for the mask go with their
    section.
    """
    from scipy import ndimage

    labels = sections(mask)
    excluded = np.unique(labels[duplicates(mask)])
    if not len(excluded):
        return np.zeros_like(mask)
    nearest = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return np.isin(labels[tuple(nearest)], excluded)


def _downsampled(mask: Mask, downsample: int) -> Mask:
    """Return which boxes of `downsample` pixels have enough tissue; beyond the edge there is none."""
    height, width = (-(-side // downsample) for side in mask.shape)
    padded = np.pad(mask, ((0, height * downsample - mask.shape[0]), (0, width * downsample - mask.shape[1])))
    share = padded.reshape(height, downsample, width, downsample).mean(axis=(1, 3))
    return np.asarray(share >= COVERED)


def _splits(mask: Mask) -> Iterator[tuple[int, list[int]]]:
    """Yield ways to split a mask into sections of similar area: the axis and the places of the cuts.

    The longer axis comes first.
    """
    longer = int(mask.shape[1] > mask.shape[0])
    for axis in (longer, 1 - longer):
        profile = mask.sum(axis=1 - axis)
        for copies in COPIES:
            cuts = [_valley(profile, number / copies, (1 - AREA_RATIO) / copies) for number in range(1, copies)]
            if all(cuts):
                yield axis, cuts


def _valley(profile: npt.NDArray[np.int64], share: float, tolerance: float) -> int:
    """Return where `profile` is lowest near the place with `share` of its sum before it, 0 if nowhere low."""
    before = np.cumsum(profile) / max(profile.sum(), 1)
    places = np.flatnonzero(np.abs(before - share) <= tolerance)
    if not len(places):
        return 0
    lowest = places[profile[places] == profile[places].min()]
    cut = int(lowest[len(lowest) // 2])
    return cut if profile[cut] <= GAP * profile[profile > 0].mean() else 0


def _repeats(parts: list[Mask]) -> bool:
    """Return whether all parts have the shape of the largest one."""
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
    return all(overlap - _overlap(model, other) >= MIRROR_LEAD for other in mirrored)


def _overlap(model: Mask, part: Mask) -> float:
    """Return the greatest intersection over union of two masks.

    The maximum is over TURNS of the second mask and over all translations.
    """
    from scipy import fft, ndimage

    reach = max(part.shape) // 4 + 2  # a rotated part is larger, by up to sin 12 degrees of its other side
    shape = [fft.next_fast_len(a + b + reach, real=True) for a, b in zip(model.shape, part.shape, strict=True)]
    spectrum = fft.rfft2(model.astype(np.float32), shape)
    area, best = float(model.sum()), 0.0
    for turn in TURNS:
        rotated = ndimage.rotate(part.astype(np.float32), turn, order=1) >= 0.5
        # All translations at once: a circular correlation; `shape` has room for the wrap-around.
        intersections = fft.irfft2(spectrum * fft.rfft2(rotated.astype(np.float32), shape).conj(), shape)
        intersection = float(intersections.max())
        best = max(best, intersection / (area + float(rotated.sum()) - intersection))
    return best


def _cropped(mask: Mask) -> Mask:
    """Return the bounding box of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
