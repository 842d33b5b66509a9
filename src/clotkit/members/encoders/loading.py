"""Load any member: of networks that see tiles, or of a head over the features of an encoder."""

from pathlib import Path

from clotkit.config import load_recipe
from clotkit.members import loading
from clotkit.members.encoders.network import load_encoded_heads
from clotkit.members.folder import RECIPE
from clotkit.members.loading import Member, member_of, read_checked


def load_member(folder: Path, classes: tuple[str, ...], slug: str | None = None) -> Member:
    """Load a member; see members.loading.load_member, which loads those without an encoder.

    Raises ConfigError as that does, and for an encoder that is missing or another one.
    """
    if not (folder / RECIPE).is_file() or load_recipe(folder / RECIPE).encoder is None:
        return loading.load_member(folder, classes, slug)
    files = read_checked(folder, classes, slug)
    _, heads = load_encoded_heads(folder, files, len(classes))
    return member_of(folder, files, len(classes), heads.predict_on_batch, heads.notes, heads.pooling)
