"""The inputs of a run: its slides, the patients of the sample submission, and the members."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

from clotkit.competitions import Competition
from clotkit.config import load_recipe, missing_facts
from clotkit.errors import ClotkitError, ConfigError, SplitError, UsageError, one_line
from clotkit.files import sha256
from clotkit.looking import ANSWER_S, with_sizes
from clotkit.members.encoders.folder import encoder_place
from clotkit.members.encoders.loading import load_member
from clotkit.members.ensemble import ENSEMBLE, Ensemble, read_ensemble
from clotkit.members.folder import RECIPE, check_trained_for, find_members
from clotkit.members.loading import Member
from clotkit.progress import Log
from clotkit.reasons import Cause, Reason, TableRepair
from clotkit.scoring.settings import RunSettings
from clotkit.scratch import scratch
from clotkit.splits import Sample, SlideRow, in_store, read_sample, read_slides, row_id
from clotkit.stores import Place, store_of
from clotkit.units import many


@dataclass(frozen=True)
class Inputs:
    """The slides, patients and member folders of a run; nothing heavy is loaded yet."""

    slides: Sequence[SlideRow]
    sample: Sample  # the mould of the submission
    row_of: dict[str, str]  # by slide, the id of the submission's row that it counts for
    ensemble: Ensemble | None
    folders: Sequence[Path]  # of the members
    ensemble_sha256: str | None
    key: str  # changes with the competition and the weights
    without: tuple[str, ...] = ()  # members that the user left out

    @cached_property
    def patient_of(self) -> dict[str, str]:
        """The patient of each slide."""
        return {slide.image_id: slide.patient_id for slide in self.slides}

    @cached_property
    def facts_of(self) -> dict[str, Mapping[str, str]]:
        """The cells of each slide's row in the table, by column."""
        return {slide.image_id: slide.facts for slide in self.slides}

    @cached_property
    def repairs_of(self) -> dict[str, tuple[TableRepair, ...]]:
        """The repairs of each slide's row in the table; slides without one are left out."""
        return {slide.image_id: slide.repairs for slide in self.slides if slide.repairs}


def read_inputs(settings: RunSettings, competition: Competition, log: Log) -> Inputs:
    """Read the tables of the split and find the members.

    Raises SplitError or ConfigError if a table or the folder of members is wrong, or nothing of the table is there.
    """
    slides = read_slides(settings.split_dir, "test", competition, log)
    slides = in_store(slides, settings.split_dir, settings.source or settings.split_dir, competition)
    slides = with_sizes(slides, log, min(ANSWER_S, settings.deadline_s / 10))
    sample = read_sample(competition.sample_path(settings.split_dir), competition)
    row_of = {slide.image_id: row_id(slide, competition) for slide in slides}
    _check_some_match(slides, row_of, sample.ids, settings, competition)
    ensemble, folders = find_ensemble(settings.weights_dir, competition, settings.without)
    if not settings.without_missing:
        check_complete(settings.weights_dir, ensemble, folders, settings.without)
    check_trained_for(folders, competition.slug)
    path, without = settings.weights_dir / ENSEMBLE, tuple(settings.without)
    digest = sha256(path) if path.is_file() else None
    return Inputs(slides, sample, row_of, ensemble, folders, digest, _key(competition, folders, digest), without)


def _check_some_match(
    slides: Sequence[SlideRow],
    row_of: dict[str, str],
    ids: Sequence[str],
    settings: RunSettings,
    competition: Competition,
) -> None:
    """Raise SplitError if every patient would get the fallback: no slide is there, or of the sample."""
    table, sample = competition.table_path(settings.split_dir, "test"), competition.sample_path(settings.split_dir)
    if not any(row in ids for row in row_of.values()):
        raise SplitError(
            f"{table}: none of its {many(len(slides), 'slide')} has its {competition.submission.id} in {sample.name}: "
            f"row {slides[0].row} is of {row_of[slides[0].image_id]}, the sample begins with {ids[0]}; use the tables "
            "of one split"
        )
    folder = slides[0].path.parent
    others = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    names = set(others)  # a look at a file may never return
    if others and not any(slide.stored or slide.path.parent != folder or slide.path.name in names for slide in slides):
        raise SplitError(
            f"{table}: none of its {many(len(slides), 'slide')} is in {folder}: row {slides[0].row} would be "
            f"{slides[0].path.name}, the folder has {', '.join(others[:3])}; correct the ids, or put the slides there"
        )


def _key(competition: Competition, folders: Sequence[Path], ensemble_sha256: str | None) -> str:
    """Return a hash of the competition, the weights and their encoders: a report belongs to one such key."""
    parts, encoders = [competition.slug], list[Path]()
    for folder in folders:
        with suppress(ConfigError):  # without its encoder a member is left out when it is loaded
            if (name := _encoder_of(folder)) is not None:
                encoders.append(encoder_place(folder, name))
    for folder in dict.fromkeys((*folders, *encoders)):
        paths = [folder] if folder.is_file() else sorted(folder.iterdir())  # a backbone is one file
        parts += [f"{path.name} {sha256(path)} {folder.name}" for path in paths if path.is_file()]
    parts += filter(None, [ensemble_sha256])
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def _encoder_of(member: Path) -> str | None:
    """Return the name of a member's encoder, None without one; a damaged member is left out later."""
    with suppress(ConfigError):
        encoder = load_recipe(member / RECIPE).encoder if (member / RECIPE).is_file() else None
        return None if encoder is None else encoder.name
    return None


def find_ensemble(
    weights_dir: Path, competition: Competition, without: Sequence[str] = ()
) -> tuple[Ensemble | None, list[Path]]:
    """Return the fitted ensemble of a folder and the folders of its members, but for those of `without`.

    If there is no ensemble every other member folder is returned.

    Raises ConfigError if there is no member, or an ensemble that cannot be read or has none of its members, and
    UsageError for a name of `without` that is none of theirs.
    """
    ensemble, folders = read_ensemble(weights_dir, competition), find_members(weights_dir)
    names = [folder.name for folder in folders] if ensemble is None else list(ensemble.blend.members)
    if strangers := [name for name in without if name not in names]:
        raise UsageError(f"--without {strangers[0]}: no such member; the members are {', '.join(names)}")
    folders = [folder for folder in folders if folder.name not in without]
    if not folders:
        raise ConfigError(f"{weights_dir}: 0 members are left without {', '.join(without)}; at least 1 is needed")
    if ensemble is None:
        return None, folders
    wanted = ensemble.blend.members
    present = [folder for folder in folders if folder.name in wanted]
    if not present:
        raise ConfigError(
            f"{weights_dir / ENSEMBLE}: blends {', '.join(wanted)}; the folder has "
            f"{', '.join(folder.name for folder in folders)}; put the ensemble's members there"
        )
    return ensemble, present


def check_complete(
    weights_dir: Path, ensemble: Ensemble | None, folders: Sequence[Path], without: Sequence[str] = ()
) -> None:
    """Raise ConfigError if a member lacks its encoder, or the ensemble counts on one that has no folder.

    Members that are left out on purpose, `without`, may be missing.
    """
    for folder in folders:
        name = _encoder_of(folder)
        if name is not None:
            encoder_place(folder, name)
    allowed = {*(folder.name for folder in folders), *without}
    shares = {} if ensemble is None else ensemble.shares
    lacking = {name: share for name, share in shares.items() if share and name not in allowed}
    if lacking:
        listed = ", ".join(f"{name} (weight {share:.2f})" for name, share in lacking.items())
        words = " ".join(f"--without {name}" for name in lacking)
        raise ConfigError(
            f"{weights_dir / ENSEMBLE}: blends {many(len(lacking), 'member')} without a folder: {listed}; "
            f"put it there, fit the ensemble without it, or give {words}"
        )


def load_members(inputs: Inputs, competition: Competition, log: Log) -> tuple[list[Member], dict[str, Cause]]:
    """Load the members; return those that loaded, and why each of the others is left out.

    A member that cannot be loaded does not end the run: the remaining members score without it.
    """
    members, left_out, ensemble = list[Member](), dict[str, Cause](), inputs.ensemble
    for name, share in ensemble.shares.items() if ensemble else ():
        if share and name not in {*inputs.without, *(folder.name for folder in inputs.folders)}:
            left_out[name] = Cause(Reason.MISSING, "its folder is missing")
    for folder in inputs.folders:
        try:
            members.append(load_member(folder, competition.classes.names, competition.slug))
        except ClotkitError as error:
            left_out[folder.name] = Cause(error.reason, str(error))
        except Exception as error:  # noqa: BLE001 - a damaged file can make a library raise anything
            left_out[folder.name] = Cause(Reason.FAILED, f"{type(error).__name__}: {one_line(error)}")
    for name, cause in left_out.items():
        log(f"member {name} left out: {cause.sentence}")
    return members, left_out


def with_missing_facts(inputs: Inputs, members: Sequence[Member], log: Log) -> Inputs:
    """Return the inputs with a note on each slide that lacks a column that members or the ensemble use.

    A member uses those of tiling.downsample_if, an ensemble those of `clotkit blend --tabular`.
    """
    tilings = [member.recipe.tiling for member in members]
    uncut = {slide.image_id for slide in inputs.slides if any(missing_facts(one, slide.facts) for one in tilings)}
    if uncut:
        log(f"{many(len(uncut), 'slide')} without a column of tiling.downsample_if, cut at the recipe's downsample")
    average = dict[str, list[str]]()
    if inputs.ensemble is not None:
        missing = {slide.image_id: inputs.ensemble.missing_columns(slide.facts) for slide in inputs.slides}
        average = {image_id: names for image_id, names in missing.items() if names}
    if average:
        names = ", ".join(dict.fromkeys(name for names in average.values() for name in names))
        log(f"{many(len(average), 'slide')} without the ensemble's column {names}, which count as average ones")
    if not (lacking := uncut | average.keys()):
        return inputs
    noted = [
        replace(slide, repairs=(*slide.repairs, TableRepair.NO_FACT)) if slide.image_id in lacking else slide
        for slide in inputs.slides
    ]
    return replace(inputs, slides=noted)


@contextmanager
def local_weights(weights: Place) -> Iterator[Path]:
    """Give the folder of members: `weights` itself, or for a URL a temporary copy.

    Raises StoreError if the object store cannot be read, ConfigError if the URL has no files, or those of one member
    whose encoder lies beside it.
    """
    if isinstance(weights, Path):
        yield weights
        return
    store = store_of(weights)
    with scratch() as parent:
        folder = parent / PurePosixPath(weights).name  # a member's name is that of its folder
        names = store.entries()
        if not names:
            raise ConfigError(f"{weights}: 0 files here; a member's folder is needed, or a folder of members")
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            store.fetch(name, path)
        _check_self_contained(weights, folder)
        yield folder


def _check_self_contained(url: str, member: Path) -> None:
    """Raise ConfigError if the copy of a URL is one member, whose encoder has not been fetched with it."""
    encoder = _encoder_of(member)
    if encoder is not None:
        parent, _, name = url.rpartition("/")
        raise ConfigError(
            f"{url}: {name} is a head over the encoder {encoder}, which lies beside it; give the URL of both, "
            f"{parent}, and --without for each other member there"
        )
