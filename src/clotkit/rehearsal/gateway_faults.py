"""Name the faults of a gateway, and say which slides of a batch they cost."""

from collections.abc import Mapping, Sequence
from enum import StrEnum


class GatewayFault(StrEnum):
    """A fault that a gateway has, or that its batches have."""

    RESET = "reset"  # the server is killed, and started again in an empty working folder
    BROKEN_SLIDE = "broken_slide"  # a slide is damaged
    STUCK_MEMBERS = "stuck_members"  # the process with the members is stopped: the batch is not done by its deadline
    NULL_ROW = "null_row"  # a row without a cell
    NULL_IMAGE = "null_image"  # a row with an id, but without an image id
    REPEATED_ROW = "repeated_row"  # a row comes twice
    NO_ROW = "no_row"  # a batch without rows
    NO_SLIDE = "no_slide"  # the files of a batch are not there
    SECOND_FRAME = "second_frame"  # the batch comes with a sample submission of other rows


def fallbacks(fault: GatewayFault, images: Sequence[str], before: Mapping[str, bool]) -> dict[str, bool]:
    """Return which slides of a batch must fall back under a fault, and which must be scored.

    `before` says which did so without one.
    """
    known = {one: before.get(one, False) for one in images}
    if fault is GatewayFault.NO_ROW:
        return {}
    if fault in {GatewayFault.STUCK_MEMBERS, GatewayFault.NO_SLIDE}:
        return dict.fromkeys(known, True)
    if fault is GatewayFault.BROKEN_SLIDE:
        return known | {images[0]: True}
    if fault is GatewayFault.NULL_IMAGE:
        del known[images[0]]
    return known
