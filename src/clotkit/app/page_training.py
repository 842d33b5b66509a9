"""Page Training: how a member came to be, and where it errs."""

import streamlit as st

from clotkit.app.common import Shared, choose_member, training_once
from clotkit.app.text import plain, shown

WIDE_PX, NARROW_PX = 1000, 760  # of a plot, at most


def show(shared: Shared) -> None:
    """Draw the page."""
    found = training_once(choose_member(shared.members, "Member", "trained"))
    st.markdown(plain(found.about, 400))
    st.subheader("Figures, with 95 % intervals")
    st.table([{key: _cell(value) for key, value in row.items()} for row in found.figures])
    for name, data in found.pictures.items():
        st.subheader(name)
        with st.container(width=WIDE_PX if name == "Curves" else NARROW_PX):
            st.image(data, caption=name, width="stretch")
    st.subheader("Errors")
    st.markdown(f"{found.wrong} of {found.units} wrong; the worst of them:")
    rows = [
        {key: shown(value) if isinstance(value, str) else value for key, value in row.items()} for row in found.worst
    ]
    st.dataframe(rows, width="stretch", hide_index=True)


def _cell(value: str | float | None) -> str:
    """A cell of a table, in which Markdown counts."""
    return plain(value) if isinstance(value, str) else "" if value is None else f"{value:.4f}"
