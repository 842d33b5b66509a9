"""Execute a notebook as Kaggle does: `python execute_notebook.py IN.ipynb OUT.ipynb`.

The working folder is that of the notebook. This is a program of the rehearsal's own Python, which lacks the kit. It
prints what the cells print, when they print it, writes the notebook with its outputs, and ends with 1 if a cell raises
an error or the kernel dies.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
SOCKETS = "/tmp"  # the path of a Unix socket has at most 107 characters, and TMPDIR may be longer


class Client(NotebookClient):  # type: ignore[misc]
    """A client that prints every line of the notebook as it comes."""

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        """Print a message of the kernel if it is text, and add it to the notebook."""
        if msg["msg_type"] == "stream":
            print(msg["content"]["text"], end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def main(source: str, target: str) -> int:
    """Execute the notebook `source`, write it with its outputs to `target`, and return the exit code."""
    notebook = nbformat.read(source, as_version=4)
    with tempfile.TemporaryDirectory(prefix="notebook-", dir=SOCKETS) as folder:
        # The kernel of this Python, whatever kernels the system has; over Unix sockets, since the network is off.
        manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            transport="ipc",
            connection_file=f"{folder}/kernel.json",
            ip=f"{folder}/socket",
        )
        client = Client(notebook, km=manager, timeout=None, resources={"metadata": {"path": str(Path.cwd())}})
        client.owns_km = True  # it ends the kernel
        try:
            # What the kernel prints comes as messages, and a second time on its standard output.
            client.execute(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except (CellExecutionError, DeadKernelError) as error:
            print(COLOURS.sub("", str(error)).strip().splitlines()[-1], flush=True)
            return 1
        finally:
            nbformat.write(notebook, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
