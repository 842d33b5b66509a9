"""Name the folders that each competition has of its own: splits, rehearsals, members to try."""

from pathlib import Path

from clotkit.competitions import DEFAULT

DEMO = Path("weights/demo")  # ships with the kit, for the default competition


def build_path(name: str, competition: str) -> Path:
    """Return build/NAME for the default competition, build/NAME-COMPETITION for another.

    `competition` is a name that ships with the kit, or the path of a .toml.
    """
    stem = competition_stem(competition)
    return Path("build") / (name if stem == DEFAULT else f"{name}-{stem}")


def demo_weights(competition: str) -> Path:
    """Return the members that a kernel is tried with: weights/demo, or those that make trains."""
    return DEMO if competition_stem(competition) == DEFAULT else build_path("weights", competition)


def competition_stem(competition: str) -> str:
    """Return the name of a competition: that of its file, without .toml."""
    return Path(competition).stem if competition.endswith(".toml") else competition
