"""The submission while a run goes on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clotkit.competitions import Competition, Form
from clotkit.members.decision import Decision, default_decision, mean_decision
from clotkit.members.ensemble import Probabilities, blend, patient_mean
from clotkit.members.loading import Member
from clotkit.progress import Log
from clotkit.reasons import Cause, Reason
from clotkit.report.records import SlideReport
from clotkit.scoring.inputs import Inputs
from clotkit.submission.writing import PROBABILITIES, write_probabilities, write_submission


@dataclass
class SubmissionState:
    """The scores of a run so far, and the submission that follows from them."""

    path: Path  # of the submission
    competition: Competition
    inputs: Inputs
    log: Log
    members: Sequence[Member] = ()
    scored: dict[str, dict[str, Probabilities]] = field(default_factory=dict)  # by slide and member: [C]
    unwritten: Cause | None = None  # why the last attempt to write failed

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the sample submission, in its order."""
        return self.inputs.sample.ids

    def add(self, line: SlideReport, means: dict[str, Probabilities]) -> None:
        """Add a slide's probabilities by member, [C] each."""
        self.scored[line.image_id] = means

    def add_earlier(self, line: SlideReport) -> None:
        """Add a slide from its line in the report of an earlier run."""
        self.add(line, {name: np.array(values) for name, values in line.p.items()})

    def is_complete(self, line: SlideReport) -> bool:
        """Return whether a line of an earlier run needs no member that is loaded only now."""
        return line.state != "done" or {member.name for member in self.members} <= line.p.keys()

    def write(self) -> None:
        """Write the submission: ids with a scored slide get their answer, the others the fallback.

        Raises OSError if it cannot be written; the file that was there is then left as it was.
        """
        rows, sample = self.probabilities(), self.inputs.sample
        write_submission(self.path, self.competition, sample, rows, self.labels(rows))
        if self.competition.submission.form is Form.LABEL:
            write_probabilities(self.path.with_name(PROBABILITIES), self.competition, sample, rows)

    def publish(self) -> None:
        """Write the submission; a failure is logged and the run goes on."""
        self.attempt(self.write)

    def probabilities(self) -> dict[str, Sequence[float]]:
        """Return the probabilities of every id with a scored slide, [C] each."""
        if self.inputs.ensemble is not None:
            return dict(self.inputs.ensemble.apply(self.scored, self.inputs.row_of, self.inputs.facts_of))
        calibrations = {member.name: member.calibration for member in self.members}
        patients = patient_mean(self.scored, self.inputs.row_of)
        return {patient: blend(means, calibrations) for patient, means in patients.items()}

    def labels(self, rows: Mapping[str, Sequence[float]]) -> dict[str, int]:
        """Return the label of each row of probabilities, by the fitted decision; none for other forms."""
        if self.competition.submission.form is not Form.LABEL or not rows:
            return {}
        labels = self._decision().apply(np.array(list(rows.values())))
        return dict(zip(rows, labels.tolist(), strict=True))

    def _decision(self) -> Decision:
        """Return the decision of the ensemble, or the mean of the members'; unfitted if there is none."""
        ensemble, rule = self.inputs.ensemble, self.competition.submission.rule
        fitted = [member.decision for member in self.members] if ensemble is None else [ensemble.decision]
        known = [one for one in fitted if one is not None and one.rule is rule]
        return mean_decision(known) if known else default_decision(rule, len(self.competition.classes.names))

    def attempt(self, write: Callable[[], None]) -> None:
        """Call `write`; log the first of several OSErrors in a row and go on, as a later write may find room."""
        try:
            write()
        except OSError as error:
            if self.unwritten is None:
                self.log(f"{self.path.parent}: {error.strerror}; earlier results are kept, the run goes on")
            self.unwritten = Cause(Reason.NOT_WRITTEN, str(error.strerror))
        else:
            self.unwritten = None

    def shortfalls(self) -> dict[str, int]:
        """Count what the submission lacks, leaving out zeros.

        These are the patients without a score, the scored slides whose patient the sample lacks, and a failed last
        write.
        """
        unscored, ids = len(set(self.ids) - self.scored_patients()), set(self.ids)
        strangers = sum(self.inputs.row_of[image_id] not in ids for image_id, means in self.scored.items() if means)
        counts = {"unscored": unscored, "not_in_sample": strangers, "unwritten": int(self.unwritten is not None)}
        return {name: count for name, count in counts.items() if count}

    def scored_patients(self) -> set[str]:
        """Return the ids with at least one scored slide."""
        return {self.inputs.row_of[image_id] for image_id, means in self.scored.items() if means}
