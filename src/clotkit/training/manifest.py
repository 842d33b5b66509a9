"""MANIFEST.json: what stands in a folder of members, with hashes, and where each came from."""

import json
from pathlib import Path
from typing import Any

from clotkit.errors import ConfigError
from clotkit.files import atomic_write_json, sha256
from clotkit.members.folder import MANIFEST, METRICS, RECIPE


def write_manifest(folder: Path) -> int:
    """Write MANIFEST.json of the members in `folder` and return how many there are.

    Every file of a member: {"member/file": {"sha256", "bytes", "provenance"}}. Raises ConfigError when none is there.
    """
    members = sorted(path.parent for path in folder.glob(f"*/{RECIPE}"))
    if not members:
        raise ConfigError(f"{folder}: 0 members here, at least 1 is needed; clotkit train makes one")
    entries: dict[str, Any] = {}
    for member in members:
        provenance = _provenance(member)
        for path in sorted(member.iterdir()):
            entries[f"{member.name}/{path.name}"] = {
                "sha256": sha256(path),
                "bytes": path.stat().st_size,
                "provenance": provenance,
            }
    atomic_write_json(folder / MANIFEST, entries)
    return len(members)


def _provenance(member: Path) -> str:
    metrics = json.loads((member / METRICS).read_text(encoding="utf-8"))
    images = metrics["material"]["images"]
    return f"recipe {metrics['recipe']}, seed {metrics['seed']}, {images} images: {metrics['data']}"
