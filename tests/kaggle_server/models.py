"""Models, their variations and versions: what Kaggle's API answers."""

import re
from typing import Any

from .datasets import files_of, zipped
from .reply import RefusedError, Reply, as_json, as_redirect, page_of
from .state import DATE, Model, Variation, Version, World

Body = dict[str, Any]
FRAMEWORK = "MODEL_FRAMEWORK_"


def get_model(world: World, body: Body) -> Reply:
    """Return a model and its variations."""
    ref, model = _model(world, body)
    variations = [_shown(variation) | {"slug": name} for name, variation in model.variations.items()]
    said = {"title": model.title, "subtitle": model.subtitle, "description": model.description}
    return as_json({"id": model.id, "ref": ref, **said, "isPrivate": model.private, "instances": variations})


def create_model(world: World, body: Body) -> Reply:
    """Make a model without a variation."""
    slug, title = str(body.get("slug", "")), str(body.get("title", ""))
    ref = f"{body.get('ownerSlug')}/{slug}"
    _may_change(world, body)
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{2,49}", slug) or not title:
        raise RefusedError(400, "The slug or the title is too short, too long or has invalid characters")
    if ref in world.made_models:
        return as_json({"error": f"The slug '{slug}' is already in use", "errorCode": 409})
    said = str(body.get("subtitle", "")), str(body.get("description", ""))
    world.made_models[ref] = Model(len(world.made_models) + 1, title, *said, bool(body.get("isPrivate", False)))
    return as_json({"id": world.made_models[ref].id, "ref": ref, "url": f"https://www.kaggle.com/models/{ref}"})


def get_variation(world: World, body: Body) -> Reply:
    """Return a variation with the number of its newest version that can be seen."""
    return as_json(_shown(_variation(world, body)[1]))


def create_variation(world: World, body: Body) -> Reply:
    """Make a variation with its first version."""
    _may_change(world, body)
    ref, model = _model(world, body)
    said = dict(body.get("body") or {})
    name = f"{_word(said)}/{said.get('instanceSlug')}"
    if name in model.variations:
        return as_json({"error": f"The variation '{name}' exists already", "errorCode": 409})
    if not said.get("licenseName"):
        raise RefusedError(400, "A license is needed")
    variation = Variation(str(said["licenseName"]), str(said.get("overview", "")), world.model_lag_polls)
    variation.versions.append(Version(1, "", files_of(world, said), "READY"))
    model.variations[name] = variation
    return _made(ref, name)


def create_version(world: World, body: Body) -> Reply:
    """Add a version, which replaces all files of the one before."""
    _may_change(world, body)
    name, variation = _variation(world, body)
    said = dict(body.get("body") or {})
    number = variation.versions[-1].number + 1
    variation.versions.append(Version(number, str(said.get("versionNotes", "")), files_of(world, said), "READY"))
    variation.unseen_polls = world.model_lag_polls
    return _made(_model(world, body)[0], name)


def list_files(world: World, body: Body) -> Reply:
    """List a version's files, page by page."""
    files = _version(world, body).files
    sizes = {name: len(content) for name, content in files.items()}
    sizes = {name: size for name, size in {**sizes, **world.list_changes}.items() if size is not None}
    names, token = page_of(sorted(sizes), body, world.page_limit)
    listed = [{"name": name, "size": sizes[name], "creationDate": DATE} for name in names]
    return as_json({"files": listed, "nextPageToken": token})


def download(world: World, body: Body) -> Reply:
    """Redirect to one file, or to a zip of all files."""
    version, name = _version(world, body), str(body.get("path", ""))
    if name and name not in version.files:
        raise RefusedError(404, "File not found")
    return as_redirect(world.sign(name or "archive.zip", version.files[name] if name else zipped(version.files)))


def versions_of(world: World) -> set[str]:
    """Return every version that a kernel can attach, as owner/model/framework/variation/version."""
    return {
        f"{ref}/{name}/{version.number}"
        for ref, model in world.made_models.items()
        for name, variation in model.variations.items()
        for version in variation.versions
    }


def _may_change(world: World, body: Body) -> None:
    if body.get("ownerSlug") != world.username:
        raise RefusedError(403, "Permission 'models.update' was denied")


def _word(body: Body) -> str:
    """Return a framework's word in addresses."""
    name = str(body.get("framework", ""))
    if not name.startswith(FRAMEWORK):
        raise RefusedError(400, "Invalid framework")
    return name.removeprefix(FRAMEWORK).replace("_", "").lower()


def _model(world: World, body: Body) -> tuple[str, Model]:
    ref = f"{body.get('ownerSlug')}/{body.get('modelSlug')}"
    if ref not in world.made_models:
        raise RefusedError(world.absent_status, "Model not found")
    return ref, world.made_models[ref]


def _variation(world: World, body: Body) -> tuple[str, Variation]:
    model, name = _model(world, body)[1], f"{_word(body)}/{body.get('instanceSlug')}"
    if name not in model.variations:
        raise RefusedError(world.absent_status, "Model variation not found")
    return name, model.variations[name]


def _version(world: World, body: Body) -> Version:
    versions, number = _variation(world, body)[1].versions, body.get("versionNumber")
    found = [version for version in versions if version.number == number or not number]
    if not found:
        raise RefusedError(404, "Model version not found")
    return found[-1]


def _shown(variation: Variation) -> Body:
    """Return a variation as Kaggle shows it; a new version is seen some calls after it was made."""
    newest = variation.versions[-1].number
    seen = newest - 1 if variation.unseen_polls > 0 else newest
    variation.unseen_polls -= 1
    return {"id": 1, "versionNumber": seen, "licenseName": variation.license, "overview": variation.overview}


def _made(ref: str, name: str) -> Reply:
    return as_json({"id": 1, "ref": f"{ref}/{name}", "url": f"https://www.kaggle.com/models/{ref}/{name}"})


METHODS = {
    "models.ModelApiService/GetModel": get_model,
    "models.ModelApiService/CreateModel": create_model,
    "models.ModelApiService/GetModelInstance": get_variation,
    "models.ModelApiService/CreateModelInstance": create_variation,
    "models.ModelApiService/CreateModelInstanceVersion": create_version,
    "models.ModelApiService/ListModelInstanceVersionFiles": list_files,
    "models.ModelApiService/DownloadModelInstanceVersion": download,
}
