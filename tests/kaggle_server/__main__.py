"""Run a server until a signal: `python -m tests.kaggle_server [--state DIR] [--file FILE]`."""

import argparse
import signal
from pathlib import Path

from .server import KaggleServer

ENDS = {signal.SIGTERM, signal.SIGINT}


def main() -> None:
    """Print the address (also into a file), wait, and write down what came."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kaggle_server", description="Kaggle on loopback, until SIGTERM or SIGINT."
    )
    parser.add_argument("--state", type=Path, help="folder for the kernels and datasets that came, written at the end")
    parser.add_argument("--file", type=Path, help="file for the address, there once the server listens")
    given = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)  # before there are threads: they inherit it, and none is interrupted
    with KaggleServer(username="alice") as server:
        print(server.endpoint, flush=True)
        if given.file:
            beside = given.file.with_name(f"{given.file.name}.new")
            beside.write_text(f"{server.endpoint}\n", encoding="utf-8")
            beside.replace(given.file)
        signal.sigwait(ENDS)
    if given.state:
        server.save(given.state)


if __name__ == "__main__":
    main()
