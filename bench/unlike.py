"""Measure what shipped members call unlike their training pictures: `python -m bench.unlike DATA`.

DATA is a folder with brain_mri, breastmnist, bloodmnist and breakhis. Of each kind --pictures are taken, drawn with a
fixed seed. The brain MRI pictures alone are in their member's statistics: those of MedMNIST are test pictures, and the
contours have another seed. Only the statistics of familiarity.json are asked, no network. It prints a table in
Markdown: the share called unlike, and the median distance.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from bench.markdown import markdown_table
from clotkit.config import TilingConfig, load_recipe
from clotkit.data.familiarity import Familiarity, read_familiarity
from clotkit.data.images import IMAGE_TILERS, read_image
from clotkit.errors import ClotkitError, UsageError
from clotkit.members.folder import FAMILIARITY, RECIPE
from clotkit.slides.pixels import Pixels
from clotkit.synthetic.contours import write_contours

ROOT = Path(__file__).resolve().parents[1]
SEED = 0
DRAWN_SEED = 91  # of contours; the member's have 0
SIDE_PX = 192  # of drawn noise
OWN = {
    "double_contour": "drawn contours",
    "brain": "brain MRI",
    "breastmnist": "BreastMNIST",
    "bloodmnist": "BloodMNIST",
}
CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "own, inverted": lambda picture: 255 - picture,
    "own, a third as bright": lambda picture: (picture / 3).astype(np.uint8),
    "own, blurred": lambda picture: gaussian_filter(picture, (len(picture) / 40, len(picture) / 40, 0)),  # sigma
    "own, turned by 180 degrees": lambda picture: picture[::-1, ::-1],
}
Kinds = dict[str, list[Pixels]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and return the exit code."""
    line = argparse.ArgumentParser(prog="python -m bench.unlike", description=__doc__)
    line.add_argument("data", type=Path, metavar="DATA")
    line.add_argument("--pictures", type=int, default=120, metavar="N", help="of each kind")
    options = line.parse_args(arguments)
    try:
        print("\n".join(markdown_table(list(rows(options.data, options.pictures)))))
    except (ClotkitError, OSError) as error:
        print(f"bench.unlike: {error}", file=sys.stderr)
        return 2
    return 0


def rows(data: Path, pictures: int) -> Iterator[list[str]]:
    """Yield the head of the table, and a row for each kind of pictures."""
    kinds = {**photographed(data, pictures), **noise(pictures)}
    with tempfile.TemporaryDirectory() as folder:
        kinds["drawn contours"] = drawn(Path(folder) / "contours", pictures)
    members = {name: _member(ROOT / "weights" / name) for name in OWN}
    yield ["pictures", *(f"`{name}`, threshold {found.threshold:.2f}" for name, (found, _) in members.items())]
    for kind, found in kinds.items():
        yield [kind, *(_share(*members[name], found) for name in members)]
    for kind, change in CHANGES.items():
        yield [kind, *(_share(*members[name], [change(one) for one in kinds[OWN[name]]]) for name in members)]


def photographed(data: Path, pictures: int) -> Kinds:
    """Return real pictures of each kind. Raises UsageError if one is not there."""
    files = {"brain MRI": sorted(data.glob("brain_mri/*/*")), "BreakHis": sorted(data.glob("breakhis/**/*.jpg"))}
    if empty := [kind for kind, paths in files.items() if not paths]:
        raise UsageError(f"{data}: has no pictures of {empty[0]}; give the folder of all four")
    found = {kind: [read_image(path) for path in _chosen(paths, pictures)] for kind, paths in files.items()}
    for kind, name in (("BreastMNIST", "breastmnist"), ("BloodMNIST", "bloodmnist")):
        with np.load(data / name / f"{name}.npz") as arrays:
            tiles = arrays["test_images"]
        chosen = tiles[_numbers(len(tiles), pictures)]
        found[kind] = list(chosen if chosen.ndim == 4 else np.repeat(chosen[..., None], 3, axis=3))  # [H, W, 3]
    return found


def noise(pictures: int) -> Kinds:
    """Return grey noise: white, coarse and finer smooth, and pictures of one grey."""
    rng = np.random.default_rng(SEED)
    white = rng.normal(size=(pictures, SIDE_PX, SIDE_PX))
    levels = rng.integers(0, 256, pictures)
    return {
        "white noise": [_grey(one) for one in white],
        "smooth noise, sigma 4 px": [_grey(gaussian_filter(one, 4)) for one in white],
        "smooth noise, sigma 16 px": [_grey(gaussian_filter(one, 16)) for one in white],
        "one grey": [np.full((SIDE_PX, SIDE_PX, 3), level, np.uint8) for level in levels],
    }


def drawn(folder: Path, pictures: int) -> list[Pixels]:
    """Return drawn contours of a seed that no member was trained on."""
    write_contours(folder, pictures, DRAWN_SEED, lambda _: None)
    return [read_image(path) for path in sorted(folder.glob("*/*.png"))]


def _grey(values: np.ndarray) -> Pixels:
    scaled = 127 + 50 * (values - values.mean()) / values.std()  # [H, W]
    return np.repeat(scaled.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def _chosen(paths: Sequence[Path], pictures: int) -> list[Path]:
    return [paths[number] for number in _numbers(len(paths), pictures)]


def _numbers(there: int, wanted: int) -> np.ndarray:
    return np.sort(np.random.default_rng(SEED).permutation(there)[:wanted])


def _member(folder: Path) -> tuple[Familiarity, TilingConfig]:
    found = read_familiarity(folder / FAMILIARITY)
    if found is None:
        raise UsageError(f"{folder}: has no {FAMILIARITY}; train the member again")
    return found, load_recipe(folder / RECIPE).tiling


def _share(familiarity: Familiarity, tiling: TilingConfig, pictures: Sequence[Pixels]) -> str:
    """Return the share that is called unlike, with the median distance."""
    distances = np.array([familiarity.distance(IMAGE_TILERS[tiling.name](one, tiling)) for one in pictures])
    return f"{100 * familiarity.unlike(distances).mean():.0f} %; {np.median(distances):.2f}"


if __name__ == "__main__":
    sys.exit(main())
