"""Run one peer on one slide, in the peer's environment: nothing here imports clotkit."""
