"""Judge a recipe on the patients of outer folds, which neither its training nor its tuning saw."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from clotkit.errors import ClotkitError, described
from clotkit.evaluation.scores import calibrated, rows_to_score
from clotkit.files import atomic_write_text
from clotkit.locks import exclusive_file
from clotkit.tuning.folds import OuterFold
from clotkit.tuning.objective import NOT_OF_A_TRIAL, Workbench
from clotkit.tuning.search import Value

FOLDER = ".outer"  # of finished predictions, and of the checkpoints of those that are not


def outer_predictions(bench: Workbench, values: Sequence[dict[str, Value]]) -> pd.DataFrame:
    """Return the calibrated predictions of every outer fold, by the recipe with the fold's values.

    There is a row per patient or image, with the columns of evaluation.scores.rows_to_score and column_of("outer").
    What is done is kept in the study's folder; fits that were killed resume.

    Raises:
        ClotkitError: A fit failed. The same command tries it again.
    """
    outer = column_of("outer", bench.target.classes)
    parts = [
        _of_fold(bench, fold, chosen, number).assign(**{outer: number})
        for number, (fold, chosen) in enumerate(zip(bench.folds, values, strict=True))
    ]
    return pd.concat(parts, ignore_index=True)


def column_of(name: str, classes: Sequence[str]) -> str:
    """Return the name of a column beside those of the classes: with underscores if a class has that name."""
    while name in classes:
        name += "_"
    return name


def _of_fold(bench: Workbench, fold: OuterFold, values: dict[str, Value], number: int) -> pd.DataFrame:
    folder = bench.settings.out / FOLDER
    folder.mkdir(exist_ok=True)
    text = json.dumps([number, bench.tables_with(values), bench.material], sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = folder / f"{name}.csv"
    with exclusive_file(folder / f"{name}.lock"):
        if not path.is_file():
            try:
                scored = _trained_on(bench, fold, values, folder / name)
            except NOT_OF_A_TRIAL:
                raise
            except Exception as error:  # as in a trial: TensorFlow, Keras and NumPy raise many types
                raise ClotkitError(_failure(bench, number, values, error)) from error
            atomic_write_text(path, scored.to_csv(index=False, lineterminator="\n"))
            shutil.rmtree(folder / name, ignore_errors=True)
    classes = bench.target.classes  # empty cells of theirs are NaN: the fit diverged
    types = {"image": str, "patient": str, "centre": str} | dict.fromkeys(classes, float)
    return pd.read_csv(path, dtype=types, keep_default_na=False, na_values={name: [""] for name in classes})


def _failure(bench: Workbench, number: int, values: dict[str, Value], error: Exception) -> str:
    """Return the message for a fit of an outer fold that failed, with the values of its recipe."""
    keys = (
        ", ".join(f"{name} = {value}" for name, value in bench.values_of(values).items()) or "the recipe's own values"
    )
    return (
        f"{bench.settings.out}: the fit for outer fold {number} failed, with {keys}: {described(error)}; trials are "
        "kept: the same command tries only this fit again"
    )


def _trained_on(bench: Workbench, fold: OuterFold, values: dict[str, Value], checkpoints_dir: Path) -> pd.DataFrame:
    """Train what ships on the other patients, and return its calibrated predictions of the outer part.

    A split with a test part is trained as `clotkit train` does. Otherwise the inner folds are this training's folds:
    they calibrate, and give the networks or choose nothing but the epoch, as the recipe's training.final says.
    """
    run = bench.run(bench.recipe_with(values), checkpoints_dir)
    if fold.is_test_part:
        return run.train_folds([fold.fold]).fit.scored
    trained = run.train_folds(fold.inner)
    units = rows_to_score(run.predict(trained.networks, fold.fold.held_out), bench.target)
    return calibrated(units, trained.fit.calibration, bench.target)
