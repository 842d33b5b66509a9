"""Page Submission: check an uploaded submission.csv as Kaggle does, and compare it with another one."""

import streamlit as st

from clotkit.app.escaping import escaped, escaped_reason
from clotkit.app.pages.common import Shared, show_table
from clotkit.app.submissions import check, difference, histogram
from clotkit.competitions import Competition
from clotkit.submission.checking import Verdict
from clotkit.units import many

MOST_LINES = 50  # problems that are shown


def show(shared: Shared) -> None:
    """Draw the page."""
    submission = st.file_uploader("Submission to check (CSV)", key="submission")
    sample = st.file_uploader("Sample submission, to check the ids against (CSV, optional)", key="sample")
    other = st.file_uploader("Another submission, to compare with (CSV, optional)", key="other")
    if submission is None:
        return
    files = [None if file is None else file.getbuffer() for file in (submission, sample, other)]
    first, second = check(files[0] or b"", files[1], files[2], shared.competition)
    _show_verdict(submission.name, first)
    if sample is None:
        st.info("Without a sample submission, the ids and the number of rows are not checked.")
    if first.valid:
        _show_histogram(first, shared.competition)
    if other is not None and second is not None:
        st.subheader("Other file")
        _show_verdict(other.name, second)
        if first.valid and second.valid:
            _show_difference(first, second, shared.competition)


def _show_verdict(name: str, verdict: Verdict) -> None:
    if verdict.valid:
        st.success(f"{escaped(name)}: valid, {len(verdict.rows)} patients")
    else:
        st.error(f"{escaped(name)}: {many(len(verdict.problems), 'problem')}")
    for problem in verdict.problems[:MOST_LINES]:
        st.markdown(f"- {escaped_reason(problem)}")
    if len(verdict.problems) > MOST_LINES:
        st.markdown(f"- … and {len(verdict.problems) - MOST_LINES} more")
    for note in verdict.notes:
        st.markdown(f"- {escaped_reason(note)}")


def _show_histogram(verdict: Verdict, competition: Competition) -> None:
    name = competition.classes.names[-1]
    st.subheader("Distribution")
    bins = histogram(verdict, len(competition.classes.names) - 1)
    columns = {f"probability of {name}": [low for low, _ in bins], "patients": [count for _, count in bins]}
    st.bar_chart(columns, x=f"probability of {name}", y="patients")


def _show_difference(one: Verdict, other: Verdict, competition: Competition) -> None:
    found = difference(one, other, competition)
    st.markdown(
        f"{found.patients} patients in both files, {found.only_one} in one only; probabilities differ by "
        f"{found.mean:.4f} on average and {found.largest:.4f} at most"
    )
    show_table(found.worst)
