"""Page Home: what the kit is, what stands here, and what to do next."""

from starlette.requests import Request
from starlette.responses import Response

from clotkit.app.deepzoom.ids import id_of
from clotkit.app.standing import last_push, last_rehearsal, standing_folders, standing_members
from clotkit.app.web.rendering import page
from clotkit.app.web.shared import shared_of
from clotkit.app.web.slides import short


def show(request: Request) -> Response:
    """Draw the page."""
    shared = shared_of(request)
    splits, runs = standing_folders(shared.roots, shared.competition)
    folders = [*(one.folder for one in splits), *(one.folder for one in runs)]
    return page(
        request,
        "home",
        "clotkit",
        members=standing_members(shared.members),
        titles=shared.titles(),
        splits=splits,
        runs=runs,
        rehearsal=last_rehearsal(shared.roots),
        push=last_push(shared.roots),
        competition=shared.competition,
        has_roots=bool(shared.roots.folders),
        ids={folder: id_of(folder, shared.roots) for folder in folders},
        names={folder: short(folder, shared) for folder in folders},
    )
