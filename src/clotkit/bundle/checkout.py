"""Find the files that only a checkout has: kernels/, datasets_meta/, models_meta/ and requirements/.

They are no part of an installed package: a bundle is built, rehearsed and pushed from files that its author can edit.
"""

from pathlib import Path

from clotkit.errors import UsageError

SOURCE = Path(__file__).resolve().parents[3]  # the checkout, if the package is imported from one


def in_checkout(path: Path, option: str) -> Path:
    """Return `path` if it is in the working directory, or else in the checkout of this package.

    Raises UsageError if it is in neither; `option` is the command-line option that names another path.
    """
    if path.exists():
        return path
    if (SOURCE / "kernels").is_dir() and (SOURCE / path).exists():
        return SOURCE / path
    raise UsageError(
        f"{path}: not found in {Path.cwd()}; bundles are made from a checkout of the repository: "
        f"run this in one (git clone, then cd clotkit), or give {option}"
    )


def locks() -> Path | None:
    """Return the folder of the checkout's requirement files; None in an installed package."""
    folder = SOURCE / "requirements"
    return folder if folder.is_dir() else None
