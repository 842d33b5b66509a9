"""Uploads and datasets: what Kaggle's API answers."""

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from .reply import RefusedError, Reply, as_json, as_redirect, page_of
from .state import DATE, Blob, Dataset, Version, World, is_safe

Body = dict[str, Any]
TAKEN = 'The requested title "{title}" is already in use by a dataset. Please choose another title.'


def start_blob_upload(world: World, body: Body) -> Reply:
    """Return an upload's token and the address to send it to."""
    name = str(body.get("name", ""))
    if not is_safe(name) or body.get("type") not in ("DATASET", "MODEL", "INBOX"):
        raise RefusedError(400, "Invalid blob name or type")
    token = f"blob{len(world.blobs):06d}"
    world.blobs[token] = Blob(token, name, int(body.get("contentLength", 0)))
    return as_json({"token": token, "createUrl": f"{world.storage}/upload/{token}?upload_id=s{token}"})


def create_dataset(world: World, body: Body) -> Reply:
    """Make a dataset with its first version."""
    slug, title = str(body.get("slug", "")), str(body.get("title", ""))
    ref = _own(world, body.get("ownerSlug"), slug)
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{2,49}", slug) or not 6 <= len(title) <= 50:
        raise RefusedError(400, "The slug or the title is too short, too long or has invalid characters")
    if ref in world.datasets:
        if world.name_taken_status >= 400:
            raise RefusedError(world.name_taken_status, TAKEN.format(title=title))
        return as_json({"ref": "", "url": "", "status": "error", "error": TAKEN.format(title=title)})
    if ref in world.kernels:
        raise RefusedError(400, "Bad Request")
    files = files_of(world, body)
    made = Dataset(title, str(body.get("licenseName", "")), bool(body.get("isPrivate", False)))
    made.id, made.unseen_polls = len(world.datasets) + 1, world.unseen_polls
    made.subtitle, made.description = str(body.get("subtitle", "")), str(body.get("description", ""))
    made.versions.append(Version(1, "Initial release", files))
    world.datasets[ref] = made
    return _made(world, ref, body)


def create_dataset_version(world: World, body: Body) -> Reply:
    """Add a version, which replaces all files of the one before."""
    ref = _own(world, body.get("ownerSlug"), body.get("datasetSlug"))
    dataset, said = world.datasets.get(ref), dict(body.get("body") or {})
    if dataset is None:
        raise RefusedError(404, "Dataset not found")
    version = Version(dataset.versions[-1].number + 1, str(said.get("versionNotes", "")), files_of(world, said))
    dataset.versions = [*([] if said.get("deleteOldVersions") else dataset.versions), version]
    return _made(world, ref, said)


def get_dataset_status(world: World, body: Body) -> Reply:
    """Return the status of the last version, which only its owner may know."""
    ref, dataset = _found(world, body)
    if not ref.startswith(f"{world.username}/"):
        raise RefusedError(404, "Dataset not found")
    return as_json({"status": world.poll_dataset(ref, dataset)})


def get_dataset(world: World, body: Body) -> Reply:
    """Return a dataset and its current version."""
    _may_view(world, body, "GetDataset")
    ref, dataset = _found(world, body)
    current = world.look_at(dataset)
    shown = [version for version in reversed(dataset.versions) if version.number <= current]
    size = sum(map(len, shown[0].files.values())) if shown else 0
    return as_json(
        {
            "id": dataset.id,
            "ref": ref,
            "title": dataset.title,
            "subtitle": dataset.subtitle,
            "description": dataset.description,
            "licenseName": dataset.license,
            "isPrivate": dataset.private,
            "ownerRef": world.username,
            "url": f"https://www.kaggle.com/datasets/{ref}",
            "totalBytes": size,
            "lastUpdated": DATE,
            "currentVersionNumber": current,
            "versions": [_version(world, version) for version in shown],
        }
    )


def get_dataset_metadata(world: World, body: Body) -> Reply:
    """Return a dataset's metadata."""
    ref, dataset = _found(world, body)
    info = {"datasetId": dataset.id, "datasetSlug": ref.partition("/")[2], "ownerUser": world.username}
    said = {"title": dataset.title, "subtitle": dataset.subtitle, "description": dataset.description}
    rights = {"isPrivate": dataset.private, "licenses": [{"name": dataset.license}]}
    return as_json({"info": {**info, **said, **rights}, "errorMessage": ""})


def list_dataset_files(world: World, body: Body) -> Reply:
    """List a version's files, page by page."""
    _may_view(world, body, "ListDatasetFiles")
    sizes = _listed(world, _asked_version(world, body))
    names, token = page_of(sorted(sizes), body, world.page_limit)
    listed = [{"name": name, "totalBytes": sizes[name], "creationDate": DATE} for name in names]
    return as_json({"datasetFiles": listed, "nextPageToken": token})


def download_dataset(world: World, body: Body) -> Reply:
    """Redirect to one file, or to a zip of all files."""
    version, name = _asked_version(world, body), str(body.get("fileName", ""))
    if not name:
        return as_redirect(world.sign("archive.zip", zipped(version.files)))
    if name not in version.files:
        raise RefusedError(404, "File not found")
    return as_redirect(world.sign(name, version.files[name]))


def _listed(world: World, version: Version) -> dict[str, int]:
    """Return the sizes that a list shows by name, with what the knobs change about them."""
    true = {name: len(content) for name, content in version.files.items()}
    sizes = {name: size for name, size in {**true, **world.list_changes}.items() if size is not None}
    if world.list_lag_polls > 0 and sizes:
        world.list_lag_polls -= 1
        del sizes[max(sizes)]
    return sizes


def _may_view(world: World, body: Body, method: str) -> None:
    if body.get("ownerSlug") != world.username and method not in world.public_views:
        raise RefusedError(403, "Permission 'datasets.get' was denied")


def zipped(files: dict[str, bytes]) -> bytes:
    """Return a zip archive of the files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _own(world: World, owner: Any, slug: Any) -> str:
    if owner != world.username:
        raise RefusedError(403, "Permission 'datasets.update' was denied")
    return f"{owner}/{slug}"


def _found(world: World, body: Body) -> tuple[str, Dataset]:
    ref = f"{body.get('ownerSlug')}/{body.get('datasetSlug')}"
    dataset = world.datasets.get(ref)
    if dataset is None and body.get("ownerSlug") != world.username:
        raise RefusedError(403, "Permission 'datasets.get' was denied")
    if dataset is None:
        raise RefusedError(world.absent_status, "Dataset not found")
    if dataset.unseen_polls > 0:
        dataset.unseen_polls -= 1
        raise RefusedError(404, "Dataset not found")
    return ref, dataset


def _asked_version(world: World, body: Body) -> Version:
    dataset = _found(world, body)[1]
    current = world.look_at(dataset)
    number = int(body.get("datasetVersionNumber") or current)
    version = dataset.version(number)
    if version is None or number > current:
        raise RefusedError(404, "Dataset version not found")
    return version


def files_of(world: World, body: Body) -> dict[str, bytes]:
    """Return the uploaded files that a new version of a dataset or a model names."""
    files: dict[str, bytes] = {}
    for folder, token in _tokens(body, ""):
        blob = world.blobs.get(token)
        if blob is None or not blob.complete:
            raise RefusedError(400, f"No complete upload has the token {token}")
        if folder + blob.name in files:
            raise RefusedError(400, f"Two files are named {folder}{blob.name}")
        files[folder + blob.name] = blob.data
    if not files:
        raise RefusedError(400, "A dataset needs files")
    return files


def _tokens(body: Body, folder: str) -> Iterator[tuple[str, str]]:
    for file in body.get("files") or []:
        yield folder, str(file.get("token", ""))
    for inner in body.get("directories") or []:
        if not is_safe(str(inner.get("name", ""))):
            raise RefusedError(400, "Invalid directory name")
        yield from _tokens(inner, f"{folder}{inner['name']}/")


def _made(world: World, ref: str, body: Body) -> Reply:
    tags = [tag for tag in body.get("categoryIds") or [] if tag not in world.tags]
    url = f"https://www.kaggle.com/datasets/{ref}"
    return as_json({"ref": f"/{ref}", "url": url, "status": "ok", "error": "", "invalidTags": tags})


def _version(world: World, version: Version) -> Body:
    return {
        "versionNumber": version.number,
        "versionNotes": version.notes,
        "creationDate": DATE,
        "creatorRef": world.username,
        "status": version.status.capitalize(),
    }


METHODS = {
    "blobs.BlobApiService/StartBlobUpload": start_blob_upload,
    "datasets.DatasetApiService/CreateDataset": create_dataset,
    "datasets.DatasetApiService/CreateDatasetVersion": create_dataset_version,
    "datasets.DatasetApiService/GetDatasetStatus": get_dataset_status,
    "datasets.DatasetApiService/GetDataset": get_dataset,
    "datasets.DatasetApiService/GetDatasetMetadata": get_dataset_metadata,
    "datasets.DatasetApiService/ListDatasetFiles": list_dataset_files,
    "datasets.DatasetApiService/DownloadDataset": download_dataset,
    "datasets.DatasetApiService/DownloadDatasetRaw": download_dataset,
}
