"""Page Submission: a submission.csv dropped here, checked as Kaggle would read it, and held against another one."""

import streamlit as st

from clotkit.app.pages.common import Shared, listing
from clotkit.app.submissions import check, difference, spread
from clotkit.app.text import plain
from clotkit.competitions import Competition
from clotkit.scoring.submission import Verdict

MOST_LINES = 50  # of problems that are shown


def show(shared: Shared) -> None:
    """Draw the page."""
    given = st.file_uploader("Submission to check (CSV)", key="submission")
    sample = st.file_uploader("Sample submission, for its ids (CSV, may be left out)", key="sample")
    other = st.file_uploader("Another submission, to compare with (CSV, may be left out)", key="other")
    if given is None:
        return
    files = [None if file is None else file.getbuffer() for file in (given, sample, other)]
    checked, second = check(files[0] or b"", files[1], files[2], shared.competition)
    _verdict(given.name, checked)
    if sample is None:
        st.info("Without a sample submission nothing is said of its ids and of the number of its rows.")
    if checked.valid:
        _spread(checked, shared.competition)
    if other is not None and second is not None:
        st.subheader("The other file")
        _verdict(other.name, second)
        if checked.valid and second.valid:
            _difference(checked, second, shared.competition)


def _verdict(name: str, checked: Verdict) -> None:
    if checked.valid:
        st.success(f"{plain(name)}: valid, {len(checked.rows)} patients")
    else:
        st.error(f"{plain(name)}: {len(checked.problems)} problems")
    for line in checked.problems[:MOST_LINES]:
        st.markdown(f"- {plain(str(line), 300)}")
    if len(checked.problems) > MOST_LINES:
        st.markdown(f"- … and {len(checked.problems) - MOST_LINES} more")
    for note in checked.notes:
        st.markdown(f"- {plain(note, 300)}")


def _spread(checked: Verdict, competition: Competition) -> None:
    name = competition.classes.names[-1]
    st.subheader("Spread")
    steps = spread(checked, len(competition.classes.names) - 1)
    columns = {f"probability of {name}": [low for low, _ in steps], "patients": [count for _, count in steps]}
    st.bar_chart(columns, x=f"probability of {name}", y="patients")


def _difference(one: Verdict, other: Verdict, competition: Competition) -> None:
    found = difference(one, other, competition)
    st.markdown(
        f"{found.patients} patients in both, {found.only_one} in one alone; a probability differs by "
        f"{found.mean:.4f} on average, {found.largest:.4f} at most"
    )
    listing(found.worst)
