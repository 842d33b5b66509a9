"""`clotkit tune`: search a recipe's hyperparameters, and judge what it found on other patients.

Trials are judged on inner folds of the outer fold's training patients. The winner's inner loss is optimistic, because
it is the lowest of many. The winner and the recipe as it was are therefore trained again and judged on the outer part.

With several outer folds each has a winner. The outer figures are of all of them: they judge the search, not best.toml,
which is the winner with the lowest inner loss.
"""

import json
import time
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from clotkit.engines import Backend, Lost, engine
from clotkit.errors import ClotkitError, ClusterError, UsageError
from clotkit.files import atomic_write_json, atomic_write_text
from clotkit.progress import Log
from clotkit.reasons import TrialEnd, TuningVerdict
from clotkit.tuning import plots
from clotkit.tuning.comparison import TUNED, UNTUNED, compared
from clotkit.tuning.folds import straddling
from clotkit.tuning.objective import (
    TrialRequest,
    TrialResult,
    TuneSettings,
    Workbench,
    close_workbench,
    run_trial,
    workbench,
)
from clotkit.tuning.outer import column_of, outer_predictions
from clotkit.tuning.search import Value
from clotkit.tuning.study import number_of
from clotkit.typed_toml import recipe_text

TRIALS, BEST, SUMMARY, PREDICTIONS = "trials.csv", "best.toml", "summary.json", "outer.csv"
NOT_JUDGED = "the outer figures judge the search, not this recipe: each of the {} outer folds has a winner of its own"
POLL_S = 1.0  # between two looks whether trials that run elsewhere have ended
FAILURES = (TrialEnd.FAILED, TrialEnd.UNFIT, TrialEnd.DIVERGED)
VERDICTS = {
    TuningVerdict.BETTER: "the winner is better than the untuned recipe",
    TuningVerdict.WORSE: "the winner is worse than the untuned recipe: keep that",
    TuningVerdict.UNCLEAR: "no clear difference",
    TuningVerdict.SAME: "the winner is the untuned recipe",
    TuningVerdict.DIVERGED: "undefined, because a fit diverged",
}


def tune(settings: TuneSettings, backend: Backend, log: Log = print) -> dict[str, Any]:
    """Run the trials that are left, judge the winner on the outer part, and return the summary.

    The results are written into the folder of the study.

    If it is killed, the same command goes on. The same command in another process takes part.

    Raises:
        UsageError, ConfigError, SplitError: the input is wrong, or the folder has another study.
        ClusterError: workers died again and again, or the cluster is gone.
    """
    for name in ("trials", "jobs"):
        if getattr(settings, name) < 1:
            raise UsageError(f"--{name} is {getattr(settings, name)}; at least 1 is needed")
    try:
        bench = workbench(settings, log)
        _log_start(bench, log)
        _run_trials(bench, backend, log)
        summary = _summary(bench, log)
        _write(bench, summary)
        log("\n".join(summary_lines(summary)))
        return summary
    finally:
        close_workbench()


def _log_start(bench: Workbench, log: Log) -> None:
    settled = sum(len(study.settled()) for study in bench.studies)
    fold = bench.folds[0]
    patients = len(set(bench.tiles.patients[fold.fold.held_out]))
    log(
        f"{len(bench.folds)} {'studies' if len(bench.folds) > 1 else 'study'} of {bench.settings.trials} trials, "
        f"{len(fold.inner)} inner folds; outer part: {patients} of {len(set(bench.tiles.patients))} patients"
        + (f"; {settled} trials are there already" if settled else "")
    )
    if shared := sum(straddling(one, bench.tiles) for one in bench.folds):
        log(f"{shared} patients are both in the outer part and in training: outer losses are too low")
    if outside := bench.search.values_outside(bench.recipe):
        own = ", ".join(f"{name} {'of several values' if value is None else value}" for name, value in outside.items())
        log(f"{bench.search.source} does not have the recipe's own {own}: trial 0 is drawn like the others")
    if bench.search.scales_loss:
        log(f"{bench.search.source} changes the loss of a training itself: no trial is pruned")


def _run_trials(bench: Workbench, backend: Backend, log: Log) -> None:
    """Run trials until every study has as many as are wanted, also those that other processes run."""
    with engine(backend, log) as workers:
        while left := _left(bench):
            ran = 0
            for request, result in workers.unordered(run_trial, left):
                if isinstance(result, Lost):
                    raise ClusterError(
                        f"study {request.study}: {result.reason}; give it more memory or fewer processes at a time, "
                        "and run the same command again to continue"
                    )
                if result is not None:
                    ran += 1
                    log(_trial_line(bench, request.study, result))
            if not ran:  # all that are left run elsewhere
                time.sleep(POLL_S)


def _left(bench: Workbench) -> list[TrialRequest]:
    """Return a request for each trial that is not settled."""
    wanted = bench.settings.trials
    return [
        TrialRequest(bench.settings, number)
        for number, study in enumerate(bench.studies)
        for _ in range(wanted - len(study.settled()))
    ]


def _trial_line(bench: Workbench, study: int, result: TrialResult) -> str:
    title = f"trial {result.number}" if len(bench.folds) == 1 else f"outer fold {study}, trial {result.number}"
    outcome = f"{result.reason} ({result.note})" if result.loss is None else f"loss {result.loss:.4f}"
    return f"{title}: {outcome}; {_values_text(result.values)}; {result.seconds:.1f} s"


def _values_text(values: dict[str, Value]) -> str:
    return ", ".join(
        f"{name.partition('.')[2]} {value:.3g}" if isinstance(value, float) else f"{name.partition('.')[2]} {value}"
        for name, value in values.items()
    )


def trials_table(bench: Workbench) -> pd.DataFrame:
    """Return one row per settled trial: outer, number, state, keys, losses, epochs, seconds, reason, note."""
    rows = [_row(bench, outer, trial) for outer, study in enumerate(bench.studies) for trial in study.settled()]
    return pd.DataFrame(rows)


def _row(bench: Workbench, outer: int, trial: FrozenTrial) -> dict[str, Any]:
    facts = trial.user_attrs
    losses = facts.get("losses") or [None] * len(bench.folds[outer].inner)
    complete = trial.state is TrialState.COMPLETE
    return {
        "outer": outer,
        "number": number_of(trial),
        "state": trial.state.name.lower(),
        **bench.values_of(trial.params),
        "loss": round(trial.value, 6) if complete and trial.value is not None else None,
        **{f"loss_fold_{number}": loss for number, loss in enumerate(losses)},
        "epochs": facts.get("epochs"),
        "seconds": facts.get("seconds"),
        "reason": facts.get("reason") or "",  # a code of TrialEnd
        "note": facts.get("note", ""),
    }


def _summary(bench: Workbench, log: Log) -> dict[str, Any]:
    """Judge the winners and the untuned recipe on the outer parts, for summary.json."""
    winners = [study.winner() for study in bench.studies]
    if not all(winners):
        raise ClotkitError(_without_loss(bench))
    found = [winner for winner in winners if winner is not None]
    log("training the winner and the untuned recipe for the outer part")
    tuned = outer_predictions(bench, [winner.params for winner in found])
    untuned = outer_predictions(bench, [{}] * len(found))
    _write_predictions(bench, tuned, untuned)
    best = min(range(len(found)), key=lambda number: found[number].value or 0)
    return {
        **_of_study(bench),
        "best_is_judged": len(found) == 1,  # otherwise the outer figures are of the winners of all outer folds
        "best": {"outer": best, "number": number_of(found[best]), "values": bench.values_of(found[best].params)},
        **compared(
            tuned,
            untuned,
            bench.target,
            inner=sum(winner.value or 0 for winner in found) / len(found),
            inner_untuned=_inner_untuned(bench),
            is_same=all(winner.params == bench.first for winner in found),
        ),
        "importances": bench.studies[best].importances(),
    }


def _of_study(bench: Workbench) -> dict[str, Any]:
    """Return what was searched, and how many trials it took."""
    table = trials_table(bench)
    failed = int(table["reason"].isin(FAILURES).sum())
    return {
        "recipe": bench.recipe.name,
        "split": bench.recipe.data.split,
        "unit": "patient" if bench.target.by_patient else "image",
        "trials": len(table),
        "pruned": int((table["reason"] == TrialEnd.PRUNED).sum()),
        "failed": failed,
        "trial_seconds": round(float(table["seconds"].sum()), 1),
        "outer_folds": len(bench.folds),
        "inner_folds": bench.settings.inner,
    }


def _inner_untuned(bench: Workbench) -> float | None:
    """Return the mean inner loss of the recipe's own values; None if a study lacks a loss of theirs."""
    first = [trial for study in bench.studies for trial in study.settled() if number_of(trial) == 0]
    losses = [
        trial.value
        for trial in first
        if trial.state is TrialState.COMPLETE and trial.value is not None and trial.params == bench.first
    ]
    return sum(losses) / len(losses) if len(losses) == len(bench.studies) else None


def _without_loss(bench: Workbench) -> str:
    """Return the message for a study of which no trial has a loss."""
    table = trials_table(bench)
    counts = ", ".join(f"{count} {reason}" for reason, count in table["reason"].value_counts().items() if reason)
    failures = table[table["reason"].isin(FAILURES)]
    why = (
        f"; the first failure is trial {failures['number'].iloc[0]}: {failures['note'].iloc[0]}"
        if len(failures)
        else ""
    )
    return (
        f"{bench.settings.out}: a study has no trial with a loss; of {len(table)} trials: {counts}{why}; mend the "
        "recipe or the search and choose another folder, or give more --trials"
    )


def _write_predictions(bench: Workbench, tuned: pd.DataFrame, untuned: pd.DataFrame) -> None:
    recipe = column_of("recipe", bench.target.classes)
    both = pd.concat([tuned.assign(**{recipe: TUNED}), untuned.assign(**{recipe: UNTUNED})], ignore_index=True)
    atomic_write_text(bench.settings.out / PREDICTIONS, both.to_csv(index=False, lineterminator="\n"))


def _write(bench: Workbench, summary: dict[str, Any]) -> None:
    """Write the results, the summary last."""
    out, table, best = bench.settings.out, trials_table(bench), summary["best"]
    atomic_write_text(out / TRIALS, table.to_csv(index=False, lineterminator="\n"))
    plots.draw_history(out / "history.png", table)
    plots.draw_importances(out / "importance.png", summary["importances"])
    plots.draw_parallel(out / "parallel.png", _with_labels(bench, table), bench.search.entries)
    winner = bench.studies[best["outer"]].winner()
    tables = bench.tables_with(winner.params if winner else {})
    trials = len(bench.studies[best["outer"]].settled())  # a study that went on may have more than --trials
    heading = f"{bench.recipe.name}, tuned: trial {best['number']} of {trials}"
    if not summary["best_is_judged"]:
        heading += f", outer fold {best['outer']}\n{NOT_JUDGED.format(summary['outer_folds'])}"
    atomic_write_text(out / BEST, recipe_text(tables, heading))
    atomic_write_json(out / SUMMARY, summary)


def _with_labels(bench: Workbench, table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the choices as labels, for an axis of a plot."""
    changed = table.copy()
    for name, entry in bench.search.entries.items():
        if entry.choices:
            known = {json.dumps(choice): label for choice, label in zip(entry.choices, entry.labels, strict=True)}
            changed[name] = [known[json.dumps(value)] for value in table[name].tolist()]
    return changed


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """Return the lines that tell what a study found."""
    tuned, untuned, gain = summary["outer"][TUNED], summary["outer"][UNTUNED], summary["gain"]
    best, failed = summary["best"], f", {summary['failed']} failed" if summary["failed"] else ""
    lines = [
        f"{summary['trials']} trials, {summary['pruned']} pruned{failed}, {summary['trial_seconds'] / 60:.1f} min; "
        f"best: trial {best['number']}, {_values_text(best['values'])}",
        f"weighted log loss, by {summary['unit']} (a constant: {summary['constant']:.4f})",
        f"{'winner, inner folds':<24}{summary['inner_loss']:.4f}   the lowest of all trials: optimistic",
        f"{'winner, outer part':<24}{_with_interval(tuned, 'weighted_log_loss')}",
        f"{'untuned, outer part':<24}{_with_interval(untuned, 'weighted_log_loss')}",
        f"{'optimism of tuning':<24}{_signed(summary['optimism'])}   outer minus inner loss of the winner",
        f"{'gain, inner folds':<24}{_signed(summary['inner_gain'])}   untuned minus winner: what tuning promised",
        f"{'gain, outer part':<24}{_signed(gain['value'])}   {_signed(gain['low'])} to {_signed(gain['high'])}; "
        f"{VERDICTS[summary['verdict']]}",
    ]
    return lines if summary["best_is_judged"] else [*lines, f"{BEST}: {NOT_JUDGED.format(summary['outer_folds'])}"]


def _with_interval(figures: dict[str, float | None], name: str) -> str:
    ends = [figures[key] for key in (name, f"{name}_low", f"{name}_high")]
    value, low, high = ("-" if end is None else f"{end:.4f}" for end in ends)
    return f"{value}   {low} to {high}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 4) + 0.0:+.4f}"  # + 0.0: without it -0.00001 is -0.0000
