"""Page Submission: check an uploaded submission.csv as Kaggle does, and compare it with another one."""

import streamlit as st

from clotkit.app.escaping import escaped, escaped_reason
from clotkit.app.pages.common import Shared, show_table
from clotkit.app.submissions import check, difference, histogram, label_counts
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
    _show_verdict(submission.name, first, shared.competition)
    if sample is None:
        st.info("Without a sample submission, the ids and the number of rows are not checked.")
    if first.valid:
        _show_histogram(first, shared.competition)
    if other is not None and second is not None:
        st.subheader("Other file")
        _show_verdict(other.name, second, shared.competition)
        if first.valid and second.valid:
            _show_difference(first, second, shared.competition)


def _show_verdict(name: str, verdict: Verdict, competition: Competition) -> None:
    if verdict.valid:
        st.success(f"{escaped(name)}: valid, {many(len(verdict.rows), competition.unit.value)}")
    else:
        st.error(f"{escaped(name)}: {many(len(verdict.problems), 'problem')}")
    for problem in verdict.problems[:MOST_LINES]:
        st.markdown(f"- {escaped_reason(problem)}")
    if len(verdict.problems) > MOST_LINES:
        st.markdown(f"- … and {len(verdict.problems) - MOST_LINES} more")
    for note in verdict.notes:
        st.markdown(f"- {escaped_reason(note)}")


def _show_histogram(verdict: Verdict, competition: Competition) -> None:
    """Draw the numbers of rows by label, or by the probability of a class."""
    st.subheader("Distribution")
    rows, names = f"{competition.unit.value}s", competition.classes.names
    if verdict.labels:
        counts = label_counts(verdict, competition)
        st.bar_chart({"label": list(counts), rows: list(counts.values())}, x="label", y=rows)
        return
    index = len(names) - 1
    if len(names) > 2:
        index = st.selectbox("Class", range(len(names)), index=index, format_func=lambda at: escaped(names[at]))
    bins, axis = histogram(verdict, index), f"probability of {names[index]}"
    st.bar_chart({axis: [low for low, _ in bins], rows: [count for _, count in bins]}, x=axis, y=rows)


def _show_difference(one: Verdict, other: Verdict, competition: Competition) -> None:
    found = difference(one, other, competition)
    if one.labels:
        text = f"{found.mean:.1%} of the labels differ"
    else:
        text = f"probabilities differ by {found.mean:.4f} on average and {found.largest:.4f} at most"
    st.markdown(f"{many(found.patients, competition.unit.value)} in both files, {found.only_one} in one only; {text}")
    show_table(found.worst)
