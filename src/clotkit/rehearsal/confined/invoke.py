"""Ask a container's server for one job, as the platform does.

This program runs inside, as there is no network. It starts the entry point, waits for GET /health to answer 200, sends
POST /invoke, and ends with 0 if that answers 201.
"""

import subprocess
import sys
import time
import urllib.error
import urllib.request

ADDRESS = "http://127.0.0.1:4743"
HEALTH_TRIES, HEALTH_PAUSE_S = 150, 1.0  # the platform's are 30 of 5 seconds
ENTRY = [sys.executable, "-m", "clotkit.containers.entry"]


def ask(method: str, path: str) -> int:
    """Return the status of the answer; 0 for none."""
    try:
        with urllib.request.urlopen(urllib.request.Request(ADDRESS + path, method=method)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def main() -> int:
    """Start the server, do the job, end the server."""
    with subprocess.Popen(ENTRY) as server:
        try:
            tries = (ask("GET", "/health") for _ in range(HEALTH_TRIES))
            while next(tries, 200) != 200 and server.poll() is None:
                time.sleep(HEALTH_PAUSE_S)
            status = ask("POST", "/invoke")
        finally:
            server.terminate()
    print(f"POST /invoke answered {status}", flush=True)
    return int(status != 201)


if __name__ == "__main__":
    sys.exit(main())
