"""The application's navigation, and the parts that every page has."""

import sys
from collections.abc import Callable
from functools import partial

import streamlit as st

from clotkit.app.escaping import escaped_reason
from clotkit.app.pages import classify, slides, submission, training
from clotkit.app.pages.common import Shared
from clotkit.app.roots import Roots
from clotkit.app.serve import from_argument
from clotkit.competitions import load_competition
from clotkit.errors import ClotkitError
from clotkit.members.folder import find_members

PAGES: dict[str, Callable[[Shared], None]] = {
    "Classify": classify.show,
    "Slides": slides.show,
    "Submission": submission.show,
    "Training": training.show,
}


def main() -> None:
    """Draw the page that the visitor is on."""
    st.set_page_config(page_title="clotkit", layout="wide", initial_sidebar_state="auto")
    pages = [
        st.Page(partial(_page, name), title=name, url_path=name.lower(), default=not number)
        for number, name in enumerate(PAGES)
    ]
    st.navigation(pages).run()


def _page(name: str) -> None:
    st.title(name)
    st.markdown("**Not for clinical use.**")
    try:
        PAGES[name](_shared())
    except ClotkitError as error:
        st.error(escaped_reason(error))


def _shared() -> Shared:
    settings = from_argument(sys.argv)
    members = {folder.name: folder for folder in find_members(settings.weights)}
    return Shared(members, Roots.of(settings.roots), load_competition(settings.competition))
