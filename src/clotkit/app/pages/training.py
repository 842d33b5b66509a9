"""Page Training: the figures, plots and largest errors of a member's training."""

import streamlit as st

from clotkit.app.escaping import escaped_reason
from clotkit.app.pages.common import Shared, choose_member, show_table, training_once

WIDE_PX, NARROW_PX = 1000, 760  # greatest width of the curves, and of any other plot


def show(shared: Shared) -> None:
    """Draw the page."""
    training = training_once(choose_member(shared.members, "Member", "trained"))
    st.markdown(escaped_reason(training.about))
    st.subheader("Figures, with 95 % intervals")
    show_table(training.figures)
    for name, data in training.plots.items():
        st.subheader(name)
        with st.container(width=WIDE_PX if name == "Curves" else NARROW_PX):
            st.image(data, caption=name, width="stretch")
    st.subheader("Errors")
    st.markdown(f"{training.wrong} of {training.units} wrong; the largest errors:")
    show_table(training.worst)
