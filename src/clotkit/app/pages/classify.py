"""Page Classify: pictures or slides in; label, probabilities and where the network looked out."""

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from clotkit.app.pages.common import Shared, bars, choose_member, load_once, picture, taken
from clotkit.app.samples import samples_for
from clotkit.app.text import plain, without_pictures
from clotkit.app.training import card_of
from clotkit.app.work import MOST_UPLOAD_MB, MOST_UPLOADS, Finding, Upload, classify
from clotkit.competitions import Competition
from clotkit.evaluation.evaluate import Asked

ANSWERS = "answers"  # in the session: of the last batch, so that no click asks again
Samples = Callable[[str, str, Competition], dict[str, bytes]]
drawn_once: Samples = st.cache_resource(show_spinner="Drawing samples …")(samples_for)


def show(shared: Shared) -> None:
    """Draw the page."""
    folder = choose_member(shared.members, "Classifier", "classifier")
    asked = load_once(folder)
    wanted = "slides (TIFF)" if asked.recipe.data.source == "slides" else "pictures (PNG, JPEG, TIFF, WebP, BMP, GIF)"
    files = st.file_uploader(
        f"Your {wanted}: at most {MOST_UPLOADS} at a time, {MOST_UPLOAD_MB} MB each",
        accept_multiple_files=True,
        key=f"files {folder.name}",
    )
    samples = drawn_once(folder.name, asked.recipe.data.source, shared.competition)
    chosen = _samples(list(samples), folder.name)
    uploads = [*map(taken, files), *(Upload(name, samples[name]) for name in chosen)]
    if uploads:
        key = (folder.name, *(file.file_id for file in files), *chosen)
        _show_all(_answers(key, asked, uploads, shared.competition))
    with st.expander("Model card"):
        st.markdown(without_pictures(card_of(folder)) or "This member has no card.")


def _samples(names: Sequence[str], member: str) -> list[str]:
    if not names:
        return []
    st.markdown("Or samples that were drawn by this kit, no patient's:")
    return [name for name in names if st.checkbox(name, key=f"sample {member} {name}")]


def _answers(key: tuple[str, ...], asked: Asked, uploads: Sequence[Upload], competition: Competition) -> list[Finding]:
    """The answers of a batch: worked out once, kept until another batch comes."""
    kept: tuple[Any, list[Finding]] | None = st.session_state.get(ANSWERS)
    if kept is not None and kept[0] == key:
        return kept[1]
    bar = st.progress(0.0, text=f"0 of {len(uploads)}")
    found = classify(
        asked, uploads, competition, lambda done, total: bar.progress(done / total, text=f"{done} of {total}")
    )
    bar.empty()
    st.session_state[ANSWERS] = (key, found)
    return found


def _show_all(found: Sequence[Finding]) -> None:
    refused = sum(bool(one.refused) for one in found)
    st.subheader(f"{len(found) - refused} answered, {refused} refused")
    for one in found:
        with st.container(border=True):
            _show_one(one)


def _show_one(one: Finding) -> None:
    st.markdown(f"**{plain(one.name)}**")
    if one.refused or one.picture is None or one.heat is None:
        st.error(f"Not read: {plain(one.refused, 400)}")
        return
    left, middle, right = st.columns(3)
    with left:
        picture(one.picture, "The picture")
    with middle:
        picture(one.heat, "Where the network looked, on the tile that spoke loudest: yellow most")
    with right:
        st.markdown(f"Answer: **{plain(one.label)}**")
        bars(one.probabilities)
        st.caption(f"{one.seconds:.1f} s, {one.peak_mb:.0f} MB to read it")
        for note in one.notes:
            st.warning(plain(note, 400))
