"""Page Classify: upload pictures or slides; see each one's label, probabilities and heat map."""

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from clotkit.app.escaping import escaped, escaped_reason, without_images
from clotkit.app.pages.common import Shared, choose_member, load_once, show_bars, show_picture, upload_of
from clotkit.app.samples import samples_for
from clotkit.app.training import card_of
from clotkit.app.uploads import MOST_UPLOAD_MB, MOST_UPLOADS, Answer, Upload, classify
from clotkit.competitions import Competition
from clotkit.evaluation.evaluate import LoadedMember

ANSWERS = "answers"  # session state: the last batch and its answers, so that no click predicts again
Samples = Callable[[str, str, Competition], dict[str, bytes]]
samples_once: Samples = st.cache_resource(show_spinner="Drawing samples …")(samples_for)


def show(shared: Shared) -> None:
    """Draw the page."""
    folder = choose_member(shared.members, "Classifier", "classifier")
    member = load_once(folder)
    kinds = "slides (TIFF)" if member.recipe.data.source == "slides" else "pictures (PNG, JPEG, TIFF, WebP, BMP, GIF)"
    files = st.file_uploader(
        f"Upload {kinds}: at most {MOST_UPLOADS} at a time, {MOST_UPLOAD_MB} MB each",
        accept_multiple_files=True,
        key=f"files {folder.name}",
    )
    samples = samples_once(folder.name, member.recipe.data.source, shared.competition)
    chosen = _choose_samples(list(samples), folder.name)
    uploads = [*map(upload_of, files), *(Upload(name, samples[name]) for name in chosen)]
    if uploads:
        key = (folder.name, *(file.file_id for file in files), *chosen)
        _show_all(_answers(key, member, uploads, shared.competition))
    with st.expander("Model card"):
        st.markdown(without_images(card_of(folder)) or "This member has no model card.")


def _choose_samples(names: Sequence[str], member: str) -> list[str]:
    if not names:
        return []
    st.markdown("Or try synthetic samples (no patient data):")
    return [name for name in names if st.checkbox(name, key=f"sample {member} {name}")]


def _answers(
    key: tuple[str, ...], member: LoadedMember, uploads: Sequence[Upload], competition: Competition
) -> list[Answer]:
    """Return the answers of a batch; they are kept in the session until another batch comes."""
    kept: tuple[Any, list[Answer]] | None = st.session_state.get(ANSWERS)
    if kept is not None and kept[0] == key:
        return kept[1]
    bar = st.progress(0.0, text=f"0 of {len(uploads)}")
    answers = classify(
        member, uploads, competition, lambda done, total: bar.progress(done / total, text=f"{done} of {total}")
    )
    bar.empty()
    st.session_state[ANSWERS] = (key, answers)
    return answers


def _show_all(answers: Sequence[Answer]) -> None:
    refused = sum(answer.refused is not None for answer in answers)
    st.subheader(f"{len(answers) - refused} classified, {refused} refused")
    for answer in answers:
        with st.container(border=True):
            _show_answer(answer)


def _show_answer(answer: Answer) -> None:
    st.markdown(f"**{escaped(answer.name)}**")
    if answer.refused is not None:
        st.error(f"Refused: {escaped_reason(answer.refused.sentence)}")
        return
    left, middle, right = st.columns(3)
    with left:
        show_picture(answer.picture, "Picture")
    with middle:
        show_picture(answer.heat, "Heat map on the tile with the highest probability: yellow counts most")
    with right:
        st.markdown(f"Answer: **{escaped(answer.label)}**")
        show_bars(answer.probabilities)
        st.caption(f"Read in {answer.seconds:.1f} s with {answer.peak_mb:.0f} MB")
        for note in answer.notes:
            st.warning(escaped_reason(note))
