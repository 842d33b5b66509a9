"""The base of a competition's inference server."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from clotkit.rehearsal.standin import relay
from clotkit.rehearsal.standin.gateway import Gateway


class InferenceServer:
    """A server of functions, `predict` among them."""

    def __init__(self, *functions: Callable[..., Any]) -> None:
        """Serve `functions`, by their names."""
        self.server, self.path = relay.define_server(*functions)

    def serve(self) -> None:
        """Start the server; in the scoring re-run it blocks until the process is ended."""
        self.server.start()
        if os.environ.get("KAGGLE_IS_COMPETITION_RERUN") is not None:
            self.server.wait_for_termination()

    def run_local_gateway(self, data_paths: Sequence[str] | None = None) -> None:
        """Start the server and play the competition's gateway on the data that is here."""
        self.server.start()
        client = relay.Client(self.path)
        try:
            self._get_gateway_for_test(data_paths).run(client)
        finally:
            client.close()
            self.server.stop(0)

    def _get_gateway_for_test(self, data_paths: Sequence[str] | None = None) -> Gateway:
        """Return the competition's gateway."""
        raise NotImplementedError
