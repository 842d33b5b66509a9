"""Read the requests of `clotkit serve`, a line of JSON each. Standard library only."""

import json
import math
from collections.abc import Mapping
from typing import Any

Request = Mapping[str, Any]
SLIDE = {"image": str, "patient": str, "row": str, "facts": dict, "paths": list}  # keys of a slide, and their types
EARLIER = {"image": str, "facts": dict, "p": dict}


def read_request(line: bytes, classes: int) -> Request:
    """Return the request in a line, for members of so many classes. Raises ValueError if it is none."""
    try:
        request = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(request, dict) or not isinstance(request.get("slides"), list):
        raise ValueError("not an object with a list of slides")
    if not _is_number(request.get("left_s")) or request["left_s"] <= 0:
        raise ValueError("left_s is not a number above 0")
    for number, slide in enumerate(request["slides"], start=1):
        _check(slide, SLIDE, f"slide {number}")
        paths = [*slide["paths"], *_list(slide, "other_paths", number)]
        if not all(isinstance(path, str) for path in paths):
            raise ValueError(f"slide {number}: a path is not a text")
        for other in _list(slide, "earlier", number):
            _check(other, EARLIER, f"slide {number}: an earlier one")
            if not all(_are_numbers(p, classes) for p in other["p"].values()):
                raise ValueError(f"slide {number}: p of an earlier one is not lists of {classes} numbers")
    return request


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(value: object, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(map(_is_number, value))


def _list(slide: Request, key: str, number: int) -> list[Any]:
    value = slide.get(key, [])
    if not isinstance(value, list):
        raise ValueError(f"slide {number}: {key} is not a list")
    return value


def _check(value: Any, keys: Mapping[str, type], where: str) -> None:
    """Raise ValueError unless a value is an object with keys of these types."""
    wrong = [key for key, kind in keys.items() if not isinstance(value, dict) or not isinstance(value.get(key), kind)]
    if wrong:
        raise ValueError(f"{where}: missing or of another type: {', '.join(wrong)}")
