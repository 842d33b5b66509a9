"""The devices that training computes on, in this process and in others: copies of a network that learn as one.

A team is the copies, its replicas. Every global batch is parted among them, and what they find is summed: by
TensorFlow's MirroredStrategy or MultiWorkerMirroredStrategy. On JAX it is Keras's DataParallel, and no team.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clotkit.errors import ClotkitError, ClusterError, UsageError, one_line
from clotkit.members.loading import ENVIRONMENT, MIXED_FLOAT16, quiet, start_keras
from clotkit.progress import Log
from clotkit.training.rendezvous import ended_within, is_address, meet

WAIT_S = 1800.0  # for other workers: a queue's jobs start minutes apart
CLUSTER = "TF_CONFIG"  # the environment variable that TensorFlow, and what starts its workers, use
EXAMPLE = '{"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}'


@dataclass(frozen=True)
class Team:
    """Who trains a network: `here` copies of it in this process, which is number `worker` of `workers` processes.

    `strategy` is TensorFlow's, None where Keras does it alone. Worker 0 is the chief: it writes the member.
    """

    strategy: Any = None
    worker: int = 0
    workers: int = 1
    here: int = 1

    @property
    def replicas(self) -> int:
        """The copies of the network in all processes."""
        return self.here * self.workers

    @property
    def is_chief(self) -> bool:
        """Whether this process writes what all of them have learned."""
        return self.worker == 0

    def gathered(self, numbers: Sequence[int]) -> npt.NDArray[np.int64]:
        """The numbers of every worker, int64[workers, k]; every worker waits here for all others."""
        rows = np.zeros((self.workers, len(numbers)), np.int64)
        rows[self.worker] = numbers
        return rows if self.workers == 1 else self._summed(rows)

    def _summed(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        import tensorflow

        def of(replica: Any) -> Any:
            first = replica.replica_id_in_sync_group % self.here == 0
            return tensorflow.constant(rows if first else np.zeros_like(rows))

        each = self.strategy.experimental_distribute_values_from_function(of)
        return np.asarray(self.strategy.reduce("SUM", each, axis=None), np.int64)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make one line of what TensorFlow says when another worker is gone. Raises ClusterError."""
        try:
            yield
        except Exception as error:
            if self.workers == 1 or not is_of_the_cluster(error):
                raise
            raise ClusterError(
                f"worker {self.worker} of {self.workers}: another worker is gone; start all of them again with "
                f"the same command: they go on from the last epoch that all have ({_reason(error)})"
            ) from error


@contextmanager
def training(devices: Sequence[str] | None = None, team: Team | None = None) -> Iterator[None]:
    """Networks that are built and fitted inside use the `devices` (Keras's names; None: every GPU, else the CPU).

    They are a `team`'s, where that has a strategy; on JAX several get a share of each batch by Keras's DataParallel.
    On a GPU layers compute in half precision. Raises UsageError for several devices on another backend.
    """
    import keras

    names = list(devices or keras.distribution.list_devices())
    before = keras.config.dtype_policy()
    if names[0].startswith(("gpu", "cuda")):
        keras.config.set_dtype_policy(MIXED_FLOAT16)
    try:
        with _spread(names) if team is None or team.strategy is None else team.strategy.scope():
            yield
    finally:
        keras.config.set_dtype_policy(before)


@contextmanager
def _spread(names: Sequence[str]) -> Iterator[None]:
    import keras

    backend = keras.backend.backend()
    if len(names) > 1 and backend not in {"jax", "tensorflow"}:
        raise UsageError(f"backend {backend}: {len(names)} devices; on several, tensorflow or jax is needed")
    several = len(names) > 1 and backend == "jax"
    with keras.distribution.DataParallel(devices=list(names)).scope() if several else nullcontext():
        yield


def gather_team(strategy: str, log: Log = lambda _: None, wait_s: float = WAIT_S) -> Team:
    """Start Keras, and whoever trains by the recipe's key training.strategy.

    mirrored: a copy on every device of this process, GPUs or else CPUs. auto: the same where there are several, and
    Keras alone on one device or another backend. multi_worker: the processes that TF_CONFIG names; they have `wait_s`
    seconds to come, and as many to make a cluster in TensorFlow, which SIGALRM ends then.
    Raises UsageError for a TF_CONFIG that is missing or says something else, or for another backend than TensorFlow;
    ClusterError where the workers cannot be had.
    """
    if strategy == "multi_worker":
        addresses, index = read_cluster(os.environ.get(CLUSTER))
        return _of_workers(addresses, index, wait_s, log)
    start_keras()
    if strategy == "mirrored":
        _check_backend(strategy)
        return _mirrored()
    import keras

    several = len(keras.distribution.list_devices()) > 1
    return _mirrored() if several and keras.backend.backend() == "tensorflow" else Team()


def _mirrored() -> Team:
    import tensorflow

    devices = tensorflow.config.list_logical_devices("GPU") or tensorflow.config.list_logical_devices("CPU")
    strategy = tensorflow.distribute.MirroredStrategy([device.name for device in devices])
    return Team(strategy, here=len(devices))


def _of_workers(addresses: Sequence[str], index: int, wait_s: float, log: Log) -> Team:
    """The strategy of several processes; it has to be made before anything is computed."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    _check_backend("multi_worker")
    meet(addresses, index, wait_s, log)
    told = "SIGALRM ends this one if TensorFlow has no cluster of them within"
    log(f"all {len(addresses)} workers answer; {told} {wait_s:g} s")
    try:
        with quiet(), ended_within(wait_s):
            import tensorflow

            strategy = tensorflow.distribute.MultiWorkerMirroredStrategy()
    except Exception as error:
        raise ClusterError(
            f"worker {index} of {len(addresses)}, at {addresses[index]}: no cluster came of it: {one_line(error)}; see "
            f"whether the port is free, and {CLUSTER}"
        ) from error
    start_keras()
    return Team(strategy, index, len(addresses), strategy.num_replicas_in_sync // len(addresses))


def _check_backend(strategy: str) -> None:
    with quiet():
        import keras
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise UsageError(f"backend {backend}: training.strategy is {strategy!r}, which takes tensorflow; or say 'auto'")


def read_cluster(text: str | None) -> tuple[tuple[str, ...], int]:
    """The workers' addresses that a TF_CONFIG names, and the number of this one.

    Raises UsageError where it is missing, or is not what TensorFlow takes for workers.
    """
    needed = f'training.strategy "multi_worker" needs {EXAMPLE} in it'
    if not text:
        raise UsageError(f"{CLUSTER} is not set; {needed}")
    try:
        told = json.loads(text)
        addresses, task = told["cluster"]["worker"], told["task"]
        kind, index = task["type"], task["index"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{CLUSTER} cannot be read: {type(error).__name__}: {one_line(error)}; {needed}") from error
    named = isinstance(addresses, list) and all(isinstance(one, str) and is_address(one) for one in addresses)
    if not named or len(set(addresses)) != len(addresses) or set(told["cluster"]) != {"worker"}:
        raise UsageError(
            f"{CLUSTER}: cluster is {json.dumps(told['cluster'])}; allowed: a list of different workers, each with a "
            f"port of 1 to 65535; {needed}"
        )
    if kind != "worker" or type(index) is not int or not 0 <= index < len(addresses):
        raise UsageError(
            f"{CLUSTER}: task is {json.dumps(task)}; allowed: type worker, index 0 to {len(addresses) - 1}; {needed}"
        )
    return tuple(addresses), index


def is_of_the_cluster(error: BaseException) -> bool:
    """Whether TensorFlow raised it because a worker, or the way to it, is gone."""
    if isinstance(error, ClotkitError):
        return False
    from tensorflow import errors

    kinds = (errors.UnavailableError, errors.AbortedError, errors.CancelledError, errors.DeadlineExceededError)
    return isinstance(error, kinds) or "Collective ops is aborted" in str(error)


def _reason(error: BaseException) -> str:
    """The line that says what happened, of the many of a TensorFlow error."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = next((line for line in lines if "aborted" in line), lines[-1] if lines else "")
    return f"{type(error).__name__}: {said[:160]}"
