"""The settings of a container, which travel in it as a JSON file. Standard library only."""

import argparse
import json
import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from clotkit.errors import ConfigError, UsageError
from clotkit.files import atomic_write_json
from clotkit.typed_toml import typed

CONFIG = "container.json"
FACTS = "clotkit.json"  # how a job ended, beside the values of the output sockets
SLUG = re.compile(r"[A-Za-z0-9_-]+")
PROCESSES, SHARED_MB = 256, 128  # the platform's limits on processes and threads, and on /dev/shm
LEAST_S, LEAST_MB = 60, 1_024  # with less, TensorFlow and the members are not even loaded


class Api(StrEnum):
    """Ways to ask for a job, as the image's label org.grand-challenge.api-method spells them."""

    EXEC = "exec"  # the container is started for each job, and ends with it
    INVOKE = "invoke"  # it serves GET /health and POST /invoke on port 4743


@dataclass(frozen=True)
class ContainerConfig:
    """The settings of a container. Raises ConfigError for a socket that cannot be one."""

    competition: str  # the name of its TOML in the kit
    # Slugs of the sockets whose images are slides; empty: every one without "mask" in its slug, or the only one.
    images: tuple[str, ...] = ()
    probability: str = "probability"  # slug of the socket that gets the probabilities
    number_of: str = ""  # its value is the probability of this class; empty: an object with that of every class
    label: str = "label"  # slug of the socket that gets the label; empty: none
    api: Api = Api.EXEC
    time_limit_s: float = 3_600  # of one job
    memory_mb: int = 16_384  # of the container

    def __post_init__(self) -> None:
        outputs = [self.probability, *([self.label] if self.label else [])]
        for slug in (*self.images, *outputs):
            if not SLUG.fullmatch(slug):
                raise ConfigError(f"{slug!r} is not the slug of a socket: letters, digits, - and _ are needed")
        if len({*outputs, Path(FACTS).stem}) <= len(outputs):
            raise ConfigError(f"sockets {', '.join(outputs)}: two would be one file, or {FACTS}; name another")


def config_of(arguments: argparse.Namespace) -> ContainerConfig:
    """Return the settings that the options of the command line make.

    Raises UsageError for too small a limit, ConfigError for a socket that cannot be one.
    """
    if arguments.time_limit < LEAST_S:
        raise UsageError(f"--time-limit: {arguments.time_limit:g} s; at least {LEAST_S} s are needed")
    if arguments.container_memory < LEAST_MB:
        raise UsageError(f"--container-memory: {arguments.container_memory} MB; at least {LEAST_MB} MB are needed")
    return ContainerConfig(
        competition=arguments.competition,
        images=tuple(arguments.image_socket),
        probability=arguments.probability_socket,
        number_of=arguments.number_of,
        label=arguments.label_socket,
        api=Api(arguments.api),
        time_limit_s=arguments.time_limit,
        memory_mb=arguments.container_memory,
    )


def read_config(path: Path) -> ContainerConfig:
    """Return the settings in a file. Raises ConfigError if they cannot be read or are wrong."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not the settings of a container: {error}") from error
    return typed(ContainerConfig, raw, str(path))


def write_config(path: Path, config: ContainerConfig) -> None:
    """Write the settings to a file."""
    atomic_write_json(path, asdict(config))
