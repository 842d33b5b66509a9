"""Install each peer with pip into an environment of its own, never into the kit's."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

INSTALL_S = 1800  # time limit of one installation


@dataclass(frozen=True)
class Environment:
    """The packages of one peer."""

    package: str
    version: str
    more: tuple[str, ...] = ()  # what its script needs besides
    dependencies: bool = True  # False: install the packages alone

    @property
    def requirements(self) -> list[str]:
        """Return what pip is to install."""
        return [f"{self.package}=={self.version}", *self.more]


# cuCIM without its CUDA packages, gigabytes that its reader does not use on the CPU.
CUCIM_ON_THE_CPU = ("lazy-loader==0.6", "click==8.5.1")
READING = ("numpy==2.4.6", "pillow==13.0.0")  # for the naive loop
ENVIRONMENTS = {
    "fastslide": Environment("fastslide", "0.8.1", READING),
    "histoslice": Environment("histoslice", "0.6.0"),
    "hs2p": Environment("hs2p[openslide]", "6.1.0"),
    "lazyslide": Environment("lazyslide", "0.13.0"),
    "cucim": Environment("cucim-cu12", "26.10.0", (*READING, *CUCIM_ON_THE_CPU), dependencies=False),
}


def install(name: str, folder: Path, log: Callable[[str], None]) -> Path | str:
    """Return the Python of a peer's environment `folder`/`name`, or one line that says why pip failed.

    An environment with these requirements is taken as it is. pip's output is in `folder`/`name`.log.
    """
    wanted = "\n".join(ENVIRONMENTS[name].requirements)
    python, marker = folder / name / "bin" / "python", folder / name / "installed.txt"
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return python
    log(f"{name}: installing {', '.join(ENVIRONMENTS[name].requirements)}")
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    steps = [
        [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder / name)],
        [*pip, *([] if ENVIRONMENTS[name].dependencies else ["--no-deps"]), *ENVIRONMENTS[name].requirements],
    ]
    with (folder / f"{name}.log").open("w+", encoding="utf-8") as output:
        try:
            for step in steps:
                subprocess.run(step, stdout=output, stderr=subprocess.STDOUT, timeout=INSTALL_S, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            output.seek(0)
            errors = [line.strip() for line in output if line.startswith("ERROR")]
            return (errors or [f"pip ended: {type(error).__name__}"])[-1][:200]
    marker.write_text(wanted, encoding="utf-8")
    return python
