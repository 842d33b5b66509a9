"""Stand in for the core of `kaggle_evaluation`: the server of a competition, and the way to it.

A rehearsal lays these modules out as the competition's `kaggle_evaluation/core`. They keep to the public interface of
the original (an inference server made with `predict`, `serve`, `run_local_gateway`), not to its bytes on the wire.
"""
