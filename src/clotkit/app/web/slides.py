"""Page Slides: the slides of a split or a run with their states; one slide's tissue, tiles and score."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from clotkit.app.deepzoom.ids import id_of, path_of
from clotkit.app.prediction import for_slide
from clotkit.app.processes import without_path
from clotkit.app.viewer import LiveScore, SlideFolder, list_folders, open_folder, read_tissue, score_live, shown_by
from clotkit.app.viewer import slide_path as file_of
from clotkit.app.web.jobs import Job, Kind
from clotkit.app.web.rendering import page, png
from clotkit.app.web.shared import Shared, job_of, needed, shared_of
from clotkit.config import load_recipe, tiling_for
from clotkit.errors import ClotkitError
from clotkit.members.folder import RECIPE

HERE = "/slides"  # in the navigation
Stamp = tuple[int, int]  # time of change and size of a file, so that a changed file is read again


@dataclass(frozen=True)
class Chosen:
    """The slide that a request names."""

    opened: SlideFolder
    image_id: str
    path: Path

    @property
    def facts(self) -> dict[str, str]:
        """The facts of the slide's row in its table."""
        return dict(self.opened.rows[self.image_id].facts)


def show(request: Request) -> Response:
    """Draw the page: the splits and runs below the roots, and the slides of the chosen one."""
    shared = shared_of(request)
    folders = {id_of(folder, shared.roots): short(folder, shared) for folder in _folders(shared)}
    chosen = request.query_params.get("folder") or next(iter(folders), "")
    opened, why = None, ""
    if chosen:
        folder = path_of(chosen, shared.roots)
        try:
            opened = open_folder(folder, shared.roots, shared.competition)
        except ClotkitError as error:
            why = without_path(str(error), folder)
    return page(
        request,
        "slides",
        "Slides",
        has_roots=bool(shared.roots.folders),
        folders=folders,
        chosen=chosen,
        opened=opened,
        why=why,
        rows=_rows(opened) if opened else [],
        viewers={} if opened is None else _viewers(shared, opened),
    )


def one_slide(request: Request) -> Response:
    """Draw one slide: its line of the report, the way to the viewer, tissue and tiles, the score."""
    shared, folder, image_id = shared_of(request), needed(request, "folder"), needed(request, "slide")
    opened = _opened(shared, folder)
    if image_id not in opened.ids():
        raise HTTPException(404)
    try:
        view, why = id_of(file_of(opened, image_id, shared.roots), shared.roots), ""
        members = shared.slide_members()
    except ClotkitError as error:
        view, why, members = "", str(error), {}
    return page(
        request,
        "slide",
        image_id,
        here=HERE,
        folder=folder,
        image_id=image_id,
        line=opened.lines.get(image_id),
        view=view,
        why=why,
        members=members,
        member=request.query_params.get("member", next(iter(members), "")),
        tissue="tissue" in request.query_params,
    )


def tissue(request: Request) -> Response:
    """Return a picture of a slide with its tissue and tiles marked."""
    shared, name = shared_of(request), needed(request, "member")
    chosen = _chosen(shared, needed(request, "folder"), needed(request, "slide"))
    tiling = tiling_for(load_recipe(shared.members[shared.chosen(name)] / RECIPE).tiling, chosen.facts)
    result = shared.read.get(
        ("tissue", chosen.path, _stamp(chosen.path), name),
        lambda: read_tissue(chosen.path, tiling, chosen.opened.competition),
    )
    response = png(result.picture())
    response.headers["X-Tiles"] = str(result.facts["tiles"])
    response.headers["Cache-Control"] = "no-store"  # the slide and the member's tiling may change
    return response


async def start_score(request: Request) -> Response:
    """Score a slide with a member, and lead to the page that follows it."""
    shared = shared_of(request)
    async with request.form() as form:
        folder, image_id, name = (str(form.get(key, "")) for key in ("folder", "slide", "member"))
    chosen = _chosen(shared, folder, image_id)
    about = {"folder": folder, "slide": image_id, "member": name, "title": shared.title(shared.chosen(name))}
    job = shared.jobs.start(Kind.SCORE, image_id, lambda job: _score(shared, name, chosen, job), about)
    return RedirectResponse(f"/slide/score/{job.key}", 303)


def score(request: Request) -> Response:
    """Draw the score of a slide, or how far it is."""
    job = job_of(request, Kind.SCORE)
    found = cast(tuple[LiveScore, str, float] | None, job.result)
    return page(request, "score", f"Score of {job.title}", here=HERE, job=job, found=found)


def score_picture(request: Request) -> Response:
    """Return the overview of a scored slide, each tile coloured by its number."""
    found = cast(tuple[LiveScore, str, float] | None, job_of(request, Kind.SCORE).result)
    if found is None or found[0].picture is None:
        raise HTTPException(404)
    return png(found[0].picture)


def short(path: Path, shared: Shared) -> str:
    """Return a folder's path below its root, with the root's own name."""
    root = next(root for root in shared.roots.folders if path.is_relative_to(root))
    return str(Path(root.name) / path.relative_to(root))


def _folders(shared: Shared) -> list[Path]:
    return list_folders(shared.roots, shared.competition)


def _opened(shared: Shared, folder: str) -> SlideFolder:
    return open_folder(path_of(folder, shared.roots), shared.roots, shared.competition)


def _chosen(shared: Shared, folder: str, image_id: str) -> Chosen:
    opened = _opened(shared, folder)
    return Chosen(opened, image_id, file_of(opened, image_id, shared.roots))


def _rows(opened: SlideFolder) -> list[dict[str, str]]:
    return [{"slide": one, "state": opened.state(one), "reason": opened.reason(one)} for one in opened.ids()]


def _viewers(shared: Shared, opened: SlideFolder) -> dict[str, str]:
    """Return the viewer's id of each slide by image id; slides that cannot be opened are left out."""
    found = dict[str, str]()
    for image_id in opened.rows:
        try:
            found[image_id] = id_of(file_of(opened, image_id, shared.roots), shared.roots)
        except ClotkitError:
            continue
    return found


def _score(shared: Shared, name: str, chosen: Chosen, job: Job) -> tuple[LiveScore, str, float]:
    """Return a slide's score, and the name and the largest value of the number that is drawn of each tile."""
    member, competition = for_slide(shared.member(name), chosen.facts), chosen.opened.competition
    last = LiveScore(0, 1)
    with closing(score_live(member, chosen.path, competition)) as steps:
        for last in steps:
            job.advance(last.tiles, last.most)
    drawn = shown_by(member, competition)
    return last, drawn.text, drawn.top


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
