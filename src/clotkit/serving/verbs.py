"""Register the verb `clotkit serve`."""

import argparse
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from clotkit.options import DONE, Result, Verbs, add_slide_limits, add_verb


def register(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    verb = add_verb(
        verbs, "serve", "score batches of slides: a request in JSON a line of the input, a reply a slide in the output"
    )
    verb.add_argument(
        "--weights", type=Path, required=True, metavar="DIR", help="a member, or a folder of members, loaded once"
    )
    add_slide_limits(verb)
    verb.set_defaults(verb=_serve)


def _serve(arguments: argparse.Namespace) -> Result:
    started = time.monotonic()
    replies = os.dup(1)
    os.dup2(2, 1)  # the replies are all that the output has, whatever libraries print
    requests = _Lines()
    from clotkit import forking
    from clotkit.competitions import load_competition
    from clotkit.scoring.settings import RunSettings
    from clotkit.serving.batches import load_scorer, serve
    from clotkit.workers import set_oom_score

    competition = load_competition(arguments.competition)
    settings = RunSettings(
        split_dir=Path(),
        weights_dir=arguments.weights,
        run_dir=Path(),
        deadline_s=competition.serving.deadline_s,
        memory_mb=arguments.memory or competition.limits.slide_memory_mb,
        jobs=arguments.jobs,
        without_missing=True,
    )
    set_oom_score(500)
    forking.prepare()  # while this process imports TensorFlow
    scorer = load_scorer(settings, competition, lambda text: print(text, file=sys.stderr, flush=True))

    answered = refused = 0
    with os.fdopen(replies, "wb") as output, suppress(BrokenPipeError):  # whoever asked may have gone

        def reply(message: dict[str, Any]) -> None:
            output.write(json.dumps(message).encode() + b"\n")
            output.flush()

        emit = arguments.emit if arguments.json else reply
        answered, refused = serve(scorer, requests, emit, time.monotonic() - started)
    return Result(DONE, {"weights": str(arguments.weights), "requests": answered, "refused": refused})


class _Lines:
    """The lines of the input, which a thread reads while members are loaded."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="requests", daemon=True).start()

    def _read(self) -> None:
        try:
            for line in sys.stdin.buffer:
                self._waiting.put(line)
        finally:  # whoever waits must not wait for a thread that has ended
            self._waiting.put(None)

    def __iter__(self) -> Iterator[bytes]:
        while (line := self._waiting.get()) is not None:
            yield line
