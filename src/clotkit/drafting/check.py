"""Check a competition's TOML, alone and against the tables, sample and slides of a data folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clotkit.competitions import Competition
from clotkit.drafting.check_slides import check_sample_ids, check_slides, unused_patterns
from clotkit.drafting.check_tables import Tables, check_tables, label_counts
from clotkit.drafting.finding import Finding
from clotkit.drafting.toml_text import open_keys
from clotkit.errors import SplitError, UsageError
from clotkit.metric import constant_score
from clotkit.reasons import Misfit
from clotkit.splits import SlideRow, read_slides, split_of


@dataclass(frozen=True)
class Checked:
    """The result of a check: what does not fit, and what the competition is."""

    findings: Sequence[Finding]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Return True if there are notes at most."""
        return all(one.note for one in self.findings)

    @property
    def summary(self) -> list[str]:
        """Return the facts for people, a line each."""
        return [f"{key}: {_shown(value)}" for key, value in self.facts.items()]

    def to_json(self) -> dict[str, Any]:
        """Return the result as one JSON object."""
        return {"fits": self.fits, "findings": [one.to_json() for one in self.findings], "facts": self.facts}


def check_competition(competition: Competition, data: Path | None) -> Checked:
    """Check a competition, and with `data` its data folder. Raises UsageError if that is no folder."""
    findings = list(_open_keys(competition))
    facts = _facts(competition)
    if data is None:
        return Checked(findings, facts)
    if not data.is_dir():
        raise UsageError(f"--data {data}: is not a folder; give the folder with the competition's tables and slides")
    tables, found = check_tables(competition, data)
    findings += found
    both: list[SlideRow] = []
    for split in ("train", "test"):
        slides, found = _slides(competition, data, split, findings)
        findings += found
        both += slides
        facts[split] = {"slides": len(slides), "patients": len({slide.patient_id for slide in slides})}
    if not any(one.code in (Misfit.NO_SLIDE, Misfit.NO_TABLE) for one in findings):
        findings += unused_patterns(competition, data, both)
    facts |= _counts(competition, tables)
    return Checked(findings, facts)


def _open_keys(competition: Competition) -> Iterator[Finding]:
    text = competition.source.read_text(encoding="utf-8")
    for row, key, why in open_keys(text):
        yield Finding(Misfit.FILL_IN, competition.source.name, f"{key}: {why}", key=key, row=row)


def _facts(competition: Competition) -> dict[str, Any]:
    wanted, classes, metric = competition.submission, competition.classes, competition.metric
    return {
        "competition": competition.slug,
        "answer": {"form": wanted.form.value, "rule": wanted.rule.value, "columns": list(competition.header)},
        "metric": metric.name,
        "best_constant": round(constant_score(metric.name, classes.weights, classes.priors, metric.clip), 4),
    }


def _counts(competition: Competition, tables: Tables) -> dict[str, Any]:
    """Return how many labels each class has, and the number of rows of the sample."""
    counts = label_counts(competition, tables)
    sample = len(tables.sample or [])
    return {"classes": {name: counts[name] for name in competition.classes.names}, "sample_rows": sample}


def _slides(
    competition: Competition, data: Path, split: str, earlier: Sequence[Finding]
) -> tuple[list[SlideRow], list[Finding]]:
    """Return the slides of a split and what does not fit; a table is reported once."""
    names = {competition.table_path(data, split).name, Path(competition.files.labels if split == "train" else "").name}
    known = any(not one.note and Path(one.where).name in names for one in earlier)
    try:
        split_of(data, competition, [split])
        slides = read_slides(data, split, competition, log=lambda _: None)
    except SplitError as error:
        text = str(error).removeprefix(f"{data}/")
        return [], [] if known else [Finding(Misfit.REFUSED, competition.files.table.format(split=split), text)]
    found = list(check_slides(competition, data, split, slides))
    if split == "test":
        found += check_sample_ids(competition, data, slides)
    return slides, found


def _shown(value: object) -> str:
    """Return a fact for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(one)}" for key, one in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
