"""Kernels and their runs: what Kaggle's API answers."""

import json
import re
from typing import Any

from .datasets import zipped
from .models import versions_of
from .reply import RefusedError, Reply, as_json, as_redirect, page_of
from .state import DATE, Kernel, KernelVersion, World, slugify

Body = dict[str, Any]
LONGEST_SOURCE = 1_000_000  # bytes
LONGEST_TITLE = 50
FULL = "Maximum batch GPU session count of {count} reached."


def save_kernel(world: World, body: Body) -> Reply:
    """Push: make a version and start its run, unless the account's GPU sessions are all taken."""
    ref = _place(world, body)
    _check(body)
    version = KernelVersion(0, body, str(body["text"]), ref=ref)
    if version.on_gpu and len(running := world.running_on_gpu()) >= world.gpu_sessions:
        for other in running:  # whoever pushes again has waited
            world.poll_kernel(other)
        return as_json({"ref": "", "url": "", "error": FULL.format(count=world.gpu_sessions)})
    if ref in world.datasets:
        raise RefusedError(400, "Bad Request")
    invalid = _invalid_sources(world, body)
    dropped = {*world.dropped_sources, *(name for names in invalid.values() for name in names)}
    version.body = {name: _without(value, dropped) for name, value in body.items()}
    kernel = world.kernels.setdefault(ref, Kernel(id=len(world.kernels) + 7))
    kernel.title = str(body.get("newTitle") or kernel.title or ref.partition("/")[2])
    for _ in range(world.version_jump - 1):
        world.push_elsewhere(ref)
    world.version_jump = 1
    version.number = kernel.versions[-1].number + 1 if kernel.versions else 1
    version.mounted = _mounted(world, version.body)
    kernel.unseen_polls = world.unseen_kernel_polls
    if body.get("kernelExecutionType") == "QUICK_SAVE":
        version.status = version.ends = "COMPLETE"
    kernel.versions.append(version)
    url = f"https://www.kaggle.com/code/{ref}"
    told = {"ref": f"/code/{ref}", "url": url, "versionNumber": version.number, "kernelId": kernel.id, "error": ""}
    return as_json({**told, **invalid})


def get_kernel(world: World, body: Body) -> Reply:
    """Return the source of a version, and the kernel's metadata."""
    ref, kernel, version = _found(world, body)
    said = {name: _spelt(world, name, value) for name, value in version.body.items()}
    names = ("language", "kernelType", "isPrivate", "enableGpu", "enableInternet", "enableTpu", "machineShape")
    lists = ("datasetDataSources", "kernelDataSources", "competitionDataSources", "modelDataSources", "categoryIds")
    metadata = {
        "id": kernel.id,
        "ref": ref,
        "title": kernel.title,
        "author": world.username,
        "slug": ref.partition("/")[2],
        "lastRunTime": DATE,
        "currentVersionNumber": version.number,
        **{name: said[name] for name in (*names, *lists, "dockerImage") if name in said},
    }
    blob = {"source": version.source, "language": said.get("language", "python"), "slug": metadata["slug"]}
    return as_json({"metadata": metadata, "blob": {**blob, "kernelType": said.get("kernelType", "script")}})


def get_kernel_session_status(world: World, body: Body) -> Reply:
    """Return the status of a version's run."""
    version = _found(world, body)[2]
    status = world.poll_kernel(version)
    return as_json({"status": status, "failureMessage": version.failure if version.over else ""})


def list_kernel_session_output(world: World, body: Body) -> Reply:
    """List what a run wrote, page by page, with its log; nothing before it is over."""
    version = _found(world, body)[2]
    if not version.over:
        return as_json({"files": [], "log": "", "nextPageToken": ""})
    names, token = page_of(sorted(version.outputs), body, world.page_limit)
    files = [{"url": world.sign(name, version.outputs[name]), "fileName": name} for name in names]
    version.log_polls += 1
    log = json.dumps(version.events()) if version.log_polls > world.log_lag_polls else ""
    return as_json({"files": files, "log": log, "nextPageToken": token})


def list_kernel_files(world: World, body: Body) -> Reply:
    """List the names and sizes of what a run wrote."""
    version = _found(world, body)[2]
    outputs = version.outputs if version.over else {}
    names, token = page_of(sorted(outputs), body, world.page_limit)
    files = [{"name": name, "size": len(outputs[name]), "creationDate": DATE} for name in names]
    return as_json({"files": files, "nextPageToken": token})


def download_kernel_output(world: World, body: Body) -> Reply:
    """Redirect to one output file of a run, or to a zip of all of them."""
    number = body.get("versionNumber")
    label = f"v{number}" if number else ""
    asked = {"userName": body.get("ownerSlug"), "kernelSlug": body.get("kernelSlug"), "versionLabel": label}
    version, name = _found(world, asked)[2], str(body.get("filePath", ""))
    outputs = version.outputs if version.over else {}
    if name and name not in outputs:
        raise RefusedError(404, "File not found")
    return as_redirect(world.sign(name, outputs[name]) if name else world.sign("output.zip", zipped(outputs)))


def stream_log(world: World, user: str, slug: str, label: str) -> Reply:
    """Return a run's log: events until its end while it runs, an array once it is over.

    Who reads the events to their end has waited for the run's end. A run that never starts has none.
    """
    ref, _, version = _found(world, {"userName": user, "kernelSlug": slug, "versionLabel": label})
    if version.over:
        return as_json(version.events())
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    if world.kernel_fate.get(ref) in ("QUEUED", "RUNNING"):
        return Reply(200, b"", headers, events=True)
    logged = world.kernel_fate.get(ref) == "LOGGED"
    world.play(version)
    lines = [json.dumps(event) for event in version.events()] + ["END_OF_LOG"]
    body = "".join(f"data: {line}\n\n" for line in lines).encode()
    return Reply(200, body, headers, events=True, then=None if logged else lambda: world.end(version))


def get_accelerator_quota_statistics(world: World, _: Body) -> Reply:
    """Return the accelerator time used this week."""
    gpu = {"timeUsed": f"{world.gpu_used_s}s", "totalTimeAllowed": f"{world.gpu_allowed_s}s"}
    tpu = {"timeUsed": f"{world.tpu_used_s}s", "totalTimeAllowed": f"{world.tpu_allowed_s}s"}
    return as_json({"quotaRefreshTime": DATE, "gpuQuota": gpu, "tpuQuota": tpu})


def _place(world: World, body: Body) -> str:
    """Return the name under which a pushed kernel is filed."""
    if body.get("id"):
        found = [ref for ref, kernel in world.kernels.items() if kernel.id == body["id"]]
        if not found:
            raise RefusedError(404, "Notebook not found")
        return found[0]
    owner, _, slug = str(body.get("slug", "")).partition("/")
    if owner != world.username:
        raise RefusedError(403, "Permission 'kernels.update' was denied")
    title = str(body.get("newTitle", ""))
    if len(title) > LONGEST_TITLE or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug):
        raise RefusedError(500, "Internal server error")
    return f"{owner}/{slugify(title) or slug}"


def _check(body: Body) -> None:
    if len(str(body.get("text", "")).encode()) > LONGEST_SOURCE:
        raise RefusedError(400, f"The source must be at most {LONGEST_SOURCE} bytes")
    if not body.get("text"):
        raise RefusedError(400, "The source is missing")
    if body.get("language") not in ("python", "r", "rmarkdown") or body.get("kernelType") not in ("script", "notebook"):
        raise RefusedError(400, "Invalid language or kernel type")


def _invalid_sources(world: World, body: Body) -> dict[str, list[str]]:
    datasets = set(world.datasets) | world.public_datasets
    known = {
        "DatasetSources": (body.get("datasetDataSources"), datasets),
        "CompetitionSources": (body.get("competitionDataSources"), {world.competition.slug}),
        "KernelSources": (body.get("kernelDataSources"), set(world.kernels)),
        "ModelSources": (body.get("modelDataSources"), world.models | versions_of(world)),
        "Tags": (body.get("categoryIds"), world.tags),
    }
    return {
        f"invalid{kind}": [name for name in asked or [] if name not in names and _unversioned(name) not in names]
        for kind, (asked, names) in known.items()
    }


def _without(value: Any, dropped: set[str]) -> Any:
    return [entry for entry in value if entry not in dropped] if isinstance(value, list) else value


def _spelt(world: World, field: str, value: Any) -> Any:
    return [world.spell_source(field, entry) for entry in value] if field.endswith("DataSources") else value


def _unversioned(name: str) -> str:
    return re.sub(r"^([^/]+/[^/]+)/[0-9]+$", r"\1", name)


def _mounted(world: World, body: Body) -> dict[str, int]:
    """Return the version of each dataset that a run sees: the last one that is ready, if there is one."""
    mounted: dict[str, int] = {}
    for source in map(_unversioned, body.get("datasetDataSources") or []):
        versions = world.datasets[source].versions if source in world.datasets else []
        ready = [version.number for version in versions if version.status == "READY"]
        if ready:
            mounted[source] = ready[-1]
    return mounted


def _found(world: World, body: Body) -> tuple[str, Kernel, KernelVersion]:
    ref, label = f"{body.get('userName')}/{body.get('kernelSlug')}", str(body.get("versionLabel") or "")
    kernel = world.kernels.get(ref)
    if kernel is None:
        raise RefusedError(world.missing_kernel_status, "Permission 'kernels.get' was denied")
    if kernel.unseen_polls > 0:
        kernel.unseen_polls -= 1
        return _before_it_shows(world, ref, kernel, label)
    if not label:
        return ref, kernel, kernel.versions[-1]
    version = kernel.version(int(label[1:])) if re.fullmatch(r"v[0-9]+", label) else None
    if version is None:
        raise RefusedError(404, "Notebook version not found")
    return ref, kernel, version


def _before_it_shows(world: World, ref: str, kernel: Kernel, label: str) -> tuple[str, Kernel, KernelVersion]:
    """Return the version before, or refuse, as Kaggle does while it does not know a new version yet."""
    if world.unseen_kernel == "earlier" and len(kernel.versions) > 1 and not label:
        return ref, kernel, kernel.versions[-2]
    status = 404 if world.unseen_kernel == "earlier" else int(world.unseen_kernel)
    raise RefusedError(status, "Permission 'kernels.get' was denied")


METHODS = {
    "kernels.KernelsApiService/SaveKernel": save_kernel,
    "kernels.KernelsApiService/GetKernel": get_kernel,
    "kernels.KernelsApiService/GetKernelSessionStatus": get_kernel_session_status,
    "kernels.KernelsApiService/ListKernelSessionOutput": list_kernel_session_output,
    "kernels.KernelsApiService/ListKernelFiles": list_kernel_files,
    "kernels.KernelsApiService/DownloadKernelOutput": download_kernel_output,
    "kernels.KernelsApiService/GetAcceleratorQuotaStatistics": get_accelerator_quota_statistics,
}
