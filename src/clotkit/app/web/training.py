"""Page Training: the figures, plots and largest errors of a member's training."""

from contextlib import suppress

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from clotkit.app.deepzoom.ids import id_of
from clotkit.app.standing import standing_folders
from clotkit.app.viewer import open_folder, slide_path
from clotkit.app.web.rendering import page
from clotkit.app.web.shared import Shared, shared_of
from clotkit.errors import ClotkitError


def show(request: Request) -> Response:
    """Draw the page of a member."""
    shared = shared_of(request)
    name = shared.chosen(request.query_params.get("member"))
    training = shared.training(name)
    views = _views(shared, {str(row["image"]) for row in training.worst}) if shared.source(name) == "slides" else {}
    return page(request, "training", "Training", members=shared.titles(), member=name, training=training, views=views)


def _views(shared: Shared, wanted: set[str]) -> dict[str, str]:
    """Return the viewer's address of each image of a split below the roots, by image id."""
    splits, _ = standing_folders(shared.roots, shared.competition)
    found = dict[str, str]()
    for split in splits:
        opened = open_folder(split.folder, shared.roots, shared.competition)
        for image_id in wanted & opened.rows.keys():
            with suppress(ClotkitError):
                found[image_id] = f"/view/{id_of(slide_path(opened, image_id, shared.roots), shared.roots)}"
    return found


def plot(request: Request) -> Response:
    """Return a plot as PNG."""
    shared = shared_of(request)
    plots = list(shared.training(shared.chosen(request.path_params["member"])).plots.values())
    number = request.path_params["number"]
    if number >= len(plots):
        raise HTTPException(404)
    return Response(plots[number], media_type="image/png")
