"""Look at the files of slides without waiting for one whose disk does not answer.

A process of its own looks, as a thread that waits for a disk cannot be ended. It is small, so that a run of a few
slides does not wait for it.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clotkit import file_state
from clotkit.file_state import State
from clotkit.progress import Log
from clotkit.splits import SlideRow

ANSWER_S = 10.0
END_S = 1.0  # the longest wait for the end of the process
_LEFT_BEHIND: list[subprocess.Popen[bytes]] = []  # referred to, so that Python does not warn that they still run


def with_sizes(slides: Sequence[SlideRow], log: Log, answer_s: float = ANSWER_S) -> list[SlideRow]:
    """Return the slides with the sizes of their files.

    A slide whose file does not answer has none; its own process will find out more.
    """
    local = [slide for slide in slides if slide.stored is None]
    seen = look_at([(slide.path, None) for slide in local], log, answer_s)
    sizes = {slide.image_id: tuple(seen.get(number, ())) for number, slide in enumerate(local)}
    return [replace(slide, size_and_mtime=sizes.get(slide.image_id)) for slide in slides]


def look_at(files: Sequence[tuple[Path, State | str | None]], log: Log, answer_s: float = ANSWER_S) -> dict[int, Any]:
    """Return the answer of each file, by its number, without those that do not answer.

    Args:
        files: Each with its question: None for its size and its time of change, file_state.READ whether it can be
            read, or a known state for file_state.compared.
        log: Gets a line if a process was left behind.
        answer_s: A file that has not been looked at when none was for so long does not answer.
    """
    if not files:
        return {}
    with tempfile.TemporaryFile() as questions:
        for path, question in files:
            questions.write(json.dumps([os.fspath(path.absolute()), question]).encode() + b"\n")
        questions.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", file_state.__file__],
            stdin=questions,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    seen = _answers(process, len(files), answer_s)
    if not _has_ended(process):
        names = ", ".join(path.name for number, (path, _) in enumerate(files) if number not in seen)
        log(f"{names}: the disk does not answer; process {process.pid} does not end when killed and is left behind")
    return seen


def _answers(process: subprocess.Popen[bytes], count: int, answer_s: float) -> dict[int, Any]:
    """Return the answers that come, by number, until all are here or none has come for so long."""
    assert process.stdout is not None
    pipe, poll, text = process.stdout.fileno(), select.poll(), b""
    poll.register(pipe, select.POLLIN)
    while text.count(b"\n") < count and poll.poll(answer_s * 1000):
        part = os.read(pipe, 2**16)
        if not part:
            break
        text += part
    return dict(json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines())


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """End the process, and return whether it has ended."""
    assert process.stdout is not None
    process.stdout.close()
    process.kill()
    until = time.monotonic() + END_S
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    if process.returncode is None:
        _LEFT_BEHIND.append(process)
    return process.returncode is not None
