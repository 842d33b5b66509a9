"""The kernel that fetches ImageNet weights with the internet on; its output is the imagenet dataset.

Keras's own downloader fetches each file; its MD5 is checked again before it is copied, under its own name. Other
kernels read the files offline from wherever the dataset is mounted. The kernel ends with 1 if a file could not be
fetched; the others are there then.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

WORKING = Path(os.environ.get("CLOTKIT_KAGGLE_ROOT", "/kaggle")) / "working"
TRIES = 3
WANTED = {  # the function in keras.applications: the file that it downloads without its classifier, and its MD5
    "ResNet50": ("resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", "4d473c1dd8becc155b73f8504c6f6626"),
    "ResNet101": ("resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5", "88cf7a10940856eca736dc7b7e228a21"),
    "VGG16": ("vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", "6d6bbae143d832006294945121d1f1fc"),
    "VGG19": ("vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5", "253f8cb515780f3b799900260a226db6"),
    "InceptionV3": ("inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5", "bcbd6486424b2319ff4ef7d526e38f63"),
    "EfficientNetB0": ("efficientnetb0_notop.h5", "50bc09e76180e00e4465e1a485ddc09d"),
    "EfficientNetB1": ("efficientnetb1_notop.h5", "74c4e6b3e1f6a1eea24c589628592432"),
}


def main() -> int:
    """Fetch, check and copy every file; return 0, or 1 if some could not be fetched."""
    missing = []
    with tempfile.TemporaryDirectory(prefix="keras-", ignore_cleanup_errors=True) as cache:
        os.environ["KERAS_HOME"] = cache  # read when Keras is imported; it downloads into models/ there
        for function, (file, md5) in WANTED.items():
            try:
                fetch(function)
                say(f"{function}: {publish(Path(cache) / 'models' / file, md5, WORKING)}")
            except Exception as error:  # noqa: BLE001 - one file that cannot be fetched must not cost the others
                missing.append(function)
                say(f"{function}: {type(error).__name__}: {error}")
    write_manifest(WORKING)
    say(f"{len(WANTED) - len(missing)} of {len(WANTED)} files; missing: {', '.join(missing) or 'none'}")
    return 1 if missing else 0


def fetch(function: str) -> None:
    """Let Keras download a network's file into its cache, up to TRIES times; raise the last error."""
    import keras

    for left in reversed(range(TRIES)):
        try:
            getattr(keras.applications, function)(include_top=False, weights="imagenet")
            return
        except Exception as error:  # whatever a broken download raises
            if not left:
                raise
            say(f"{function}: {type(error).__name__}: {error}; again")


def publish(file: Path, md5: str, out: Path) -> str:
    """Copy `file` into `out` and return a line about it. Raises ValueError if its MD5 is not `md5`."""
    actual = digest(file)
    if actual != md5:
        raise ValueError(f"{file.name}: md5 is {actual}, must be {md5}; it is not copied: run the kernel again")
    target = out / file.name
    partial = target.with_suffix(".partial")
    shutil.copyfile(file, partial)
    partial.replace(target)
    return f"{target.name}, {target.stat().st_size:,} bytes, md5 {md5}"


def write_manifest(out: Path) -> dict[str, Any]:
    """Write MANIFEST.json with the size and MD5 of every .h5 in `out`, and return it."""
    listed = {path.name: {"bytes": path.stat().st_size, "md5": digest(path)} for path in sorted(out.glob("*.h5"))}
    (out / "MANIFEST.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    return listed


def digest(path: Path) -> str:
    """Return the MD5 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def say(text: str) -> None:
    """Print at once: the log of a killed kernel ends where its buffer did."""
    print(text, flush=True)


if __name__ == "__main__" and (code := main()):  # in a notebook every SystemExit is an error, that of 0 too
    sys.exit(code)
