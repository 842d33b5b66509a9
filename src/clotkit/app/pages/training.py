"""Page Training: how a member came to be, and where it errs."""

import streamlit as st

from clotkit.app.pages.common import Shared, choose_member, listing, training_once
from clotkit.app.text import plain

WIDE_PX, NARROW_PX = 1000, 760  # of a plot, at most


def show(shared: Shared) -> None:
    """Draw the page."""
    found = training_once(choose_member(shared.members, "Member", "trained"))
    st.markdown(plain(found.about, 400))
    st.subheader("Figures, with 95 % intervals")
    listing(found.figures)
    for name, data in found.pictures.items():
        st.subheader(name)
        with st.container(width=WIDE_PX if name == "Curves" else NARROW_PX):
            st.image(data, caption=name, width="stretch")
    st.subheader("Errors")
    st.markdown(f"{found.wrong} of {found.units} wrong; the worst of them:")
    listing(found.worst)
