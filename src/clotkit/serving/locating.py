"""Find the files of a batch's slides among the paths that they may have; never guess between several."""

from collections.abc import Sequence
from pathlib import Path

from clotkit.looking import look_at
from clotkit.progress import Log
from clotkit.serving.requests import Request
from clotkit.splits import SlideRow
from clotkit.splits.identity import SLIDE_SUFFIXES
from clotkit.supervise import ROOT, walk

SHARED = ROOT / "shared"  # where a gateway mounts the slides of a batch
Found = tuple[Path, Sequence[int]]  # a file, and its size and time of change


def locate(slides: Sequence[Request], answer_s: float, log: Log) -> tuple[list[SlideRow], list[SlideRow]]:
    """Return the slides at their files, and those for which several files are as likely.

    A slide is the first of its `paths` that is there; else the only one of its `other_paths`; else the file below
    SHARED whose path ends most like one of its paths. An empty file, which an unmount leaves, does not count.
    """
    found: dict[int, list[Found]] = {}
    for place, there in _look(slides, "paths", range(len(slides)), answer_s, log).items():
        found[place] = there[:1]
    lost = [place for place in range(len(slides)) if place not in found]
    found |= _look(slides, "other_paths", lost, answer_s, log)
    lost = [place for place in lost if place not in found]
    found |= _search(slides, lost, answer_s, log)
    rows = [slide_row(slide, *found.get(place, [(None, ())])[0]) for place, slide in enumerate(slides)]
    several = {place for place, there in found.items() if len(there) > 1}
    return (
        [row for place, row in enumerate(rows) if place not in several],
        [row for place, row in enumerate(rows) if place in several],
    )


def _look(
    slides: Sequence[Request], key: str, places: Sequence[int], answer_s: float, log: Log
) -> dict[int, list[Found]]:
    """Return those paths of slides that are there, by the place of the slide."""
    return _there([(place, Path(path)) for place in places for path in slides[place].get(key, ())], answer_s, log)


def _there(paths: Sequence[tuple[int, Path]], answer_s: float, log: Log) -> dict[int, list[Found]]:
    """Return the paths that are there and not empty, in their order by place."""
    seen = look_at([(path, None) for _, path in paths], log, answer_s) if paths else {}
    found: dict[int, list[Found]] = {}
    for number, (place, path) in enumerate(paths):
        if (state := seen.get(number)) and any(state) and (state[0] or path.is_dir()):
            found.setdefault(place, []).append((only_slide(path), state))
    return found


def _search(slides: Sequence[Request], places: Sequence[int], answer_s: float, log: Log) -> dict[int, list[Found]]:
    """Return the files below SHARED that have the name of a slide's path, and most of that path."""
    wanted: dict[str, list[tuple[int, Path]]] = {}
    for place in places:
        for path in map(Path, slides[place]["paths"]):
            wanted.setdefault(path.name, []).append((place, path))
    paths = list[tuple[int, Path]]()
    alike: dict[tuple[int, Path], int] = {}
    for folder, names in walk(SHARED) if wanted else ():
        for name in names:
            for place, path in wanted.get(name, ()):
                tail = _common_tail(path, folder / name)
                if any(slides[place]["image"] in part for part in tail):  # else it may be another slide
                    alike[place, folder / name] = max(len(tail), alike.get((place, folder / name), 0))
    paths = list(alike)
    return {
        place: [one for one in there if alike[place, one[0]] == max(alike[place, path] for path, _ in there)]
        for place, there in _there(paths, answer_s, log).items()
    }


def _common_tail(one: Path, other: Path) -> list[str]:
    """Return the last parts that two paths have in common."""
    tail = list[str]()
    for part, same in zip(reversed(one.parts), reversed(other.parts), strict=False):
        if part != same:
            break
        tail.append(part)
    return tail


def only_slide(path: Path) -> Path:
    """Return the slide in a folder that has one, as a gateway may share it; any other path as it is."""
    if not path.is_dir():
        return path
    inside = [one for one in path.iterdir() if one.suffix.casefold() in SLIDE_SUFFIXES and one.stat().st_size]
    return inside[0] if len(inside) == 1 else path


def slide_row(slide: Request, path: Path | None, state: Sequence[int]) -> SlideRow:
    """Return a slide at its path, with the size and the time of change of its file if they are known."""
    if path is None:
        path = Path(slide["paths"][0] if slide["paths"] else slide["image"])
    size = tuple(state) if state else ()
    return SlideRow(slide["image"], slide["patient"], path, None, facts=slide["facts"], size_and_mtime=size)
