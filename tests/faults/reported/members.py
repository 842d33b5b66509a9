"""Members whose numbers or names are wrong."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from clotkit.cli import main
from clotkit.competitions import load_competition
from clotkit.errors import WeightsError
from clotkit.members.loading import load_member
from clotkit.reasons import Reason
from clotkit.synthetic.phantom import write_split

from ...conftest import ROOT
from . import Reported

VARIANCE, KERNEL = "layers/batch_normalization_1/vars/3", "layers/conv2d_1/vars/0"
Change = Callable[[Path], None]


def edited(name: str, value: float, member: Path) -> None:
    """Set the first value of an array of a member's weights."""
    with h5py.File(member / "model.weights.h5", "r+") as file:
        array = file[name][...]
        array.flat[0] = value
        file[name][...] = array


def removed(name: str, member: Path) -> None:
    """Remove an array or a layer from a member's weights."""
    with h5py.File(member / "model.weights.h5", "r+") as file:
        del file[name]


def calibrated(key: str, value: float, member: Path) -> None:
    """Set a number of a member's calibration."""
    path = member / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def member_in(folder: Path, name: str = "demo") -> Path:
    """Copy the member demo to weights/NAME."""
    return Path(shutil.copytree(ROOT / "weights" / "demo", folder / "weights" / name))


def refused(words: Callable[[Path], list[str]], change: Change, folder: Path) -> str:
    """Change the only member, and see that a command ends with 2 and one line."""
    change(member_in(folder))
    (folder / "a.tif").write_bytes(b"x")
    code = main(words(folder))
    assert code == 2, code
    assert not (folder / "weights" / "MANIFEST.json").exists()
    return f"exit code {code}, nothing written"


def left_out(change: Change, folder: Path) -> str:
    """Run a split with a sound member and a changed one."""
    write_split(folder / "split", "test", 2, 5, load_competition(), size="1280x1920", log=lambda _: None)
    member_in(folder)
    sound = folder / "weights" / "demo"
    change(member_in(folder, "other"))
    (folder / "alone").mkdir()
    shutil.copytree(sound, folder / "alone" / "demo")
    submissions = []
    for weights, wanted in (("weights", 3), ("alone", 0)):
        out = folder / f"run-{weights}"
        code = main(
            ["run", str(folder / "split"), "--weights", str(folder / weights), "--out", str(out), "--jobs", "1"]
        )
        assert code == wanted, code
        submissions.append((out / "submission.csv").read_bytes())
    facts = json.loads((folder / "run-weights" / "run.json").read_text())
    assert facts["left_out_codes"] == {"other": Reason.BAD_WEIGHTS}
    assert submissions[0] == submissions[1]
    return "left out by name, exit code 3; the submission is that of the other member"


def not_loaded(change: Change, folder: Path) -> str:
    """Load a member whose weights have other arrays than its network."""
    member = member_in(folder)
    change(member)
    try:
        load_member(member, load_competition().classes.names)
    except WeightsError as error:
        return f"refused with the code {error.reason}"
    raise AssertionError("the network kept initial values")


def manifest(folder: Path) -> list[str]:
    """Return the words of `clotkit manifest`."""
    return ["manifest", str(folder / "weights")]


def predict(folder: Path) -> list[str]:
    """Return the words of `clotkit predict`."""
    return ["predict", str(folder / "weights" / "demo"), str(folder / "a.tif")]


def push(folder: Path) -> list[str]:
    """Return the words of `clotkit kaggle datasets-push`."""
    metadata = ["--metadata", str(ROOT / "datasets_meta")]
    return ["kaggle", "datasets-push", "weights", "--weights", str(folder / "weights"), *metadata, "--dry-run"]


def run(folder: Path) -> list[str]:
    """Return the words of `clotkit run` for a split that is not reached."""
    split, out = folder / "split", folder / "out"
    write_split(split, "test", 2, 5, load_competition(), size="1280x1920", log=lambda _: None)
    return ["run", str(split), "--weights", str(folder / "weights"), "--out", str(out)]


def archived(name: str, member: Path) -> None:
    """Put an archive beside the member."""
    (member.parent / name).write_bytes(b"archive")


def linked(member: Path) -> None:
    """Link to the member, beside it."""
    (member.parent / "again").symlink_to(member)


def nested(member: Path) -> None:
    """Put another member a folder deeper."""
    shutil.copytree(ROOT / "weights" / "demo", member.parent / "version" / "2")


NAN, INF = partial(edited, VARIANCE, np.nan), partial(edited, KERNEL, np.inf)
REFUSED = "refused in one line, exit code 2"
CASES = [
    Reported("NaN in a moving variance of one of two members", "left out by name, exit code 3", partial(left_out, NAN)),
    Reported("infinity in a kernel of one of two members", "left out by name, exit code 3",
             partial(left_out, INF), True),
    Reported("a calibration with NaN in one of two members", "left out by name, exit code 3",
             partial(left_out, partial(calibrated, "slope", float("nan"))), True),
    Reported("NaN in weights that a manifest would list", REFUSED, partial(refused, manifest, NAN)),
    Reported("NaN in weights of a prediction", REFUSED, partial(refused, predict, NAN)),
    Reported("infinity in weights that are pushed to Kaggle", REFUSED, partial(refused, push, INF)),
    Reported("a negative variance in weights", REFUSED, partial(refused, manifest, partial(edited, VARIANCE, -1.0))),
    Reported("a floor of the calibration that is infinite", REFUSED,
             partial(refused, manifest, partial(calibrated, "floor", float("inf")))),
    Reported("a layer is missing in the weights", "refused: no network keeps its initial values",
             partial(not_loaded, partial(removed, "layers/dense"))),
    Reported("an archive beside the member of its name", REFUSED, partial(refused, run, partial(archived, "demo.tar"))),
    Reported("a zip beside a member that is pushed", REFUSED, partial(refused, push, partial(archived, "demo.zip"))),
    Reported("one member under two names, by a link", REFUSED, partial(refused, manifest, linked)),
    Reported("a member in a folder deeper than the others", REFUSED, partial(refused, manifest, nested)),
]  # fmt: skip
