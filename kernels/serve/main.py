"""The serving kernel: answers the batches of a competition's gateway in time, whatever happens.

The bundle builder fills FILES (the kit's modules, as text) and SETTINGS below, and puts the source of `unpack` in place
of its import; the result is the single script that Kaggle runs. This process starts the competition's own inference
server at once and answers; a child process loads the members meanwhile and scores the slides. In the scoring re-run it
serves until it is ended; elsewhere it plays the competition's local gateway, which writes the submission. report.jsonl
has a line for each slide, status.json the state after each batch, for programs.
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clotkit.bundle.unpack import unpack

FILES: dict[str, str] = {}
SETTINGS: dict[str, Any] = {}


def main() -> int:
    """Serve batches; return 0, 1 if there could be no server, or 2 without data."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="clotkit-", ignore_cleanup_errors=True) as scratch:
        code = unpack(FILES, Path(scratch) / "code")
        from clotkit.competitions import load_competition
        from clotkit.reasons import Reason
        from clotkit.serving.discovery import marker
        from clotkit.supervise import Kit, State, Status, find_split, is_rerun, say, supervised

        competition, status = load_competition(SETTINGS["competition"]), Status("serve")
        say(f"clotkit serving kernel on Python {sys.version.split()[0]}, rerun: {'yes' if is_rerun() else 'no'}")
        split = find_split(competition, marker)
        if split is None:
            status.add(Reason.NO_DATA)
            status.write(State.FAILED, started)
            return 2
        status.write(State.STARTED, started)
        kit = Kit(code, Path(scratch) / "wheels")
        return supervised(lambda: serve(competition, split, kit, started, status), status, started)


class Stopped(BaseException):
    """SIGTERM has come."""


def _stop(_number: int, _frame: object) -> None:
    raise Stopped


def serve(competition: Any, split: Path, kit: Any, started: float, status: Any) -> int:
    """Start the inference server, load the members beside it, and answer until the gateway has all."""
    from clotkit.reasons import Reason
    from clotkit.serving.backend import Backend
    from clotkit.serving.discovery import make_server
    from clotkit.serving.predictor import Predictor
    from clotkit.supervise import BATCH_S, WORKING, State, is_rerun, say

    signal.signal(signal.SIGTERM, _stop)
    backend = Backend(lambda: members_command(split, kit, status))
    batch_s = float(os.environ.get(BATCH_S, "0"))  # in a rehearsal
    predictor = Predictor(competition, backend, split, status, started, batch_s)

    def predict(*values: Any, **named: Any) -> Any:
        return predictor.predict(*values, **named)

    try:
        server = make_server(split, competition, predict)
        say(f"{type(server).__name__} is up after {time.monotonic() - started:.1f} s")
        if is_rerun():
            server.serve()
        else:
            play_local_gateway(server, split, competition, status)
    except Stopped:
        status.add(Reason.STOPPED)
        say("SIGTERM: the server is stopped")
    finally:
        predictor.close()
        for temporary in WORKING.glob(".status.*"):  # of a write that a kill cut short
            temporary.unlink()
    status.write(predictor.state if predictor.batches else State.FAILED, started)
    return 0


def play_local_gateway(server: Any, split: Path, competition: Any, status: Any) -> None:
    """Play the local gateway; if it fails, write the fallback, without which nothing can be submitted."""
    from clotkit.console import unforeseen
    from clotkit.reasons import Reason
    from clotkit.serving.discovery import run_local_gateway
    from clotkit.serving.fallback import write_fallback
    from clotkit.supervise import WORKING, say

    try:
        run_local_gateway(server, split, competition)
    except Exception as error:  # noqa: BLE001 - the gateway is the competition's, and this run is not the one that scores
        status.add(Reason.FAILED)
        say(f"the local gateway failed: {unforeseen(error, WORKING)}; serving.data_paths may name its files")
        write_fallback(split, competition)


def members_command(split: Path, kit: Any, status: Any) -> list[str] | None:
    """Install the wheels, and return the command of the process that has the members; None without one."""
    from clotkit.supervise import INPUT, prepare_weights, say

    weights = prepare_weights(split, kit, status)
    if weights is None:
        say(f"no member (recipe.toml) under {INPUT}: attach the weights dataset; every answer is the fallback")
        return None
    say(f"weights: {weights}")
    return [*kit.command("serve", "--weights", str(weights)), "--competition", SETTINGS["competition"]]


if __name__ == "__main__" and (code := main()):  # in a notebook every SystemExit is an error, that of 0 too
    sys.exit(code)
